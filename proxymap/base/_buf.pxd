# _buf - struct view borrows bytes, struct buf owns them; inline functions only
#
# A view dies when the memory behind it is read into again, grown or freed.
# Functions return 0, or -1 when there is no memory. No Python, no GIL.

from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, strlen


cdef struct view:
    const char *ptr
    size_t len


cdef struct buf:
    char *data     # owned; NULL while cap is 0
    size_t start   # first byte not yet consumed
    size_t end     # behind the last byte
    size_t cap     # bytes allocated


cdef inline view view_of(const char *ptr, size_t len) noexcept nogil:
    cdef view v
    v.ptr = ptr
    v.len = len
    return v


cdef inline view view_str(const char *text) noexcept nogil:
    return view_of(text, strlen(text))


cdef inline bint view_equal(view a, view b) noexcept nogil:
    return a.len == b.len and memcmp(a.ptr, b.ptr, a.len) == 0


cdef inline bint view_is(view a, const char *text, size_t len) noexcept nogil:
    return a.len == len and memcmp(a.ptr, text, len) == 0


cdef inline view view_until_nul(view v) noexcept nogil:
    """Postfix's strings end at their first NUL, wherever the table stored one."""
    cdef const char *nul
    if v.len == 0:
        return v
    nul = <const char *> memchr(v.ptr, 0, v.len)
    return v if nul == NULL else view_of(v.ptr, nul - v.ptr)


cdef inline void buf_init(buf *b) noexcept nogil:
    b.data = NULL
    b.start = b.end = b.cap = 0


cdef inline void buf_free(buf *b) noexcept nogil:
    free(b.data)
    buf_init(b)


cdef inline size_t buf_len(const buf *b) noexcept nogil:
    return b.end - b.start


cdef inline view buf_view(const buf *b) noexcept nogil:
    return view_of(b.data + b.start, b.end - b.start)


cdef inline void buf_clear(buf *b) noexcept nogil:
    b.start = b.end = 0


cdef inline void buf_consume(buf *b, size_t n) noexcept nogil:
    b.start += n
    if b.start == b.end:
        b.start = b.end = 0


cdef inline int buf_reserve(buf *b, size_t n) noexcept nogil:
    """Make room for n bytes behind the end: move to the front before growing."""
    cdef size_t held = b.end - b.start
    cdef size_t cap
    cdef char *data
    if b.cap - b.end >= n:
        return 0
    if b.start and b.cap - held >= n:
        memmove(b.data, b.data + b.start, held)
        b.start = 0
        b.end = held
        return 0
    cap = b.cap * 2 if b.cap else 256
    while cap < b.end + n:
        cap *= 2
    data = <char *> realloc(b.data, cap)
    if data == NULL:
        return -1
    b.data = data
    b.cap = cap
    return 0


cdef inline int buf_append(buf *b, const char *ptr, size_t n) noexcept nogil:
    if buf_reserve(b, n) < 0:
        return -1
    if n:
        memcpy(b.data + b.end, ptr, n)
        b.end += n
    return 0


cdef inline int buf_append_view(buf *b, view v) noexcept nogil:
    return buf_append(b, v.ptr, v.len)
