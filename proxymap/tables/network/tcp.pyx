"""tcp - tcp:HOST:PORT: a line each way, with %XX for what cannot stand in it

    get KEY             500 TEXT      there is no such key
                        400 TEXT      trouble, for now
                        200 VALUE

Without the ten tries, a second apart, with which Postfix meets any trouble.

Source: tcp_table(5); network-tables.md 4.
"""

from proxymap._words cimport *
from proxymap.base._buf cimport buf, buf_append, buf_reserve, buf_view, view, view_of
from proxymap.tables._jobs cimport job
from proxymap.tables.network._endpoint cimport ANSWERED, MORE, NONSENSE, answer, asker, protocol
from proxymap.tables.network._network cimport NetworkTable, protocol_of
from proxymap.tables.network.addresses import read_host
from proxymap.tables.network.keeper import endpoint_for

from libc.string cimport memchr

cdef enum:
    LINE_MAX = 4095


cdef const char *HEX = b"0123456789ABCDEF"


cdef int write_query(const asker *a, job *j, buf *out) noexcept nogil:
    cdef view key = buf_view(&j.key)
    cdef unsigned char c
    cdef size_t i
    if buf_append(out, b"get ", 4) < 0 or buf_reserve(out, 3 * key.len + 1) < 0:
        return STAT_RETRY
    for i in range(key.len):
        c = <unsigned char> key.ptr[i]
        if c <= 32 or c > 126 or c == c"%":
            out.data[out.end] = c"%"
            out.data[out.end + 1] = HEX[c >> 4]
            out.data[out.end + 2] = HEX[c & 15]
            out.end += 3
        else:
            out.data[out.end] = c
            out.end += 1
    out.data[out.end] = c"\n"
    out.end += 1
    return STAT_OK


cdef int read_reply(const asker *a, const job *j, view got, answer *found) noexcept nogil:
    cdef const char *end = <const char *> memchr(got.ptr, c"\n", got.len)
    cdef view line = view_of(got.ptr, got.len if end == NULL else end - got.ptr)
    if line.len > LINE_MAX:
        found.words = b"lookup error: text longer than 4096"
        return NONSENSE
    if end == NULL:
        return MORE
    found.used = line.len + 1
    if line.len < 4 or not is_code(line.ptr):
        found.words = b"lookup error: malformed reply"
        return NONSENSE
    found.text = view_of(line.ptr + 4, line.len - 4)
    if not unquote(&found.text):
        found.words = b"lookup error: malformed reply"
        return NONSENSE
    if line.ptr[0] == c"2":
        found.status = STAT_OK
        found.value = found.text
    elif line.ptr[0] == c"5":
        found.status = STAT_NOKEY
    else:
        found.ends = True
        if line.ptr[0] != c"4":
            found.words = b"lookup error: bad status code"
            found.text = view_of(line.ptr, 0)
    return ANSWERED


cdef inline bint is_code(const char *text) noexcept nogil:
    """Three digits and white space?"""
    cdef int i
    for i in range(3):
        if not c"0" <= text[i] <= c"9":
            return False
    return text[3] == c" " or c"\t" <= text[3] <= c"\r"


cdef bint unquote(view *text) noexcept nogil:
    """Have each %XX be what it stands for, in place; False: one is wrong."""
    cdef char *data = <char *> text.ptr
    cdef size_t i = 0, n = 0
    cdef int high, low
    while i < text.len:
        if data[i] == c"%":
            if text.len - i < 3:
                return False
            high, low = digit(data[i + 1]), digit(data[i + 2])
            if high < 0 or low < 0:
                return False
            data[n] = <char> (high << 4 | low)
            i += 3
        else:
            data[n] = data[i]
            i += 1
        n += 1
    text.len = n
    return True


cdef inline int digit(char c) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    c |= 32
    return c - c"a" + 10 if c"a" <= c <= c"f" else -1


cdef protocol SPEAKS
SPEAKS.write, SPEAKS.read = write_query, read_reply
SPEAKS.tells_apart = False


cdef class TcpTable(NetworkTable):
    """One server."""

    cdef asker own

    def __init__(self, bytes type_name, bytes mapname, opening):
        self.t.flags, self.t.fold_bit = DICT_FLAG_PATTERN, DICT_FLAG_FOLD_MUL
        to = endpoint_for("tcp", protocol_of(&SPEAKS), read_host(mapname), opening.host, type_name)
        self.serve(&self.own, to)


def open_table(bytes type_name, bytes mapname, opening) -> TcpTable:
    return TcpTable(type_name, mapname, opening)
