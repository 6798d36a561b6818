"""_endpoint - servers and connections to them, as the exchange keeps them

What it does with them is `_exchange`; here is what that takes: lists, sockets, and
lines for the log. Nothing waits.

Source: connect(2), socket(7), tcp(7), unix(7).
"""

from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close

from proxymap.base._buf cimport buf_consume, buf_free, buf_len, view, view_of, view_str
from proxymap.base._os cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC,
    SOCK_NONBLOCK, epoll_ctl, epoll_event, recv, send,
)
from proxymap.metrics._counters cimport ERROR_DOWN, ERRORS, count_one
from proxymap.tables._jobs cimport (
    JOB_EXPLAIN, JOB_LOOKUP, LEVEL_INFO, LEVEL_WARNING, job, log_line, queue,
)

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        unsigned short sa_family
    enum: SOCK_STREAM, SOL_SOCKET, SO_ERROR, SO_KEEPALIVE, MSG_PEEK
    int socket(int, int, int)
    int connect(int, const sockaddr *, unsigned int)
    int getsockopt(int, int, int, void *, unsigned int *)
    int setsockopt(int, int, int, const void *, unsigned int)

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT

cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...)

cdef enum:
    TELL_MS = 60000  # between two lines about the trouble of a table
    TEXT_MAX = 200   # bytes of what a server says
    OWING_IDLE_S = 60  # then the other host is asked whether it is there,
    OWING_PROBES = 6   # so often, 10 s apart


# Jobs that wait

cdef asker *asker_of(const job *j) noexcept nogil:
    return <asker *> j.t.self


cdef bint is_change(const job *j) noexcept nogil:
    return j.kind != JOB_LOOKUP and j.kind != JOB_EXPLAIN


cdef job *take_waiting(endpoint *e) noexcept nogil:
    """The job that is next; there must be one."""
    cdef job *j = e.first
    e.first = j.next
    if e.first == NULL:
        e.last = &e.first
        e.starved_ns = 0
    e.waiting -= 1
    return j


cdef void wait_for_connection(endpoint *e, job *j) noexcept nogil:
    j.next = NULL
    e.last[0] = j
    e.last = &j.next
    e.waiting += 1


cdef void wait_again(endpoint *e, job *j) noexcept nogil:
    """Put a job in front of all others."""
    j.next = e.first
    if e.first == NULL:
        e.last = &j.next
    e.first = j
    e.waiting += 1


# Connections

cdef connection *connection_begin(endpoint *e, int epoll, uint64_t now, int *failed) noexcept nogil:
    """Begin to connect to the next address. NULL: no memory.

    failed: 0: it is connected; EINPROGRESS: it is under way; else the error, and `end` is to follow.
    """
    cdef address *to = &e.addresses[e.at % e.count]
    cdef connection *c = <connection *> calloc(1, sizeof(connection))
    cdef epoll_event event
    cdef int one = 1
    if c == NULL:
        return NULL
    c.to, c.at, c.state = e, e.at, CONNECTING
    c.born_ms = c.since_ms = now
    c.next = e.all
    e.all = c
    e.open += 1
    failed[0] = 0
    c.fd = socket((<sockaddr *> to.data).sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if c.fd < 0:
        failed[0] = errno
        return c
    setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    if connect(c.fd, <sockaddr *> to.data, to.size) < 0:
        failed[0] = errno
    c.watches_write = failed[0] == EINPROGRESS
    event.data.ptr = c
    event.events = EPOLLOUT if c.watches_write else EPOLLIN
    if failed[0] == 0 or failed[0] == EINPROGRESS:
        epoll_ctl(epoll, EPOLL_CTL_ADD, c.fd, &event)
    return c


cdef int connection_outcome(const connection *c) noexcept nogil:
    """What has become of the attempt to connect: an error, or 0."""
    cdef int failed = 0
    cdef unsigned int size = sizeof(failed)
    getsockopt(c.fd, SOL_SOCKET, SO_ERROR, &failed, &size)
    return failed


cdef bint has_unread(const connection *c, bint *closed) noexcept nogil:
    """Has anything come that was not read: bytes, or the end?"""
    cdef char byte
    cdef ssize_t n = recv(c.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT)
    closed[0] = n <= 0
    return n >= 0 or errno != EAGAIN


cdef void connection_watch(connection *c, int epoll, bint writes) noexcept nogil:
    cdef epoll_event event
    event.data.ptr = c
    event.events = EPOLLIN | (EPOLLOUT if writes else 0)
    c.watches_write = writes
    epoll_ctl(epoll, EPOLL_CTL_MOD, c.fd, &event)


cdef int connection_send(connection *c, int epoll) noexcept nogil:
    """Send what is to be sent, as much as can be now; returns an error, or 0."""
    cdef ssize_t n
    while buf_len(&c.out):
        n = send(c.fd, c.out.data + c.out.start, buf_len(&c.out), MSG_NOSIGNAL | MSG_DONTWAIT)
        if n >= 0:
            buf_consume(&c.out, n)
        elif errno == EAGAIN:
            connection_watch(c, epoll, True)
            return 0
        elif errno != EINTR:
            return errno
    if c.watches_write:
        connection_watch(c, epoll, False)
    return 0


cdef void connection_rest(connection *c, uint64_t now) noexcept nogil:
    """Let it wait for the next question."""
    c.to.busy -= c.state == BUSY
    c.job = NULL
    c.state, c.since_ms = IDLE, now
    c.next_idle = c.to.idle
    c.to.idle = c


cdef void connection_owe(connection *c) noexcept nogil:
    """Keep it for its end alone, or for an answer that comes too late; a host that is gone is an end, too."""
    cdef int one = 1, idle = OWING_IDLE_S, gap = OWING_IDLE_S // OWING_PROBES, probes = OWING_PROBES
    setsockopt(c.fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one))
    setsockopt(c.fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle))
    setsockopt(c.fd, IPPROTO_TCP, TCP_KEEPINTVL, &gap, sizeof(gap))
    setsockopt(c.fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes))
    uncount(c)
    c.to.owing += 1
    c.state, c.job = OWING, NULL


cdef inline void uncount(connection *c) noexcept nogil:
    """It is none of its endpoint's any more."""
    cdef endpoint *e = c.to
    if c.state == OWING:
        e.owing -= 1
        return
    e.open -= 1
    e.busy -= c.state == BUSY
    e.ready -= c.state != CONNECTING


cdef void connection_end(connection *c) noexcept nogil:
    """Close it; its job is the caller's to see to, and connection_free to follow."""
    cdef endpoint *e = c.to
    cdef connection **link = &e.idle
    while c.state == IDLE and link[0] != NULL:
        if link[0] == c:
            link[0] = c.next_idle
            break
        link = &link[0].next_idle
    link = &e.all
    while link[0] != c:
        link = &link[0].next
    link[0] = c.next
    uncount(c)
    if c.fd >= 0:
        close(c.fd)
    c.state, c.fd, c.job = ENDED, -1, NULL


cdef void connection_free(connection *c) noexcept nogil:
    buf_free(&c.out)
    buf_free(&c.got)
    free(c)


# The log

cdef void tell_trouble(queue *log, asker *a, uint64_t now, const char *words, view text) noexcept nogil:
    """Log the trouble of a table, once in TELL_MS, with how often there was any."""
    cdef char count[64]
    cdef view parts[6]
    if a.told_ms and now - a.told_ms < TELL_MS:
        a.untold += 1
        return
    count[0] = 0
    if a.untold:
        snprintf(count, sizeof(count), b" (and %lu times since the last such line)", a.untold)
    a.told_ms = now
    a.untold = 0
    parts[0] = view_str(b"table ")
    parts[1] = a.name
    parts[2] = view_str(b" ")
    parts[3] = view_str(words)
    parts[4] = view_of(text.ptr, min(text.len, <size_t> TEXT_MAX))
    parts[5] = view_str(count)
    log_line(log, LEVEL_WARNING, parts, 6)


cdef void tell_down(queue *log, const endpoint *e, const char *why) noexcept nogil:
    cdef view parts[4]
    count_one(e.figures, ERRORS + ERROR_DOWN)
    parts[0] = view_str(b"connect to ")
    parts[1] = e.shown
    parts[2] = view_str(b": ")
    parts[3] = view_str(why)
    log_line(log, LEVEL_WARNING, parts, 4)


cdef void tell_untrusted(queue *log, const endpoint *e) noexcept nogil:
    cdef view parts[2]
    parts[0] = e.shown
    parts[1] = view_str(b" sent an answer that nobody asked for; for 10 minutes each question to it has a"
                        b" connection of its own")
    log_line(log, LEVEL_WARNING, parts, 2)


cdef void tell_up(queue *log, const endpoint *e, uint64_t now) noexcept nogil:
    cdef char text[64]
    cdef view parts[2]
    snprintf(text, sizeof(text), b" is up again after %llus",
             <unsigned long long> ((now - e.down_since_ms) // 1000))
    parts[0] = e.shown
    parts[1] = view_str(text)
    log_line(log, LEVEL_INFO, parts, 2)
