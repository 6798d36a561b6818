# _connection - a connection to a database server, and what its client library offers (see _connection.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, view
from proxymap.tables._jobs cimport job
from proxymap.tables._template cimport quote_function
from proxymap.tables.databases.database cimport question


cdef enum:  # what start and go_on return
    WANT_READ = 1    # go on when bytes have come,
    WANT_WRITE = 2   # or can be sent; both may be asked for
    ANSWERED = 4     # the whole answer is here: its rows, then finish
    FAILED = 8       # the server refuses this question; the connection is as good as before
    SPOILED = 16     # the same, but the connection is of no use any more
    BROKEN = 32      # the connection broke

cpdef enum:  # why a connection has ended
    ENDED_OLD = 0      # by a limit of ours, or the server closed it while it was idle
    ENDED_SPOILED = 1  # by a question
    ENDED_BROKEN = 2   # while a question was under way
    ENDED_LATE = 3     # no answer in time
    ENDED_DOWN = 4     # its host was found to be down

cdef enum:
    TEXT_SIZE = 1024   # of what a library says


cdef struct library:
    # Functions of a client library. None of them waits, except cancel and close. One thread at a time
    # uses a connection.
    # Send a query; text.ptr[text.len] is NUL.
    int (*start)(connection *c, view text) noexcept nogil
    # Go on after WANT_READ or WANT_WRITE; ready: which of the two.
    int (*go_on)(connection *c, int ready) noexcept nogil
    # After ANSWERED: go to the first or next row, of c.columns; False: there is none.
    bint (*row)(connection *c) noexcept nogil
    # One of its values; ptr is NULL for SQL's NULL. Void after finish.
    view (*column)(connection *c, int n) noexcept nogil
    # Forget the answer; another question may follow.
    void (*finish)(connection *c) noexcept nogil
    # Something has come while no question was under way: is the connection still good?
    bint (*is_good)(connection *c) noexcept nogil
    # Have the server give up the question that is under way, if it would not notice `close`; may wait
    # for long.
    void (*cancel)(connection *c) noexcept nogil
    # Say goodbye, if `politely`, and free all but the struct; never waits for long.
    void (*close)(connection *c, bint politely) noexcept nogil
    quote_function quote  # its context is the connection
    # NULL, except where several connections share a socket. Something has come for some of them, or can
    # be sent: the next that it is for, and what go_on would return; NULL: none, or BROKEN none ever.
    connection *(*heard)(connection *c, int ready, int *outcome) noexcept nogil
    # Have epoll tell when something comes (EPOLL_CTL_*), or no longer; what is under way is given up then.
    void (*watch)(connection *c, int epoll, int operation, bint writes) noexcept nogil


cdef struct connection:
    const library *calls
    void *handle           # the library's own
    void *result
    int fd
    int step               # the library's: what is under way
    int status             # how a question ends that is not at its end yet
    int columns
    size_t rows
    size_t at_row
    char **values          # of the current row, where the library has it so
    unsigned long *lengths
    bint spent             # it has answered, and is of no use any more
    bint result_required   # is an answer without rows and columns a failure?
    char text[TEXT_SIZE]   # why it FAILED, BROKE and so on
    buf shown              # which host, for the log
    int host               # the same as a number, the pool's
    # The driver's:
    connection *next       # of all
    connection *next_idle
    bint busy
    uint64_t idle_turn     # in which turn it became idle
    bint has_ended         # and goes to the pool at the end of the turn,
    int ended_why          # for this reason, ENDED_*,
    bint waited            # ENDED_LATE: its question had waited for most of the time
    bint suspended         # within a question that the library has not finished
    bint suspect           # the pool knows that its question takes long
    bint watches_write     # epoll tells when it can be written to
    bint given_up          # somebody else has answered the job
    job *job               # under way
    question question
    buf sql
    uint64_t answers       # so far
    uint64_t born_ms
    uint64_t used_ms       # when the latest question began,
    uint64_t began_ns      # the same, exactly


cdef void connection_free(connection *c) noexcept nogil
cdef void connection_say(connection *c, const char *text) noexcept nogil
cdef void connection_watch(connection *c, int epoll, int operation, bint writes) noexcept nogil


cdef class Connection:
    cdef connection *c


cdef Connection made(const library *calls, void *handle, int fd, int host, bytes shown)


cdef class Attempt:
    cdef readonly int host
    cdef int fd
    cdef object lock
    cdef readonly bint aborted

    cdef int know(self, int fd) except -1


cdef int wait_for(int fd, int wants, uint64_t until_ms) noexcept nogil
