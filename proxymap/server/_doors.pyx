"""_doors - doors for tests and benchmarks into what the loop runs: codec, cache, approval, tables

The daemon does not load it. `*_loop` functions do the same thing again and
again without Python, so that pyperf can time it.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from proxymap.base._buf cimport buf, buf_clear, buf_free, buf_init, view, view_of
from proxymap.server._cache cimport cache, cache_find, cache_free, cache_init, cache_store, entry
from proxymap.server._catalog cimport (
    catalog, catalog_approve, catalog_free, catalog_init, catalog_is_approved,
)
from proxymap._codec cimport list_restart, reply_append, request, request_read, scan
from proxymap.tables._table cimport Table, glimpse, table
from proxymap.tables._template cimport PARTS, Program, parts_of_key, program_fill, quote_doubling
from proxymap._words cimport *


cdef view *views_of(list keys) except NULL:
    """They borrow: good while keys is held."""
    cdef view *views = <view *> calloc(len(keys) + 1, sizeof(view))
    if views == NULL:
        raise MemoryError
    for i, key in enumerate(keys):
        views[i] = view_of(<bytes> key, len(<bytes> key))
    return views


# The protocol

def parse_loop(bytes data, long rounds) -> int:
    """Scan and parse the same request again and again; returns the sum of the verdicts."""
    cdef scan s
    cdef request r
    cdef const char *p = data
    cdef size_t n = len(data)
    cdef long _, total = 0
    cdef int verdict
    with nogil:
        for _ in range(rounds):
            list_restart(&s)
            request_read(&s, p, n, &r, &verdict)
            total += verdict
    return total


def reply_loop(str dialect, bytes value, long rounds) -> int:
    """Build the same reply to a lookup again and again; returns its length."""
    cdef request r
    cdef buf out
    cdef view found = view_of(value, len(value))
    cdef long _
    buf_init(&out)
    r.kind = REQ_LOOKUP
    r.dialect = DIALECT_3_11 if dialect == "3.11" else DIALECT_3_6
    try:
        with nogil:
            for _ in range(rounds):
                out.start = out.end = 0
                reply_append(&out, &r, STAT_OK, 0, found, found)
        return out.end
    finally:
        buf_free(&out)


# The service

def approval_loop(list approved not None, list asked not None, long rounds) -> int:
    """Ask again and again whether names are approved; returns how often one was."""
    cdef catalog c
    cdef size_t i, n = len(asked)
    cdef long _, found = 0
    cdef view *names = views_of(asked)
    catalog_init(&c, 1)
    try:
        for name in approved:
            if catalog_approve(&c, view_of(<bytes> name, len(<bytes> name))) < 0:
                raise MemoryError
        with nogil:
            for _ in range(rounds):
                for i in range(n):
                    found += catalog_is_approved(&c, names[i])
        return found
    finally:
        catalog_free(&c)
        free(names)


# Templates

def fill_loop(Program template not None, list keys not None, long rounds) -> int:
    """Make a query of each key again and again; returns the bytes of them all."""
    cdef view parts[<int> PARTS]
    cdef view *wanted = views_of(keys)
    cdef size_t i, n = len(keys)
    cdef long _, total = 0
    cdef buf out
    buf_init(&out)
    with nogil:
        for _ in range(rounds):
            for i in range(n):
                buf_clear(&out)
                parts_of_key(wanted[i], parts)
                program_fill(&template.p, parts, quote_doubling, NULL, &out)
                total += out.end
    buf_free(&out)
    free(wanted)
    return total


# Results

cdef class Cache:
    """A cache of its own, for tests and benchmarks."""

    cdef cache c

    def __cinit__(self, size_t size, uint64_t seed=0):
        if cache_init(&self.c, size, 25, seed) < 0:
            raise MemoryError

    def __dealloc__(self):
        if self.c.slots != NULL:
            cache_free(&self.c)

    def find(self, uint64_t owner, uint64_t generation, bytes key not None):
        """(status, cleared, value) or None."""
        cdef entry *e = cache_find(&self.c, owner, generation, view_of(key, len(key)))
        if e == NULL:
            return None
        return e.status, e.cleared, (<const char *> e.bytes)[e.key_len:e.key_len + e.value_len]

    def store(
        self, uint64_t owner, uint64_t generation, bytes key not None, int status, bytes value=b"",
        int cleared=0
    ):
        cdef view text = view_of(value, len(value))
        cache_store(&self.c, owner, generation, view_of(key, len(key)), status, cleared, text, NULL)

    @property
    def counters(self):
        return {"evicted": self.c.evicted,
                "bytes": self.c.found.bytes + self.c.absent.bytes + (self.c.mask + 1) * sizeof(entry *),
                "found_bytes": self.c.found.bytes, "absent_bytes": self.c.absent.bytes}

    def find_loop(self, list keys not None, long rounds) -> int:
        """Look all keys up again and again; returns how often one was there."""
        cdef view *wanted = views_of(keys)
        cdef size_t i, n = len(keys)
        cdef long _, there = 0
        with nogil:
            for _ in range(rounds):
                for i in range(n):
                    there += cache_find(&self.c, 1, 1, wanted[i]) != NULL
        free(wanted)
        return there

    def store_loop(self, list keys not None, bytes value not None, long rounds):
        """Store all keys with that value again and again."""
        cdef view *wanted = views_of(keys)
        cdef view text = view_of(value, len(value))
        cdef size_t i, n = len(keys)
        cdef long _
        with nogil:
            for _ in range(rounds):
                for i in range(n):
                    cache_store(&self.c, 1, 1, wanted[i], STAT_OK, 0, text, NULL)
        free(wanted)


# Tables

def lookup_loop(Table of not None, list keys not None, long rounds, size_t ahead=1) -> int:
    """Look all keys up again and again; returns how many were found.

    ahead: so many at a time are foreseen, as the loop does with those that are ready together.
    """
    cdef buf scratch
    cdef view value
    cdef long _, found = 0
    cdef size_t i, n = len(keys)
    cdef int flags
    cdef view *wanted
    if of.t.lookup == NULL:
        raise TypeError("this table answers on a worker thread")
    wanted = views_of(keys)
    buf_init(&scratch)
    try:
        with nogil:
            for _ in range(rounds):
                for i in range(n):
                    if ahead > 1 and i % ahead == 0:
                        foresee_all(&of.t, &wanted[i], min(ahead, n - i))
                    flags = DICT_FLAGS_TRY
                    found += of.t.lookup(&of.t, wanted[i], &flags, &scratch, &value) == STAT_OK
        return found
    finally:
        buf_free(&scratch)
        free(wanted)


cdef void foresee_all(table *t, const view *keys, size_t count) noexcept nogil:
    """Up to 64 of them."""
    cdef glimpse glimpses[64]
    cdef bint more = t.foresee != NULL
    cdef size_t i
    memset(glimpses, 0, sizeof(glimpses))
    while more:
        more = False
        for i in range(count):
            if t.foresee(t, keys[i], DICT_FLAGS_TRY, &glimpses[i]):
                more = True


cdef class Reader:
    """A table as a program would have it, for benchmarks; it learns whether keys end with NUL."""

    cdef Table of
    cdef int flags
    cdef buf scratch

    def __cinit__(self, Table of not None):
        if of.t.lookup == NULL:
            raise TypeError("this table answers on a worker thread")
        self.of = of
        self.flags = DICT_FLAGS_TRY
        buf_init(&self.scratch)

    def __dealloc__(self):
        buf_free(&self.scratch)

    def get(self, bytes key not None):
        """The value, or None: not found, or trouble."""
        cdef view value
        cdef int status = self.of.t.lookup(
            &self.of.t, view_of(key, len(key)), &self.flags, &self.scratch, &value)
        return value.ptr[:value.len] if status == STAT_OK else None

    def get_loop(self, list keys not None, long rounds) -> int:
        """Look all keys up again and again without Python; returns how many were found."""
        cdef view value
        cdef long _, found = 0
        cdef size_t i, n = len(keys)
        cdef view *wanted = views_of(keys)
        with nogil:
            for _ in range(rounds):
                for i in range(n):
                    found += self.of.t.lookup(
                        &self.of.t, wanted[i], &self.flags, &self.scratch, &value) == STAT_OK
        free(wanted)
        return found
