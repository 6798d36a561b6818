# _budget - how many second tries a driver has left (see _budget.pyx)

from libc.stdint cimport uint64_t


cdef struct budget:
    double left
    double burst        # at most
    double share        # that an answer is worth; 0: there are none at all
    uint64_t counted_ms


cdef void budget_set(budget *b, double percent, int connections) noexcept nogil
cdef void budget_earn(budget *b) noexcept nogil
cdef bint budget_spend(budget *b, uint64_t now) noexcept nogil
