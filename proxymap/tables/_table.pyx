"""_table - what a table must offer the loop: struct table (C pointers) and class Table, its owner

A table type that answers on the loop subclasses Table and sets the pointers in
__cinit__; the loop then calls them without the GIL. Table owns the memory: the
struct lives as long as the object, which the catalog holds by reference.
"""

import os

from cpython.bytes cimport PyBytes_AsString
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from proxymap.base._buf cimport buf, buf_free, buf_init, view, view_of
from proxymap.base._fold cimport fold_ascii, fold_utf8, utf8_valid
from proxymap.base._stamp cimport same_content, same_file, stamp, stamp_at
from proxymap._words cimport *
from proxymap.errors import TableConfig, TableRetry


cdef int table_flags(const table *t, int given, bint utf8_layer) noexcept nogil:
    """The flag word of t, freshly opened with the given flags. Source: tables.md 2.5."""
    cdef int bits = t.flags
    if given & DICT_FLAGS_TRY:
        bits &= ~DICT_FLAGS_TRY  # the client restricts what is tried
    given |= bits
    if given & DICT_FLAG_OPEN_LOCK and given & DICT_FLAG_MULTI_WRITER:
        given = (given & ~DICT_FLAG_OPEN_LOCK) | DICT_FLAG_LOCK
    if utf8_layer and given & DICT_FLAG_UTF8_REQUEST and t.lookup != absent_lookup:
        given |= DICT_FLAG_UTF8_ACTIVE
    return given


cdef int table_fold(const table *t, bint utf8_layer, int flags, view *key, buf *scratch) noexcept nogil:
    """Make of a key what t is asked for. STAT_OK; STAT_NOKEY: not UTF-8; STAT_RETRY: no memory.

    With the UTF-8 layer, what the table is decides which flag counts; without it,
    what its type heeds. Source: tables.md 2.6.
    """
    cdef int failed = 0
    if utf8_layer:
        if not utf8_valid(key[0]):
            return STAT_NOKEY
        if flags & (DICT_FLAG_FOLD_FIX if flags & DICT_FLAG_FIXED else DICT_FLAG_FOLD_MUL):
            failed = fold_utf8(key, scratch)
    elif flags & t.fold_bit:
        failed = fold_ascii(key, scratch)
    return STAT_RETRY if failed else STAT_OK


cdef class Table:
    """An open table. `type_name` is the whole name, such as b"cdb:/etc/postfix/virtual"."""

    def __cinit__(self, bytes type_name, *args, **kwargs):
        self.type_name = type_name
        self.t.lookup = NULL
        self.t.foresee = NULL
        self.t.sequence = NULL
        self.t.lookup_patiently = NULL
        self.t.write = NULL
        self.t.generation = NULL
        self.t.changed = NULL
        self.t.damaged = NULL
        self.t.flags = 0
        self.t.fold_bit = 0
        self.t.cached = self.t.timed = False
        memset(&self.t.keeps, 0, sizeof(policy))
        self.t.slow_log_ns = 0
        self.t.origins = NULL
        self.t.quick = self.t.polled = self.t.incomplete = False
        self.t.jobs = self.t.retired = 0
        self.t.slow = 0
        self.files = []
        self.faults = 0
        self.heeded = -1
        self.parts = frozenset()
        self.trouble = ""
        self.watches_content = False
        self.watches_writers = True
        self.t.asks = self.t.changes = NULL
        self.t.self = NULL
        self.t.owner = <void *> self
        self.t.reason = NULL

    def __dealloc__(self):
        self.forget_origins()

    cdef forget_origins(self):
        cdef origin *o
        while self.t.origins != NULL:
            o = self.t.origins
            self.t.origins = o.next
            free(o)

    def loaded_from(self, files):
        """Remember the files behind the table, to notice when they change.

        files: (path, Stamp) of each, as it was read.
        """
        cdef origin *o
        self.forget_origins()
        self.files = []
        for path, seen in files:
            o = <origin *> calloc(1, sizeof(origin))
            if o == NULL:
                raise MemoryError
            self.files.append(path)
            o.path = PyBytes_AsString(path)
            take_stamp(&o.seen, seen)
            o.next = self.t.origins
            self.t.origins = o
        if self.t.origins != NULL and self.t.changed == NULL:
            self.t.changed = origins_changed

    cpdef watch(self, Watch watch):
        """Have the files watched, from now on; a table where that cannot be done is to be polled."""
        cdef origin *o = self.t.origins
        cdef Way way
        ways = []
        while o != NULL:
            way = watch.add_file(o.path, self.watches_content, self.watches_writers)
            o.written, o.own = way.written, way.own
            if not way.tells:
                self.t.polled = True
            ways.append(way)
            o = o.next
        self.ways = ways

    def stamps(self) -> list:
        """Of its files as they are now; see loaded_from and refuse."""
        cdef origin *o = self.t.origins
        cdef stamp s
        found = []
        while o != NULL:
            with nogil:  # a dead file server delays nobody else
                s = stamp_at(o.path)
            found.append((s.device, s.inode, s.size, s.mtime_ns, s.ctime_ns))
            o = o.next
        return found

    @property
    def torn(self) -> bool:
        """Has a file another size, but not another time of change?

        That is so for a moment while it is cut, before any event; else somebody has set its time.
        """
        cdef origin *o = self.t.origins
        cdef stamp s
        while o != NULL:
            with nogil:
                s = stamp_at(o.path)
            if same_file(o.seen, s) and s.mtime_ns == o.seen.mtime_ns and s.size != o.seen.size:
                return True
            o = o.next
        return False

    def refuse(self, stamps):
        """Remember this content as refused, so that it is not tried again; keep the old table.

        stamps: those that its files had when the content was read.
        """
        cdef origin *o = self.t.origins
        for seen in stamps:
            take_stamp(&o.seen, seen)
            o = o.next

    @property
    def under_way(self) -> str:
        """Where a lookup that takes long has got to, for the log; empty if that is not known."""
        return ""

    @property
    def incomplete(self) -> bool:
        """Could something that it is made of not be opened?"""
        return self.t.incomplete

    @property
    def quick(self) -> bool:
        """Is it opened in no time, so that requests wait for it?"""
        return self.t.quick

    @property
    def entries(self):
        """How many records or rules it has; None if that is not known."""
        return None

    @property
    def size(self):
        """How large it is; None if that is not known."""
        return None

    @property
    def index_bytes(self) -> int:
        """What an index of it takes in memory."""
        return 0

    @property
    def polled(self) -> bool:
        """Must it be looked at, since no event tells of changes?"""
        return self.t.polled

    @property
    def written(self) -> bool:
        """Is one of its files being written? Not even then, if that is not known."""
        cdef origin *o = self.t.origins
        while o != NULL:
            if is_written(o):
                return True
            o = o.next
        return False

    @property
    def cached(self) -> bool:
        """May the cache stand in front of this table?"""
        return self.t.cached

    @cached.setter
    def cached(self, bint cached):
        self.t.cached = cached

    def keep_for(
        self, *, double ttl=0, double negative_ttl=0, double error_ttl=0, double stale_ttl=0,
        double stale_negative_ttl=0, double stale_wait=0, int refresh_percent=0
    ):
        """Have the cache keep answers for so many seconds (struct policy); if both ttl are 0, not at all."""
        cdef policy *p = &self.t.keeps
        self.t.cached = self.t.timed = ttl > 0 or negative_ttl > 0
        p.ttl_ms, p.negative_ttl_ms = <uint64_t> (ttl * 1000), <uint64_t> (negative_ttl * 1000)
        p.error_ttl_ms, p.stale_wait_ms = <uint64_t> (error_ttl * 1000), <uint64_t> (stale_wait * 1000)
        p.stale_ttl_ms = <uint64_t> (stale_ttl * 1000) if ttl else 0
        p.stale_negative_ttl_ms = <uint64_t> (stale_negative_ttl * 1000)
        p.refresh_percent = refresh_percent

    def log_slow(self, double seconds):
        """Have each lookup logged that takes so long, where it is not answered at once; 0: none."""
        self.t.slow_log_ns = <uint64_t> (seconds * 1e9)

    @property
    def stale_ttl(self) -> float:
        """For how many seconds past its life a value may stand in; 0: not at all."""
        return self.t.keeps.stale_ttl_ms / 1000 if self.t.cached else 0

    def equipped(self):
        """It has workers now; it may have others asked before them."""

    # Doors for tests and for `--direct` queries: what the loop does, under the GIL.

    @property
    def flags(self) -> int:
        return self.t.flags

    @property
    def reason(self):
        """Why the table could not be opened, as bytes; None for a table that is."""
        return None if self.t.reason == NULL else <bytes> self.t.reason

    @property
    def generation(self) -> int:
        return 0 if self.t.generation == NULL else self.t.generation(&self.t)

    @property
    def changed(self) -> int:
        """0, CHANGED_REPLACED or CHANGED_SPOILED."""
        cdef int changed = 0
        if self.t.changed != NULL:
            with nogil:
                changed = self.t.changed(&self.t)
        return changed

    def ask(self, bytes key not None, int flags):
        """Look key up from any thread, however long it takes: (status, flags afterwards, value).

        May raise what a SlowTable raises. The GIL is not held meanwhile.
        """
        cdef buf scratch
        cdef view value = view_of(NULL, 0)
        cdef view wanted = view_of(key, len(key))
        cdef int status
        buf_init(&scratch)
        try:
            with nogil:
                if self.t.lookup_patiently != NULL:
                    status = self.t.lookup_patiently(&self.t, wanted, &flags, &scratch, &value)
                else:
                    status = self.t.lookup(&self.t, wanted, &flags, &scratch, &value)
            text = value.ptr[:value.len] if status == STAT_OK else b""
            if self.t.damaged != NULL and self.t.damaged(&self.t):
                return STAT_RETRY, flags, b""
            return status, flags, text
        finally:
            buf_free(&scratch)

    def opened_flags(self, int given, bint utf8_layer) -> int:
        """The flag word of this table, opened with the given flags."""
        return table_flags(&self.t, given, utf8_layer)

    def fold(self, bytes key not None, int flags):
        """What the table is asked for when a client asks for key; None: it cannot have such a key."""
        cdef view v = view_of(key, len(key))
        cdef buf scratch
        cdef int status
        buf_init(&scratch)
        try:
            status = table_fold(&self.t, flags & DICT_FLAG_UTF8_ACTIVE, flags, &v, &scratch)
            if status == STAT_RETRY:
                raise MemoryError
            return v.ptr[:v.len] if status == STAT_OK else None
        finally:
            buf_free(&scratch)

    def answer(self, bytes key not None, int flags):
        """The value or None, as a client whose flag word is flags gets it. Trouble is raised (errors.py)."""
        if self.t.reason != NULL:
            raise TableRetry(os.fsdecode(self.t.reason))
        folded = self.fold(key, flags)
        if folded is None:
            return None
        status, _, value = self.ask(folded, flags)
        if status == STAT_RETRY:
            raise TableRetry("no answer for now")
        if status == STAT_CONFIG:
            raise TableConfig("configured wrongly")
        if status != STAT_OK:
            return None
        if flags & DICT_FLAG_UTF8_ACTIVE and not utf8_valid(view_of(value, len(value))):
            raise TableConfig(f'non-UTF-8 value "{os.fsdecode(value)}"')
        return value

    def explain(self, bytes key not None) -> list:
        """Where the answer to a key, folded already, comes from: a line each, for the administrator."""
        return []

    def doubts(self, bint connect=False):
        """What an administrator should know of it although it opens: (what, remedy, a warning only?) of each.

        connect: log in where it gets its answers from, and try to ask.
        """
        return []

    def survey(self):
        """What is wrong with its file although it opens, or None; looks at all of it."""
        return None

    def write(self, list changes, on_disk=None):
        """Make changes (tables/base.py: Change) and have them on disk before it returns.

        on_disk: may be called with them as soon as they are, before what else there is to do.
        """
        raise TypeError("this table has no slow updates")

    @property
    def at_a_time(self) -> int:
        """How many workers may ask it at the same time; 0: no limit of its own."""
        return 0

    @property
    def slow(self) -> int:
        """SLOW_*: what workers do for this table."""
        return self.t.slow

    def lookup(self, bytes key not None, int flags=DICT_FLAGS_TRY):
        """(status, flags afterwards, value)."""
        cdef buf scratch
        cdef view value = view_of(NULL, 0)
        cdef int status
        if self.t.lookup == NULL:
            raise TypeError("this table answers on a worker thread")
        buf_init(&scratch)
        try:
            status = self.t.lookup(&self.t, view_of(key, len(key)), &flags, &scratch, &value)
            return status, flags, value.ptr[:value.len] if status == STAT_OK else b""
        finally:
            buf_free(&scratch)

    def sequence(self):
        """Every record as (key, value), in the table's order; ends early where the table is damaged."""
        cdef cursor c
        cdef buf scratch
        cdef view key, value
        cdef int function = FUNC_FIRST
        if self.t.sequence == NULL:
            raise TypeError("this table type has no sequence")
        buf_init(&scratch)
        buf_init(&c.key)
        c.next = NULL
        c.of = c.position = 0
        records = []
        try:
            while self.t.sequence(&self.t, &c, function, &scratch, &key, &value) == STAT_OK:
                records.append((key.ptr[:key.len], value.ptr[:value.len]))
                function = FUNC_NEXT
            return records
        finally:
            buf_free(&scratch)
            buf_free(&c.key)


cdef inline int take_stamp(stamp *s, seen) except -1:
    s.device, s.inode, s.size, s.mtime_ns, s.ctime_ns = seen
    return 0


cdef inline bint is_written(const origin *o) noexcept nogil:
    """Is somebody writing to the file, by its name here or by another?"""
    return (o.written != NULL and o.written[0]) or (o.own != NULL and o.own[0])


cdef int origins_changed(table *t) noexcept nogil:
    """Is any of the files not what was loaded? What is being written will be looked at when it is whole."""
    cdef origin *o = t.origins
    while o != NULL:
        if not is_written(o) and not same_content(o.seen, stamp_at(o.path)):
            return CHANGED_REPLACED
        o = o.next
    return CHANGED_NOT


cdef bint origins_replaced(table *t) noexcept nogil:
    """Is any of the files another one? What is in them does not count."""
    cdef origin *o = t.origins
    while o != NULL:
        if not same_file(o.seen, stamp_at(o.path)):
            return True
        o = o.next
    return False


cdef int surrogate_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    return STAT_RETRY


cdef int absent_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    """Of a type that is not there: no UTF-8 layer stands before it, see table_flags."""
    return STAT_RETRY


cdef int surrogate_sequence(
    table *t, cursor *c, int function, buf *scratch, view *key, view *value
) noexcept nogil:
    return STAT_RETRY


# Types whose keys are looked up, and whose tables may open later: what a client is told of them before.
LOOKED_UP = frozenset((
    b"btree", b"cdb", b"hash", b"http", b"ldap", b"lmdb", b"memcache", b"mysql", b"pgsql", b"redis",
    b"sqlite", b"texthash",
))


cdef class Surrogate(Table):
    """Stands for a table that could not be opened: every answer is RETRY.

    absent: there is no such type. Then that is the answer to a key that is not UTF-8, too.
    """

    def __cinit__(self, bytes type_name, bytes reason, bint absent=False):
        if type_name.partition(b":")[0] in LOOKED_UP:
            self.t.fold_bit = DICT_FLAG_FOLD_FIX
        self.text = reason
        self.t.reason = PyBytes_AsString(self.text)
        self.trouble = reason.decode(errors="surrogateescape")
        self.t.flags = DICT_FLAG_PATTERN
        self.t.lookup = absent_lookup if absent else surrogate_lookup
        self.t.sequence = surrogate_sequence


cdef class Slow(Table):
    """A table that answers on a worker thread: `answers` is its SlowTable (tables/base.py)."""

    def __cinit__(self, bytes type_name, answers):
        self.answers = answers
        self.t.flags = answers.flags
        self.t.fold_bit = answers.fold_bit
        self.t.slow = SLOW_LOOKUP
        if answers.files:
            self.loaded_from(answers.files)
        if answers.has_sequence:
            self.t.slow |= SLOW_SEQUENCE
        if answers.has_updates:
            self.t.slow |= SLOW_WRITE

    def ask(self, bytes key not None, int flags):
        value, flags = self.answers.lookup_flags(key, flags)
        if value is None:
            return STAT_NOKEY, flags, b""
        value = b"".join([value])  # bytes, or TypeError
        return STAT_OK, flags, value.partition(b"\0")[0]

    def explain(self, bytes key not None) -> list:
        return self.answers.explain(key)

    def doubts(self, bint connect=False):
        return self.answers.doubts(connect)

    def write(self, list changes, on_disk=None):
        self.answers.write(changes)

    @property
    def at_a_time(self) -> int:
        return self.answers.at_a_time
