"""_waiting - jobs of a server: from its queue to a connection, or to an answer without one

Tables take turns (_lanes). A job that will have no answer in time, as things are, is
answered RETRY at once: `shed`. Things are so: the jobs that come before it, times what
a question takes, by the connections there may be; and others have waited for a while
already, so that this is more than a burst. Nor is a question begun shortly before it
would be too late; it would end as a failure of the server. A refresh, for which nobody
waits, is asked only if nobody waits for anything else.

One thread, the driver's; what waits is changed under its lock, see the minder. No GIL.
"""

from libc.stdint cimport uint64_t

from proxymap._words cimport STAT_OK, STAT_RETRY
from proxymap.base._buf cimport buf_view
from proxymap.base._clock cimport now_ms, now_ns
from proxymap.base._os cimport pthread_mutex_lock, pthread_mutex_unlock
from proxymap.metrics._counters cimport LATE, QUEUE_SECONDS, SHED, SLOWER, count_one, count_size
from proxymap.tables._jobs cimport job, job_answer, note_put, queue_take
from proxymap.tables.databases._connection cimport connection
from proxymap.tables.databases._lanes cimport (
    lanes_before, lanes_oldest_ms, lanes_put, lanes_return, lanes_take, lanes_take_old,
)
from proxymap.tables.databases.database cimport database, question, question_begin

cdef enum:
    MEAN_OF = 64  # questions: how fast the mean of what they take forgets
    BURST = 8     # part of the time limit: who waits for longer does not wait for the end of a burst


cdef void waiting_collect(driver *d) noexcept nogil:
    """Take the jobs that have come. Those that cannot be answered in time are answered at once.

    What comes meanwhile is left: it may be from those who were answered here, again and again.
    """
    cdef size_t _
    cdef job *j
    for _ in range(d.asks.held):
        j = queue_take(d.asks, 0)
        if j == NULL:
            return
        if d.refusing:
            d.has_refused = True
            refuse(d, j, b"no server can be reached")
        elif is_hopeless(d, j):
            shed(d, j)
        else:
            pthread_mutex_lock(&d.lock)
            lanes_put(&d.waiting, j)
            pthread_mutex_unlock(&d.lock)


cdef job *waiting_next(driver *d) noexcept nogil:
    """The job to be asked now; NULL if that was answered here instead, or by the minder."""
    cdef job *j
    pthread_mutex_lock(&d.lock)
    j = lanes_take(&d.waiting)
    pthread_mutex_unlock(&d.lock)
    if j == NULL:
        return NULL
    if d.refusing:
        refuse(d, j, b"no server can be reached")
    elif left_us(d, j) < least_us(d):
        shed(d, j)
    else:
        count_size(d.figures, QUEUE_SECONDS, SLOWER, (now_ms() - j.since_ms) * 1000000)
        return j
    return NULL


cdef void waiting_return(driver *d, job *j) noexcept nogil:
    """Ask once more, before all others."""
    pthread_mutex_lock(&d.lock)
    lanes_return(&d.waiting, j)
    pthread_mutex_unlock(&d.lock)


cdef void waiting_late(driver *d, uint64_t now) noexcept nogil:
    """Answer RETRY to jobs that have waited in vain."""
    cdef job *j
    while True:
        pthread_mutex_lock(&d.lock)
        j = lanes_take_old(&d.waiting, now, d.time_limit_ms)
        pthread_mutex_unlock(&d.lock)
        if j == NULL:
            return
        d.late += 1
        count_one(d.figures, LATE)
        job_answer(j, STAT_RETRY, b"no connection in time", &d.woken)


cdef void waiting_learn(driver *d, const connection *c) noexcept nogil:
    """How long the question of c has taken."""
    d.mean_us = (d.mean_us * (MEAN_OF - 1) + (now_ns() - c.began_ns) // 1000) // MEAN_OF


cdef inline uint64_t least_us(const driver *d) noexcept nogil:
    """With less time than this a question is not begun."""
    return min(d.mean_us * 3 // 2, d.time_limit_ms * 500)


cdef inline uint64_t left_us(const driver *d, const job *j) noexcept nogil:
    """Until j is too late."""
    cdef uint64_t age = now_ms() - j.since_ms
    return (d.time_limit_ms - min(age, d.time_limit_ms)) * 1000


cdef bint is_hopeless(driver *d, const job *j) noexcept nogil:
    """Will j be too late when its turn comes? Of a refresh: would it delay anybody?"""
    cdef uint64_t oldest_ms
    cdef size_t before
    pthread_mutex_lock(&d.lock)  # the minder may take what waits, and whom it answers frees it
    oldest_ms = lanes_oldest_ms(&d.waiting)
    before = lanes_before(&d.waiting, j.t)
    pthread_mutex_unlock(&d.lock)
    if j.refresh:
        return oldest_ms != 0 or d.idle == NULL
    if oldest_ms == 0 or now_ms() - oldest_ms < d.time_limit_ms // BURST:
        return False
    return before * d.mean_us // <uint64_t> max(1, min(d.limit, d.allowed)) + least_us(d) > left_us(d, j)


# Answers without a connection

cdef void shed(driver *d, job *j) noexcept nogil:
    j.shed = True
    if not j.refresh:
        d.shed += 1
        count_one(d.figures, SHED)
        if not d.shedding:
            d.shedding = note_put(d.notes, NOTE_SHED, NULL) == 0
    refuse(d, j, b"there would be no answer in time")


cdef void refuse(driver *d, job *j, const char *why) noexcept nogil:
    """The server is not asked. What needs no asking is answered all the same."""
    cdef question q
    cdef int status = question_begin(
        &q, <const database *> j.t.self, buf_view(&j.key), &d.scratch, d.log)
    job_answer(j, STAT_RETRY if status == STAT_OK else status, why, &d.woken)
