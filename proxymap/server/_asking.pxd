# _asking - an open table is asked on the loop (see _asking.pyx)

from proxymap.base._buf cimport view
from proxymap.server._catalog cimport instance
from proxymap._codec cimport request
from proxymap.server._service cimport service, session

cdef int ask_lookup(
    service *s, session *who, instance *i, view key, int *flags, view *value
) noexcept nogil
cdef int ask_sequence(
    service *s, session *who, instance *i, int function, view *key, view *value
) noexcept nogil
cdef int ask_write(service *s, instance *i, const request *r, int *flags) noexcept nogil
cdef int ask_check(service *s, instance *i, const request *r, int flags, view *key) noexcept nogil
