"""_flight - questions under way that several clients wait for

A flight is one question that was sent to a worker or a server, found by table
and key. A client with the same question joins it and gets the same answer. It goes on
when the clients that wait have left. What is forgotten meanwhile (flush) takes the
flight out of the table of slots: nobody joins it any more, and its answer is
good for its waiters but is not kept.

One thread, the loop's; no GIL.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from proxymap.base._buf cimport view
from proxymap.base._clock cimport now_ns
from proxymap.base._hash cimport K1, hash_view, mum
from proxymap.server._catalog cimport instance


cdef void flights_init(flights *all, uint64_t seed) noexcept nogil:
    memset(all, 0, sizeof(flights))
    all.seed = seed
    all.old_from_ms = <uint64_t> FLIGHT_NEVER


cdef void flights_free(flights *all) noexcept nogil:
    """The clients that waited are gone already."""
    cdef flight *f
    while all.first != NULL:
        f = all.first
        all.first = f.next
        free(f)


cdef inline uint64_t flight_hash(const flights *all, uint64_t owner, view key) noexcept nogil:
    return hash_view(key, all.seed ^ mum(owner, K1))


cdef flight *flight_find(const flights *all, uint64_t owner, view key) noexcept nogil:
    """The question for that key that is under way and may be joined, or NULL."""
    cdef uint64_t hash = flight_hash(all, owner, key)
    cdef flight *f = all.slots[hash % FLIGHT_SLOTS]
    while f != NULL:
        if f.hash == hash and f.owner == owner and f.key_len == key.len:
            if memcmp(f.key, key.ptr, key.len) == 0:
                return f
        f = f.chain
    return NULL


cdef flight *flight_begin(
    flights *all, uint64_t owner, uint64_t generation, view key, instance *of, int flags
) noexcept nogil:
    """A new one without waiters; NULL without memory. There is none for that key yet."""
    cdef flight *f = <flight *> malloc(sizeof(flight) + key.len)
    if f == NULL:
        return NULL
    f.hash = flight_hash(all, owner, key)
    f.owner, f.generation, f.of, f.flags = owner, generation, of, flags
    f.waiters = NULL
    f.began_ns = now_ns()
    f.joinable = f.keeps = True
    f.key_len = key.len
    if key.len:
        memcpy(f.key, key.ptr, key.len)
    f.chain = all.slots[f.hash % FLIGHT_SLOTS]
    all.slots[f.hash % FLIGHT_SLOTS] = f
    f.previous = NULL
    f.next = all.first
    if all.first != NULL:
        all.first.previous = f
    all.first = f
    all.count += 1
    return f


cdef void flight_join(flights *all, flight *f, waiter *w, void *who, uint64_t old_from_ms) noexcept nogil:
    """who waits from now on, and takes an old answer from that time on."""
    w.of, w.who, w.old_from_ms = f, who, old_from_ms
    w.previous = NULL
    w.next = f.waiters
    if f.waiters != NULL:
        f.waiters.previous = w
    f.waiters = w
    f.of.waiting += 1
    all.old_from_ms = min(all.old_from_ms, old_from_ms)


cdef void flight_leave(waiter *w) noexcept nogil:
    """w waits no longer."""
    if w.of == NULL:
        return
    if w.previous != NULL:
        w.previous.next = w.next
    else:
        w.of.waiters = w.next
    if w.next != NULL:
        w.next.previous = w.previous
    w.of.of.waiting -= 1
    w.of = NULL


cdef bint flight_forget(flights *all, uint64_t owner, view key) noexcept nogil:
    """The answer that is to come for that key is not to be kept; was there a question under way?"""
    cdef flight *f = flight_find(all, owner, key)
    if f != NULL:
        flight_close(all, f)
        f.keeps = False
    return f != NULL


cdef void flight_close(flights *all, flight *f) noexcept nogil:
    """Nobody joins f any more."""
    cdef flight **link = &all.slots[f.hash % FLIGHT_SLOTS]
    if not f.joinable:
        return
    while link[0] != f:
        link = &link[0].chain
    link[0] = f.chain
    f.joinable = False


cdef void flight_end(flights *all, flight *f) noexcept nogil:
    """The answer is there: forget the question. Nobody waits for it any more."""
    while f.waiters != NULL:
        flight_leave(f.waiters)
    flight_close(all, f)
    if f.previous != NULL:
        f.previous.next = f.next
    else:
        all.first = f.next
    if f.next != NULL:
        f.next.previous = f.previous
    all.count -= 1
    free(f)
