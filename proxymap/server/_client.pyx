"""_client - a connection: its descriptor, buffers and deadline, how it comes and goes

An idle client owns no buffer: it keeps only what could not be finished, an
incomplete list, a list that waits for a table, or output that the socket did
not take. What all connections together keep is limited.

One thread, the loop's; no GIL. What is read and answered: _turn.
Source: epoll(7), unix(7); wire.md.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset
from posix.unistd cimport close

from proxymap.base._buf cimport buf, buf_append, buf_free, buf_len, buf_reserve, view_str
from proxymap.base._clock cimport now_ms
from proxymap.base._os cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, SHUT_RDWR, SHUT_WR, epoll_ctl, epoll_event, itimerspec,
    shutdown, timerfd_settime,
)
from proxymap._codec cimport list_restart
from proxymap.metrics._counters cimport CONNECTIONS, HANGUPS, count_one
from proxymap.server._catalog cimport instance
from proxymap.server._flight cimport flight_leave
from proxymap.server._service cimport service, service_warn, session_free

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int, unsigned long, int *)

cdef extern from "<linux/sockios.h>" nogil:
    enum: SIOCOUTQ

cdef enum:
    REPLIES_MIN = 65536     # bytes of the scratch for replies: a RETRY without memory needs room, too
    REPLIES_KEEP = 1048576  # a larger scratch, after a huge value, is given back


cdef int clients_init(clients *all, service *s, int epoll, int timer) noexcept nogil:
    """0, or -1 without memory. The caller then sets limits and greeting."""
    memset(all, 0, sizeof(clients))
    all.service = s
    all.epoll = epoll
    all.timer = timer
    all.received = <char *> malloc(SCRATCHES * READ_APART)
    return 0 if all.received != NULL and buf_reserve(&all.replies, REPLIES_MIN) == 0 else -1


cdef void clients_free(clients *all) noexcept nogil:
    while all.first != NULL:
        all.first.parked = all.first.awaits_table = False  # neither table nor worker will be back
        client_close(all, all.first)
    clients_sweep(all)
    free(all.received)
    buf_free(&all.replies)


# Coming and going

cdef client *client_add(clients *all, int fd) noexcept nogil:
    """An accepted, non-blocking connection; NULL without memory (fd is closed)."""
    cdef client *c = <client *> calloc(1, sizeof(client))
    if c == NULL:
        close(fd)
        return NULL
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
    count_one(all.service.figures, CONNECTIONS)
    return c


cdef void client_close(clients *all, client *c) noexcept nogil:
    """Hang up. The memory goes at the end of the turn, since events of this turn may still name it.

    What a parked client waits for forgets it, but for a worker: the memory goes when that is done with
    it, and so does the descriptor if the worker has it, too.
    """
    if c.source.fd < 0:
        return
    if c.session.waits.of != NULL:  # others may wait for the same answer; it comes without c
        flight_leave(&c.session.waits)
        c.parked = False
    client_watch(all, c, 0)  # close alone does not do it while a forked child has the descriptor too
    if c.parked and c.session.lent:
        shutdown(c.source.fd, SHUT_RDWR)
    else:
        close(c.source.fd)
        c.session.fd = -1
    if c.parked and c.awaits_table:
        forget_waiter(c)
    c.source.fd = -1
    client_clear_deadline(all, c)
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
        client_bury(all, c)


cdef void forget_waiter(client *c) noexcept nogil:
    """Take c from the list of those that wait for a table to be opened."""
    cdef instance *i = c.session.waits_for
    cdef client *other = <client *> i.waiters
    if other == c:
        i.waiters = c.waiter
    else:
        while other.waiter != c:
            other = other.waiter
        other.waiter = c.waiter
    c.parked = c.awaits_table = False
    i.waiting -= 1


cdef void client_bury(clients *all, client *c) noexcept nogil:
    """Free it at the end of the turn."""
    c.next = all.dead
    all.dead = c


cdef void clients_sweep(clients *all) noexcept nogil:
    """Free what was closed in this turn, and a scratch that grew too large."""
    cdef client *c
    cdef char *smaller
    while all.dead != NULL:
        c = all.dead
        all.dead = c.next
        free(c)
    if all.replies.cap > REPLIES_KEEP:
        smaller = <char *> realloc(all.replies.data, REPLIES_MIN)
        if smaller != NULL:
            all.replies.data = smaller
            all.replies.start = all.replies.end = 0
            all.replies.cap = REPLIES_MIN


cdef void client_watch(clients *all, client *c, uint32_t events) noexcept nogil:
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


# Buffers

cdef int client_input_keep(clients *all, client *c, const char *data, size_t len) noexcept nogil:
    """Keep what could not be served yet; -1 without memory, or if c is who must make room for the others."""
    return keep(all, c, &c.input, data, len)


cdef int client_output_keep(clients *all, client *c, const char *data, size_t len) noexcept nogil:
    """The same of replies."""
    return keep(all, c, &c.output, data, len)


cdef int keep(clients *all, client *c, buf *kept, const char *data, size_t len) noexcept nogil:
    cdef size_t before = kept.cap
    cdef client *other
    while all.buffered > all.buffer_size_limit:
        other = heaviest(all)
        count_one(all.service.figures, HANGUPS)
        service_warn(all.service, view_str(b"hanging up on a client that has "), view_str(
            b"an unfinished request" if is_unfinished(other) else b"unread replies"),
            view_str(b": all clients together have buffer_size_limit"))
        if other == c:
            return -1
        client_close(all, other)
    if buf_append(kept, data, len) < 0:
        return -1
    all.buffered += kept.cap - before
    return 0


cdef inline bint is_unfinished(const client *c) noexcept nogil:
    """Has it sent the beginning of a list, and nothing that is complete?"""
    return buf_len(&c.input) != 0 and not c.parked and not has_lists(c)


cdef client *heaviest(clients *all) noexcept nogil:
    """The client to drop for room: the largest buffers, among unfinished requests if there are any."""
    cdef client *c = all.first
    cdef client *found = c
    while c != NULL:
        if is_unfinished(c) > is_unfinished(found) or (
            is_unfinished(c) == is_unfinished(found)
            and c.input.cap + c.output.cap > found.input.cap + found.output.cap
        ):
            found = c
        c = c.next
    return found


# Deadlines

cdef void set_timer(clients *all, bint ticking) noexcept nogil:
    cdef itimerspec when
    memset(&when, 0, sizeof(when))
    when.it_interval.tv_sec = when.it_value.tv_sec = ticking
    timerfd_settime(all.timer, 0, &when, NULL)


cdef void client_set_deadline(clients *all, client *c, uint64_t in_ms) noexcept nogil:
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


cdef void client_clear_deadline(clients *all, client *c) noexcept nogil:
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
    """A second has passed: hang up on clients whose time is over."""
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
# Postfix's client looks whether its connection is still open, then asks. A client whose
# connection closes between the two loses the request, and sleeps a second before it asks
# again. So a client that asks without pause is let go when it cannot be there: while it has
# not read our latest reply. An idle one is let go after it was quiet for a while.
# Either way it gets end-of-file first, and what it may send too late is read and
# thrown away: a closed socket would mean ECONNRESET, or SIGPIPE and postmap's death.

cdef bint reply_is_unread(const client *c) noexcept nogil:
    cdef int bytes = 0
    return ioctl(c.source.fd, SIOCOUTQ, &bytes) == 0 and bytes > 0


cdef void client_let_go(clients *all, client *c) noexcept nogil:
    shutdown(c.source.fd, SHUT_WR)
    c.discarding = True
    all.let_go += 1
    client_set_deadline(all, c, DISCARD_MS)
    client_watch(all, c, READING)


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
    """Let every client go that waits for no reply."""
    cdef client *c = all.first
    cdef client *next
    while c != NULL:
        next = c.next
        if is_idle(c):
            client_let_go(all, c)
        c = next
