# _waiting - jobs of a server: from its queue to a connection, or to an answer without one (see _waiting.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf
from proxymap.base._os cimport pthread_mutex_t
from proxymap.metrics._counters cimport figures
from proxymap.tables._jobs cimport job, queue
from proxymap.tables.databases._budget cimport budget
from proxymap.tables.databases._connection cimport connection
from proxymap.tables.databases._lanes cimport lanes


cpdef enum:  # what the driver tells the pool, as jobs
    NOTE_GROW = 100   # another connection is wanted
    NOTE_ENDED = 101  # a connection has ended; see Driver.ended
    NOTE_LINES = 102  # there are lines for the log
    NOTE_DROP = 103   # a job that somebody else answered is done with
    NOTE_SUSPECT = 104  # a host is silent; see Driver.suspected
    NOTE_NUDGE = 105  # nothing
    NOTE_SHED = 106  # lookups are shed


cdef enum:
    HOSTS_MAX = 64  # of a server; a bit for each


cdef struct driver:
    int epoll
    queue *asks            # jobs; its eventfd wakes the driver for whatever there is
    queue *notes           # to the pool
    queue *log             # lines for the log
    queue *woken           # whose taker is to be woken at the end of the turn
    buf scratch
    connection *all        # all connections; changed by the driver with the lock held
    connection *idle       # those without a question; the latest first
    connection *ended      # in this turn
    uint64_t turn          # their number
    bint heard_all         # epoll told of all that there was, in this turn
    bint has_refused       # jobs came in this turn, and no server can be reached
    uint64_t starved_ns    # since when jobs wait for a connection; 0: none does
    uint64_t mean_us       # what a question takes, lately; of the first ones not yet all of it
    uint64_t swept_ms      # when late jobs and old connections were looked for
    int successes          # answers since `allowed` was changed
    budget tries           # second ones that are left
    # With the lock held:
    pthread_mutex_t lock
    lanes waiting          # jobs for a connection
    connection *arrived    # to be taken over
    int open               # connections, with those that have arrived
    int opening            # that were asked for
    int busy
    int limit              # of connections
    int allowed            # the same while the server has to prove itself
    uint64_t time_limit_ms
    uint64_t idle_limit_ms
    uint64_t age_limit_ms
    uint64_t suspect_ms
    bint refusing          # all hosts are down: answer RETRY at once
    uint64_t down_hosts    # end all connections to these, a bit for each
    bint stopping
    bint lines_noted
    bint shedding          # the pool knows that lookups are shed
    uint64_t answers
    uint64_t retries
    uint64_t answered[HOSTS_MAX]  # by each host
    uint64_t late
    figures *figures       # where all processes count that
    uint64_t shed          # answered RETRY at once, since there would have been no answer in time


cdef void waiting_collect(driver *d) noexcept nogil
cdef job *waiting_next(driver *d) noexcept nogil
cdef void waiting_return(driver *d, job *j) noexcept nogil
cdef void waiting_late(driver *d, uint64_t now) noexcept nogil
cdef void waiting_learn(driver *d, const connection *c) noexcept nogil
