# _jobs - queues between the loop and the threads that may run Python (see _jobs.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, view
from proxymap.base._eager cimport eagerness
from proxymap.base._os cimport pthread_mutex_t
from proxymap.metrics._counters cimport figures
from proxymap.tables._table cimport table

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass

cpdef enum:  # what a job asks for
    JOB_OPEN = 1     # open the table called name with flags -> table
    JOB_CLOSE = 2    # let go of table; no answer
    JOB_LOG = 3      # log the text in name at level status; no answer
    JOB_LOOKUP = 4   # ask a table that takes long: key -> status, flags, value
    JOB_SEQUENCE = 5  # the same: cursor, first -> status, key, value
    JOB_UPDATE = 6   # key, value -> status, flags
    JOB_DELETE = 7   # key -> status, flags
    JOB_LOOK = 9     # have the files of a table changed? -> status: CHANGED_*, or a table that says why not
    JOB_EXPLAIN = 8  # as JOB_LOOKUP, and name, cursor: how the answer came about (databases/_driver)


cdef struct loan:
    # A connection that a worker has together with a change, see _lent.
    int fd              # -1: none
    void *request       # struct request: what the change asks for, which gives the reply its shape
    figures *figures    # what is counted of the table
    bint utf8           # is the table asked for UTF-8 only?
    uint64_t until_ms   # when the loop wants it back
    unsigned int taken  # how many requests the worker has taken from it since
    int asked_flags     # dictionary flags of the latest, as asked
    size_t sent         # bytes of the latest reply that were sent
    bint replied        # all of the latest reply was sent
    buf rest            # what was received besides
    buf folded          # scratch


cdef struct queue


cdef struct job:
    int kind       # JOB_*
    int flags      # dictionary flags
    int status     # answer: STAT_*; of a log line: LEVEL_*
    uint64_t cursor    # of a sequence: the number of who walks
    bint first         # of a sequence
    bint settle        # of an open: the file was being written to; wait until it is quiet
    uint64_t since_ms  # when it was put into a queue
    void *asker    # whom the answer is for; the loop's own business
    queue *replies  # where a driver puts the answer
    int tries      # a driver's: connections that broke with it
    bint shared    # of a lookup: asker is a flight, whose answer several wait for
    bint refresh   # of a lookup: nobody waits for its answer; it is asked only where that delays nobody
    bint of_key    # of an answer of RETRY: the question itself was refused; it says nothing of the server
    bint shed      # of an answer of RETRY: nobody was asked, since the answer would have come too late
    table *t
    loan lent      # of a change: what else the worker has
    buf name       # owned copies
    buf key
    buf value
    job *next
    # While it waits as the first of a lane (databases/_lanes):
    job *lane      # the first of the next lane
    job *tail      # the last of its own
    size_t behind  # how many there are behind it


cdef extern from *:
    """
    #include <stddef.h>
    typedef volatile size_t proxymap_volatile_size;
    """
    ctypedef size_t volatile_size "proxymap_volatile_size"


cdef struct queue:
    pthread_mutex_t lock
    sem_t more       # of those that wait for a job
    job *first
    job **last
    volatile_size held
    size_t limit     # more are refused; 0: no limit
    uint64_t lost    # how many were
    volatile_size stood_in  # old answers that the loop gave in place of those from here,
    volatile_size deferred  # and answers of RETRY
    int eventfd      # wakes an epoll loop; -1: takers wait at the semaphore
    bint sleepy      # its taker says when it goes to sleep (queue_sleep), and is woken only then,
    bint asleep      # which it is
    bint closed
    bint eager       # its taker looks for the next job before it goes to sleep
    eagerness looks  # whether that pays off


cdef enum:
    NEXT_JOB_NS = 100000  # a client that was answered asks again within that time, or after a while


cpdef enum:  # log levels, as syslog has them
    LEVEL_FATAL = 2
    LEVEL_ERROR = 3
    LEVEL_WARNING = 4
    LEVEL_INFO = 6


cdef class Queue:
    cdef queue q
    cdef readonly int eventfd


cdef class Job:
    cdef job *j


cdef job *job_new(int kind) noexcept nogil
cdef void job_free(job *j) noexcept nogil
cdef int queue_put(queue *q, job *j) noexcept nogil
cdef int queue_link(queue *q, job *j) noexcept nogil
cdef void queue_return(queue *q, job *j) noexcept nogil
cdef bint queue_sleep(queue *q) noexcept nogil
cdef job *queue_take_old(queue *q, uint64_t age_ms) noexcept nogil
cdef void queue_wake(queue *q) noexcept nogil
cdef job *queue_take(queue *q, double wait) noexcept nogil
cdef void job_answer(job *j, int status, const char *why, queue **woken) noexcept nogil
cdef int note_put(queue *notes, int kind, void *about) noexcept nogil
cdef void log_line(queue *q, int level, const view *parts, int count) noexcept nogil
