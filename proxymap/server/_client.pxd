# _client - a connection: its descriptor, buffers and deadline (see _client.pyx)

from libc.stdint cimport uint32_t, uint64_t

from proxymap.base._buf cimport buf, buf_len
from proxymap._codec cimport scan
from proxymap.server._service cimport service, session

cdef extern from *:
    """
    #include <sys/epoll.h>
    /* Events that come once for all bytes that have come: else epoll looks at each socket once more,
       to find nothing, after each request. A client with `more` is to be looked at without an event. */
    #define PROXYMAP_READING ((uint32_t) (EPOLLIN | EPOLLRDHUP | EPOLLET))
    /* Nothing but that the peer has closed its end, which epoll always tells. */
    #define PROXYMAP_LEAVING ((uint32_t) EPOLLET)
    """
    const uint32_t READING "PROXYMAP_READING"
    const uint32_t LEAVING "PROXYMAP_LEAVING"

cdef enum:
    SCRATCHES = 12            # for reads
    READ_SIZE = 65536         # one recv; a list of Postfix is some hundred bytes
    READ_APART = 65536 + 448  # scratches that lie so far apart do not contend for the same cache lines
    DISCARD_MS = 2000         # how long the bytes behind a BAD are thrown away


cdef enum:  # what an epoll event is about; the first field of what its data points to
    SOURCE_LISTENER = 1
    SOURCE_ANSWERS = 2   # the eventfd of the workers' answers
    SOURCE_WAKE = 3      # a signal, or the daemon wants the loop to return
    SOURCE_TIMER = 4
    SOURCE_CLIENT = 5
    SOURCE_IDLE = 6      # the timer of max_idle
    SOURCE_STATUS = 7    # the status channel to master
    SOURCE_WATCH = 8     # inotify: something happened to watched files


cdef struct source:
    int kind
    int fd


cdef struct client:
    source source
    uint32_t events      # what epoll watches; 0: nothing, the descriptor is not registered
    bint parked          # waits for a table or a worker: not read meanwhile
    bint awaits_table    # parked: it is in the list of an instance that is being opened
    bint quiet           # while draining: has sent nothing since the latest look
    bint read            # the first list was parsed into session.request
    size_t list_len      # length of that list in bytes
    bint gone            # the peer has closed its end: nobody reads a reply
    bint starved         # there was no memory for a reply
    bint more            # there are probably more bytes, or their end
    bint discarding      # it was answered BAD, or let go; what it still sends is thrown away
    scan seen            # how far the list at the start of `input` was looked at
    buf input            # what is not served yet; empty between requests
    buf output           # what the socket did not take
    session session
    client *waiter       # next one that waits for the same table
    uint64_t since_turn  # of the loop: when it began to wait
    client *previous     # all clients
    client *next
    client *timed_prev   # those that have a deadline
    client *timed_next
    bint timed
    uint64_t deadline_ms


cdef struct clients:
    # The connections of one loop, and what they share.
    service *service
    int epoll
    int timer                # timerfd; ticks each second while any client has a deadline
    client *first
    client *first_timed
    client *dead             # closed in this turn; freed at its end
    size_t count
    uint64_t closed          # connections that have ended
    size_t let_go            # how many were, while draining
    size_t buffered          # bytes that all inputs and outputs together have allocated
    size_t request_size_limit
    size_t buffer_size_limit
    uint64_t ipc_timeout_ms
    bint closing             # draining: a client is let go while its latest reply is unread
    bint greeting            # does the server speak first? (not for Postfix up to 3.5)
    char *received           # scratches for all reads; a client keeps only what is not served
    buf replies              # one scratch for all replies


cdef int clients_init(clients *all, service *s, int epoll, int timer) noexcept nogil
cdef void clients_free(clients *all) noexcept nogil
cdef client *client_add(clients *all, int fd) noexcept nogil
cdef void client_close(clients *all, client *c) noexcept nogil
cdef void forget_waiter(client *c) noexcept nogil
cdef void client_bury(clients *all, client *c) noexcept nogil
cdef void clients_sweep(clients *all) noexcept nogil
cdef void client_watch(clients *all, client *c, uint32_t events) noexcept nogil
cdef int client_input_keep(clients *all, client *c, const char *data, size_t len) noexcept nogil
cdef int client_output_keep(clients *all, client *c, const char *data, size_t len) noexcept nogil
cdef void client_set_deadline(clients *all, client *c, uint64_t in_ms) noexcept nogil
cdef void client_clear_deadline(clients *all, client *c) noexcept nogil
cdef void clients_tick(clients *all) noexcept nogil
cdef bint reply_is_unread(const client *c) noexcept nogil
cdef void client_let_go(clients *all, client *c) noexcept nogil
cdef size_t clients_waiting(const clients *all) noexcept nogil
cdef void clients_let_go_quiet(clients *all) noexcept nogil
cdef void clients_hang_up(clients *all) noexcept nogil


cdef inline bint has_lists(const client *c) noexcept nogil:
    """Does the input begin with a list that was not looked at? An incomplete one was."""
    return buf_len(&c.input) != 0 and c.seen.pos == 0
