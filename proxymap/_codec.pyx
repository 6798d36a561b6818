"""_codec - attribute list <-> request and reply, both dialects

An attribute list is `name NUL value NUL ... NUL`: it ends with an empty name.
`list_scan` finds the end of a list that may still be arriving and never looks
at a byte twice; `request_parse` reads the strings that it noted. A lookup that
is just as Postfix sends it is read by `lookup_read`, at once. Nothing is copied:
a request's views borrow the list. A reply is appended to the caller's buf. No
I/O, no tables, no allocation but the growth of that buf; any thread.

Source: the wire protocol of Postfix 3.6 to 3.12 as observed, proxymap(8).
"""

from proxymap.base._buf cimport (
    buf, buf_append, buf_free, buf_init, buf_reserve, memchr, memcmp, memcpy, view, view_is, view_of,
)
from proxymap._words cimport *

cdef extern from *:
    """
    #include <stdint.h>
    #ifdef __SSE2__
    #include <emmintrin.h>
    #endif
    /* Which of the 16 bytes from data[at] on are zero? A bit for each. data[len] is not looked at. */
    static inline unsigned int proxymap_zero_bytes(const char *data, size_t at, size_t len)
    {
        size_t n = len - at < 16 ? len - at : 16;
    #ifdef __SSE2__
        if (at + n >= 16) {
            __m128i bytes = _mm_loadu_si128((const __m128i *) (data + at + n - 16));
            unsigned int bits = _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()));
            return bits >> (16 - n);
        }
    #endif
        unsigned int bits = 0;
        for (size_t i = 0; i < n; i++)
            bits |= (unsigned int) (data[at + i] == 0) << i;
        return bits;
    }
    #define proxymap_first_bit(bits) ((size_t) __builtin_ctz(bits))
    static const char proxymap_lookup[] = "request\\0lookup\\0table";
    """
    const char *lookup_begins "proxymap_lookup"
    size_t sizeof_lookup "sizeof proxymap_lookup"
    unsigned int zero_bytes "proxymap_zero_bytes"(const char *data, size_t at, size_t len) noexcept nogil
    size_t first_bit "proxymap_first_bit"(unsigned int bits) noexcept nogil

cdef enum:
    WORD = 16        # bytes that zero_bytes looks at
    LONG = 64        # bytes of a string without its end, from which on memchr is faster
    INT_DIGITS = 11  # longest decimal text of an int, sign included
    INT_MAX = 2147483647


cdef size_t request_read(scan *s, const char *data, size_t len, request *r, int *verdict) noexcept nogil:
    """Read the list that begins at data: returns its length, or 0 while it is incomplete. verdict: PARSE_*.

    Call again with the same scan when more bytes have arrived (data may have moved
    meanwhile). A new list wants list_restart first.
    """
    cdef size_t n = lookup_read(data, len, r) if s.pos == 0 else 0
    if n:
        verdict[0] = PARSE_OK
        return n
    n = list_scan(s, data, len)
    if n:
        verdict[0] = request_parse(s, data, r)
    return n


# By far the most requests

cdef size_t lookup_read(const char *data, size_t len, request *r) noexcept nogil:
    """The length of a whole lookup as Postfix writes it, or 0: it is something else, or incomplete."""
    cdef size_t at = sizeof_lookup
    if len < at or memcmp(data, lookup_begins, sizeof_lookup) != 0:
        return 0
    r.name = view_of(data + 8, 6)
    if not take_string(data, &at, len, &r.table):
        return 0
    r.dialect = DIALECT_3_6
    if take_name(data, &at, len, b"instance_flags\0", 15):
        r.dialect = DIALECT_3_11
        if not take_number(data, &at, len, &r.inst_flags):
            return 0
    if not take_name(data, &at, len, b"flags\0", 6) or not take_number(data, &at, len, &r.flags):
        return 0
    if r.dialect == DIALECT_3_6:
        r.inst_flags = instance_flags_of(r.flags)
    if not take_name(data, &at, len, b"key\0", 4) or not take_string(data, &at, len, &r.key):
        return 0
    if at == len or data[at]:
        return 0
    r.kind = REQ_LOOKUP
    r.value = view_of(NULL, 0)
    r.fault = FAULT_NONE
    return at + 1


cdef inline bint take_name(
    const char *data, size_t *at, size_t len, const char *name, size_t size
) noexcept nogil:
    if len - at[0] < size or memcmp(data + at[0], name, size) != 0:
        return False
    at[0] += size
    return True


cdef inline bint take_string(const char *data, size_t *at, size_t len, view *text) noexcept nogil:
    cdef size_t from_ = at[0]
    cdef unsigned int ends
    while at[0] < len:
        ends = zero_bytes(data, at[0], len)
        if ends:
            at[0] += first_bit(ends) + 1
            text[0] = view_of(data + from_, at[0] - from_ - 1)
            return True
        at[0] += WORD
    return False


cdef inline bint take_number(const char *data, size_t *at, size_t len, int *number) noexcept nogil:
    """Digits, and few enough not to overflow."""
    cdef const char *p = data + at[0]
    cdef const char *end = p + min(len - at[0], <size_t> 10)
    cdef int n = 0
    while p < end and c"0" <= p[0] <= c"9":
        n = n * 10 + (p[0] - c"0")
        p += 1
    if p == end or p[0] or p == data + at[0] or p - data - at[0] > 9:
        return False
    number[0] = n
    at[0] = p + 1 - data
    return True


cdef inline int instance_flags_of(int flags) noexcept nogil:
    """In 3.6 one word has all flags."""
    return flags & ~(DICT_FLAGS_IMPL | DICT_FLAGS_REQUEST)


# All requests

cdef size_t list_scan(scan *s, const char *data, size_t len) noexcept nogil:
    """The length of the list that begins at data, or 0 while it is incomplete.

    Most strings are short: a call of memchr for each would take longer than all the rest.
    """
    cdef size_t at = s.pos, begin = s.begin, end
    cdef unsigned int strings = s.strings
    cdef const char *nul
    cdef unsigned int ends  # which of the bytes from `at` on are zero
    while at < len:
        if at - begin >= LONG:
            nul = <const char *> memchr(data + at, 0, len - at)
            if nul == NULL:
                break
            at = nul - data
        ends = zero_bytes(data, at, len)
        while ends:
            end = at + first_bit(ends) + 1
            if end - begin == 1 and strings % 2 == 0:
                s.strings = strings
                return end
            ends &= ends - 1
            begin = end
            strings += 1
            if strings <= LIST_STRINGS:
                s.start[strings] = <unsigned int> end
        at += WORD
    s.pos = <unsigned int> len
    s.begin = <unsigned int> begin
    s.strings = strings
    return 0


cdef inline view attr_name(const scan *s, const char *data, unsigned int i) noexcept nogil:
    return view_of(data + s.start[2 * i], s.start[2 * i + 1] - s.start[2 * i] - 1)


cdef inline view attr_value(const scan *s, const char *data, unsigned int i) noexcept nogil:
    return view_of(data + s.start[2 * i + 1], s.start[2 * i + 2] - s.start[2 * i + 1] - 1)


cdef inline bint has_attr(
    const scan *s, const char *data, unsigned int i, const char *name, size_t len
) noexcept nogil:
    return 2 * i < s.strings and view_is(attr_name(s, data, i), name, len)


cdef inline bint want(
    request *r, const scan *s, const char *data, unsigned int i, const char *name, size_t len
) noexcept nogil:
    """Is attribute i the one called name? If not, note what is there instead."""
    if has_attr(s, data, i, name, len):
        return True
    return miss(r, s, data, i, name)


cdef bint miss(request *r, const scan *s, const char *data, unsigned int i, const char *name) noexcept nogil:
    r.wanted = name
    if 2 * i < s.strings:
        r.fault = FAULT_UNEXPECTED
        r.got = attr_name(s, data, i)
    else:
        r.fault = FAULT_MISSING
    return False


cdef inline bint want_int(
    request *r, const scan *s, const char *data, unsigned int i, const char *name, size_t len, int *number
) noexcept nogil:
    """The same for a number."""
    if not want(r, s, data, i, name, len):
        return False
    if parse_int(attr_value(s, data, i), number) < 0:
        r.fault = FAULT_NUMBER
        r.got = attr_value(s, data, i)
        return False
    return True


cdef int parse_int(view text, int *number) noexcept nogil:
    """Decimal text with leading blanks and a plus sign allowed; -1 for anything else, or past INT_MAX."""
    cdef const char *p = text.ptr
    cdef const char *end = p + text.len
    cdef long long n = 0
    while p < end and (p[0] == c" " or c"\t" <= p[0] <= c"\r"):
        p += 1
    if p < end and p[0] == c"+":
        p += 1
    if p == end:
        return -1
    while p < end:
        if not c"0" <= p[0] <= c"9":
            return -1
        n = n * 10 + (p[0] - c"0")
        if n > INT_MAX:
            return -1
        p += 1
    number[0] = <int> n
    return 0


cdef int request_kind(view name) noexcept nogil:
    if view_is(name, b"lookup", 6):
        return REQ_LOOKUP
    if view_is(name, b"open", 4):
        return REQ_OPEN
    if view_is(name, b"update", 6):
        return REQ_UPDATE
    if view_is(name, b"delete", 6):
        return REQ_DELETE
    if view_is(name, b"sequence", 8):
        return REQ_SEQUENCE
    return REQ_UNKNOWN


cdef int request_dialect(const scan *s, const char *data) noexcept nogil:
    """Requests of 3.11 have instance_flags before flags; so has a spoilt one, and BAD gets its shape."""
    cdef unsigned int i
    if has_attr(s, data, 2, b"flags", 5) and not has_attr(s, data, 1, b"instance_flags", 14):
        return DIALECT_3_6  # by far the most
    for i in range(1, LIST_STRINGS // 2):
        if has_attr(s, data, i, b"instance_flags", 14):
            return DIALECT_3_11
        if has_attr(s, data, i, b"flags", 5):
            return DIALECT_3_6
    return DIALECT_3_6


cdef int request_parse(const scan *s, const char *data, request *r) noexcept nogil:
    """Read the complete list that s describes into r; returns PARSE_*.

    With PARSE_BAD, kind and dialect are set: they give the reply its shape.
    Attributes behind the last expected one are ignored, as Postfix does, and
    noted in r.fault.
    """
    cdef unsigned int used
    r.fault = FAULT_NONE
    if not want(r, s, data, 0, b"request", 7):
        return PARSE_SILENT
    r.name = attr_value(s, data, 0)
    r.kind = request_kind(r.name)
    if r.kind == REQ_UNKNOWN:
        return PARSE_UNKNOWN
    r.table = r.key = r.value = view_of(NULL, 0)
    r.dialect = request_dialect(s, data)
    used = parse_attributes(s, data, r)
    if used == 0:
        return PARSE_BAD
    if 2 * used < s.strings:
        r.fault = FAULT_UNEXPECTED
        r.wanted = b"(list terminator)"
        r.got = attr_name(s, data, used)
    return PARSE_OK


cdef unsigned int parse_attributes(const scan *s, const char *data, request *r) noexcept nogil:
    """All that follows the request's name; returns how many attributes were used, or 0 for a fault."""
    cdef unsigned int i = 2
    if not want(r, s, data, 1, b"table", 5):
        return 0
    r.table = attr_value(s, data, 1)
    if r.dialect == DIALECT_3_11:
        if not want_int(r, s, data, i, b"instance_flags", 14, &r.inst_flags):
            return 0
        i += 1
        if r.kind == REQ_OPEN:
            r.flags = r.inst_flags
            return i
    if not want_int(r, s, data, i, b"flags", 5, &r.flags):
        return 0
    i += 1
    if r.dialect == DIALECT_3_6:
        r.inst_flags = instance_flags_of(r.flags)
    if r.kind == REQ_OPEN:
        return i
    if r.kind == REQ_SEQUENCE:
        if not want_int(r, s, data, i, b"function", 8, &r.function):
            return 0
        if r.function != FUNC_FIRST and r.function != FUNC_NEXT:
            r.fault = FAULT_FUNCTION
            return 0
        return i + 1
    if not want(r, s, data, i, b"key", 3):
        return 0
    r.key = attr_value(s, data, i)
    i += 1
    if r.kind == REQ_UPDATE:
        if not want(r, s, data, i, b"value", 5):
            return 0
        r.value = attr_value(s, data, i)
        i += 1
    return i


# Where there is room: each returns where the next byte goes.

cdef inline char *put(char *p, const char *text, size_t len) noexcept nogil:
    memcpy(p, text, len)
    return p + len


cdef inline char *put_view(char *p, view text) noexcept nogil:
    """The text and its NUL."""
    if text.len:
        memcpy(p, text.ptr, text.len)
    p[text.len] = 0
    return p + text.len + 1


cdef inline char *put_status(char *p, int status) noexcept nogil:
    p = put(p, b"status\0", 7)
    p[0] = <char> (c"0" + status)
    p[1] = 0
    return p + 2


cdef char *put_int(char *p, unsigned int number) noexcept nogil:
    """Decimal text and its NUL."""
    cdef char text[INT_DIGITS + 1]
    cdef int i = INT_DIGITS
    text[i] = 0
    while True:
        i -= 1
        text[i] = <char> (c"0" + number % 10)
        number //= 10
        if number == 0:
            return put(p, &text[i], INT_DIGITS + 1 - i)


cdef int reply_append(buf *out, const request *r, int status, int flags, view key, view value) noexcept nogil:
    """Append the reply to r in its shape and dialect, or RETRY if there is no memory for it; 0, or -1."""
    cdef char *p
    if status != STAT_OK:
        key = value = view_of(NULL, 0)
    # Everything fixed is under 64 bytes, so that one reservation serves the whole reply.
    if buf_reserve(out, 64 + key.len + value.len) < 0:
        if buf_reserve(out, 64) < 0:
            return -1
        status, key, value = STAT_RETRY, view_of(NULL, 0), view_of(NULL, 0)
    p = put_status(out.data + out.end, status)
    if r.kind == REQ_OPEN or r.dialect == DIALECT_3_11:
        p = put_int(put(p, b"flags\0", 6), <unsigned int> flags)
    if r.kind == REQ_SEQUENCE:
        p = put_view(put(p, b"key\0", 4), key)
    if r.kind == REQ_SEQUENCE or r.kind == REQ_LOOKUP:
        p = put_view(put(p, b"value\0", 6), value)
    p[0] = 0
    out.end = p + 1 - out.data
    return 0


cdef int reply_append_bare(buf *out, int status) noexcept nogil:
    """A list with nothing but the status: for requests that have no shape."""
    cdef char *p
    if buf_reserve(out, 16) < 0:
        return -1
    p = put_status(out.data + out.end, status)
    p[0] = 0
    out.end = p + 1 - out.data
    return 0


cdef int greeting_append(buf *out) noexcept nogil:
    """What a server of Postfix 3.6 and later says first."""
    return buf_append(out, b"protocol\0proxymap_protocol\0\0", 28)


# Doors for tests; those for benchmarks are in server/_doors.

cdef tuple _KINDS = ("unknown", "open", "lookup", "update", "delete", "sequence")


def scan_list(bytes data, cuts=()) -> int:
    """Length of the first list in data, looked at anew at each cut; 0 if incomplete."""
    cdef scan s
    cdef request r
    cdef size_t n
    cdef int verdict
    cdef const char *p = data
    list_restart(&s)
    for cut in (*cuts, len(data)):
        n = request_read(&s, p, cut, &r, &verdict)
        if n:
            return n
    return 0


def parse(bytes data):
    """The request in data, one complete list, as (verdict, fields).

    The verdict is "ok", "silent", "unknown" or "bad"; fields are there with "ok" only.
    """
    cdef scan s
    cdef request r
    cdef const char *p = data
    cdef int verdict
    list_restart(&s)
    r.kind = r.dialect = r.inst_flags = r.flags = r.function = 0
    if request_read(&s, p, len(data), &r, &verdict) != <size_t> len(data):
        raise ValueError("not one complete attribute list")
    if verdict != PARSE_OK:
        return ("ok", "silent", "unknown", "bad")[verdict], {}
    fields = {
        "request": _KINDS[r.kind], "dialect": ("3.6", "3.11")[r.dialect], "table": r.table.ptr[:r.table.len],
        "inst_flags": r.inst_flags, "flags": r.flags,
    }
    if r.kind == REQ_SEQUENCE:
        fields["function"] = r.function
    elif r.kind != REQ_OPEN:
        fields["key"] = r.key.ptr[:r.key.len]
        if r.kind == REQ_UPDATE:
            fields["value"] = r.value.ptr[:r.value.len]
    return "ok", fields


def reply(str kind, str dialect, int status, int flags=0, bytes key=b"", bytes value=b"") -> bytes:
    """The reply to a request of that kind and dialect, as bytes."""
    cdef request r
    cdef buf out
    buf_init(&out)
    r.kind = _KINDS.index(kind)
    r.dialect = DIALECT_3_11 if dialect == "3.11" else DIALECT_3_6
    try:
        if reply_append(&out, &r, status, flags, view_of(key, len(key)), view_of(value, len(value))) < 0:
            raise MemoryError
        return out.data[:out.end]
    finally:
        buf_free(&out)
