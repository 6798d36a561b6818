"""socketmap - socketmap:SERVER:NAME: a question and its answer are netstrings

    inet:host:port:NAME, unix:path:NAME, local:path:NAME

    question    9:NAME key,
    answer      8:OK value,   11:NOTFOUND ...,   TEMP, TIMEOUT, PERM with a text

Tables with the same server share its connections. The limits socketmap_max_query_size
and socketmap_max_reply_size of main.cf count whatever the release of Postfix.

Source: socketmap_table(5) of Postfix 3.12; network-tables.md 3.
"""

from proxymap._words cimport *
from proxymap.base._buf cimport (
    buf, buf_append, buf_append_view, buf_view, view, view_is, view_of,
    view_until_nul,
)
from proxymap.tables._jobs cimport LEVEL_WARNING, job, log_line, queue
from proxymap.tables._table cimport STAT_LATER, table
from proxymap.tables.network._endpoint cimport ANSWERED, MORE, NONSENSE, answer, asker, protocol
from proxymap.tables.network._network cimport NetworkTable, protocol_of
from proxymap.tables.network.addresses import server_and_rest
from proxymap.tables.network.keeper import endpoint_for

from libc.string cimport memchr

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...)

cdef enum:
    QUERY_SIZE = 10000
    REPLY_SIZE = 100000
    DIGITS_MAX = 20
    LENGTH_MAX = 1 << 30  # where there is no other limit


cdef struct socketmap:
    asker a
    view name           # of the map
    size_t query_limit  # bytes; 0: none
    size_t reply_limit
    queue *log
    bint told           # of a key that is too long


cdef int write_query(const asker *a, job *j, buf *out) noexcept nogil:
    cdef const socketmap *s = <const socketmap *> a
    cdef view key = buf_view(&j.key)
    cdef char length[DIGITS_MAX + 2]
    cdef int digits = snprintf(length, sizeof(length), b"%zu:", s.name.len + 1 + key.len)
    if (buf_append(out, length, digits) < 0 or buf_append_view(out, s.name) < 0
            or buf_append(out, b" ", 1) < 0 or buf_append_view(out, key) < 0
            or buf_append(out, b",", 1) < 0):
        return STAT_RETRY
    return STAT_OK


cdef int read_reply(const asker *a, const job *j, view got, answer *found) noexcept nogil:
    cdef const socketmap *s = <const socketmap *> a
    cdef size_t limit = s.reply_limit if s.reply_limit else LENGTH_MAX
    cdef size_t i = 0, length = 0
    while i < got.len and c"0" <= got.ptr[i] <= c"9":
        length = length * 10 + (got.ptr[i] - c"0")
        i += 1
        if length > limit or i > limit:
            found.words = b"lookup error: input exceeds size limit"
            return NONSENSE
    if i == got.len:
        return MORE
    if i == 0 or got.ptr[i] != c":":
        found.words = b"lookup error: input format error"
        return NONSENSE
    i += 1
    if got.len - i <= length:
        return MORE
    if got.ptr[i + length] != c",":
        found.words = b"lookup error: input format error"
        return NONSENSE
    found.used = i + length + 1
    read_payload(view_until_nul(view_of(got.ptr + i, length)), found)
    return ANSWERED


cdef void read_payload(view payload, answer *found) noexcept nogil:
    """A status, and what follows the first blank."""
    cdef const char *blank = NULL
    cdef view word = payload
    if payload.len:
        blank = <const char *> memchr(payload.ptr, c" ", payload.len)
    found.text = view_of(payload.ptr, 0)
    if blank != NULL:
        word.len = blank - payload.ptr
        found.text = view_of(blank + 1, payload.len - word.len - 1)
    if view_is(word, b"OK", 2):
        found.status = STAT_OK
        found.value = found.text
    elif view_is(word, b"NOTFOUND", 8):
        found.status = STAT_NOKEY
    elif view_is(word, b"TEMP", 4):
        found.words = b"socketmap server temporary error: "
    elif view_is(word, b"TIMEOUT", 7):
        found.words = b"socketmap server timeout error: "
    elif view_is(word, b"PERM", 4):
        found.status = STAT_CONFIG
        found.words = b"socketmap server permanent error: "
    else:
        found.words = b"socketmap server unknown error: "
        found.text = payload


cdef int socketmap_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    """A key that is too long is not there; all others are for the server."""
    cdef socketmap *s = <socketmap *> t.self
    cdef view parts[2]
    if s.query_limit == 0 or s.name.len + 1 + key.len <= s.query_limit:
        return STAT_LATER
    if not s.told:
        s.told = True
        parts[0] = s.a.name
        parts[1] = view_of(b": query too large", 17)
        log_line(s.log, LEVEL_WARNING, parts, 2)
    return STAT_NOKEY


cdef protocol SPEAKS
SPEAKS.write, SPEAKS.read = write_query, read_reply
SPEAKS.tells_apart = False


cdef class SocketmapTable(NetworkTable):
    """One map of one server."""

    cdef socketmap s
    cdef bytes name

    def __init__(self, bytes type_name, bytes mapname, opening):
        address, self.name = server_and_rest(mapname)
        self.t.flags, self.t.fold_bit = DICT_FLAG_PATTERN, DICT_FLAG_FOLD_MUL
        self.t.lookup = socketmap_lookup
        self.s.name = view_of(self.name, len(self.name))
        self.s.query_limit = size_limit(opening.host, "socketmap_max_query_size", QUERY_SIZE)
        self.s.reply_limit = size_limit(opening.host, "socketmap_max_reply_size", REPLY_SIZE)
        to = endpoint_for("socketmap", protocol_of(&SPEAKS), address, opening.host, type_name)
        self.serve(&self.s.a, to)
        self.s.log = &self.endpoint.exchange.log.q

    def ask(self, bytes key not None, int flags):
        if self.s.query_limit and self.s.name.len + 1 + <size_t> len(key) > self.s.query_limit:
            return STAT_NOKEY, flags, b""
        return super().ask(key, flags)


def size_limit(host, str name, size_t default) -> int:
    """A parameter of main.cf, in bytes."""
    text = host.parameter(name)
    try:
        return max(0, int(text))
    except ValueError:
        return default


def open_table(bytes type_name, bytes mapname, opening) -> SocketmapTable:
    return SocketmapTable(type_name, mapname, opening)
