# _asking - an open table is asked on the loop (see _asking.pyx)

from proxymap.base._buf cimport buf, view
from proxymap.server._catalog cimport instance
from proxymap._codec cimport request
from proxymap.server._service cimport service, session
from proxymap.tables._table cimport table

cdef enum:  # may a change be made?
    CHANGE_FITS = 0
    CHANGE_BAD_KEY = 1    # not UTF-8, where it has to be
    CHANGE_BAD_VALUE = 2
    CHANGE_NO_MEMORY = 3


cdef int ask_lookup(
    service *s, session *who, instance *i, view key, int *flags, view *value
) noexcept nogil
cdef int ask_sequence(
    service *s, session *who, instance *i, int function, view *key, view *value
) noexcept nogil
cdef int ask_write(service *s, instance *i, const request *r, int *flags) noexcept nogil
cdef int ask_check(service *s, instance *i, const request *r, int flags, view *key) noexcept nogil
cdef int change_fits(
    const table *t, bint utf8, const request *r, int flags, view *key, buf *scratch
) noexcept nogil
