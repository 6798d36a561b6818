# _turn - what is done with the clients that are ready (see _turn.pyx)

from libc.stdint cimport uint32_t

from proxymap.server._client cimport client, clients
from proxymap.tables._jobs cimport job

cdef int client_new(clients *all, int fd) noexcept nogil
cdef void client_noticed(client *c, uint32_t events) noexcept nogil
cdef void clients_serve(clients *all, client **ready, int count) noexcept nogil
cdef void client_answered(clients *all, job *j) noexcept nogil
cdef void clients_landed(clients *all, job *j) noexcept nogil
cdef int clients_patience(const clients *all, int timeout_ms) noexcept nogil
cdef void clients_take_old(clients *all) noexcept nogil
cdef void clients_opened(clients *all, job *j) noexcept nogil
