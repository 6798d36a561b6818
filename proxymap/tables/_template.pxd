# _template - compiled templates, run in C (see _template.pyx)

from proxymap.base._buf cimport buf, view


cpdef enum:  # what a template may want; of a key, and (with VALUE) of a value
    PART_KEY = 0           # %S, and a query's %s
    PART_USER = 1          # %U, and a query's %u
    PART_DOMAIN = 2        # %D, and a query's %d
    PART_LABEL = 3         # %1, and eight more
    PART_VALUE = 12        # %s of result_format
    PART_VALUE_USER = 13   # %u of result_format
    PART_VALUE_DOMAIN = 14  # %d of result_format
    PARTS = 15
    NO_PART = -1

    LABELS = 9
    WANTS_LABELS = ((1 << LABELS) - 1) << PART_LABEL


# Append text to out as it may stand between quotes. STAT_OK; STAT_NOKEY: no database can hold such
# text, for it is not of the connection's encoding; STAT_RETRY: no memory.
ctypedef int (*quote_function)(void *context, view text, buf *out) noexcept nogil


cdef struct piece:
    const char *text  # borrowed from Program.pieces
    size_t len
    int part          # PART_*, follows the text; NO_PART: nothing does


cdef struct program:
    piece *pieces
    int count
    unsigned int wants  # bit 1 << PART_* of each


cdef int parts_of_key(view key, view *parts) noexcept nogil
cdef void parts_of_value(view value, view *parts) noexcept nogil
cdef int program_fill(
    const program *p, const view *parts, quote_function quote, void *context, buf *out
) noexcept nogil
cdef int quote_nothing(void *context, view text, buf *out) noexcept nogil
cdef int quote_doubling(void *context, view text, buf *out) noexcept nogil


cdef class Program:
    cdef program p
    cdef readonly str text
    cdef readonly list pieces
