# _lanes - jobs that wait for a connection, fair between tables (see _lanes.pyx)

from libc.stdint cimport uint64_t

from proxymap.tables._jobs cimport job
from proxymap.tables._table cimport table


cdef struct lanes:
    job *first     # of the lane whose turn is next; its lane leads to the first of the next
    size_t count   # jobs in all lanes


cdef void lanes_put(lanes *l, job *j) noexcept nogil
cdef void lanes_return(lanes *l, job *j) noexcept nogil
cdef job *lanes_take(lanes *l) noexcept nogil
cdef job *lanes_take_old(lanes *l, uint64_t now, uint64_t age_ms) noexcept nogil
cdef uint64_t lanes_oldest_ms(const lanes *l) noexcept nogil
cdef size_t lanes_before(const lanes *l, const table *t) noexcept nogil
