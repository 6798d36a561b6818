# _places - a hash of keys to the places where their records are (see _places.pyx)

from libc.stdint cimport uint64_t

from proxymap.tables._table cimport prefetch

cdef enum:
    PLACE_BITS = 48  # of a place, which is not 0


cdef struct places:
    uint64_t *slots   # a place and the highest bits of its key's hash; 0: empty. NULL: there is no room
    uint64_t mask     # of a hash: where it begins to be looked for
    size_t cleared    # so many slots are empty, or were filled since
    uint64_t count    # places that are there
    uint64_t most     # and may be


cdef inline size_t places_bytes(const places *p) noexcept nogil:
    """Of memory; there is some."""
    return (p.mask + 1) * sizeof(uint64_t)


cdef inline bint places_are_cleared(const places *p) noexcept nogil:
    return p.cleared > p.mask


cdef inline void places_prefetch(const places *p, uint64_t hash) noexcept nogil:
    prefetch(&p.slots[hash & p.mask])


cdef inline uint64_t places_next(const places *p, uint64_t hash, uint64_t *tried) noexcept nogil:
    """The next place that may be that of a key with this hash, or 0: there is no more."""
    cdef uint64_t slot
    while True:
        slot = p.slots[(hash + tried[0]) & p.mask]
        tried[0] += 1
        if slot == 0:
            return 0
        if slot >> PLACE_BITS == hash >> PLACE_BITS:
            return slot & ((<uint64_t> 1 << PLACE_BITS) - 1)


cdef void *memory_map(size_t size) noexcept nogil
cdef int places_begin(places *p, uint64_t count, size_t limit) noexcept nogil
cdef void places_clear(places *p) noexcept nogil
cdef int places_put(places *p, uint64_t hash, uint64_t place) noexcept nogil
cdef void places_free(places *p) noexcept nogil
