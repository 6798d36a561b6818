"""_places - a hash of keys to the places where their records are

It holds no keys: a place is looked at to see whether it is the one. Eight bytes
a slot; between a quarter and a half of the slots stay empty: a key's slot is in
one cache line, or in the next. What it takes is done in steps, since the loop does it.

One thread at a time; no GIL. Source: madvise(2), linear probing.
"""

from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from libc.string cimport memset

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *, size_t, int)
    int MADV_HUGEPAGE

cdef enum:
    SLOTS_MIN = 512     # a page
    CLEARED = 8192      # slots that are cleared in one step: some microseconds


cdef void *memory_map(size_t size) noexcept nogil:
    """Memory that is used all over: in huge pages, for fewer TLB misses. NULL if there is none."""
    cdef void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if memory == MAP_FAILED:
        return NULL
    madvise(memory, size, MADV_HUGEPAGE)
    return memory


cdef int places_begin(places *p, uint64_t count, size_t limit) noexcept nogil:
    """Be empty, with room for so many; -1 if that takes more than `limit` bytes, or without memory.

    Before places_put comes places_clear, until places_are_cleared.
    """
    cdef uint64_t slots = SLOTS_MIN
    while slots // 4 * 3 < count and slots * sizeof(uint64_t) <= limit:
        slots *= 2
    if slots * sizeof(uint64_t) > limit:
        places_free(p)
        return -1
    p.count = p.cleared = 0
    if p.slots == NULL or p.mask + 1 != slots:
        places_free(p)
        p.slots = <uint64_t *> memory_map(slots * sizeof(uint64_t))
        if p.slots == NULL:
            return -1
        p.mask = slots - 1
        p.cleared = slots
    p.most = slots // 4 * 3
    return 0


cdef void places_clear(places *p) noexcept nogil:
    """Clear some more of it."""
    cdef size_t n = min(p.mask + 1 - p.cleared, <size_t> CLEARED)
    memset(p.slots + p.cleared, 0, n * sizeof(uint64_t))
    p.cleared += n


cdef int places_put(places *p, uint64_t hash, uint64_t place) noexcept nogil:
    """0, or -1 if that were too many, or if the place is too far away."""
    cdef uint64_t at = hash & p.mask
    if p.count >= p.most or place >> PLACE_BITS:
        return -1
    while p.slots[at]:
        at = (at + 1) & p.mask
    p.slots[at] = hash >> PLACE_BITS << PLACE_BITS | place
    p.count += 1
    return 0


cdef void places_free(places *p) noexcept nogil:
    if p.slots != NULL:
        munmap(p.slots, places_bytes(p))
    p.slots = NULL
    p.count = p.mask = 0
    p.cleared = 0
