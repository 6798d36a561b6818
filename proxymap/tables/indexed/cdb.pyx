"""cdb - constant databases, read from the mapped file: the classic 32-bit format and cdb64

A CDB is 256 (position, slots) pairs, the records, and 256 open hash tables of
(hash, position) slots; every number is little-endian, of 4 bytes or, in cdb64,
of 8. The format has no magic: it is the one whose header size lets the hash
tables tile the file exactly from the last record to its end. No offset from
the file is used before it is checked, so that no file can crash us.

Lookups are re-entrant and run without the GIL. A value is a view of the map.

Source: cdb(5), cdb.cr.yp.to (cdb64); tables.md 4.2, 4.6.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t

from proxymap.base._buf cimport buf, memcmp, memcpy, view, view_of, view_until_nul
from proxymap.base._map cimport map_close, map_open, map_stamp, map_touched, mapped
from proxymap.tables._table cimport (
    CHANGED_SPOILED, Table, cursor, glimpse, origins_changed, prefetch, table, table_try_nul,
)
from proxymap._words cimport *

cdef extern from "<endian.h>" nogil:
    uint32_t le32toh(uint32_t)
    uint64_t le64toh(uint64_t)

cdef enum:
    TABLES = 256
    HASH_START = 5381
    CACHE_LINE = 64
    SLOTS_FORESEEN = 4  # most keys are in one of these, counted from where they belong


cdef struct cdb:
    mapped m
    size_t mark           # where the last byte is that is not zero
    char mark_byte        # the one that is there
    size_t width          # bytes of a number: 4 or 8
    uint64_t records_end  # behind the last record
    uint64_t hash_mask    # a cdb64 holds 32-bit hashes or 64-bit ones, depending on who wrote it


cdef inline uint64_t number_at(const cdb *c, uint64_t offset) noexcept nogil:
    """The number at an offset that has been checked."""
    cdef uint32_t narrow
    cdef uint64_t wide
    if c.width == 4:
        memcpy(&narrow, c.m.data + offset, 4)
        return le32toh(narrow)
    memcpy(&wide, c.m.data + offset, 8)
    return le64toh(wide)


cdef inline uint64_t hash_step(uint64_t h, unsigned char c) noexcept nogil:
    return ((h << 5) + h) ^ c


cdef inline uint64_t hash_of(view key) noexcept nogil:
    cdef uint64_t h = HASH_START
    cdef size_t i
    for i in range(key.len):
        h = hash_step(h, <unsigned char> key.ptr[i])
    return h


cdef inline uint64_t hash_for(const cdb *c, view key, bint nul) noexcept nogil:
    """As it is stored for the key, or for the key with a NUL behind it."""
    cdef uint64_t h = hash_of(key)
    if nul:
        h = hash_step(h, 0)
    return h & c.hash_mask


cdef bint slots_fit(const cdb *c, uint64_t position, uint64_t slots) noexcept nogil:
    return (2 * c.width * TABLES <= position <= c.m.size
            and slots <= (c.m.size - position) // (2 * c.width))


cdef bint tables_tile(cdb *c) noexcept nogil:
    """Do the hash tables fill the file exactly from some point to its end? Sets records_end."""
    cdef uint64_t header = 2 * c.width * TABLES
    cdef uint64_t total = 0, position, slots
    cdef int i
    if c.m.size < header:
        return False
    c.records_end = c.m.size
    for i in range(TABLES):
        position = number_at(c, 2 * c.width * i)
        slots = number_at(c, 2 * c.width * i + c.width)
        if slots == 0:
            continue
        if not slots_fit(c, position, slots):
            return False
        total += slots * 2 * c.width
        if position < c.records_end:
            c.records_end = position
    if total == 0:
        return c.m.size == header and number_at(c, 0) == header  # a file of zeros is no empty table
    return total == c.m.size - c.records_end


cdef int record_at(const cdb *c, uint64_t position, view *key, view *value) noexcept nogil:
    """The record at position; 0, or -1 if it does not lie within the records."""
    cdef uint64_t klen, dlen, rest
    if position < 2 * c.width * TABLES or position > c.records_end or c.records_end - position < 2 * c.width:
        return -1
    rest = c.records_end - position - 2 * c.width
    klen = number_at(c, position)
    dlen = number_at(c, position + c.width)
    if klen > rest or dlen > rest - klen:
        return -1
    key[0] = view_of(c.m.data + position + 2 * c.width, klen)
    value[0] = view_of(key.ptr + klen, dlen)
    return 0


cdef inline bint key_is(view stored, view key, bint nul) noexcept nogil:
    return (stored.len == key.len + nul and memcmp(stored.ptr, key.ptr, key.len) == 0
            and (not nul or stored.ptr[key.len] == 0))


cdef int cdb_find(
    table *t, view key, bint nul, const glimpse *g, buf *scratch, view *value
) noexcept nogil:
    """The first record whose key is key, with a NUL behind it if nul is set."""
    cdef const cdb *c = <const cdb *> t.self
    cdef uint64_t h = g.what[nul] if g != NULL and g.at[nul] else hash_for(c, key, nul)
    cdef uint64_t position, slots, slot, at, _
    cdef view stored
    position = number_at(c, 2 * c.width * (h % TABLES))
    slots = number_at(c, 2 * c.width * (h % TABLES) + c.width)
    if slots == 0:
        return STAT_NOKEY
    if not slots_fit(c, position, slots):
        return STAT_RETRY
    slot = (h >> 8) % slots
    for _ in range(slots):
        at = number_at(c, position + 2 * c.width * slot + c.width)
        if at == 0:
            return STAT_NOKEY
        if number_at(c, position + 2 * c.width * slot) == h:
            if record_at(c, at, &stored, value) < 0:
                return STAT_RETRY
            if key_is(stored, key, nul):
                return STAT_OK
        slot = 0 if slot + 1 == slots else slot + 1
    return STAT_NOKEY


cdef bint cdb_foresee(table *t, view key, int flags, glimpse *g) noexcept nogil:
    """First the slot where each form of the key begins to be looked for, then the record that it leads to."""
    cdef const cdb *c = <const cdb *> t.self
    cdef uint64_t h, position, slots
    cdef int nul
    g.step += 1
    for nul in range(2):
        if not flags & (DICT_FLAG_TRY1NULL if nul else DICT_FLAG_TRY0NULL):
            continue
        if g.step == 1:
            h = hash_for(c, key, nul)
            position = number_at(c, 2 * c.width * (h % TABLES))
            slots = number_at(c, 2 * c.width * (h % TABLES) + c.width)
            if slots and slots_fit(c, position, slots):
                g.what[nul] = h
                g.at[nul] = position + 2 * c.width * ((h >> 8) % slots)
                prefetch(c.m.data + g.at[nul])
        elif g.at[nul]:
            foresee_record(c, g.at[nul], g.what[nul])
    return g.step == 1


cdef inline void foresee_record(const cdb *c, uint64_t slot, uint64_t h) noexcept nogil:
    """The first record with that hash, if its slot is one of the next few."""
    cdef uint64_t end = min(slot + 2 * c.width * SLOTS_FORESEEN, <uint64_t> c.m.size)
    cdef uint64_t at
    while slot + 2 * c.width <= end:
        at = number_at(c, slot + c.width)
        if at == 0:
            return
        if number_at(c, slot) == h:
            if at < c.records_end:
                prefetch(c.m.data + at)
                prefetch(c.m.data + min(at + CACHE_LINE - 1, c.records_end - 1))
            return
        slot += 2 * c.width


cdef int cdb_lookup_foreseen(
    table *t, view key, const glimpse *g, int *flags, buf *scratch, view *value
) noexcept nogil:
    cdef int status = table_try_nul(cdb_find, t, key, g, flags, scratch, value)
    return STAT_RETRY if (<cdb *> t.self).m.region.damaged else status


cdef int cdb_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    return cdb_lookup_foreseen(t, key, NULL, flags, scratch, value)


cdef int cdb_sequence(
    table *t, cursor *cur, int function, buf *scratch, view *key, view *value
) noexcept nogil:
    """File order. NEXT without FIRST, or after the end, is NOKEY."""
    cdef const cdb *c = <const cdb *> t.self
    cdef uint64_t next
    if function == FUNC_FIRST:
        cur.position = 2 * c.width * TABLES
    if cur.position == 0 or cur.position >= c.records_end:
        cur.position = 0
        return STAT_NOKEY
    if record_at(c, cur.position, key, value) < 0:
        return STAT_RETRY
    next = value.ptr + value.len - c.m.data
    key[0] = view_until_nul(key[0])
    value[0] = view_until_nul(value[0])
    if c.m.region.damaged:  # asked last: all of the record has been read now
        return STAT_RETRY
    cur.position = next
    return STAT_OK


cdef bint cdb_damaged(table *t) noexcept nogil:
    """A cut file reads as zeros up to the end of its last page, where there is no SIGBUS.

    Whatever was cut, the last byte that was not zero shows it, without a system call.
    """
    cdef const cdb *c = <const cdb *> t.self
    return c.m.data[c.mark] != c.mark_byte or c.m.region.damaged


cdef int cdb_changed(table *t) noexcept nogil:
    if cdb_damaged(t) or map_touched(&(<const cdb *> t.self).m):
        return CHANGED_SPOILED
    return origins_changed(t)


cdef uint64_t find_hash_mask(cdb *c) noexcept nogil:
    """In a cdb64: are the stored hashes cut to 32 bits? The first record whose two hashes differ tells."""
    cdef uint64_t position = 2 * c.width * TABLES, h, slots, slots_at, i
    cdef view key, value
    while c.width == 8 and record_at(c, position, &key, &value) == 0:
        h = hash_of(key)
        if h >> 32:
            slots_at = number_at(c, 2 * c.width * (h % TABLES))
            slots = number_at(c, 2 * c.width * (h % TABLES) + c.width)
            for i in range(slots):
                if (number_at(c, slots_at + 2 * c.width * i + c.width) == position
                        and number_at(c, slots_at + 2 * c.width * i) == h):
                    return <uint64_t> -1
            return 0xFFFFFFFF
        position = value.ptr + value.len - c.m.data
    return 0xFFFFFFFF


cdef bint slot_leads_to(const cdb *c, uint64_t h, uint64_t record) noexcept nogil:
    """Does the hash table have a slot for the record with that hash?"""
    cdef uint64_t position = number_at(c, 2 * c.width * (h % TABLES))
    cdef uint64_t slots = number_at(c, 2 * c.width * (h % TABLES) + c.width)
    cdef uint64_t slot, at, _
    if slots == 0 or not slots_fit(c, position, slots):
        return False
    slot = (h >> 8) % slots
    for _ in range(slots):
        at = number_at(c, position + 2 * c.width * slot + c.width)
        if at == record or at == 0:
            return at != 0 and number_at(c, position + 2 * c.width * slot) == h
        slot = 0 if slot + 1 == slots else slot + 1
    return False


cdef bint is_whole(const cdb *c) noexcept nogil:
    """Is there a slot for every record, and are there no other slots? Reads all of the file."""
    cdef uint64_t position = 2 * c.width * TABLES, h, count = 0
    cdef view key, value
    while position < c.records_end:
        if record_at(c, position, &key, &value) < 0:
            return False
        h = hash_of(key)
        if not slot_leads_to(c, h & c.hash_mask, position):
            return False
        count += 1
        position = value.ptr + value.len - c.m.data
    return 4 * c.width * count == c.m.size - c.records_end and not c.m.region.damaged


cdef class CdbTable(Table):
    """cdb:NAME, served from NAME.cdb. Raises OSError (cannot be opened) or ValueError (no CDB).

    doubtful: it may consist of pieces of two files, so look at all of it.
    """

    cdef cdb db

    def __cinit__(self, bytes type_name, bytes file, bint doubtful=False):
        cdef bint whole = True
        cdef const char *path = file
        cdef int failed
        self.db.m.fd = -1
        with nogil:
            failed = map_open(&self.db.m, path, 0)
        if failed:
            raise OSError(errno, os.strerror(errno), os.fsdecode(file))
        self.db.width = 4
        if not tables_tile(&self.db):
            self.db.width = 8
            if not tables_tile(&self.db):
                raise ValueError(f"{os.fsdecode(file)}: not a CDB file, or damaged")
        self.db.hash_mask = 0xFFFFFFFF
        self.db.hash_mask = find_hash_mask(&self.db)
        if doubtful:
            with nogil:
                whole = is_whole(&self.db)
            if not whole:
                raise ValueError(f"{os.fsdecode(file)}: not a CDB file, or damaged")
        self.db.mark = self.db.m.size - 1
        while self.db.mark and self.db.m.data[self.db.mark] == 0:
            self.db.mark -= 1
        self.db.mark_byte = self.db.m.data[self.db.mark]
        self.t.self = &self.db
        self.t.flags = DICT_FLAG_FIXED | DICT_FLAGS_TRY
        self.t.fold_bit = DICT_FLAG_FOLD_FIX
        self.t.lookup = cdb_lookup
        self.t.foresee = cdb_foresee
        self.t.lookup_foreseen = cdb_lookup_foreseen
        self.t.sequence = cdb_sequence
        self.t.changed = cdb_changed
        self.t.damaged = cdb_damaged
        self.t.quick = True
        self.watches_content = True
        self.loaded_from([(file, map_stamp(&self.db.m))])

    @property
    def entries(self):
        """Each record has two slots."""
        return (self.db.m.size - self.db.records_end) // (4 * self.db.width)

    @property
    def size(self):
        return self.db.m.size

    def __dealloc__(self):
        map_close(&self.db.m)


def open_table(bytes type_name, bytes mapname, opening) -> CdbTable:
    return CdbTable(type_name, mapname + b".cdb", opening.doubtful)
