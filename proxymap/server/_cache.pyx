"""_cache - bounded hash cache of lookup results

Stands in front of any table: (owner, key) -> value or "no key". The owner is
a number for one open table and its try bits; the key is folded already. An
entry counts for one generation of its table, so a hit in front of a file is
never stale. In front of a server it has a lifetime besides, and the caller
judges what an entry is worth that is past it (_sharing).

Bounded in bytes, slots included. Eviction is SIEVE: entries stand in order of
insertion; a hit marks its entry and moves nothing; the hand walks from the
oldest to the newest, spares what is marked (once) and evicts the first that is
not. Absent keys have a share of the room for themselves (cache_negative_share).
The hash is seeded: keys come from strangers.

One thread, the loop's. A hit allocates nothing; the view that it gives is good
until the next cache_store.

Source: Zhang et al., SIEVE is Simpler than LRU, NSDI 2024.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from proxymap.base._buf cimport view, view_of
from proxymap.base._hash cimport K1, hash_view, mum
from proxymap.metrics._counters cimport EVICTIONS, count_one
from proxymap.tables._table cimport glimpse, prefetch
from proxymap._words cimport *

cdef enum:
    BYTES_PER_SLOT = 256  # about an entry of a mail table, so that chains stay short
    MALLOC_COST = 16      # what malloc adds to an entry
    LINE = 64             # bytes that the CPU fetches at a time
    VALUE_SHARE = 16      # a larger part of the room than this is for no single entry


cdef int cache_init(cache *c, size_t bytes, int absent_percent, uint64_t seed) noexcept nogil:
    """Room for so many bytes in all, and a part of it for absent keys; 0, or -1 without memory."""
    cdef uint64_t slots = 64
    while slots * BYTES_PER_SLOT < bytes:
        slots *= 2
    c.slots = <entry **> calloc(slots, sizeof(entry *))
    if c.slots == NULL:
        return -1
    c.mask = slots - 1
    c.seed = seed
    bytes -= min(bytes, slots * sizeof(entry *))
    sieve_init(&c.absent, bytes // 100 * absent_percent)
    sieve_init(&c.found, bytes - c.absent.limit)
    c.evicted = 0
    c.figures = NULL
    return 0


cdef void sieve_init(sieve *s, size_t limit) noexcept nogil:
    s.newest = s.oldest = s.hand = NULL
    s.bytes = 0
    s.limit = limit


cdef void cache_free(cache *c) noexcept nogil:
    cache_clear(c)
    free(c.slots)
    c.slots = NULL


cdef inline uint64_t entry_hash(const cache *c, uint64_t owner, view key) noexcept nogil:
    return hash_view(key, c.seed ^ mum(owner, K1))


cdef inline size_t entry_cost(size_t key_len, size_t value_len) noexcept nogil:
    return sizeof(entry) + key_len + value_len + MALLOC_COST


cdef view entry_value(const entry *e) noexcept nogil:
    return view_of(e.bytes + e.key_len, e.value_len)


cdef inline sieve *sieve_of(cache *c, int status) noexcept nogil:
    return &c.found if status == STAT_OK else &c.absent


cdef inline entry *slot_find(const cache *c, uint64_t hash, uint64_t owner, view key) noexcept nogil:
    cdef entry *e = c.slots[hash & c.mask]
    while e != NULL:
        if e.hash == hash and e.owner == owner and e.key_len == key.len:
            if memcmp(e.bytes, key.ptr, key.len) == 0:
                return e
        e = e.chain
    return NULL


cdef void cache_foresee(const cache *c, uint64_t owner, view key, glimpse *g) noexcept nogil:
    """Have the CPU fetch what cache_find will read; the next part, each time."""
    cdef const char *e
    if g.step == 0:
        g.what[0] = entry_hash(c, owner, key) & c.mask
        prefetch(&c.slots[g.what[0]])
    elif g.step == 1 and c.slots[g.what[0]] != NULL:
        e = <const char *> c.slots[g.what[0]]
        prefetch(e)
        prefetch(e + LINE)
        prefetch(e + 2 * LINE)
    g.step += 1


cdef entry *cache_find(cache *c, uint64_t owner, uint64_t generation, view key) noexcept nogil:
    """The answer to key for that generation, or NULL. The caller judges whether it is fresh."""
    cdef entry *e = slot_find(c, entry_hash(c, owner, key), owner, key)
    if e == NULL or e.generation != generation:
        return NULL
    e.visited = 1
    return e


cdef void cache_store(
    cache *c, uint64_t owner, uint64_t generation, view key, int status, int cleared, view value,
    const lifetime *life
) noexcept nogil:
    """Remember an answer in place of the one before; life NULL: while the generation counts.

    Without memory or room nothing is stored, and nothing is left of the one before.
    """
    cdef uint64_t hash = entry_hash(c, owner, key)
    cdef size_t cost = entry_cost(key.len, value.len)
    cdef sieve *s = sieve_of(c, status)
    cdef entry *e = slot_find(c, hash, owner, key)
    if e != NULL:
        entry_drop(c, sieve_of(c, e.status), e)
    if cost > s.limit // VALUE_SHARE:
        return
    while s.bytes + cost > s.limit:
        sieve_evict(c, s)
    e = entry_new(key, value)
    if e == NULL:
        return
    e.hash, e.owner, e.generation, e.cleared = hash, owner, generation, cleared
    e.status = <unsigned char> status
    if life != NULL:
        e.life = life[0]
    else:
        e.life.since = 0
        e.life.refresh_from = e.life.fresh_until = e.life.stale_until = <uint64_t> FOREVER
    e.chain = c.slots[hash & c.mask]
    c.slots[hash & c.mask] = e
    e.older = s.newest
    if s.newest != NULL:
        s.newest.newer = e
    else:
        s.oldest = e
    s.newest = e
    s.bytes += cost


cdef entry *entry_new(view key, view value) noexcept nogil:
    """With copies of both, in no list; NULL without memory."""
    cdef entry *e = <entry *> malloc(sizeof(entry) + key.len + value.len)
    if e == NULL:
        return NULL
    e.key_len = <uint32_t> key.len
    e.value_len = <uint32_t> value.len
    e.visited = e.asked = 0
    e.rest_until = 0
    e.newer = NULL
    memcpy(e.bytes, key.ptr, key.len)
    if value.len:
        memcpy(e.bytes + key.len, value.ptr, value.len)
    return e


cdef bint cache_forget(cache *c, uint64_t owner, view key) noexcept nogil:
    """Drop the answer to key; was there one?"""
    cdef entry *e = slot_find(c, entry_hash(c, owner, key), owner, key)
    if e != NULL:
        entry_drop(c, sieve_of(c, e.status), e)
    return e != NULL


cdef size_t cache_forget_all(cache *c, uint64_t table, bint negative) noexcept nogil:
    """Drop the answers of an open table (owner without try bits), or those that are no value.

    How many were there? Walks through all entries.
    """
    cdef size_t count = sieve_forget(c, &c.absent, table)
    if not negative:
        count += sieve_forget(c, &c.found, table)
    return count


cdef size_t sieve_forget(cache *c, sieve *s, uint64_t table) noexcept nogil:
    cdef entry *e = s.oldest
    cdef entry *newer
    cdef size_t count = 0
    while e != NULL:
        newer = e.newer
        if e.owner >> 2 == table:
            entry_drop(c, s, e)
            count += 1
        e = newer
    return count


cdef size_t cache_clear(cache *c) noexcept nogil:
    """Drop all answers; how many were there?"""
    return sieve_clear(c, &c.found) + sieve_clear(c, &c.absent)


cdef size_t sieve_clear(cache *c, sieve *s) noexcept nogil:
    cdef size_t count = 0
    while s.oldest != NULL:
        entry_drop(c, s, s.oldest)
        count += 1
    return count


cdef void sieve_evict(cache *c, sieve *s) noexcept nogil:
    """Evict one entry. There is one."""
    cdef entry *e = s.hand if s.hand != NULL else s.oldest
    while e.visited:
        e.visited = 0
        e = e.newer if e.newer != NULL else s.oldest
    s.hand = e
    entry_drop(c, s, e)
    c.evicted += 1
    if c.figures != NULL:
        count_one(c.figures, EVICTIONS)


cdef void entry_drop(cache *c, sieve *s, entry *e) noexcept nogil:
    cdef entry **link = &c.slots[e.hash & c.mask]
    while link[0] != e:
        link = &link[0].chain
    link[0] = e.chain
    if s.hand == e:
        s.hand = e.newer
    if e.newer != NULL:
        e.newer.older = e.older
    else:
        s.newest = e.older
    if e.older != NULL:
        e.older.newer = e.newer
    else:
        s.oldest = e.newer
    s.bytes -= entry_cost(e.key_len, e.value_len)
    free(e)
