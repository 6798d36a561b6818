# _codec - attribute list <-> request and reply (see _codec.pyx)

from proxymap.base._buf cimport buf, view, view_is, view_of
from proxymap._words cimport (
    DIALECT_3_6, DIALECT_3_11, DICT_FLAG_DUP_REPLACE, DICT_FLAG_FIXED, DICT_FLAG_PATTERN,
    DICT_FLAG_SYNC_UPDATE, DICT_FLAGS_REQUEST, REQ_DELETE, REQ_UPDATE,
)

cdef enum:
    # request, table, instance_flags, flags, key, value: what an update of 3.11 has, and one more
    LIST_STRINGS = 14

cdef enum:  # what request_parse makes of a complete list
    PARSE_OK = 0       # a request, every field valid
    PARSE_SILENT = 1   # not a request at all (empty list, other first attribute): no reply
    PARSE_UNKNOWN = 2  # an unknown request: bare status
    PARSE_BAD = 3      # a known request with wrong attributes or numbers


cdef enum:  # what is wrong with a list, for the log; also set with PARSE_OK, which ignores what follows
    FAULT_NONE = 0
    FAULT_MISSING = 1     # the list ends where `wanted` was expected
    FAULT_UNEXPECTED = 2  # `got` stands where `wanted` was expected
    FAULT_NUMBER = 3      # `got` is not a number
    FAULT_FUNCTION = 4    # no such sequence function


cdef struct scan:
    # How far into a list we have looked, and what was seen.
    unsigned int pos                      # bytes that need no second look
    unsigned int begin                    # where the current string begins
    unsigned int strings                  # complete strings so far
    unsigned int start[LIST_STRINGS + 1]  # where the first of them begin


cdef struct request:
    int kind        # REQ_*
    int dialect     # DIALECT_*
    int inst_flags  # as sent (3.11); the instance bits of flags (3.6)
    int flags       # as sent; for an open of 3.11 the instance_flags
    int function    # FUNC_*
    view name       # the request attribute as sent, for the log
    view table      # as sent, "proxy:" included
    view key
    view value
    int fault       # FAULT_*
    const char *wanted
    view got


cdef inline void list_restart(scan *s) noexcept nogil:
    """Look at a list from its first byte."""
    s.pos = s.begin = s.strings = s.start[0] = 0


cdef inline int request_flags(const request *r, int before) noexcept nogil:
    """The dictionary flags to serve r with. before: the table's, of which a request of 3.6 sets some."""
    cdef int flags = r.flags
    if r.dialect == DIALECT_3_6:
        flags = (before & ~DICT_FLAGS_REQUEST) | (flags & DICT_FLAGS_REQUEST)
    if r.kind == REQ_UPDATE:
        flags |= DICT_FLAG_DUP_REPLACE | DICT_FLAG_SYNC_UPDATE
    elif r.kind == REQ_DELETE:
        flags |= DICT_FLAG_SYNC_UPDATE
    return flags


cdef inline bint is_of_patterns(const request *r) noexcept nogil:
    """Do the flags of a request of 3.11 say of the table that it is one of patterns?"""
    return (r.dialect == DIALECT_3_11
            and r.flags & (DICT_FLAG_FIXED | DICT_FLAG_PATTERN) == DICT_FLAG_PATTERN)


cdef inline view without_proxy(view name) noexcept nogil:
    """The table that a request names."""
    while name.len >= 6 and view_is(view_of(name.ptr, 6), b"proxy:", 6):
        name = view_of(name.ptr + 6, name.len - 6)
    return name


cdef size_t request_read(scan *s, const char *data, size_t len, request *r, int *verdict) noexcept nogil
cdef int reply_append(buf *out, const request *r, int status, int flags, view key, view value) noexcept nogil
cdef int reply_append_bare(buf *out, int status) noexcept nogil
cdef int greeting_append(buf *out) noexcept nogil
