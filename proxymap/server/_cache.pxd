# _cache - bounded hash cache of lookup results (see _cache.pyx)

from libc.stdint cimport uint32_t, uint64_t

from proxymap.base._buf cimport view
from proxymap.metrics._counters cimport figures
from proxymap.tables._table cimport glimpse

cdef enum:
    FOREVER = -1          # as a time, unsigned: as long as the generation counts


cdef struct lifetime:     # of an answer: points in time, in ms
    uint64_t refresh_from  # a hit has it asked for anew
    uint64_t fresh_until
    uint64_t stale_until  # may stand in for an answer that cannot be had
    uint64_t since        # it was learned


cdef struct entry:        # what a hit reads comes first
    entry *chain          # next in the same slot
    uint64_t hash
    uint64_t owner        # which table, with which try bits
    uint64_t generation   # of that table, when it gave this answer
    uint32_t key_len
    uint32_t value_len
    int cleared           # dictionary flags that this answer clears
    unsigned char status  # STAT_OK, STAT_NOKEY; STAT_RETRY: the question was refused
    unsigned char asked   # hits in this life, as far as they count
    unsigned char visited  # found since the hand last came by
    lifetime life
    uint64_t rest_until   # asking anew has failed: do not try again before
    entry *newer          # order of insertion
    entry *older
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
    sieve absent          # all else: a dictionary attack must not drive out the values
    uint64_t evicted
    figures *figures      # of the service, where evictions are counted, too; or NULL


cdef int cache_init(cache *c, size_t bytes, int absent_percent, uint64_t seed) noexcept nogil
cdef void cache_free(cache *c) noexcept nogil
cdef void cache_foresee(const cache *c, uint64_t owner, view key, glimpse *g) noexcept nogil
cdef entry *cache_find(cache *c, uint64_t owner, uint64_t generation, view key) noexcept nogil
cdef void cache_store(
    cache *c, uint64_t owner, uint64_t generation, view key, int status, int cleared, view value,
    const lifetime *life
) noexcept nogil
cdef bint cache_forget(cache *c, uint64_t owner, view key) noexcept nogil
cdef size_t cache_forget_all(cache *c, uint64_t table, bint negative) noexcept nogil
cdef size_t cache_clear(cache *c) noexcept nogil
cdef view entry_value(const entry *e) noexcept nogil
