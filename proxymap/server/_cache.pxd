# _cache - bounded hash cache of lookup results (see _cache.pyx)

from libc.stdint cimport uint32_t, uint64_t

from proxymap.base._buf cimport view

cdef struct entry:
    entry *chain          # next in the same slot
    entry *newer          # order of insertion
    entry *older
    uint64_t hash
    uint64_t owner        # which table, with which try bits
    uint64_t generation   # of that table, when it gave this answer
    uint32_t key_len
    uint32_t value_len
    int cleared           # dictionary flags that this answer clears
    unsigned char status  # STAT_OK or STAT_NOKEY
    unsigned char visited  # found since the hand last came by
    char bytes[1]         # the key, then the value


cdef struct sieve:        # entries in order of insertion, and the hand that evicts
    entry *newest
    entry *oldest
    entry *hand
    size_t bytes
    size_t limit


cdef struct cache:
    entry **slots
    uint64_t mask
    uint64_t seed
    sieve found           # STAT_OK
    sieve absent          # STAT_NOKEY: a dictionary attack must not drive out the rest
    uint64_t hits
    uint64_t misses
    uint64_t evicted


cdef int cache_init(cache *c, size_t bytes, uint64_t seed) noexcept nogil
cdef void cache_free(cache *c) noexcept nogil
cdef entry *cache_find(cache *c, uint64_t owner, uint64_t generation, view key) noexcept nogil
cdef void cache_store(
    cache *c, uint64_t owner, uint64_t generation, view key, int status, int cleared, view value
) noexcept nogil
cdef void cache_forget(cache *c, uint64_t owner, view key) noexcept nogil
cdef void cache_clear(cache *c) noexcept nogil
cdef view entry_value(const entry *e) noexcept nogil
