# _status - what master(8) is told of this process (see _status.pyx)

from libc.stdint cimport uint64_t

cdef struct channel:
    int fd                   # shared with our siblings, and blocking; -1: no master
    unsigned int pid
    unsigned int generation
    bint introduced          # the first pair of messages was sent
    bint taken               # what master was told last
    uint64_t since_ms        # since when that is no longer so; 0: it is


cdef void status_init(channel *c, int fd, unsigned int pid, unsigned int generation) noexcept nogil
cdef void status_watch(channel *c, bint busy, bint served) noexcept nogil
cdef bint status_is_changing(const channel *c) noexcept nogil
