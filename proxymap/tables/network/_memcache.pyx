"""_memcache - memcached's text protocol, and a table that speaks it

    get KEY                          VALUE KEY FLAGS LENGTH / data / END, or END
    set KEY FLAGS TTL LENGTH / data  STORED
    add ...                          STORED, or NOT_STORED: it is there already
    delete KEY                       DELETED, NOT_FOUND

A lookup of the loop's (JOB_LOOKUP) has the table's key, which key_format is filled
with here; all other jobs come from memcache.py and have memcached's. What memcached
has no value for goes to the workers where there is a backup, with a mark before the
key: a NUL, which no key has, and whether memcached had nothing or failed.

Source: memcached's protocol.txt; memcache_table(5); network-tables.md 2.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memchr

from proxymap._words cimport *
from proxymap.base._buf cimport (
    buf, buf_append, buf_append_view, buf_clear, buf_free, buf_init, buf_len, buf_view, view, view_equal,
    view_is, view_of, view_str,
)
from proxymap.tables._domains cimport Domains, domain_find, domains_changed
from proxymap.tables._jobs cimport (
    JOB_DELETE, JOB_EXPLAIN, JOB_LOOKUP, JOB_SEQUENCE, JOB_UPDATE, LEVEL_WARNING, Queue, job, log_line,
    queue,
)
from proxymap.tables._table cimport SLOW_SEQUENCE, SLOW_WRITE, STAT_LATER, Table, cursor, table
from proxymap.tables._template cimport (
    PART_DOMAIN, PART_KEY, PART_LABEL, PART_USER, PARTS, Program, parts_of_key, program_fill, quote_nothing,
)
from proxymap.tables.network._endpoint cimport ANSWERED, MORE, NONSENSE, answer, asker, protocol
from proxymap.tables.network._network cimport Endpoint, NetworkTable, protocol_of

from proxymap.errors import TableConfig, TableRetry

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...)

cdef enum:
    KEY_MAX = 250     # bytes of a key, as memcached has it
    WALKS_MAX = 64    # sequences that are remembered
    JOB_ADD = 110     # as JOB_UPDATE, if there is no such key

GET, SET, DELETE, ADD = JOB_EXPLAIN, JOB_UPDATE, JOB_DELETE, JOB_ADD
MISSED, FAILED = b"\0m", b"\0f"  # marks
LONGEST_KEY = KEY_MAX


# What is asked

cdef int write_question(const asker *a, job *j, buf *out) noexcept nogil:
    """STAT_NOKEY: memcached cannot have such a key, or it has not what key_format wants."""
    cdef const memcache *m = <const memcache *> a
    cdef view key = buf_view(&j.key)
    cdef int status = STAT_OK
    if j.kind == JOB_LOOKUP:
        status = fill_key(m, key, &j.name)
        key = buf_view(&j.name)
    if status == STAT_OK and not is_key(key):
        status = STAT_NOKEY
    if status == STAT_OK and key.len > KEY_MAX:
        status = STAT_RETRY
    if status != STAT_OK:
        return status
    if j.kind == JOB_UPDATE or j.kind == JOB_ADD:
        return write_value(m, j, key, out)
    if buf_append_view(out, view_str(b"delete " if j.kind == JOB_DELETE else b"get ")) < 0:
        return STAT_RETRY
    if buf_append_view(out, key) < 0 or buf_append(out, b"\r\n", 2) < 0:
        return STAT_RETRY
    return STAT_OK


cdef int write_value(const memcache *m, const job *j, view key, buf *out) noexcept nogil:
    cdef view value = buf_view(&j.value)
    cdef char length[32]
    snprintf(length, sizeof(length), b"%zu\r\n", value.len)
    if (buf_append_view(out, view_str(b"set " if j.kind == JOB_UPDATE else b"add ")) < 0
            or buf_append_view(out, key) < 0 or buf_append_view(out, view_str(m.stores)) < 0
            or buf_append_view(out, view_str(length)) < 0 or buf_append_view(out, value) < 0
            or buf_append(out, b"\r\n", 2) < 0):
        return STAT_RETRY
    return STAT_OK


cdef int fill_key(const memcache *m, view key, buf *out) noexcept nogil:
    """key_format, filled. STAT_NOKEY: the key lacks what it wants."""
    cdef view parts[PARTS]
    cdef unsigned int has = 1 << PART_KEY
    cdef int labels = parts_of_key(key, parts)
    has |= <unsigned int> ((1 << labels) - 1) << PART_LABEL
    has |= <unsigned int> (parts[PART_USER].len > 0) << PART_USER
    has |= <unsigned int> (parts[PART_DOMAIN].len > 0) << PART_DOMAIN
    buf_clear(out)
    if key.len == 0 or m.key_format.wants & ~has:
        return STAT_NOKEY
    return program_fill(m.key_format, parts, quote_nothing, NULL, out)


cdef bint is_key(view key) noexcept nogil:
    """Is it not empty, and without blanks and control characters?"""
    cdef size_t i
    for i in range(key.len):
        if <unsigned char> key.ptr[i] <= 32 or key.ptr[i] == 127:
            return False
    return key.len > 0


# What is answered

cdef int read_answer(const asker *a, const job *j, view got, answer *found) noexcept nogil:
    cdef const memcache *m = <const memcache *> a
    cdef view line
    cdef int seen = take_line(m, got, &found.used, &line, found)
    if seen != ANSWERED:
        return seen
    if j.kind == JOB_LOOKUP or j.kind == JOB_EXPLAIN:
        if view_is(line, b"END", 3):
            found.status = STAT_NOKEY
            return ANSWERED
        if line.len > 6 and view_is(view_of(line.ptr, 6), b"VALUE ", 6):
            return read_value(m, j, got, view_of(line.ptr + 6, line.len - 6), found)
    elif view_is(line, b"DELETED", 7) if j.kind == JOB_DELETE else view_is(line, b"STORED", 6):
        found.status = STAT_OK
        return ANSWERED
    elif view_is(line, b"NOT_FOUND", 9) if j.kind == JOB_DELETE else j.kind == JOB_ADD:
        found.status = STAT_NOKEY
        found.ends = not view_is(line, b"NOT_FOUND", 9) and not view_is(line, b"NOT_STORED", 10)
        return ANSWERED
    found.ends = True
    found.words = b"unexpected memcache server reply: "
    found.text = line
    return ANSWERED


cdef int take_line(const memcache *m, view got, size_t *used, view *line, answer *found) noexcept nogil:
    """The next line after `used` bytes, without its end."""
    cdef const char *rest = got.ptr + used[0]
    cdef size_t len = got.len - used[0]
    cdef const char *end = NULL
    if len:
        end = <const char *> memchr(rest, c"\n", len)
    if (len if end == NULL else <size_t> (end - rest)) > m.line_limit + 1:
        found.words = b"lookup error: a line from the memcache server is too long"
        return NONSENSE
    if end == NULL:
        return MORE
    line[0] = view_of(rest, end - rest)
    if line.len and line.ptr[line.len - 1] == c"\r":
        line.len -= 1
    used[0] += end - rest + 1
    return ANSWERED


cdef int read_value(const memcache *m, const job *j, view got, view line, answer *found) noexcept nogil:
    """line: what follows VALUE. An END that is missing or wrong ends the connection, and that is all."""
    cdef view asked = buf_view(&j.name if j.kind == JOB_LOOKUP else &j.key)
    cdef size_t length = 0, begins = found.used
    cdef view last
    cdef int seen
    if line.len <= asked.len or not view_equal(view_of(line.ptr, asked.len), asked):
        found.words = b"lookup error: the memcache server has a value of another key"
        return NONSENSE
    if not take_length(view_of(line.ptr + asked.len, line.len - asked.len), m.data_limit, &length):
        found.words = b"unexpected memcache server reply: VALUE "
        found.text = line
        return NONSENSE
    if got.len - begins < length + 2:
        return MORE
    if got.ptr[begins + length] != c"\r" or got.ptr[begins + length + 1] != c"\n":
        found.words = b"lookup error: a value from the memcache server has another length"
        return NONSENSE
    found.used = begins + length + 2
    seen = take_line(m, got, &found.used, &last, found)
    if seen == MORE and not found.at_end:
        return MORE
    found.words = NULL
    found.ends = seen != ANSWERED or not view_is(last, b"END", 3)
    found.status = STAT_OK
    found.value = view_of(got.ptr + begins, length)
    return ANSWERED


cdef bint take_length(view rest, size_t limit, size_t *length) noexcept nogil:
    """Of ` FLAGS LENGTH`: the length, if it is a number up to the limit."""
    cdef size_t i = 1, begins
    if rest.len < 4 or rest.ptr[0] != c" ":
        return False
    while i < rest.len and rest.ptr[i] != c" ":
        i += 1
    i += 1
    begins = i
    while i < rest.len and c"0" <= rest.ptr[i] <= c"9" and length[0] <= limit:
        length[0] = 10 * length[0] + (rest.ptr[i] - c"0")
        i += 1
    return i > begins and i == rest.len and length[0] <= limit


# What is for the workers

cdef int hands_over(const asker *a, job *j, int status) noexcept nogil:
    if j.kind != JOB_LOOKUP or status == STAT_OK:
        return 0
    if buf_append(&j.key, b"\0\0", 2) < 0:
        return -1  # "no" is not for memcached to say
    mark(j.key.data + j.key.start, buf_len(&j.key), c"m" if status == STAT_NOKEY else c"f")
    return 1


cdef void mark(char *key, size_t len, char what) noexcept nogil:
    """Move a key by two bytes."""
    cdef size_t i = len
    while i > 2:
        i -= 1
        key[i] = key[i - 2]
    key[0], key[1] = 0, what


cdef bint is_handed(const asker *a, const job *j) noexcept nogil:
    return j.kind == JOB_SEQUENCE or (j.kind == JOB_LOOKUP and (<const memcache *> a).doubts > 0)


cdef protocol SPEAKS
SPEAKS.write, SPEAKS.read = write_question, read_answer
SPEAKS.hands_over, SPEAKS.is_handed = hands_over, is_handed
SPEAKS.tells_apart = True
SPEAKS.hello = b"version\r\n"

speaks = protocol_of(&SPEAKS)


# The table

cdef int memcache_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    """A key that memcached is not to be asked for is not there; all others are for the exchange."""
    cdef const memcache *m = <const memcache *> t.self
    cdef view parts[PARTS]
    cdef table *trouble
    cdef int status
    if key.len == 0:
        return STAT_NOKEY
    if m.addresses_only:
        parts_of_key(key, parts)
        if parts[PART_DOMAIN].ptr == key.ptr or parts[PART_USER].len == 0:
            return STAT_NOKEY
        if m.domains != NULL:
            status = domain_find(m.domains, parts[PART_DOMAIN], scratch, &trouble)
            if status != STAT_OK:
                return status
    return STAT_LATER


cdef int memcache_changed(table *t) noexcept nogil:
    return domains_changed((<const memcache *> t.self).domains, t)


cdef int no_sequence(
    table *t, cursor *c, int function, buf *scratch, view *key, view *value
) noexcept nogil:
    cdef const memcache *m = <const memcache *> t.self
    cdef view parts[2]
    parts[0] = m.a.name
    parts[1] = view_str(b": first/next support requires backup database")
    log_line(m.log, LEVEL_WARNING, parts, 2)
    return STAT_NOKEY


cdef class _Walk:
    """Where somebody stands in the sequence of a backup."""

    def __cinit__(self):
        buf_init(&self.c.key)

    def __dealloc__(self):
        buf_free(&self.c.key)


cdef class MemcacheTable(NetworkTable):
    """What of a table is C. memcache.py has all that there is to a backup, and changes."""

    def equip(
        self, Endpoint to not None, Program key_format not None, domains, Table backup, *,
        size_t line_limit, size_t data_limit, long ttl, long flags, bint writes, bint in_python
    ):
        """domains: the DomainList, or None. in_python: the exchange may not ask for lookups itself."""
        self.format_program, self.backup = key_format, backup
        self.m.key_format = &key_format.p
        self.m.line_limit, self.m.data_limit = line_limit, data_limit
        self.stores = b" %d %d " % (flags, ttl)
        self.m.stores = self.stores
        self.m.addresses_only = domains is not None
        if domains is not None and domains.quick is not None:
            self.domain_program = domains.quick
            self.m.domains = &(<Domains> domains.quick).l
            self.t.incomplete = domains.incomplete
        self.on_exchange = not in_python and (domains is None or domains.quick is not None)
        self.walks = {}
        self.t.flags, self.t.fold_bit = DICT_FLAG_FIXED | DICT_FLAG_MULTI_WRITER, DICT_FLAG_FOLD_FIX
        self.t.lookup, self.t.changed = memcache_lookup, memcache_changed
        self.t.sequence = no_sequence
        if writes:
            self.t.slow |= SLOW_WRITE
        if backup is not None:
            self.t.slow |= SLOW_SEQUENCE
        self.serve(&self.m.a, to)
        self.m.log = &to.exchange.log.q
        self.t.asks = NULL  # workers are needed, too
        self.crews = None

    def equipped(self):
        """There are workers: the exchange hands over to them what it has no answer for."""
        if self.on_exchange:
            self.m.a.handed = <queue *> self.t.asks if self.backup is not None else NULL
            self.t.asks = &self.endpoint.exchange.asks.q

    @property
    def answers(self):
        """What workers ask for records."""
        return self

    @property
    def doubts_count(self) -> int:
        return self.m.doubts

    @doubts_count.setter
    def doubts_count(self, int count):
        self.m.doubts = count

    def memcached_key(self, bytes key not None):
        """What memcached is asked for; None: it has no such key. Lists of domains are not looked at."""
        cdef buf out
        cdef view wanted = view_of(key, len(key))
        cdef int status
        buf_init(&out)
        try:
            status = fill_key(&self.m, wanted, &out)
            if status == STAT_RETRY:
                raise MemoryError
            return out.data[:buf_len(&out)] if status == STAT_OK else None
        finally:
            buf_free(&out)

    def may_ask(self, bytes key not None) -> bool:
        """Is it none that memcached is never asked for? TableRetry: its list of domains is unavailable."""
        cdef buf scratch
        cdef view value
        cdef int flags = 0, status
        buf_init(&scratch)
        status = memcache_lookup(&self.t, view_of(key, len(key)), &flags, &scratch, &value)
        buf_free(&scratch)
        if status == STAT_RETRY:
            raise TableRetry("domain list: unavailable")
        return status == STAT_LATER

    def begin(self, int kind, bytes key not None, bytes value=b"") -> Queue:
        """Send a question (GET, SET, ADD, DELETE) for memcached's key; `end` has the answer."""
        cdef Queue replies = Queue()
        self.send(kind, key, value, replies)
        return replies

    def end(self, Queue replies not None):
        """(status, value, why)."""
        return self.wait(replies)

    def sequence(self, uint64_t number, bint first):
        """The first or next record of the backup, or None; number: who walks."""
        cdef Table backup = self.backup
        cdef _Walk walk
        cdef buf scratch
        cdef view key, value
        cdef int status
        if backup.t.reason != NULL:
            raise TableRetry(backup.reason.decode(errors="surrogateescape"))
        if backup.t.slow & SLOW_SEQUENCE:
            return backup.answers.sequence(number, first)
        if backup.t.sequence == NULL:
            raise TableConfig("its backup has no sequence")
        walk = self.walks.pop(number, None) or _Walk()
        self.walks[number] = walk  # the latest last
        while len(self.walks) > WALKS_MAX:
            self.walks.pop(next(iter(self.walks)))
        buf_init(&scratch)
        try:
            with nogil:
                status = backup.t.sequence(
                    &backup.t, &walk.c, FUNC_FIRST if first else FUNC_NEXT, &scratch, &key, &value)
            if status == STAT_RETRY:
                raise TableRetry("its backup is unavailable")
            return (key.ptr[:key.len], value.ptr[:value.len]) if status == STAT_OK else None
        finally:
            buf_free(&scratch)

    def store(self, bytes key not None, value, int flags) -> int:
        """Have a backup changed that does that without touching a disk: a status."""
        cdef Table backup = self.backup
        cdef view stored = view_of(NULL, 0)
        if backup.t.write == NULL:
            return STAT_RETRY
        if value is not None:
            stored = view_of(<bytes> value, len(value))
        return backup.t.write(
            &backup.t, view_of(key, len(key)), NULL if value is None else &stored, &flags)
