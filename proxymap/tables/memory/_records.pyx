"""_records - byte records in memory, and tables made of them

Keys and values lie back to back in one text, which grows as a whole; an array
says where each record is; an open hash table leads from the hash of a key to
its record. A record costs its bytes and some 40 more, and no allocation of its
own. The hash is seeded: who chooses keys cannot make them collide.

Lookups are re-entrant and run without the GIL as long as nobody writes, which
is how a RecordsTable lives. A MemoryTable is written to while it is read: it
takes the lock, and copies what it finds.
"""

import os

from libc.stdint cimport UINT32_MAX, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from proxymap.base._buf cimport (
    buf, buf_append_view, buf_clear, buf_free, buf_init, buf_reserve, buf_view, memcmp, view, view_of,
)
from proxymap.base._hash cimport hash_view
from proxymap.base._os cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from proxymap.tables._table cimport Table, cursor, table
from proxymap._words cimport *

cdef enum:
    SLOTS_MIN = 16
    WASTE_MIN = 1 << 16  # bytes; less is not worth tidying up

cdef uint32_t DELETED = UINT32_MAX  # as key_len: no key is as long


cdef size_t find_slot(const records *r, view key, uint64_t hash) noexcept nogil:
    """The slot of key, or the free one where it would be. Deleted records keep theirs until tidied up."""
    cdef uint32_t tag = hash >> 32
    cdef size_t at = hash & r.mask
    cdef const record *seen
    while r.slots[at].number:
        if r.slots[at].tag == tag:
            seen = &r.all[r.slots[at].number - 1]
            if seen.key_len == key.len and (
                key.len == 0 or memcmp(r.text.data + seen.at, key.ptr, key.len) == 0
            ):
                break
        at = (at + 1) & r.mask
    return at


cdef record *find_record(const records *r, view key) noexcept nogil:
    """The record, or NULL."""
    cdef uint32_t number
    if r.count == 0:
        return NULL
    number = r.slots[find_slot(r, key, hash_view(key, r.seed))].number
    return &r.all[number - 1] if number else NULL


cdef inline view key_of(const records *r, const record *one) noexcept nogil:
    return view_of(r.text.data + one.at, one.key_len)


cdef inline view value_of(const records *r, const record *one) noexcept nogil:
    return view_of(r.text.data + one.at + one.key_len, one.value_len)


cdef bint records_find(const records *r, view key, view *value) noexcept nogil:
    """Is there such a key? Then its value, which is void as soon as anything is written."""
    cdef const record *one = find_record(r, key)
    if one != NULL:
        value[0] = value_of(r, one)
    return one != NULL


cdef void fill_slots(records *r) noexcept nogil:
    """Enter all records into slots that are all zero."""
    cdef size_t i, at
    cdef uint64_t hash
    for i in range(r.used):
        if r.all[i].key_len != DELETED:
            hash = hash_view(key_of(r, &r.all[i]), r.seed)
            at = hash & r.mask
            while r.slots[at].number:
                at = (at + 1) & r.mask
            r.slots[at].number = i + 1
            r.slots[at].tag = hash >> 32


cdef int tidy_up(records *r) noexcept nogil:
    """Forget deleted records and wasted bytes; 0, or -1 without memory."""
    cdef buf text
    cdef size_t i, kept = 0
    cdef record *one
    buf_init(&text)
    if buf_reserve(&text, r.text.end - r.wasted + 1) < 0:  # no text is no place to point to
        return -1
    for i in range(r.used):
        if r.all[i].key_len == DELETED:
            continue
        one = &r.all[kept]
        one[0] = r.all[i]
        memcpy(text.data + text.end, r.text.data + one.at, <size_t> one.key_len + one.value_len)
        one.at = text.end
        text.end += <size_t> one.key_len + one.value_len
        kept += 1
    buf_free(&r.text)
    r.text = text
    r.used = kept
    r.wasted = 0
    memset(r.slots, 0, (r.mask + 1) * sizeof(slot))
    fill_slots(r)
    return 0


cdef int resize(records *r, size_t room) noexcept nogil:
    """Room for so many records; 0, or -1 without memory."""
    cdef size_t count = SLOTS_MIN
    cdef record *all
    cdef slot *slots
    if room >= UINT32_MAX:
        return -1
    all = <record *> realloc(r.all, room * sizeof(record))
    if all == NULL:
        return -1
    r.all = all
    while count < room + room // 3:  # at most three of four are taken
        count *= 2
    if r.slots == NULL or count > r.mask + 1:
        slots = <slot *> calloc(count, sizeof(slot))
        if slots == NULL:
            return -1
        free(r.slots)
        r.slots = slots
        r.mask = count - 1
        fill_slots(r)
    r.room = room
    return 0


cdef int records_reserve(records *r, size_t count, size_t size) noexcept nogil:
    """Room for so many records more, of so many bytes; 0, or -1 without memory."""
    if buf_reserve(&r.text, size) < 0:
        return -1
    return 0 if r.room - r.used >= count else resize(r, r.used + count)


cdef int make_room(records *r) noexcept nogil:
    """Room for one record more; 0, or -1 without memory."""
    if r.wasted > WASTE_MIN and r.wasted > r.text.end // 2 and tidy_up(r) < 0:
        return -1
    if r.used < r.room:
        return 0
    if r.used - r.count > r.room // 2:
        return tidy_up(r)
    return resize(r, r.room + r.room // 2 + 8)


cdef int append(records *r, record *one, view key, view value) noexcept nogil:
    if buf_reserve(&r.text, key.len + value.len) < 0:
        return -1
    one.at = r.text.end
    one.key_len = key.len
    one.value_len = value.len
    buf_append_view(&r.text, key)
    buf_append_view(&r.text, value)
    return 0


cdef int records_put(records *r, view key, view value, bint replace) noexcept nogil:
    """Store a record: 1. If there is such a key, replace its value or leave it: 0. Without memory: -1."""
    cdef uint64_t hash = hash_view(key, r.seed)
    cdef size_t before
    cdef record *one
    cdef slot *s
    if key.len >= UINT32_MAX or value.len >= UINT32_MAX or make_room(r) < 0 or buf_reserve(&r.text, 1) < 0:
        return -1
    s = &r.slots[find_slot(r, key, hash)]
    if s.number:
        one = &r.all[s.number - 1]
        before = <size_t> one.key_len + one.value_len
        if replace:
            if append(r, one, key, value) < 0:
                return -1
            r.wasted += before
        return 0
    one = &r.all[r.used]
    if append(r, one, key, value) < 0:
        return -1
    r.used += 1
    r.count += 1
    r.last_serial += 1
    one.serial = r.last_serial
    s.number = r.used
    s.tag = hash >> 32
    return 1


cdef bint records_delete(records *r, view key) noexcept nogil:
    """Was there such a key?"""
    cdef record *one = find_record(r, key)
    if one != NULL:
        r.wasted += <size_t> one.key_len + one.value_len
        r.count -= 1
        one.key_len = DELETED
    return one != NULL


cdef bint records_after(const records *r, uint64_t *serial, view *key, view *value) noexcept nogil:
    """The first record that was inserted after the one with that serial; False at the end."""
    cdef size_t low = 0, high = r.used, middle
    while low < high:
        middle = (low + high) // 2
        if r.all[middle].serial > serial[0]:
            high = middle
        else:
            low = middle + 1
    while low < r.used and r.all[low].key_len == DELETED:
        low += 1
    if low == r.used:
        return False
    serial[0] = r.all[low].serial
    key[0] = key_of(r, &r.all[low])
    value[0] = value_of(r, &r.all[low])
    return True


cdef class Records:
    """Owner of records, and the way to fill them from Python."""

    def __cinit__(self):
        memset(&self.r, 0, sizeof(records))
        self.r.seed = int.from_bytes(os.urandom(8), "little")
        pthread_mutex_init(&self.r.lock, NULL)

    def __dealloc__(self):
        pthread_mutex_destroy(&self.r.lock)
        buf_free(&self.r.text)
        free(self.r.all)
        free(self.r.slots)

    def __len__(self) -> int:
        return self.r.count

    def put(self, bytes key not None, bytes value not None, bint replace=False) -> bool:
        """Store a record; False if there was such a key, whose value is replaced if `replace` says so."""
        cdef int new = records_put(&self.r, view_of(key, len(key)), view_of(value, len(value)), replace)
        if new < 0:
            raise MemoryError()
        return new == 1


cdef int records_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    return STAT_OK if records_find(<records *> t.self, key, value) else STAT_NOKEY


cdef int records_sequence(
    table *t, cursor *c, int function, buf *scratch, view *key, view *value
) noexcept nogil:
    """In the order of insertion. NEXT without FIRST, or after the end, is NOKEY."""
    if function == FUNC_FIRST:
        c.position = 0
    elif c.position == 0:
        return STAT_NOKEY
    if records_after(<records *> t.self, &c.position, key, value):
        return STAT_OK
    c.position = 0
    return STAT_NOKEY


cdef class RecordsTable(Table):
    """Records that nobody writes to any more, as a table. A value is a view of the text."""

    def __cinit__(self, bytes type_name, Records held not None, *args):
        self.held = held
        self.t.self = &held.r
        self.t.flags = DICT_FLAG_FIXED
        self.t.fold_bit = DICT_FLAG_FOLD_FIX
        self.t.lookup = records_lookup
        self.t.sequence = records_sequence

    @property
    def entries(self):
        return self.held.r.count

    @property
    def size(self):
        return self.held.r.text.cap + self.held.r.room * sizeof(record)


cdef int memory_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    cdef records *r = <records *> t.self
    cdef int status
    pthread_mutex_lock(&r.lock)
    status = records_lookup(t, key, flags, scratch, value)
    if status == STAT_OK:
        status = copy_to(scratch, NULL, value)
    pthread_mutex_unlock(&r.lock)
    return status


cdef int memory_sequence(
    table *t, cursor *c, int function, buf *scratch, view *key, view *value
) noexcept nogil:
    cdef records *r = <records *> t.self
    cdef int status
    pthread_mutex_lock(&r.lock)
    status = records_sequence(t, c, function, scratch, key, value)
    if status == STAT_OK:
        status = copy_to(scratch, key, value)
    pthread_mutex_unlock(&r.lock)
    return status


cdef int copy_to(buf *scratch, view *key, view *value) noexcept nogil:
    """Have the views point to copies; a key stands right before its value, as in the text."""
    cdef size_t key_len = key.len if key != NULL else 0
    cdef view both = view_of(value.ptr - key_len, key_len + value.len)
    buf_clear(scratch)
    if buf_append_view(scratch, both) < 0:
        return STAT_RETRY
    both = buf_view(scratch)
    if key != NULL:
        key.ptr = both.ptr
    value.ptr = both.ptr + key_len
    return STAT_OK


cdef int memory_write(table *t, view key, const view *value, int *flags) noexcept nogil:
    cdef records *r = <records *> t.self
    cdef int status = STAT_OK
    pthread_mutex_lock(&r.lock)
    if value == NULL:
        if not records_delete(r, key):
            status = STAT_NOKEY
    elif records_put(r, key, value[0], True) < 0:
        status = STAT_RETRY
    pthread_mutex_unlock(&r.lock)
    return status


cdef class MemoryTable(Table):
    """Records that live as long as the process, as a table for updates."""

    def __cinit__(self, bytes type_name, Records held not None):
        self.held = held
        self.t.self = &held.r
        self.t.flags = DICT_FLAG_FIXED
        self.t.fold_bit = DICT_FLAG_FOLD_FIX
        self.t.lookup = memory_lookup
        self.t.sequence = memory_sequence
        self.t.write = memory_write
