"""_table - what a table must offer the loop: struct table (C pointers) and class Table, its owner

A table type that answers on the loop subclasses Table and sets the pointers in
__cinit__; the loop then calls them without the GIL. Table owns the memory: the
struct lives as long as the object, which the catalog holds by reference.
"""

from cpython.bytes cimport PyBytes_AsString
from cpython.mem cimport PyMem_Calloc, PyMem_Free

from proxymap._buf cimport buf, buf_free, buf_init, view, view_of
from proxymap._words cimport *


cdef class Table:
    """An open table. `type_name` is the whole name, such as b"cdb:/etc/postfix/virtual"."""

    def __cinit__(self, bytes type_name, *args, **kwargs):
        self.type_name = type_name
        self.t.lookup = NULL
        self.t.sequence = NULL
        self.t.lookup_patiently = NULL
        self.t.write = NULL
        self.t.generation = NULL
        self.t.changed = NULL
        self.t.damaged = NULL
        self.t.flags = 0
        self.t.fold_bit = 0
        self.t.cached = False
        self.t.slow = 0
        self.t.asks = self.t.changes = NULL
        self.t.self = NULL
        self.t.owner = <void *> self
        self.t.reason = NULL

    @property
    def cached(self) -> bool:
        """May the cache stand in front of this table?"""
        return self.t.cached

    @cached.setter
    def cached(self, bint cached):
        self.t.cached = cached

    # Doors for tests, for `--direct` queries and benchmarks: what the loop does, under the GIL.

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
        return 0 if self.t.changed == NULL else self.t.changed(&self.t)

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
            if self.t.damaged != NULL and self.t.damaged[0]:  # the file was cut meanwhile
                return STAT_RETRY, flags, b""
            return status, flags, text
        finally:
            buf_free(&scratch)

    def explain(self, bytes key not None) -> list:
        """Where the answer to key comes from, a line each; for the administrator."""
        return []

    def write(self, list changes):
        """Make changes (tables/base.py: Change) and have them on disk before it returns."""
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

    def lookup_loop(self, list keys not None, long rounds) -> int:
        """Look all keys up again and again, for benchmarks; returns how many were found."""
        cdef buf scratch
        cdef view value
        cdef long _, found = 0
        cdef size_t i, n = len(keys)
        cdef int flags
        cdef view *wanted
        if self.t.lookup == NULL:
            raise TypeError("this table answers on a worker thread")
        wanted = <view *> PyMem_Calloc(n + 1, sizeof(view))
        if wanted == NULL:
            raise MemoryError()
        buf_init(&scratch)
        try:
            for i in range(n):
                wanted[i] = view_of(keys[i], len(keys[i]))
            with nogil:
                for _ in range(rounds):
                    for i in range(n):
                        flags = DICT_FLAGS_TRY
                        found += self.t.lookup(&self.t, wanted[i], &flags, &scratch, &value) == STAT_OK
            return found
        finally:
            buf_free(&scratch)
            PyMem_Free(wanted)

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


cdef int surrogate_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    return STAT_RETRY


cdef int surrogate_sequence(
    table *t, cursor *c, int function, buf *scratch, view *key, view *value
) noexcept nogil:
    return STAT_RETRY


cdef class Surrogate(Table):
    """Stands for a table that could not be opened: every answer is RETRY."""

    def __cinit__(self, bytes type_name, bytes reason):
        self.text = reason
        self.t.reason = PyBytes_AsString(self.text)
        self.t.flags = DICT_FLAG_PATTERN
        self.t.lookup = surrogate_lookup
        self.t.sequence = surrogate_sequence


cdef class Slow(Table):
    """A table that answers on a worker thread: `answers` is its SlowTable (tables/base.py)."""

    def __cinit__(self, bytes type_name, answers):
        self.answers = answers
        self.t.flags = answers.flags
        self.t.fold_bit = answers.fold_bit
        self.t.slow = SLOW_LOOKUP
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

    def write(self, list changes):
        self.answers.write(changes)

    @property
    def at_a_time(self) -> int:
        return self.answers.at_a_time

    def __del__(self):
        self.answers.close()
