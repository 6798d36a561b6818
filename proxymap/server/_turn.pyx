"""_turn - what is done with the clients that are ready: bytes in, requests in order, replies out

A turn reads into scratches that all share, serves every whole list in one,
collects the replies in another shared scratch and sends them with one call.
A client with unsent output, or parked, is not read; so its replies keep their
order, and it delays nobody else.

Limits: a client that sends a list longer than request_size_limit is answered
BAD; the rest of what it sends is read and thrown away for a while, since
closing over unread bytes would destroy the reply. When all buffers together
hold buffer_size_limit, the client with the largest unfinished request is hung
up on, or the one with the largest buffers if all are finished; Postfix's
clients then come again after a second. A parked client that is gone is closed
at once.

One thread, the loop's; no GIL. Source: epoll(7), unix(7); wire.md.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from posix.unistd cimport close

from proxymap.base._buf cimport buf_clear, buf_consume, buf_free, buf_len
from proxymap.base._clock cimport now_ms, now_ns
from proxymap.base._os cimport (
    EPOLLERR, EPOLLHUP, EPOLLOUT, EPOLLRDHUP, MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, recv, send, shutdown,
)
from proxymap.metrics._counters cimport REFUSED, REFUSED_TOO_LONG, count_one
from proxymap.server._catalog cimport AT_REST, LOOKING, instance
from proxymap.server._client cimport (
    DISCARD_MS, LEAVING, READING, READ_APART, READ_SIZE, client, client_add, client_bury,
    client_clear_deadline, client_close, client_input_keep, client_let_go, client_output_keep,
    client_set_deadline, client_watch, clients, forget_waiter, has_lists, reply_is_unread,
)
from proxymap._codec cimport PARSE_SILENT, greeting_append, list_restart, reply_append_bare
from proxymap.server._opening cimport opening_done, opening_start
from proxymap.server._requests cimport session_foresee, session_read, session_serve
from proxymap.server._flight cimport (
    FLIGHT_NEVER, flight, flight_close, flight_end, flight_leave, flights, waiter,
)
from proxymap.server._service cimport PARKED, SENT, SERVED, session
from proxymap.server._sharing cimport sharing_again, sharing_landed, sharing_old, sharing_reply
from proxymap.server._work cimport work_answered
from proxymap.tables._jobs cimport JOB_LOOK, job
from proxymap._words cimport STAT_BAD

cdef uint32_t HANGING_UP = EPOLLRDHUP | EPOLLHUP | EPOLLERR

cdef enum:
    STAGES = 3            # of a turn: receive, foresee, serve
    TOGETHER = 4          # clients that take a step together, of SCRATCHES for all stages,
    MANY = 12             # when so many are ready
    SLEEP_MAX_MS = 1000   # while somebody waits for an old answer
    REPLIES_MAX = 262144  # unsent replies at which a turn of one client ends


cdef struct arrival:  # what was received of a client in this turn
    client *c
    char *data
    size_t len


cdef int client_new(clients *all, int fd) noexcept nogil:
    """Take an accepted, non-blocking connection and greet it; 0, or -1 without memory (fd is closed)."""
    cdef client *c = client_add(all, fd)
    if c == NULL:
        return -1
    buf_clear(&all.replies)
    if all.greeting:
        greeting_append(&all.replies)
    client_send(all, c)
    return 0


cdef void client_noticed(client *c, uint32_t events) noexcept nogil:
    """epoll reported these events of c; clients_serve is to be next."""
    c.more = events & HANGING_UP  # behind the last bytes, an end
    c.gone = events & (EPOLLHUP | EPOLLERR)


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
            if served[k].len and served[k].c.source.fd >= 0:  # else it made room for others meanwhile
                client_serve(all, &served[k])
            served[k].len = 0
        received, foreseen, served = served, received, foreseen
        i += together


cdef void client_unready(clients *all, client *c) noexcept nogil:
    """Something happened to a client that is not waiting for its next request."""
    if buf_len(&c.output):
        client_flush(all, c)
    elif c.parked and c.gone:
        client_close(all, c)
    elif c.parked:
        client_watch(all, c, LEAVING)  # it pipelines: look again when its answer is back
    elif c.discarding:
        client_discard(all, c)
    else:
        client_resume(all, c)


cdef inline bint is_reading(const client *c) noexcept nogil:
    """Is c there, and to be read?"""
    return (c.source.fd >= 0 and buf_len(&c.output) == 0
            and not c.parked and not c.discarding and not has_lists(c))


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
    if used < a.len and client_input_keep(all, c, a.data + used, a.len - used) < 0:
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
    client_watch(all, c, READING)


cdef void client_serve_input(clients *all, client *c) noexcept nogil:
    """Serve what the client's own input holds."""
    cdef size_t used = serve_lists(all, c, c.input.data + c.input.start, buf_len(&c.input))
    buf_consume(&c.input, used)
    if used:
        client_clear_deadline(all, c)  # it was for the list that is done
    if buf_len(&c.input) == 0:
        all.buffered -= c.input.cap
        buf_free(&c.input)
    client_finish(all, c)


cdef size_t serve_lists(clients *all, client *c, const char *data, size_t len) noexcept nogil:
    """Serve the whole lists in data; returns the bytes that are done with.

    Stops early when c is parked, or when enough replies have piled up.
    """
    cdef size_t used = 0
    cdef size_t before
    cdef int became
    while used < len and buf_len(&all.replies) < REPLIES_MAX:
        if not c.read:
            c.list_len = session_read(all.service, &c.session, &c.seen, data + used, len - used)
            if c.list_len == 0:
                break
        c.read = False
        c.session.alone = buf_len(&all.replies) == 0 and used + c.list_len == len and not c.more
        before = buf_len(&all.replies)
        became = session_serve(all.service, &c.session, &all.replies)
        list_restart(&c.seen)
        if became == SERVED and buf_len(&all.replies) == before and c.session.verdict != PARSE_SILENT:
            c.starved = True
            break
        if became == PARKED:
            if c.session.parked_ns == 0:
                c.session.parked_ns = now_ns()
            c.parked = c.awaits_table = True
            c.since_turn = all.service.turn
            c.session.waits_for.waiting += 1
            c.waiter = <client *> c.session.waits_for.waiters
            c.session.waits_for.waiters = c
            break
        used += c.list_len
        all.service.requests += 1
        if became == SENT:
            c.parked = True
            if c.session.lent:
                client_watch(all, c, 0)  # what comes is for the writer
            break
    return used


# Replies out

cdef void client_finish(clients *all, client *c) noexcept nogil:
    """End a turn: send the replies, then wait for what is missing."""
    if not c.parked and not c.discarding and not has_lists(c) and buf_len(&c.input) > all.request_size_limit:
        client_refuse(all, c)
    else:
        client_send(all, c)
        if c.starved:
            client_close(all, c)


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
    elif client_output_keep(all, c, data + sent, len - sent) < 0:
        client_close(all, c)
    else:
        client_set_deadline(all, c, all.ipc_timeout_ms)
        client_watch(all, c, EPOLLOUT)


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
        client_set_deadline(all, c, all.ipc_timeout_ms)
        return
    all.buffered -= c.output.cap
    buf_free(&c.output)
    client_clear_deadline(all, c)
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
        if c.gone and not c.session.lent:
            client_close(all, c)  # before it was read, or while its replies were sent
        return
    if c.discarding:
        shutdown(c.source.fd, SHUT_WR)
        client_set_deadline(all, c, DISCARD_MS)
    elif has_lists(c):
        client_watch(all, c, EPOLLOUT)  # replies had piled up: the next turn serves on
        return
    elif buf_len(&c.input) == 0:
        if all.closing and not c.more and reply_is_unread(c):
            client_let_go(all, c)
            return
        if c.timed:
            client_clear_deadline(all, c)
    elif not c.timed:
        client_set_deadline(all, c, all.ipc_timeout_ms)
    client_watch(all, c, READING)


# Waiting for a table or a worker

cdef bint unpark(clients *all, client *c) noexcept nogil:
    """c need not wait any longer; is it still there?"""
    c.parked = c.quiet = c.session.lent = False
    c.session.waits_for = NULL
    if c.source.fd < 0:
        if c.session.fd >= 0:
            close(c.session.fd)
        client_bury(all, c)
        return False
    return True


cdef void clients_opened(clients *all, job *j) noexcept nogil:
    """A table was opened, or looked at: serve the requests that wait for it. j is no longer the caller's.

    Those that came after the look began wait for another one: it may not have seen what they are to see.
    """
    cdef uint64_t began = (<instance *> j.asker).looked
    cdef bint looked = j.kind == JOB_LOOK
    cdef instance *i = opening_done(all.service, j)
    cdef client *all_waiters = <client *> i.waiters
    cdef client *ready = NULL
    cdef client *c
    i.waiters = NULL
    while all_waiters != NULL:
        c = all_waiters
        all_waiters = c.waiter
        if looked and c.since_turn > began:
            c.waiter = <client *> i.waiters
            i.waiters = c
        else:
            c.awaits_table = False
            i.waiting -= 1
            c.waiter = ready
            ready = c
    i.jobs += 1  # so that it does not make room for another meanwhile
    while ready != NULL:
        c = ready
        ready = c.waiter
        if unpark(all, c):
            client_resume(all, c)
            if not c.parked:
                c.session.parked_ns = 0
    if i.state == AT_REST:
        i.looked = began  # whatever else comes in this turn may have been sent after that look
    while i.waiters != NULL and i.state == AT_REST and not opening_start(all.service, i, LOOKING, False):
        c = <client *> i.waiters  # without memory for a look: with what there is
        forget_waiter(c)
        client_resume(all, c)
        c.session.parked_ns = 0
    i.jobs -= 1


cdef void client_answered(clients *all, job *j) noexcept nogil:
    """A worker answered a request to a slow table. What it has received since comes behind its reply."""
    cdef session *who = <session *> j.asker
    cdef client *c = <client *> who.client
    cdef arrival rest
    buf_clear(&all.replies)
    work_answered(all.service, who, j, &all.replies)
    who.parked_ns = 0
    if not unpark(all, c):
        return
    if buf_len(&j.lent.rest):
        rest.c, rest.data, rest.len = c, j.lent.rest.data, buf_len(&j.lent.rest)
        client_serve(all, &rest)
    elif buf_len(&all.replies):
        client_finish(all, c)
    else:
        client_resume(all, c)


cdef void clients_landed(clients *all, job *j) noexcept nogil:
    """An answer has come that several clients may wait for. The next such question begins another flight."""
    cdef flight *f = <flight *> j.asker
    cdef session *who
    if sharing_again(all.service, f, j):
        return
    sharing_landed(all.service, f, j)
    flight_close(&all.service.flights, f)
    while f.waiters != NULL:
        who = <session *> f.waiters.who
        flight_leave(&who.waits)
        buf_clear(&all.replies)
        sharing_reply(all.service, f, j, who, &all.replies)
        client_go_on(all, <client *> who.client)
    flight_end(&all.service.flights, f)


cdef int clients_patience(const clients *all, int timeout_ms) noexcept nogil:
    """How long the loop may sleep, in ms (-1: for ever), before somebody takes an old answer."""
    cdef uint64_t when = all.service.flights.old_from_ms
    cdef uint64_t now
    if when == <uint64_t> FLIGHT_NEVER:
        return timeout_ms
    now = now_ms()
    when = min(max(when, now) - now, <uint64_t> SLEEP_MAX_MS)
    return <int> (when if timeout_ms < 0 else min(when, <uint64_t> timeout_ms))


cdef void clients_take_old(clients *all) noexcept nogil:
    """Clients that have waited for long enough get an old answer, if it is still good enough."""
    cdef flights *under_way = &all.service.flights
    cdef uint64_t now = all.service.now_ms
    cdef flight *f = under_way.first
    cdef waiter *w
    cdef waiter *next
    if under_way.old_from_ms > now:
        return
    under_way.old_from_ms = <uint64_t> FLIGHT_NEVER
    while f != NULL:
        w = f.waiters
        while w != NULL:
            next = w.next
            if w.of != f:
                pass  # it made room for others meanwhile
            elif w.old_from_ms <= now:
                client_take_old(all, f, <session *> w.who)
            else:
                under_way.old_from_ms = min(under_way.old_from_ms, w.old_from_ms)
            w = next
        f = f.next


cdef void client_take_old(clients *all, flight *f, session *who) noexcept nogil:
    buf_clear(&all.replies)
    who.waits.old_from_ms = <uint64_t> FLIGHT_NEVER
    if sharing_old(all.service, f, who, &all.replies):
        flight_leave(&who.waits)
        client_go_on(all, <client *> who.client)


cdef void client_go_on(clients *all, client *c) noexcept nogil:
    """c has its reply in all.replies and waits no longer."""
    c.session.parked_ns = 0
    if unpark(all, c):
        if buf_len(&all.replies):
            client_finish(all, c)
        else:
            client_resume(all, c)


# Too much

cdef void client_refuse(clients *all, client *c) noexcept nogil:
    """Too much, or never a list: BAD, and hang up once that is sent."""
    c.discarding = True
    count_one(all.service.figures, REFUSED + REFUSED_TOO_LONG)
    all.buffered -= c.input.cap
    buf_free(&c.input)
    reply_append_bare(&all.replies, STAT_BAD)
    client_send(all, c)


cdef void client_discard(clients *all, client *c) noexcept nogil:
    """Throw away what a refused client still sends, until it closes or its time is over."""
    cdef ssize_t n
    if buf_len(&c.output):
        client_flush(all, c)
        return
    n = recv(c.source.fd, all.received, READ_SIZE, MSG_DONTWAIT)
    if n <= 0:
        client_nothing(all, c, n)
        return
    c.more = c.more or n == READ_SIZE
    client_watch(all, c, READING)
