# _fold - case folding and UTF-8 checks of keys and values (see _fold.pyx)

from proxymap.base._buf cimport buf, view

cdef int fold_ascii(view *key, buf *scratch) noexcept nogil
cdef int fold_utf8(view *key, buf *scratch) noexcept nogil
cdef bint utf8_valid(view text) noexcept nogil
