"""_jobs - queues between the loop and the threads that may run Python

The loop puts what needs Python (opening a table, asking a slow one, logging a
line) into a queue; a worker takes it, and puts it into the queue of answers,
whose eventfd wakes the loop. A job owns copies of all that it names, except
its table, which the catalog keeps open while the job is out.

Any thread may use a queue; nobody holds its lock for longer than it takes to
link a job. `queue_take` waits without the GIL, at a semaphore: a condition of
glibc before 2.41 may miss a signal (sourceware bug 25847), and a client would
wait with it.
"""

from libc.errno cimport EINTR, errno
from libc.stdlib cimport calloc, free
from posix.unistd cimport close, write

from cpython.ref cimport Py_DECREF, Py_INCREF

from proxymap.base._buf cimport buf_append, buf_append_view, buf_clear, buf_free, view, view_of, view_str
from proxymap.base._clock cimport now_ms, now_ns
from proxymap.base._eager cimport has_looked, is_time_to_look
from proxymap.base._os cimport (
    CLOCK_REALTIME, clock_gettime, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, sched_yield,
    timespec,
)
from proxymap.tables._table cimport Table
from proxymap._words cimport STAT_OK, STAT_RETRY

import os

cdef extern from "<semaphore.h>" nogil:
    int sem_init(sem_t *, int, unsigned int)
    int sem_post(sem_t *)
    int sem_wait(sem_t *)
    int sem_trywait(sem_t *)
    int sem_timedwait(sem_t *, const timespec *)


cdef double FOREVER = 1e9  # seconds

cdef enum:
    LINE_MAX = 2000  # bytes of a log line, where the log cuts; what clients send may be much longer


cdef job *job_new(int kind) noexcept nogil:
    """A job of that kind, all else zero, or NULL without memory."""
    cdef job *j = <job *> calloc(1, sizeof(job))
    if j != NULL:
        j.kind = kind
        j.lent.fd = -1
    return j


cdef void job_free(job *j) noexcept nogil:
    buf_free(&j.name)
    buf_free(&j.key)
    buf_free(&j.value)
    buf_free(&j.lent.rest)
    buf_free(&j.lent.folded)
    free(j)


cdef int queue_put(queue *q, job *j) noexcept nogil:
    """Hand j over; -1 if the queue is full (j is then still the caller's)."""
    if queue_link(q, j) < 0:
        return -1
    queue_wake(q)
    return 0


cdef void queue_wake(queue *q) noexcept nogil:
    """A job is there. Not with the lock held: the taker wants it as soon as it wakes."""
    cdef uint64_t one = 1
    cdef bint asleep
    if q.sleepy:
        pthread_mutex_lock(&q.lock)
        asleep = q.asleep
        q.asleep = False
        pthread_mutex_unlock(&q.lock)
        if not asleep:
            return
    if q.eventfd >= 0:
        write(q.eventfd, &one, sizeof(one))
    else:
        sem_post(&q.more)


cdef int queue_link(queue *q, job *j) noexcept nogil:
    """As queue_put, but the taker is not woken: queue_wake is to follow."""
    pthread_mutex_lock(&q.lock)
    if q.limit and q.held >= q.limit:
        q.lost += 1
        pthread_mutex_unlock(&q.lock)
        return -1
    j.next = NULL
    j.since_ms = now_ms()
    q.last[0] = j
    q.last = &j.next
    q.held += 1
    pthread_mutex_unlock(&q.lock)
    return 0


cdef void queue_return(queue *q, job *j) noexcept nogil:
    """Put a job back that was taken; it is the next to be taken again, and as old as it was."""
    pthread_mutex_lock(&q.lock)
    j.next = q.first
    if q.first == NULL:
        q.last = &j.next
    q.first = j
    q.held += 1
    pthread_mutex_unlock(&q.lock)


cdef bint queue_sleep(queue *q) noexcept nogil:
    """The taker of a sleepy queue goes to sleep, if no job waits; may it?"""
    cdef bint may
    pthread_mutex_lock(&q.lock)
    may = q.asleep = q.first == NULL
    pthread_mutex_unlock(&q.lock)
    return may


cdef job *queue_take_old(queue *q, uint64_t age_ms) noexcept nogil:
    """The oldest job, if it has waited for so long; else NULL."""
    cdef job *j = NULL
    pthread_mutex_lock(&q.lock)
    if q.first != NULL and now_ms() - q.first.since_ms >= age_ms:
        j = unlink_first(q)
        sem_trywait(&q.more)
    pthread_mutex_unlock(&q.lock)
    return j


cdef bint queue_await(queue *q, size_t count, uint64_t ns) noexcept nogil:
    """Do so many jobs wait, at the latest after so many ns? Without going to sleep; others run meanwhile."""
    cdef uint64_t until
    if q.held >= count:
        return True
    until = now_ns() + ns
    while q.held < count and not q.closed and now_ns() < until:
        sched_yield()
    return q.held >= count


cdef job *queue_take(queue *q, double wait) noexcept nogil:
    """The oldest job, or NULL: none came within `wait` seconds, or the queue is closed and empty."""
    cdef job *j
    cdef timespec until
    cdef bint over = wait <= 0
    if 0 < wait < FOREVER:
        clock_gettime(CLOCK_REALTIME, &until)
        until.tv_sec += <long> wait
        until.tv_nsec += <long> ((wait - <long> wait) * 1e9)
        if until.tv_nsec >= 1000000000:
            until.tv_sec += 1
            until.tv_nsec -= 1000000000
    elif q.eager and not over and is_time_to_look(&q.looks):
        has_looked(&q.looks, queue_await(q, 1, NEXT_JOB_NS))
    while True:
        if q.eventfd < 0:
            over = semaphore_wait(q, wait, &until) or wait <= 0
        pthread_mutex_lock(&q.lock)
        j = unlink_first(q) if q.first != NULL else NULL
        if j == NULL and q.closed:
            over = True
            sem_post(&q.more)  # for the next taker
        pthread_mutex_unlock(&q.lock)
        if j != NULL or over:
            return j


cdef bint semaphore_wait(queue *q, double wait, const timespec *until) noexcept nogil:
    """Take one from the semaphore, which has at least one for each job; has the time run out instead?"""
    cdef int failed
    while True:
        if wait <= 0:
            failed = sem_trywait(&q.more)
        elif wait < FOREVER:
            failed = sem_timedwait(&q.more, until)
        else:
            failed = sem_wait(&q.more)
        if not failed or errno != EINTR:
            return failed != 0


cdef inline job *unlink_first(queue *q) noexcept nogil:
    """With the lock held and the queue not empty."""
    cdef job *j = q.first
    q.first = j.next
    if q.first == NULL:
        q.last = &q.first
    q.held -= 1
    return j


cdef void job_answer(job *j, int status, const char *why, queue **woken) noexcept nogil:
    """Hand the job back. why: of RETRY, for a caller who wants to know; NULL: it is not said.

    woken: the queue whose taker is still to be woken, by the caller before it goes to sleep.
    """
    cdef queue *to = j.replies  # once j is there, it is its taker's, who frees it
    if status != STAT_OK:
        buf_clear(&j.value)
    if status == STAT_RETRY and why != NULL:
        buf_clear(&j.name)
        buf_append_view(&j.name, view_str(why))
    j.status = status
    if woken[0] != NULL and woken[0] != to:
        queue_wake(woken[0])
    woken[0] = to
    queue_link(to, j)
    if to.eventfd < 0:
        queue_wake(to)  # each job counts
        woken[0] = NULL


cdef int note_put(queue *notes, int kind, void *about) noexcept nogil:
    """Have a thread that may wait see to something; -1 without memory."""
    cdef job *note = job_new(kind)
    if note == NULL:
        return -1
    note.asker = about
    queue_put(notes, note)
    return 0


cdef void log_line(queue *q, int level, const view *parts, int count) noexcept nogil:
    """Have the parts, joined, logged; lost (and counted) when the logger cannot keep up."""
    cdef job *j = job_new(JOB_LOG)
    cdef size_t room = LINE_MAX
    cdef size_t n
    cdef int i
    if j == NULL:
        return
    j.status = level
    for i in range(count):
        n = min(parts[i].len, room)
        if buf_append(&j.name, parts[i].ptr, n) < 0:
            break
        room -= n
    if queue_put(q, j) < 0:
        job_free(j)


cdef class Queue:
    """Jobs in order. With `wakes_loop`, takers are woken by `eventfd` instead of waiting.

    eager: a job that comes soon after the one before is taken sooner, at the price of some CPU time.
    """

    def __cinit__(self, bint wakes_loop=False, size_t limit=0, bint eager=False):
        pthread_mutex_init(&self.q.lock, NULL)
        sem_init(&self.q.more, 0, 0)
        self.q.first = NULL
        self.q.last = &self.q.first
        self.q.held = 0
        self.q.limit = limit
        self.q.lost = self.q.stood_in = self.q.deferred = 0
        self.q.closed = False
        self.q.eager = eager
        self.q.sleepy = self.q.asleep = False
        self.q.looks.luck = self.q.looks.looks = 0
        self.q.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if wakes_loop else -1
        self.eventfd = self.q.eventfd

    def __dealloc__(self):
        cdef job *j
        while True:
            j = queue_take(&self.q, 0)
            if j == NULL:
                break
            job_free(j)
        if self.q.eventfd >= 0:
            close(self.q.eventfd)

    @property
    def closed(self) -> bool:
        return self.q.closed

    def take(self, double wait=FOREVER):
        """Wait for a job, without the GIL; None after `wait` seconds, or when closed and empty."""
        cdef Job wrapped = Job.__new__(Job)  # first: once a job is taken, nothing may fail
        with nogil:
            wrapped.j = queue_take(&self.q, wait)
        return None if wrapped.j == NULL else wrapped

    @property
    def held(self) -> int:
        """How many jobs wait."""
        return self.q.held

    @property
    def given(self) -> tuple:
        """(old answers that stood in, answers of RETRY) that clients got, so far."""
        return self.q.stood_in, self.q.deferred

    def take_old(self, uint64_t age_ms):
        """A job that has waited for so long, or None."""
        cdef Job wrapped = Job.__new__(Job)
        wrapped.j = queue_take_old(&self.q, age_ms)
        return None if wrapped.j == NULL else wrapped

    def take_all(self, size_t limit, Job first=None) -> list:
        """The jobs that are there, after `first` if that is given; `limit` in all, at most.

        MemoryError: none was taken.
        """
        cdef Job wrapped
        taken = [] if first is None else [first]
        try:
            while <size_t> len(taken) < limit:
                wrapped = Job.__new__(Job)
                taken.append(wrapped)
                wrapped.j = queue_take_old(&self.q, 0)
                if wrapped.j == NULL:
                    taken.pop()
                    break
        except MemoryError:  # those that are left are taken later
            pass
        return taken

    def wait_for(self, size_t count, uint64_t ns):
        """Until so many jobs are there, for so many ns at most; for moments only."""
        with nogil:
            queue_await(&self.q, count, ns)

    def put(self, Job wrapped not None):
        """Hand over a job that was taken elsewhere; the caller must forget it."""
        if wrapped.j == NULL:
            raise ValueError("this job was handed over already")
        if queue_put(&self.q, wrapped.j) == 0:
            wrapped.j = NULL

    def put_all(self, list jobs not None):
        """Hand over some, and wake the loop for all of them once."""
        cdef Job wrapped
        for wrapped in jobs:
            if wrapped.j == NULL:
                raise ValueError("this job was handed over already")
            if queue_link(&self.q, wrapped.j) == 0:
                wrapped.j = NULL
                if self.q.eventfd < 0:
                    queue_wake(&self.q)
        if self.q.eventfd >= 0:
            queue_wake(&self.q)

    def log(self, int level, bytes text not None):
        """Have the taker of this queue log a line."""
        cdef view part = view_of(text, len(text))
        log_line(&self.q, level, &part, 1)

    def close(self):
        """No more waiting: takers get what is left, then None."""
        pthread_mutex_lock(&self.q.lock)
        self.q.closed = True
        pthread_mutex_unlock(&self.q.lock)
        sem_post(&self.q.more)

    def take_lost(self) -> int:
        """How many jobs a full queue refused since the last call."""
        cdef uint64_t lost
        pthread_mutex_lock(&self.q.lock)
        lost = self.q.lost
        self.q.lost = 0
        pthread_mutex_unlock(&self.q.lock)
        return lost


cdef class Job:
    """A job as Python sees it: what is asked, and where the answer goes. An update or delete is a Change."""

    def __dealloc__(self):
        if self.j != NULL:
            job_free(self.j)

    @property
    def kind(self) -> int:
        return self.j.kind

    @property
    def flags(self) -> int:
        return self.j.flags

    @flags.setter
    def flags(self, int flags):
        self.j.flags = flags

    @property
    def status(self) -> int:
        """STAT_*; of a log line LEVEL_*."""
        return self.j.status

    @status.setter
    def status(self, int status):
        self.j.status = status

    @property
    def name(self) -> bytes:
        return self.j.name.data[:self.j.name.end] if self.j.name.end else b""

    @property
    def key(self) -> bytes:
        return self.j.key.data[:self.j.key.end] if self.j.key.end else b""

    @property
    def value(self) -> bytes | None:
        if self.j.kind == JOB_DELETE:
            return None
        return self.j.value.data[:self.j.value.end] if self.j.value.end else b""

    @property
    def cursor(self) -> int:
        return self.j.cursor

    @property
    def first(self) -> bool:
        return self.j.first

    @property
    def settle(self) -> bool:
        """Of an open: may the file still be written to?"""
        return self.j.settle

    @property
    def since_ms(self) -> int:
        """When it was put into its queue, by the clock of now_ms."""
        return self.j.since_ms

    @property
    def table(self):
        """The table that is asked."""
        return <object> self.j.t.owner

    def opened(self, Table table not None):
        """Answer JOB_OPEN; the loop then owns a reference to the table."""
        Py_INCREF(table)
        self.j.t = &table.t

    def closed(self):
        """Drop the loop's reference, for JOB_CLOSE."""
        Py_DECREF(<object> self.j.t.owner)
        self.j.t = NULL

    def answered(self, int status, int flags, bytes key=b"", bytes value=b"", bint of_key=False):
        """Answer a request to a table. of_key: RETRY, since the question itself was refused."""
        self.j.status = status
        self.j.of_key = of_key
        self.j.flags = flags
        buf_clear(&self.j.key)
        buf_clear(&self.j.value)
        if (buf_append_view(&self.j.key, view_of(key, len(key))) < 0
                or buf_append_view(&self.j.value, view_of(value, len(value))) < 0):
            self.j.status = STAT_RETRY

    def given_up(self):
        """An answer of RETRY in place of this job's own, which must not be put anywhere then."""
        cdef Job answer = Job.__new__(Job)
        answer.j = job_new(self.j.kind)
        if answer.j == NULL:
            raise MemoryError
        answer.j.asker = self.j.asker
        answer.j.replies = self.j.replies
        answer.j.shared = self.j.shared
        answer.j.t = self.j.t
        answer.j.flags = self.j.flags
        answer.j.status = STAT_RETRY
        return answer


def attach(Table table not None, Queue asks, Queue changes, crews) -> None:
    """Have the table's jobs go to these queues; `crews`, who work on them, live as long as the table."""
    table.crews = crews, asks, changes  # first: there may be no memory for it
    table.t.asks = NULL if asks is None else <void *> &asks.q
    table.t.changes = NULL if changes is None else <void *> &changes.q


def clock_ms() -> int:
    """Milliseconds of the clock that jobs are stamped with."""
    return now_ms()
