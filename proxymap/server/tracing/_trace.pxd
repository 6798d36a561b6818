# _trace - lookups as they are answered, for those who follow them (see _trace.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport view

cdef enum:
    TRACERS_MAX = 4    # at a time
    TRACE_RING = 1024  # events that wait for their reader; a power of two
    TRACE_TABLE = 160  # bytes that are kept of a table's name,
    TRACE_KEY = 256    # and of a key


cpdef enum:
    FROM_NOBODY = -1  # among FROM_* (metrics/_counters): no table was asked, the request was refused


cdef struct answer:
    # A lookup that is being answered.
    view table
    view key
    int status         # STAT_*
    int source         # FROM_*
    int fd             # the client's connection; -1: it is gone
    uint64_t began_ns  # when it was read, by now_ns


cdef struct event:
    # The same, as it lies in a ring.
    uint64_t when_ns   # the wall clock
    uint64_t took_ns
    int client         # process id; 0: unknown
    int status
    int source
    size_t table_len   # of the whole, of which only so many bytes are here
    size_t key_len
    char table[TRACE_TABLE]
    char key[TRACE_KEY]


cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    typedef volatile uint64_t proxymap_traced;
    #define proxymap_published(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define proxymap_publish(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
    """
    ctypedef uint64_t counter "proxymap_traced"
    uint64_t published "proxymap_published"(const counter *p) nogil  # what the other thread has made known
    void publish "proxymap_publish"(counter *p, uint64_t value) nogil


cdef struct tracer:
    # What one tracer wants to see, and what it has not read yet. The loop writes, one other thread reads.
    view table           # ptr NULL: any
    view key             # the same; without regard to the case of ASCII letters
    uint64_t slow_ns     # only what took so long
    int status           # only this one; -1: any
    uint64_t rate        # events a second; more are left out
    event *ring
    counter written      # events so far
    counter read
    counter left_out     # events that were wanted, and are not in the ring
    uint64_t second_ns   # when the current second began,
    uint64_t in_second   # and what was written in it


cdef struct tracers:
    int count            # of those that follow; 0: nothing is to be done for an answer
    tracer *each[TRACERS_MAX]


cdef bint trace_begin(tracers *all, tracer *t) noexcept nogil
cdef void trace_end(tracers *all, tracer *t) noexcept nogil
cdef void trace_answer(tracers *all, const answer *a) noexcept nogil


cdef class Tracer:
    cdef tracer t
    cdef bytes table
    cdef bytes key
