"""_driver - a thread for all connections of a server, as the pool and Python callers see it

The thread itself is `_drive`. Everything here may be called by any thread.
"""

import os

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport uint64_t
from posix.unistd cimport close as close_fd

from proxymap._words cimport STAT_RETRY
from proxymap.base._buf cimport buf_append, buf_free, view_str
from proxymap.base._clock cimport now_ms
from proxymap.base._os cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, epoll_create1, epoll_ctl, epoll_event, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock,
)
from proxymap.metrics._counters cimport OF_SERVER, Figures, figures_of
from proxymap.tables._jobs cimport (
    JOB_EXPLAIN, JOB_LOOKUP, Job, Queue, job, job_free, job_new, note_put, queue_put, queue_take_old,
)
from proxymap.tables._table cimport Table
from proxymap.tables.databases._budget cimport budget_set
from proxymap.tables.databases._connection cimport Connection, connection, connection_free
from proxymap.tables.databases._drive cimport drive
from proxymap.tables.databases._lanes cimport lanes_take, lanes_take_old
from proxymap.tables.databases._waiting cimport HOSTS_MAX, NOTE_NUDGE
from proxymap.tables.databases.database cimport database

from proxymap.errors import TableRetry

cdef enum:
    LINES_MAX = 1000


cdef class Driver:
    """Drives connections in `run`. asks: the queue for jobs; notes: what it tells the pool."""

    def __cinit__(self):
        self.asks, self.notes, self.log = Queue(wakes_loop=True), Queue(), Queue(limit=LINES_MAX)
        self.d.asks, self.d.notes, self.d.log = &self.asks.q, &self.notes.q, &self.log.q
        self.asks.q.sleepy = True
        self.d.figures = figures_of(OF_SERVER, view_str(b"unnamed"))
        pthread_mutex_init(&self.d.lock, NULL)
        self.d.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.d.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.configure(
            limit=1, time_limit=10, idle_limit=60, age_limit=3600, suspect_after=3, retry_budget=10)

    def __init__(self):
        cdef epoll_event e
        e.events = EPOLLIN
        e.data.ptr = NULL
        if epoll_ctl(self.d.epoll, EPOLL_CTL_ADD, self.asks.eventfd, &e) < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        cdef job *j
        cdef connection *c
        while self.d.arrived != NULL:  # after the driver's end
            c = self.d.arrived
            self.d.arrived = c.next
            c.calls.close(c, False)
            connection_free(c)
        while self.d.waiting.count:
            j = lanes_take(&self.d.waiting)
            job_free(j)
        if self.d.epoll >= 0:
            close_fd(self.d.epoll)
        buf_free(&self.d.scratch)

    def configure(
        self, *, int limit, double time_limit, double idle_limit, double age_limit, double suspect_after,
        double retry_budget,
    ):
        """limit: connections; retry_budget: second tries per 100 answers; the others in seconds.

        suspect_after: a longer question is reported.
        """
        self.d.limit = limit
        self.d.allowed = limit
        self.d.time_limit_ms = <uint64_t> (time_limit * 1000)
        self.d.idle_limit_ms = <uint64_t> (idle_limit * 1000)
        self.d.age_limit_ms = <uint64_t> (age_limit * 1000)
        self.d.suspect_ms = <uint64_t> (suspect_after * 1000)
        budget_set(&self.d.tries, retry_budget, limit)

    def count_in(self, Figures row not None):
        """Count for all processes there."""
        self.d.figures = row.f

    def run(self):
        """Serve, until `stop`; then all connections have ended."""
        with nogil:
            drive(&self.d)
        self.notes.close()

    def stop(self):
        self.d.stopping = True
        self.wake()

    def nudge(self):
        """Have the pool take a turn, as with a note."""
        if note_put(&self.notes.q, NOTE_NUDGE, NULL) < 0:
            raise MemoryError

    def wake(self):
        os.eventfd_write(self.asks.eventfd, 1)

    def add(self, Connection made not None, bint wanted):
        """Take a connection over. wanted: it is one that the driver had asked for."""
        cdef connection *c = made.c
        made.c = NULL
        pthread_mutex_lock(&self.d.lock)
        c.next = self.d.arrived
        self.d.arrived = c
        self.d.open += 1
        self.d.opening -= wanted
        pthread_mutex_unlock(&self.d.lock)
        self.wake()

    def not_opened(self):
        """A connection that was asked for cannot be had."""
        pthread_mutex_lock(&self.d.lock)
        self.d.opening -= 1
        pthread_mutex_unlock(&self.d.lock)
        self.wake()

    def refuse(self, bint refusing):
        """Answer RETRY at once to all that comes; or no longer, and begin with one connection."""
        pthread_mutex_lock(&self.d.lock)
        self.d.refusing = refusing
        if not refusing:
            self.d.allowed = 1
            self.d.successes = 0
        pthread_mutex_unlock(&self.d.lock)
        self.wake()

    def leave(self, int host):
        """End all connections to a host, numbered below 64; what it was asked is asked elsewhere."""
        pthread_mutex_lock(&self.d.lock)
        self.d.down_hosts |= <uint64_t> 1 << host
        pthread_mutex_unlock(&self.d.lock)
        self.wake()

    def tell_when_shedding(self):
        """Have the pool told when the next lookup is shed."""
        self.d.shedding = False

    @property
    def limit(self) -> int:
        """How many connections there may be."""
        return self.d.limit

    @limit.setter
    def limit(self, int limit):
        self.d.limit = limit
        self.d.allowed = limit
        self.wake()

    @property
    def figures(self) -> dict:
        """For the administrator."""
        return {
            "open": self.d.open, "opening": self.d.opening, "busy": self.d.busy,
            "waiting": self.asks.held + self.d.waiting.count,
            "limit": min(self.d.limit, self.d.allowed), "answers": self.d.answers, "retries": self.d.retries,
            "late": self.d.late, "shed": self.d.shed, "mean_ms": self.d.mean_us / 1000,
        }

    def ended(self, Job note not None):
        """Of NOTE_ENDED: the connection, which is the caller's to close, and why (ENDED_*)."""
        cdef Connection made = Connection.__new__(Connection)
        made.c = <connection *> note.j.asker
        note.j.asker = NULL
        return made, made.c.ended_why

    def answers_of(self, int host) -> int:
        """How many questions a host has answered so far."""
        return self.d.answered[host] if 0 <= host < HOSTS_MAX else 0

    def suspected(self, Job note not None):
        """Of NOTE_SUSPECT: which host."""
        return note.j.status

    def take_lines(self) -> list:
        """Warnings for the log."""
        self.d.lines_noted = False
        return [line.name for line in self.log.take_all(LINES_MAX)]

    def attach(self, Table table not None):
        """Have the jobs of a database table come here."""
        (<database *> table.t.self).server = &self.d
        table.t.asks = self.d.asks

    def give_up_late(self, uint64_t limit_ms) -> list:
        """Answer RETRY, in the driver's place, to what is older than that; the tables that were asked."""
        cdef uint64_t now = now_ms()
        cdef connection *c
        cdef job *j
        tables = []
        while True:
            j = self.take_old(now, limit_ms)
            if j == NULL:
                break
            table = <object> j.t.owner
            j.status = STAT_RETRY
            queue_put(j.replies, j)
            tables.append(table)
        pthread_mutex_lock(&self.d.lock)
        try:
            c = self.d.all
            while c != NULL:
                if c.busy and not c.given_up and c.job != NULL and c.job.since_ms + limit_ms <= now:
                    j = answer_for(c.job)
                    if j != NULL:
                        c.given_up = True
                        table = <object> j.t.owner
                        Py_INCREF(table)  # until NOTE_DROP
                        queue_put(j.replies, j)
                        tables.append(table)
                c = c.next
        finally:  # there may be no memory for `tables`
            pthread_mutex_unlock(&self.d.lock)
        return tables

    cdef job *take_old(self, uint64_t now, uint64_t limit_ms):
        """A job that has waited for so long for the driver or a connection, or NULL."""
        cdef job *j = queue_take_old(&self.asks.q, limit_ms)
        if j == NULL:
            pthread_mutex_lock(&self.d.lock)
            j = lanes_take_old(&self.d.waiting, now, limit_ms)
            pthread_mutex_unlock(&self.d.lock)
        return j

    def ask(self, Table table not None, bytes key not None, bint explain=False):
        """Look key up, and wait: (status, value, None or what `explain` tells, see database.explain)."""
        cdef Queue replies = Queue()
        cdef job *j = job_new(JOB_EXPLAIN if explain else JOB_LOOKUP)
        cdef Job answered
        if j == NULL:
            raise MemoryError
        if buf_append(&j.key, key, len(key)) < 0:
            job_free(j)
            raise MemoryError
        j.t, j.replies = &table.t, &replies.q
        Py_INCREF(replies)  # the job names both until its answer is here, whatever happens meanwhile
        Py_INCREF(table)
        queue_put(&self.asks.q, j)
        answered = replies.take(self.d.time_limit_ms / 1000.0 + 1)
        if answered is None:
            raise TableRetry("the driver of the database does not answer")
        Py_DECREF(replies)
        Py_DECREF(table)
        if answered.status == STAT_RETRY:
            raise TableRetry(os.fsdecode(answered.name))
        told = None
        if explain:
            host, _, sql = answered.name.partition(b"\0")
            told = {"host": os.fsdecode(host), "sql": sql, "rows": answered.cursor}
        return answered.status, answered.value, told


cdef job *answer_for(const job *j) noexcept nogil:
    """An answer of RETRY to what j asks; NULL without memory."""
    cdef job *made = job_new(j.kind)
    if made != NULL:
        made.asker, made.shared, made.replies = j.asker, j.shared, j.replies
        made.t, made.flags = j.t, j.flags
        made.status = STAT_RETRY
    return made
