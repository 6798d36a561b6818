# _hash - one seeded hash for all that is looked up in memory
#
# Multiply-and-fold over 8-byte words (the wyhash class): fast. Keys come from
# strangers, so each factor of a product holds something that only we know: a
# factor that a key could make zero would forget all that went before.

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from proxymap.base._buf cimport view

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t proxymap_mum(uint64_t a, uint64_t b)
    {
        unsigned __int128 r = (unsigned __int128) a * b;
        return (uint64_t) r ^ (uint64_t) (r >> 64);
    }
    #define PROXYMAP_K1 0x9e3779b97f4a7c15ull
    #define PROXYMAP_K2 0xe7037ed1a0b428dbull
    """
    uint64_t mum "proxymap_mum"(uint64_t a, uint64_t b) noexcept nogil
    const uint64_t K1 "PROXYMAP_K1"
    const uint64_t K2 "PROXYMAP_K2"


cdef inline uint64_t hash_view(view v, uint64_t seed) noexcept nogil:
    cdef uint64_t secret = mum(seed ^ K2, K1) | 1
    cdef uint64_t h = seed ^ mum(v.len ^ K1, secret)
    cdef uint64_t a, b
    cdef const char *p = v.ptr
    cdef size_t n = v.len
    while n > 16:
        memcpy(&a, p, 8)
        memcpy(&b, p + 8, 8)
        h = mum(a ^ K1 ^ h, b ^ secret)
        p += 16
        n -= 16
    a = b = 0
    if n >= 8:
        memcpy(&a, p, 8)
        memcpy(&b, p + n - 8, 8)
    elif n:
        memcpy(&a, p, n)
    return mum(a ^ secret ^ h, b ^ mum(h ^ seed, K2))
