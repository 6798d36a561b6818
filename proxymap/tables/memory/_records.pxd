# _records - byte records in memory, and tables made of them (see _records.pyx)

from libc.stdint cimport uint32_t, uint64_t

from proxymap.base._buf cimport buf, view
from proxymap.base._os cimport pthread_mutex_t
from proxymap.tables._table cimport Table, table


cdef struct record:
    uint64_t at         # of the key in the text; the value follows it
    uint64_t serial     # of its insertion, from 1; a sequence goes on behind it
    uint32_t key_len
    uint32_t value_len


cdef struct slot:
    uint32_t number     # of the record, from 1; 0: free
    uint32_t tag        # the upper half of the key's hash


cdef struct records:
    buf text            # keys and values, back to back
    record *all         # in the order of insertion
    size_t used         # of all, with those that were deleted
    size_t room         # of all
    size_t count        # records that are there
    size_t wasted       # bytes of text that belong to no record any more
    slot *slots
    size_t mask         # number of slots - 1
    uint64_t seed
    uint64_t last_serial
    pthread_mutex_t lock  # of a MemoryTable


cdef bint records_find(const records *r, view key, view *value) noexcept nogil
cdef int records_put(records *r, view key, view value, bint replace) noexcept nogil
cdef int records_reserve(records *r, size_t count, size_t size) noexcept nogil
cdef bint records_delete(records *r, view key) noexcept nogil
cdef bint records_after(const records *r, uint64_t *serial, view *key, view *value) noexcept nogil


cdef class Records:
    cdef records r


cdef class RecordsTable(Table):
    cdef Records held


cdef class MemoryTable(Table):
    cdef Records held


cdef int memory_write(table *t, view key, const view *value, int *flags) noexcept nogil
