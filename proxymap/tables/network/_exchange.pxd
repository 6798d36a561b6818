# _exchange - questions to servers over plain sockets, and their answers (see _exchange.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._os cimport pthread_mutex_t
from proxymap.tables._jobs cimport queue
from proxymap.tables.network._endpoint cimport connection, endpoint


cpdef enum:  # what the exchange tells its keeper, as jobs
    NOTE_LINES = 100    # there are lines for the log
    NOTE_RESOLVE = 101  # the addresses of an endpoint are wanted; see Exchange.resolved


cdef struct exchange:
    int epoll
    queue *asks
    queue *notes      # to the keeper
    queue *log
    queue *woken      # whose taker is to be woken at the end of the turn
    endpoint *endpoints
    connection *ended  # in this turn
    uint64_t swept_ms
    uint64_t now_ms    # of this turn
    bint busy          # is anything under way?
    # With the lock held:
    pthread_mutex_t lock
    endpoint *arrived
    bint news          # some endpoint has any
    bint lines_noted


cdef void run_exchange(exchange *x) noexcept nogil
