"""_template - compiled templates, run in C

template.py makes a Program of a template's text: pieces of plain text, each
followed by a part of the key or of the value, or by nothing. Filling it is
re-entrant and needs no GIL; quoting is the caller's function, since it may
depend on the connection.
"""

from libc.stdlib cimport calloc, free

from proxymap.base._buf cimport buf, buf_append, buf_append_view, buf_reserve, view, view_of
from proxymap._words cimport STAT_OK, STAT_RETRY

cdef extern from "<string.h>" nogil:
    const void *memrchr(const void *s, int c, size_t n)


cdef int parts_of_key(view key, view *parts) noexcept nogil:
    """Set PART_KEY, PART_USER, PART_DOMAIN, and as many of PART_LABEL as it returns.

    Labels are what stands between dots of the domain and is not empty, from the right.
    """
    cdef view rest
    cdef const char *dot
    cdef size_t start
    cdef int labels = 0
    parts[PART_KEY] = key
    split_address(key, &parts[PART_USER], &parts[PART_DOMAIN])
    rest = parts[PART_DOMAIN]
    while rest.len and labels < LABELS:
        dot = <const char *> memrchr(rest.ptr, c".", rest.len)
        start = 0 if dot == NULL else dot - rest.ptr + 1
        if start < rest.len:
            parts[PART_LABEL + labels] = view_of(rest.ptr + start, rest.len - start)
            labels += 1
        rest.len = start - 1 if start else 0
    return labels


cdef void parts_of_value(view value, view *parts) noexcept nogil:
    """Set PART_VALUE, PART_VALUE_USER and PART_VALUE_DOMAIN."""
    parts[PART_VALUE] = value
    split_address(value, &parts[PART_VALUE_USER], &parts[PART_VALUE_DOMAIN])


cdef inline void split_address(view text, view *user, view *domain) noexcept nogil:
    """What is before and after the last `@`; without one it is all user."""
    cdef const char *at = NULL
    if text.len:
        at = <const char *> memrchr(text.ptr, c"@", text.len)
    if at == NULL:
        user[0] = text
        domain[0] = view_of(text.ptr, 0)
    else:
        user[0] = view_of(text.ptr, at - text.ptr)
        domain[0] = view_of(at + 1, text.len - (at - text.ptr) - 1)


cdef int program_fill(
    const program *p, const view *parts, quote_function quote, void *context, buf *out
) noexcept nogil:
    """Append the text with each part quoted; `parts` has all that it wants. STAT_OK, or what quote says."""
    cdef int status, i
    for i in range(p.count):
        if buf_append(out, p.pieces[i].text, p.pieces[i].len) < 0:
            return STAT_RETRY
        if p.pieces[i].part != NO_PART:
            status = quote(context, parts[p.pieces[i].part], out)
            if status != STAT_OK:
                return status
    return STAT_OK


cdef int quote_nothing(void *context, view text, buf *out) noexcept nogil:
    """The text as it is: what result_format wants."""
    return STAT_RETRY if buf_append_view(out, text) < 0 else STAT_OK


cdef int quote_doubling(void *context, view text, buf *out) noexcept nogil:
    """Each `'` twice, as standard SQL has it."""
    cdef size_t i
    if buf_reserve(out, 2 * text.len) < 0:
        return STAT_RETRY
    for i in range(text.len):
        out.data[out.end] = text.ptr[i]
        out.end += 1
        if text.ptr[i] == c"'":
            out.data[out.end] = c"'"
            out.end += 1
    return STAT_OK


cdef class Program:
    """Owns a program. text: the template. pieces: (text, PART_* or NO_PART that follows it)."""

    def __cinit__(self, str text not None, list pieces not None):
        cdef int i
        self.text = text
        self.pieces = pieces
        self.p.pieces = <piece *> calloc(len(pieces) + 1, sizeof(piece))
        if self.p.pieces == NULL:
            raise MemoryError
        self.p.count = len(pieces)
        for i in range(self.p.count):
            plain, part = pieces[i]
            if not NO_PART <= part < PARTS:
                raise ValueError(f"no such part: {part}")
            self.p.pieces[i].text = <bytes> plain
            self.p.pieces[i].len = len(plain)
            self.p.pieces[i].part = part
            if part != NO_PART:
                self.p.wants |= 1u << <unsigned int> part

    def __dealloc__(self):
        free(self.p.pieces)

    @property
    def wants(self) -> int:
        """Bit 1 << PART_* of each part."""
        return self.p.wants
