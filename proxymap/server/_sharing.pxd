# _sharing - lookups whose answers are shared: by all who ask at once, and later (see _sharing.pyx)

from proxymap.base._buf cimport buf
from proxymap.server._catalog cimport instance
from proxymap.server._flight cimport flight
from proxymap._codec cimport request
from proxymap.tables._jobs cimport job
from proxymap.server._service cimport service, session

cdef int sharing_send(
    service *s, session *who, instance *i, const request *r, int flags, buf *out) noexcept nogil
cdef void sharing_refresh(service *s, instance *i, const request *r, int flags) noexcept nogil
cdef bint sharing_again(service *s, flight *f, const job *j) noexcept nogil
cdef void sharing_landed(service *s, flight *f, job *j) noexcept nogil
cdef void sharing_reply(service *s, const flight *f, const job *j, session *who, buf *out) noexcept nogil
cdef bint sharing_old(service *s, const flight *f, session *who, buf *out) noexcept nogil
