# _requests - the five requests: which reply does each get? (see _requests.pyx)

from proxymap.base._buf cimport buf
from proxymap._codec cimport scan
from proxymap.server._service cimport service, session

cdef size_t session_read(service *s, session *who, scan *seen, const char *data, size_t len) noexcept nogil
cdef void session_foresee(service *s, session *who) noexcept nogil
cdef int session_serve(service *s, session *who, buf *out) noexcept nogil
