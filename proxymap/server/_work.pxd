# _work - requests that workers answer (see _work.pyx)

from proxymap.base._buf cimport buf
from proxymap.server._catalog cimport instance
from proxymap._codec cimport request
from proxymap.tables._jobs cimport job
from proxymap.server._service cimport service, session

cdef int work_send(
    service *s, session *who, instance *i, const request *r, int flags, buf *out
) noexcept nogil
cdef void work_answered(service *s, session *who, job *j, buf *out) noexcept nogil
