"""_budget - how many second tries a driver has left

A server in trouble must not be asked everything twice. Answers earn second tries, and
so does each second: a server that is asked rarely may close each connection before.
"""

from libc.stdint cimport uint64_t

cdef enum:
    BURST = 10


cdef void budget_set(budget *b, double percent, int connections) noexcept nogil:
    """percent: second tries per 100 answers. At once as many as connections: a restart breaks all of them."""
    b.share = percent / 100
    b.left = b.burst = max(BURST, connections)


cdef void budget_earn(budget *b) noexcept nogil:
    """There was an answer."""
    b.left = min(b.left + b.share, b.burst)


cdef bint budget_spend(budget *b, uint64_t now) noexcept nogil:
    """May there be a second try? now: by now_ms."""
    if not b.share:
        return False
    b.left = min(b.left + (now - b.counted_ms) / 1000.0, b.burst)
    b.counted_ms = now
    if b.left < 1:
        return False
    b.left -= 1
    return True
