"""_client - one connection: bytes in, requests in order, bytes out, deadlines

An idle client owns no buffer. A turn reads into scratches that all share,
serves every whole list in one, collects the replies in another shared scratch
and sends them with one call. A client keeps only what could not be finished:
an incomplete list, a list that waits for a table, or output that the socket
did not take. A client with unsent output, or parked, is not read; so its
replies keep their order, and it delays nobody else.

Limits: who sends a longer list than request_size_limit is told BAD; the rest of
what it sends is read and thrown away for a while, since closing over unread
bytes would destroy the reply. When all buffers together hold buffer_size_limit,
who needs more is hung up on; Postfix's clients then come again after a second.

One thread, the loop's; no GIL. Source: epoll(7), unix(7); wire.md.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from posix.unistd cimport close

from proxymap.base._buf cimport buf_append, buf_clear, buf_consume, buf_free, buf_len
from proxymap.server._catalog cimport instance
from proxymap.base._clock cimport now_ms
from proxymap._codec cimport greeting_append, list_restart, reply_append_bare
from proxymap.tables._jobs cimport job
from proxymap.server._opening cimport opening_done
from proxymap.server._requests cimport session_foresee, session_read, session_serve
from proxymap.server._service cimport PARKED, SENT, service, session, session_free
from proxymap.server._work cimport work_answered
from proxymap._words cimport STAT_BAD

cdef extern from *:
    """
    #include <sys/syscall.h>
    #include <sys/types.h>
    #include <unistd.h>
    /* libc's look twice whether somebody has cancelled the thread, at the price of parsing a request. */
    #define proxymap_recv(fd, p, n, flags) ((ssize_t) syscall(SYS_recvfrom, fd, p, n, flags, NULL, NULL))
    #define proxymap_send(fd, p, n, flags) ((ssize_t) syscall(SYS_sendto, fd, p, n, flags, NULL, 0))
    """
    ssize_t recv "proxymap_recv"(int, void *, size_t, int) nogil
    ssize_t send "proxymap_send"(int, const void *, size_t, int) nogil

cdef extern from "<sys/socket.h>" nogil:
    int shutdown(int, int)
    enum: MSG_NOSIGNAL, MSG_DONTWAIT, SHUT_RDWR, SHUT_WR

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int, unsigned long, int *)

cdef extern from "<linux/sockios.h>" nogil:
    enum: SIOCOUTQ

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum: EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    enum: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET
    int epoll_ctl(int, int, int, epoll_event *)

cdef extern from "<sys/timerfd.h>" nogil:
    struct timespec:
        long tv_sec
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_settime(int, int, const itimerspec *, itimerspec *)

# Events that come once for all bytes that have come: else epoll looks at each socket once more,
# to find nothing, after each request. A client with `more` is to be looked at without an event.
cdef uint32_t READING = EPOLLIN | EPOLLRDHUP | EPOLLET
cdef uint32_t HANGING_UP = EPOLLRDHUP | EPOLLHUP | EPOLLERR

cdef enum:
    READ_SIZE = 65536        # one recv; a list of Postfix is some hundred bytes
    READ_APART = 65536 + 448  # scratches that lie so far apart do not contend for the same cache lines
    STAGES = 3               # of a turn: receive, foresee, serve
    TOGETHER = 4             # clients that take a step together,
    MANY = 12                # when so many are ready
    REPLIES_MAX = 262144     # unsent replies at which a turn of one client ends
    REPLIES_KEEP = 1048576   # a larger scratch, after a huge value, is given back
    DISCARD_MS = 2000        # how long the bytes behind a BAD are thrown away


cdef struct arrival:  # what was received of a client in this turn
    client *c
    char *data
    size_t len


cdef int clients_init(clients *all, service *s, int epoll, int timer) noexcept nogil:
    """0, or -1 without memory. The caller then sets limits and greeting."""
    memset(all, 0, sizeof(clients))
    all.service = s
    all.epoll = epoll
    all.timer = timer
    all.received = <char *> malloc(STAGES * TOGETHER * READ_APART)
    return 0 if all.received != NULL else -1


cdef void clients_free(clients *all) noexcept nogil:
    while all.first != NULL:
        all.first.parked = False  # whom it waits for will not be back
        client_close(all, all.first)
    clients_sweep(all)
    free(all.received)
    buf_free(&all.replies)


# Coming and going

cdef int client_new(clients *all, int fd) noexcept nogil:
    """Take an accepted, non-blocking connection and greet it; 0, or -1 without memory (fd is closed)."""
    cdef client *c = <client *> calloc(1, sizeof(client))
    if c == NULL:
        close(fd)
        return -1
    c.source.kind = SOURCE_CLIENT
    c.source.fd = fd
    c.session.client = c
    c.session.fd = fd
    list_restart(&c.seen)
    c.next = all.first
    if all.first != NULL:
        all.first.previous = c
    all.first = c
    all.count += 1
    buf_clear(&all.replies)
    if all.greeting:
        greeting_append(&all.replies)
    client_send(all, c)
    return 0


cdef void client_close(clients *all, client *c) noexcept nogil:
    """Hang up. The memory goes at the end of the turn, since events of this turn may still name it.

    A parked client is still known to a table or a worker, which may reply to it: memory and descriptor
    go when they are done with it.
    """
    if c.source.fd < 0:
        return
    watch(all, c, 0)  # close alone does not do it while a forked child has the descriptor too
    if c.parked:
        shutdown(c.source.fd, SHUT_RDWR)
    else:
        close(c.source.fd)
    c.source.fd = -1
    clear_deadline(all, c)
    all.buffered -= c.input.cap + c.output.cap
    buf_free(&c.input)
    buf_free(&c.output)
    session_free(&c.session)
    if c.previous != NULL:
        c.previous.next = c.next
    else:
        all.first = c.next
    if c.next != NULL:
        c.next.previous = c.previous
    all.count -= 1
    all.closed += 1
    if not c.parked:
        bury(all, c)


cdef inline void bury(clients *all, client *c) noexcept nogil:
    c.next = all.dead
    all.dead = c


cdef void clients_sweep(clients *all) noexcept nogil:
    """Free what was closed in this turn, and a scratch that grew too large."""
    cdef client *c
    while all.dead != NULL:
        c = all.dead
        all.dead = c.next
        free(c)
    if all.replies.cap > REPLIES_KEEP:
        buf_free(&all.replies)


cdef void watch(clients *all, client *c, uint32_t events) noexcept nogil:
    """Have epoll watch for events; 0: for nothing, not even that the peer hangs up."""
    cdef epoll_event e
    cdef int operation = EPOLL_CTL_MOD  # which has epoll look at once
    if c.events == events and not (c.more and events == READING):
        return
    if c.events == 0:
        operation = EPOLL_CTL_ADD
    elif events == 0:
        operation = EPOLL_CTL_DEL
    e.events = events
    e.data.ptr = c
    c.events = events
    if epoll_ctl(all.epoll, operation, c.source.fd, &e) < 0 and events:
        c.events = 0
        client_close(all, c)


# One turn

cdef void client_noticed(client *c, uint32_t events) noexcept nogil:
    """epoll reported these events of c; clients_serve is to be next."""
    c.more = events & HANGING_UP  # behind the last bytes, an end


cdef void clients_serve(clients *all, client **ready, int count) noexcept nogil:
    """Serve those that epoll reported, as in a pipeline.

    While some clients' bytes are received and others' replies are sent, what those
    in between ask for comes from memory. When many are ready, several take each step
    together: the kernel's code for it is in the CPU's cache then.
    """
    cdef arrival arrivals[STAGES][TOGETHER]
    cdef arrival *received = arrivals[0]
    cdef arrival *foreseen = arrivals[1]
    cdef arrival *served = arrivals[2]
    cdef client *c
    cdef int i, k, together, readers = 0
    for i in range(count):
        c = ready[i]
        if is_reading(c):
            ready[readers] = c
            readers += 1
        elif c.source.fd >= 0:
            client_unready(all, c)
    together = TOGETHER if readers >= MANY else 1
    for i in range(STAGES):
        for k in range(together):
            arrivals[i][k].len = 0
            arrivals[i][k].data = all.received + (i * together + k) * READ_APART
    i = 0
    while i < readers + (STAGES - 1) * together:
        for k in range(min(together, readers - i)):
            received[k].c = ready[i + k]
            received[k].len = client_receive(all, received[k].c, received[k].data)
            if received[k].len and readers > 1:
                client_read(all, &received[k])
        for k in range(together):
            if foreseen[k].len and foreseen[k].c.read:
                session_foresee(all.service, &foreseen[k].c.session)
        for k in range(together):
            if served[k].len:
                client_serve(all, &served[k])
                served[k].len = 0
        received, foreseen, served = served, received, foreseen
        i += together


cdef void client_unready(clients *all, client *c) noexcept nogil:
    """Something happened to a client that is not waiting for its next request."""
    if buf_len(&c.output):
        client_flush(all, c)
    elif c.parked:
        watch(all, c, 0)  # it pipelines, or is gone: look again when its answer is back
    elif c.discarding:
        client_discard(all, c)
    else:
        client_resume(all, c)


cdef inline bint is_reading(const client *c) noexcept nogil:
    """Is c there, and to be read?"""
    return (c.source.fd >= 0 and buf_len(&c.output) == 0
            and not c.parked and not c.discarding and not has_lists(c))


cdef inline bint has_lists(const client *c) noexcept nogil:
    """Does the input begin with a list that was not looked at? An incomplete one was."""
    return buf_len(&c.input) != 0 and c.seen.pos == 0


cdef size_t client_receive(clients *all, client *c, char *room) noexcept nogil:
    """Read once; returns how many bytes there are to serve."""
    cdef ssize_t n = recv(c.source.fd, room, READ_SIZE, MSG_DONTWAIT)
    if n <= 0:
        client_nothing(all, c, n)
        return 0
    c.more = c.more or n == READ_SIZE
    c.quiet = False
    return n


cdef void client_read(clients *all, const arrival *a) noexcept nogil:
    """Read the first request that has arrived, if it is whole, and begin to fetch what it needs."""
    cdef client *c = a.c
    if buf_len(&c.input):
        return
    c.list_len = session_read(all.service, &c.session, &c.seen, a.data, a.len)
    if c.list_len:
        c.read = True
        session_foresee(all.service, &c.session)


cdef void client_serve(clients *all, const arrival *a) noexcept nogil:
    """Serve what is complete, reply."""
    cdef client *c = a.c
    cdef bint began_before = buf_len(&c.input) != 0
    cdef size_t used = 0
    buf_clear(&all.replies)
    if not began_before:
        used = serve_lists(all, c, a.data, a.len)
    if used < a.len and input_keep(all, c, a.data + used, a.len - used) < 0:
        client_close(all, c)  # not BAD, which would end a Postfix process that did nothing wrong
    elif began_before:
        client_serve_input(all, c)
    else:
        client_finish(all, c)


cdef void client_nothing(clients *all, client *c, ssize_t n) noexcept nogil:
    """recv returned n, not above 0."""
    if n == 0 or (errno != EAGAIN and errno != EINTR):
        client_close(all, c)
        return
    c.more = errno == EINTR
    watch(all, c, READING)


cdef void client_serve_input(clients *all, client *c) noexcept nogil:
    """Serve what the client's own input holds."""
    cdef size_t used = serve_lists(all, c, c.input.data + c.input.start, buf_len(&c.input))
    buf_consume(&c.input, used)
    if used:
        clear_deadline(all, c)  # it was for the list that is done
    if buf_len(&c.input) == 0:
        all.buffered -= c.input.cap
        buf_free(&c.input)
    client_finish(all, c)


cdef size_t serve_lists(clients *all, client *c, const char *data, size_t len) noexcept nogil:
    """Serve the whole lists in data; returns the bytes that are done with.

    Stops early when c is parked, or when enough replies have piled up.
    """
    cdef size_t used = 0
    cdef int became
    while used < len and buf_len(&all.replies) < REPLIES_MAX:
        if not c.read:
            c.list_len = session_read(all.service, &c.session, &c.seen, data + used, len - used)
            if c.list_len == 0:
                break
        c.read = False
        c.session.alone = buf_len(&all.replies) == 0 and used + c.list_len == len and not c.more
        became = session_serve(all.service, &c.session, &all.replies)
        list_restart(&c.seen)
        if became == PARKED:
            c.parked = True
            c.waiter = <client *> c.session.waits_for.waiters
            c.session.waits_for.waiters = c
            break
        used += c.list_len
        if became == SENT:
            c.parked = True
            if c.session.lent:
                watch(all, c, 0)  # what comes is for the writer
            break
    return used


cdef void client_finish(clients *all, client *c) noexcept nogil:
    """End a turn: send the replies, then wait for what is missing."""
    if not c.parked and not c.discarding and not has_lists(c) and buf_len(&c.input) > all.request_size_limit:
        client_refuse(all, c)
    else:
        client_send(all, c)


cdef void client_send(clients *all, client *c) noexcept nogil:
    """Send all.replies; what the socket does not take is kept, and c is not read until it is sent."""
    cdef size_t len = buf_len(&all.replies)
    cdef const char *data = all.replies.data + all.replies.start
    cdef ssize_t sent = 0
    if len and buf_len(&c.output) == 0:
        sent = send(c.source.fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                client_close(all, c)
                return
            sent = 0
    if <size_t> sent == len:
        client_rest(all, c)
    elif output_keep(all, c, data + sent, len - sent) < 0:
        client_close(all, c)
    else:
        set_deadline(all, c, all.ipc_timeout_ms)
        watch(all, c, EPOLLOUT)


cdef void client_flush(clients *all, client *c) noexcept nogil:
    """The socket takes output again."""
    cdef const char *data = c.output.data + c.output.start
    cdef ssize_t sent = send(c.source.fd, data, buf_len(&c.output), MSG_NOSIGNAL | MSG_DONTWAIT)
    if sent < 0:
        if errno != EAGAIN and errno != EINTR:
            client_close(all, c)
        return
    buf_consume(&c.output, sent)
    if buf_len(&c.output):
        set_deadline(all, c, all.ipc_timeout_ms)
        return
    all.buffered -= c.output.cap
    buf_free(&c.output)
    clear_deadline(all, c)
    client_resume(all, c)


cdef void client_resume(clients *all, client *c) noexcept nogil:
    """Go on with the lists that c's input may hold."""
    if buf_len(&c.output):
        return  # client_flush comes here when they are sent
    if has_lists(c) and not c.parked and not c.discarding:
        buf_clear(&all.replies)
        client_serve_input(all, c)
    else:
        client_rest(all, c)


cdef void client_rest(clients *all, client *c) noexcept nogil:
    """Nothing to send: wait for the next bytes, with a deadline if they belong to a list that has begun."""
    if c.parked:
        return
    if c.discarding:
        shutdown(c.source.fd, SHUT_WR)
        set_deadline(all, c, DISCARD_MS)
    elif has_lists(c):
        watch(all, c, EPOLLOUT)  # replies had piled up: the next turn serves on
        return
    elif buf_len(&c.input) == 0:
        if all.closing and not c.more and reply_is_unread(c):
            client_let_go(all, c)
            return
        if c.timed:
            clear_deadline(all, c)
    elif not c.timed:
        set_deadline(all, c, all.ipc_timeout_ms)
    watch(all, c, READING)


# Waiting for a table or a worker

cdef bint unpark(clients *all, client *c) noexcept nogil:
    """c need not wait any longer; is it still there?"""
    c.parked = c.quiet = False
    c.session.waits_for = NULL
    if c.source.fd < 0:
        close(c.session.fd)
        bury(all, c)
        return False
    return True


cdef void clients_opened(clients *all, job *j) noexcept nogil:
    """A table was opened: serve the requests that wait for it."""
    cdef instance *i = opening_done(all.service, j)
    cdef client *c = <client *> i.waiters
    cdef client *next
    i.waiters = NULL
    while c != NULL:
        next = c.waiter
        if unpark(all, c):
            client_resume(all, c)
        c = next


cdef void client_answered(clients *all, job *j) noexcept nogil:
    """A worker answered a request to a slow table. What it has received since comes behind its reply."""
    cdef session *who = <session *> j.asker
    cdef client *c = <client *> who.client
    cdef arrival rest
    buf_clear(&all.replies)
    work_answered(all.service, who, j, &all.replies)
    if not unpark(all, c):
        return
    if buf_len(&j.lent.rest):
        rest.c, rest.data, rest.len = c, j.lent.rest.data, buf_len(&j.lent.rest)
        client_serve(all, &rest)
    elif buf_len(&all.replies):
        client_finish(all, c)
    else:
        client_resume(all, c)


# Limits and deadlines

cdef int input_keep(clients *all, client *c, const char *data, size_t len) noexcept nogil:
    """Keep what could not be served yet; -1 if all buffers together are too large, or without memory."""
    cdef size_t before = c.input.cap
    if all.buffered > all.buffer_size_limit or buf_append(&c.input, data, len) < 0:
        return -1
    all.buffered += c.input.cap - before
    return 0


cdef int output_keep(clients *all, client *c, const char *data, size_t len) noexcept nogil:
    cdef size_t before = c.output.cap
    if all.buffered > all.buffer_size_limit or buf_append(&c.output, data, len) < 0:
        return -1
    all.buffered += c.output.cap - before
    return 0


cdef void client_refuse(clients *all, client *c) noexcept nogil:
    """Too much, or never a list: BAD, and hang up once that is sent."""
    c.discarding = True
    all.buffered -= c.input.cap
    buf_free(&c.input)
    reply_append_bare(&all.replies, STAT_BAD)
    client_send(all, c)


cdef void client_discard(clients *all, client *c) noexcept nogil:
    """Throw away what a refused client still sends, until it hangs up or its time is over."""
    cdef ssize_t n
    if buf_len(&c.output):
        client_flush(all, c)
        return
    n = recv(c.source.fd, all.received, READ_SIZE, MSG_DONTWAIT)
    if n <= 0:
        client_nothing(all, c, n)
        return
    c.more = c.more or n == READ_SIZE
    watch(all, c, READING)


cdef void set_timer(clients *all, bint ticking) noexcept nogil:
    cdef itimerspec when
    memset(&when, 0, sizeof(when))
    when.it_interval.tv_sec = when.it_value.tv_sec = ticking
    timerfd_settime(all.timer, 0, &when, NULL)


cdef void set_deadline(clients *all, client *c, uint64_t in_ms) noexcept nogil:
    """Hang up on c unless something happens until then."""
    c.deadline_ms = now_ms() + in_ms
    if c.timed:
        return
    c.timed = True
    if all.first_timed == NULL:
        set_timer(all, True)
    else:
        all.first_timed.timed_prev = c
    c.timed_prev = NULL
    c.timed_next = all.first_timed
    all.first_timed = c


cdef void clear_deadline(clients *all, client *c) noexcept nogil:
    if not c.timed:
        return
    c.timed = False
    if c.timed_next != NULL:
        c.timed_next.timed_prev = c.timed_prev
    if c.timed_prev != NULL:
        c.timed_prev.timed_next = c.timed_next
    else:
        all.first_timed = c.timed_next
    if all.first_timed == NULL:
        set_timer(all, False)


cdef void clients_tick(clients *all) noexcept nogil:
    """A second has passed: hang up on those whose time is over."""
    cdef uint64_t now = now_ms()
    cdef client *c = all.first_timed
    cdef client *next
    while c != NULL:
        next = c.timed_next
        if now >= c.deadline_ms and not c.parked:  # a table or worker still knows a parked one
            client_close(all, c)
        c = next


# The end
#
# Postfix's client looks whether its connection is still open, then asks. Who is hung
# up on between the two loses the request, and sleeps a second before it asks again.
# So a client that asks without pause is let go when it cannot be there: while it has
# not read our latest reply. An idle one is let go after it was quiet for a while.
# Either way it is told end-of-file first, and what it may send too late is read and
# thrown away: a closed socket would mean ECONNRESET, or SIGPIPE and postmap's death.

cdef bint reply_is_unread(const client *c) noexcept nogil:
    cdef int bytes = 0
    return ioctl(c.source.fd, SIOCOUTQ, &bytes) == 0 and bytes > 0


cdef void client_let_go(clients *all, client *c) noexcept nogil:
    shutdown(c.source.fd, SHUT_WR)
    c.discarding = True
    all.let_go += 1
    set_deadline(all, c, DISCARD_MS)
    watch(all, c, READING)


cdef bint is_idle(const client *c) noexcept nogil:
    return not c.parked and not c.discarding and buf_len(&c.output) == 0 and not has_lists(c)


cdef size_t clients_waiting(const clients *all) noexcept nogil:
    """How many have not been let go."""
    cdef const client *c = all.first
    cdef size_t count = 0
    while c != NULL:
        count += not c.discarding
        c = c.next
    return count


cdef void clients_let_go_quiet(clients *all) noexcept nogil:
    """Let those go that have sent nothing since the latest call."""
    cdef client *c = all.first
    cdef client *next
    while c != NULL:
        next = c.next
        if c.quiet and is_idle(c):
            client_let_go(all, c)
        else:
            c.quiet = True
        c = next


cdef void clients_hang_up(clients *all) noexcept nogil:
    """Let everyone go who does not wait for a reply."""
    cdef client *c = all.first
    cdef client *next
    while c != NULL:
        next = c.next
        if is_idle(c):
            client_let_go(all, c)
        c = next
