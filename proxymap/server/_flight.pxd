# _flight - questions under way that several clients wait for (see _flight.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport view, view_of
from proxymap.server._catalog cimport instance

cdef struct waiter:
    # A place in the list of those that wait for one flight; part of a session.
    flight *of            # NULL: waits for none
    waiter *previous
    waiter *next
    void *who             # struct session: whose it is
    uint64_t old_from_ms  # from when on it takes an old answer instead; FLIGHT_NEVER: not at all


cdef struct flight:
    flight *chain         # next in the same slot
    flight *previous      # all flights
    flight *next
    uint64_t hash
    uint64_t owner        # as in the cache: which table, with which try bits
    uint64_t generation   # of the table, when the question was sent
    instance *of
    waiter *waiters
    int flags             # dictionary flags that were asked with
    uint64_t began_ns     # when the question was sent
    bint joinable         # it is in its slot
    bint keeps            # may the answer be kept?
    size_t key_len
    char key[1]           # the key, folded


cdef enum:
    FLIGHT_SLOTS = 1024
    FLIGHT_NEVER = -1     # as a time, unsigned


cdef struct flights:
    flight *slots[FLIGHT_SLOTS]
    flight *first
    uint64_t seed
    size_t count
    uint64_t old_from_ms  # no waiter takes an old answer before that; FLIGHT_NEVER: none waits for one


cdef void flights_init(flights *all, uint64_t seed) noexcept nogil
cdef void flights_free(flights *all) noexcept nogil
cdef flight *flight_find(const flights *all, uint64_t owner, view key) noexcept nogil
cdef flight *flight_begin(
    flights *all, uint64_t owner, uint64_t generation, view key, instance *of, int flags) noexcept nogil
cdef void flight_join(flights *all, flight *f, waiter *w, void *who, uint64_t old_from_ms) noexcept nogil
cdef void flight_leave(waiter *w) noexcept nogil
cdef bint flight_forget(flights *all, uint64_t owner, view key) noexcept nogil
cdef void flight_close(flights *all, flight *f) noexcept nogil
cdef void flight_end(flights *all, flight *f) noexcept nogil


cdef inline view flight_key(const flight *f) noexcept nogil:
    return view_of(f.key + 0, f.key_len)
