# _accept - takes connections, as long as there are descriptors for them (see _accept.pyx)

from libc.stdint cimport uint64_t

from proxymap.server._client cimport clients, source

cdef struct listening:
    int epoll
    source *listeners
    int count             # of listeners
    bint accepting        # they are watched
    uint64_t resume_ms    # when they will be again, after a pause
    int kept_from         # the descriptors from this number on are kept for tables; 0: none is


cdef int watch_source(int epoll, source *s, int operation) noexcept nogil
cdef void accept_set(listening *l, bint accepting) noexcept nogil
cdef bint accept_is_pausing(const listening *l) noexcept nogil
cdef void accept_resume(listening *l) noexcept nogil
cdef void accept_clients(listening *l, clients *all, source *listener) noexcept nogil
