# _clock - the time that deadlines and pauses are measured in; inline, no GIL
#
# Not for the hot path: a lookup asks for no time, unless it may take long. Source: clock_gettime(2).

from libc.stdint cimport uint64_t

from proxymap.base._os cimport (
    CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME, clock_gettime, timespec,
)


cdef inline uint64_t now_ms() noexcept nogil:
    """Milliseconds since some point in the past; steps of a kernel tick, about 4."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t)
    return <uint64_t> t.tv_sec * 1000 + t.tv_nsec // 1000000


cdef inline uint64_t now_ns() noexcept nogil:
    """Nanoseconds since some point in the past; takes about 25 of them."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t> t.tv_sec * 1000000000 + t.tv_nsec


cdef inline uint64_t wall_clock_ns() noexcept nogil:
    """To be compared with times of files."""
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return <uint64_t> t.tv_sec * 1000000000 + t.tv_nsec
