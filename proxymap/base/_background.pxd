# _background - long work in C that takes the CPU from nobody; inline, no GIL
#
# A thread of SCHED_IDLE runs only where a CPU would be idle, and leaves it at once for any thread of its
# cgroup that wakes up there, which no nice value achieves. It cannot come back from that without privileges,
# and gets next to nothing on a busy host: so it is a thread of its own, it has a time limit, and its caller
# does the rest. It should hold no lock that others wait for, the GIL least of all. Allocate before you start
# it: malloc and mmap take locks.
#
# Source: sched(7), sched_setscheduler(2).

from libc.stdint cimport uint64_t

from proxymap.base._clock cimport now_ns
from proxymap.base._os cimport pthread_create, pthread_join, pthread_t

cdef extern from "<sched.h>" nogil:
    ctypedef struct sched_param "struct sched_param":
        int sched_priority
    enum: SCHED_IDLE
    int sched_setscheduler(int, int, const sched_param *)

# Goes on where the last call stopped; False if until_ns (by now_ns; 0: never) came before the end.
ctypedef bint (*long_work)(void *what, uint64_t until_ns) noexcept nogil

cdef struct background:
    long_work work
    void *what
    uint64_t until_ns
    bint finished


cdef inline void *run_idly(void *b) noexcept nogil:
    cdef background *job = <background *> b
    cdef sched_param lowest
    lowest.sched_priority = 0
    sched_setscheduler(0, SCHED_IDLE, &lowest)  # where that is not allowed, it works as any other thread
    job.finished = job.work(job.what, job.until_ns)
    return NULL


cdef inline bint do_idly(long_work work, void *what, uint64_t limit_ns) noexcept nogil:
    """Have the work done, for limit_ns while others need no CPU, then by the caller; was the time enough?"""
    cdef background job
    cdef pthread_t thread
    job.work, job.what, job.until_ns, job.finished = work, what, now_ns() + limit_ns, False
    if limit_ns and pthread_create(&thread, NULL, run_idly, &job) == 0:
        pthread_join(thread, NULL)
    if not job.finished:
        work(what, 0)
    return job.finished
