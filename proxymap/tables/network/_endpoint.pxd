# _endpoint - servers and connections to them, as the exchange keeps them (see _endpoint.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, view
from proxymap.metrics._counters cimport figures
from proxymap.tables._jobs cimport job, queue


cdef enum:  # what `read` says of the bytes that have come
    MORE = 0       # the answer is not whole yet
    ANSWERED = 1   # here it is
    NONSENSE = 2   # it is none; `words` says why

cdef enum:
    ADDRESS_SIZE = 128  # of sockaddr_storage
    ADDRESSES_MAX = 8   # of one name

cdef struct answer:
    bint at_end         # given: no more bytes will come
    int status          # STAT_*
    view value          # within the bytes read
    size_t used         # how many of those it takes
    bint ends           # the connection is of no use any more
    const char *words   # of RETRY and CONFIG: why, for the log; NULL: nothing is logged
    view text           # of the server, for the log


cdef struct asker:
    # A table; table.self points to one, or to what begins with one.
    endpoint *to
    view name            # b"socketmap:inet:127.0.0.1:1:x", borrowed
    uint64_t told_ms     # when its trouble was logged last,
    unsigned long untold  # and how often there was more since
    queue *handed        # NULL; or where jobs go that this has no answer for: workers


cdef struct protocol:
    # Append the question of a job. STAT_OK; else it is not asked: STAT_NOKEY, STAT_RETRY.
    int (*write)(const asker *a, job *j, buf *out) noexcept nogil
    # Read its answer; returns MORE, ANSWERED, NONSENSE.
    int (*read)(const asker *a, const job *j, view got, answer *found) noexcept nogil
    # Is this the workers', now that it has that status? May mark the job. -1: it is, but there is no memory.
    int (*hands_over)(const asker *a, job *j, int status) noexcept nogil
    # Is this the workers' from the first?
    bint (*is_handed)(const asker *a, const job *j) noexcept nogil
    bint tells_apart     # is it seen whether an answer belongs to the question?
    const char *hello    # what is asked of a server that was silent, to see whether it lives; NULL: nothing


cdef struct address:
    unsigned int size
    char data[ADDRESS_SIZE]


cdef struct endpoint:
    # A server, as tables share it. It stays as long as the process.
    const protocol *speaks
    view shown            # for the log, borrowed
    address addresses[ADDRESSES_MAX]
    int count             # of these; 0: none is known yet
    int at                # which one is tried next
    int tried             # how many failed since the last that did not
    bint named            # they come from a name,
    bint resolving        # which is being looked up,
    uint64_t resolved_ms  # and was
    # With the lock held:
    bint news             # there are these addresses, or none
    address news_of[ADDRESSES_MAX]
    int found
    # The thread's own again:
    job *first            # that wait for a connection
    job **last
    size_t waiting
    connection *all
    connection *idle      # the latest first
    int open              # all of them
    int busy              # those that are asking
    int owing             # none of `open`: see OWING
    uint64_t spent_ms     # by all answers
    figures *figures      # where all processes count the next three
    uint64_t answers, retries, late  # answers so far; questions asked once more; without answer
    int ready             # those that are connected
    bint down             # all that comes is answered RETRY at once,
    uint64_t down_since_ms
    const char *last_error  # what failed last; NULL: nothing has
    uint64_t probe_ms     # until a connection is made again, which is tried then
    uint64_t gap_ms
    int silences          # questions in a row that had no answer in time
    uint64_t starved_ns   # since when jobs wait though there are connections
    uint64_t fresh_until_ms  # until then each question has a connection of its own
    int used              # how many tables are there?
    int limit             # of connections
    uint64_t time_limit_ms, connect_limit_ms, idle_limit_ms, age_limit_ms, probe_first_ms, probe_last_ms
    endpoint *next


cdef enum:  # states of a connection
    CONNECTING = 1
    IDLE = 2
    BUSY = 3
    GREETING = 4  # it was sent hello
    ENDED = 5     # in this turn
    OWING = 6     # a change was given up that the other side may carry out until an answer, or the end, comes


cdef struct connection:
    endpoint *to
    int fd
    int at             # number of its address, as endpoint.at was
    int state
    job *job
    buf out          # to be sent
    buf got
    uint64_t born_ms
    uint64_t since_ms  # in this state
    uint64_t answers
    bint watches_write
    connection *next   # of all
    connection *next_idle


cdef asker *asker_of(const job *j) noexcept nogil
cdef bint is_change(const job *j) noexcept nogil
cdef job *take_waiting(endpoint *e) noexcept nogil
cdef void wait_for_connection(endpoint *e, job *j) noexcept nogil
cdef void wait_again(endpoint *e, job *j) noexcept nogil
cdef connection *connection_begin(endpoint *e, int epoll, uint64_t now, int *failed) noexcept nogil
cdef int connection_outcome(const connection *c) noexcept nogil
cdef bint has_unread(const connection *c, bint *closed) noexcept nogil
cdef void connection_watch(connection *c, int epoll, bint writes) noexcept nogil
cdef int connection_send(connection *c, int epoll) noexcept nogil
cdef void connection_rest(connection *c, uint64_t now) noexcept nogil
cdef void connection_owe(connection *c) noexcept nogil
cdef void connection_end(connection *c) noexcept nogil
cdef void connection_free(connection *c) noexcept nogil
cdef void tell_trouble(queue *log, asker *a, uint64_t now, const char *words, view text) noexcept nogil
cdef void tell_down(queue *log, const endpoint *e, const char *why) noexcept nogil
cdef void tell_untrusted(queue *log, const endpoint *e) noexcept nogil
cdef void tell_up(queue *log, const endpoint *e, uint64_t now) noexcept nogil
