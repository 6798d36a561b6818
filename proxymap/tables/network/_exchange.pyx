"""_exchange - questions to servers over plain sockets, and their answers

One thread for all servers of the network types: it connects, sends, receives, and
never waits but in epoll_wait, without the GIL. A connection has one question at a
time. Names are looked up by the keeper (keeper.py), which also logs.

A question has one deadline, from when it was asked until it is answered. If a
connection that had answered before breaks before a byte of the answer has come, the
question is asked once more on a new one, for the server may have closed the old one
long ago. A connection that has anything unread is closed; one whose change was given
up is kept until the other side can no longer make it. Whatever is unclear is RETRY.
Where no connection can be made, all is RETRY at once, until an attempt in the background succeeds.

Source: epoll(7), connect(2), tcp(7), unix(7); network-tables.md 1 and 6.
"""

from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport read

from proxymap._words cimport STAT_OK, STAT_RETRY
from proxymap.base._buf cimport (
    buf_append_view, buf_clear, buf_len, buf_reserve, buf_view, view_of, view_str, view_until_nul,
)
from proxymap.base._clock cimport now_ms, now_ns
from proxymap.base._os cimport (
    EPOLLOUT, MSG_DONTWAIT, epoll_event, epoll_wait, pthread_mutex_lock, pthread_mutex_unlock, recv,
)
from proxymap.metrics._counters cimport ANSWERS, LATE, RETRIES, count_both
from proxymap.tables._jobs cimport job, job_answer, note_put, queue_put, queue_sleep, queue_take, queue_wake
from proxymap.tables.network._endpoint cimport (
    ANSWERED, BUSY, CONNECTING, ENDED, GREETING, IDLE, MORE, NONSENSE, OWING, address, answer, asker,
    asker_of, connection, connection_begin, connection_end, connection_free, connection_outcome,
    connection_owe, connection_rest, connection_send, connection_watch, endpoint, has_unread, is_change,
    take_waiting, tell_down, tell_trouble, tell_untrusted, tell_up, wait_again, wait_for_connection,
)

cdef extern from "<string.h>" nogil:
    const char *strerror(int)

cdef enum:
    EVENTS = 64
    READ_SIZE = 16384
    SWEEP_MS = 100          # between two looks for what is late or old
    REST_MS = 1000          # the same while nothing is under way
    PATIENCE_NS = 1000000   # jobs that have waited for so long are worth another connection
    NAME_MS = 30000         # a name is looked up again after that
    FRESH_MS = 600000       # after an answer too many
    SILENCES_MAX = 3        # in a row, then the server is asked whether it lives


# The loop

cdef void run_exchange(exchange *x) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef uint64_t ticks
    cdef int i, n
    x.now_ms = now_ms()
    while True:
        n = epoll_wait(x.epoll, events, EVENTS, time_to_wait(x))
        x.now_ms = now_ms()
        for i in range(n):
            if events[i].data.ptr == NULL:
                read(x.asks.eventfd, &ticks, sizeof(ticks))
            else:
                is_ready(x, <connection *> events[i].data.ptr, events[i].events)
        take_arrivals(x)
        take_jobs(x)
        x.now_ms = now_ms()  # not before any of these was put into the queue
        sweep(x)
        end_turn(x)


cdef int time_to_wait(exchange *x) noexcept nogil:
    """Milliseconds until something is to be done without an event."""
    cdef endpoint *e = x.endpoints
    if not queue_sleep(x.asks):
        return 0
    while e != NULL:
        if e.first != NULL and e.ready and e.open < e.limit:
            return 1
        e = e.next
    return SWEEP_MS if x.busy else REST_MS


cdef void end_turn(exchange *x) noexcept nogil:
    """Wake whoever waits for the answers of this turn, and have lines logged."""
    cdef connection *c
    cdef bint note = False
    if x.woken != NULL:
        queue_wake(x.woken)
    x.woken = NULL
    while x.ended != NULL:
        c = x.ended
        x.ended = c.next
        connection_free(c)
    if x.log.held:
        pthread_mutex_lock(&x.lock)
        note = not x.lines_noted
        x.lines_noted = True
        pthread_mutex_unlock(&x.lock)
    if note and note_put(x.notes, NOTE_LINES, NULL) < 0:
        x.lines_noted = False


cdef void take_arrivals(exchange *x) noexcept nogil:
    """What the keeper and openers have: endpoints, and addresses of names."""
    cdef endpoint *e
    pthread_mutex_lock(&x.lock)
    while x.arrived != NULL:
        e = x.arrived
        x.arrived = e.next
        e.next = x.endpoints
        x.endpoints = e
    e = x.endpoints if x.news else NULL
    x.news = False
    while e != NULL:
        if e.news:
            e.news = e.resolving = False
            take_addresses(x, e)
        e = e.next
    pthread_mutex_unlock(&x.lock)


cdef void take_addresses(exchange *x, endpoint *e) noexcept nogil:
    """A name was looked up. If that failed, what it was before goes on, if there is any."""
    e.resolved_ms = x.now_ms
    if e.found:
        memcpy(e.addresses, e.news_of, e.found * sizeof(address))
        e.count, e.at = e.found, 0
    elif e.count == 0:
        is_down(x, e, b"host not found")


# Jobs to connections

cdef void take_jobs(exchange *x) noexcept nogil:
    """Those that have come by now. What comes meanwhile may be of clients that were refused here just now."""
    cdef endpoint *e
    cdef asker *a
    cdef job *j
    cdef size_t _
    for _ in range(x.asks.held):
        j = queue_take(x.asks, 0)
        if j == NULL:
            return
        a = asker_of(j)
        e = a.to
        if a.handed != NULL and e.speaks.is_handed(a, j):
            queue_put(a.handed, j)
        elif e.down:
            fail(x, j, b"server is down")
        elif e.owing >= e.limit and is_change(j):
            fail(x, j, b"too many changes are without answer")
        elif e.first == NULL and usable(x, e):
            ask(x, e.idle, j)
        else:
            wait_for_connection(e, j)
            pump(x, e)


cdef void pump(exchange *x, endpoint *e) noexcept nogil:
    """Have idle connections ask for what waits; open more if that is not enough."""
    cdef int more
    while e.first != NULL and usable(x, e):
        ask(x, e.idle, take_waiting(e))
    if e.first == NULL:
        return
    if e.open == 0:
        open_one(x, e)
    elif e.starved_ns == 0:
        e.starved_ns = now_ns()
    elif now_ns() - e.starved_ns >= PATIENCE_NS:
        e.starved_ns = now_ns()
        more = min(<int> e.waiting, e.limit) - (e.open - e.ready)
        while more > 0 and e.open < e.limit and not e.down and open_one(x, e):
            more -= 1


cdef bint usable(exchange *x, endpoint *e) noexcept nogil:
    """Is there an idle connection that has nothing unread, so is not closed? It is the first one then."""
    cdef bint closed
    while e.idle != NULL:
        if e.speaks.tells_apart or not has_unread(e.idle, &closed):
            return True  # what does not belong to the question will be seen
        unasked(x, e.idle)
    return False


cdef void ask(exchange *x, connection *c, job *j) noexcept nogil:
    """Ask for j on the idle connection c."""
    cdef endpoint *e = c.to
    cdef int status
    if j.since_ms + e.time_limit_ms <= x.now_ms:  # the caller has given it up
        fail(x, j, b"no connection in time")
        return
    buf_clear(&c.out)
    buf_clear(&c.got)
    status = e.speaks.write(asker_of(j), j, &c.out)
    if status != STAT_OK:
        j.of_key = True
        done(x, j, status, b"the key is too long, or there is no memory")
        return
    e.idle = c.next_idle
    c.state, c.job, c.since_ms = BUSY, j, x.now_ms
    e.busy += 1
    x.busy = True
    flush(x, c)


cdef void flush(exchange *x, connection *c) noexcept nogil:
    """Send what is to be sent."""
    cdef int failed = connection_send(c, x.epoll)
    if failed:
        broke(x, c, failed)


# Connections

cdef bint open_one(exchange *x, endpoint *e) noexcept nogil:
    """Begin to connect; is it under way?"""
    cdef connection *c
    cdef int failed
    if e.named and not e.resolving and (e.count == 0 or x.now_ms - e.resolved_ms >= NAME_MS):
        e.resolving = note_put(x.notes, NOTE_RESOLVE, e) == 0
    if e.count == 0:
        return False
    c = connection_begin(e, x.epoll, x.now_ms, &failed)
    if c == NULL:
        return False
    x.busy = True
    if failed == 0:
        connected(x, c)
    elif failed == EAGAIN:
        end(x, c)  # a socket where too many wait; `sweep` tries again
    elif failed != EINPROGRESS:
        not_connected(x, c, strerror(failed))
    return failed == 0 or failed == EINPROGRESS


cdef void is_ready(exchange *x, connection *c, uint32_t events) noexcept nogil:
    cdef int failed
    if c.state == CONNECTING:
        failed = connection_outcome(c)
        if failed:
            not_connected(x, c, strerror(failed))
        else:
            connected(x, c)
    elif c.state == IDLE:
        unasked(x, c)
    elif c.state == OWING:
        end(x, c)
    elif c.state != ENDED:
        if events & EPOLLOUT:
            flush(x, c)
        if c.state != ENDED and events & ~<uint32_t> EPOLLOUT:
            receive(x, c)


cdef void connected(exchange *x, connection *c) noexcept nogil:
    cdef endpoint *e = c.to
    e.ready += 1
    e.tried = 0
    c.state, c.since_ms = GREETING, x.now_ms
    if c.watches_write:
        connection_watch(c, x.epoll, False)
    if e.down and e.speaks.hello != NULL:
        buf_append_view(&c.out, view_str(e.speaks.hello))
        flush(x, c)
        return
    is_up(x, e)
    connection_rest(c, x.now_ms)
    pump(x, e)


cdef void unasked(exchange *x, connection *c) noexcept nogil:
    """Something has come on an idle connection: its end, as a rule."""
    cdef endpoint *e = c.to
    cdef bint closed
    if has_unread(c, &closed) and not closed and not e.speaks.tells_apart:
        trust_no_more(x, e)
    else:
        end(x, c)


cdef void trust_no_more(exchange *x, endpoint *e) noexcept nogil:
    """There was an answer too many, so that others may have been taken for what they are not."""
    tell_untrusted(x.log, e)
    e.fresh_until_ms = x.now_ms + FRESH_MS
    while e.idle != NULL:
        end(x, e.idle)


cdef void end(exchange *x, connection *c) noexcept nogil:
    connection_end(c)
    c.next, x.ended = x.ended, c


cdef void not_connected(exchange *x, connection *c, const char *why) noexcept nogil:
    """Try the next address; if that was the last, and there is no other connection, the server is down."""
    cdef endpoint *e = c.to
    end(x, c)
    if c.at != e.at:
        return  # another has failed there before: the next address is being tried, or it is down
    e.at, e.tried = e.at + 1, e.tried + 1
    if e.tried < e.count and not e.down:
        open_one(x, e)
        return
    e.tried = 0
    if e.ready == 0:
        is_down(x, e, why)


cdef void is_down(exchange *x, endpoint *e, const char *why) noexcept nogil:
    e.last_error = why
    if not e.down:
        e.down, e.down_since_ms, e.gap_ms = True, x.now_ms, e.probe_first_ms
        tell_down(x.log, e, why)
    else:
        e.gap_ms = min(2 * e.gap_ms, e.probe_last_ms)
    e.probe_ms = x.now_ms + e.gap_ms
    while e.idle != NULL:
        end(x, e.idle)
    while e.first != NULL:
        fail(x, take_waiting(e), why)


cdef void is_up(exchange *x, endpoint *e) noexcept nogil:
    if e.down:
        e.silences = e.down = 0
        tell_up(x.log, e, x.now_ms)


# Answers

cdef void receive(exchange *x, connection *c) noexcept nogil:
    cdef size_t room
    cdef ssize_t n
    while c.state == BUSY or c.state == GREETING:
        if buf_reserve(&c.got, READ_SIZE) < 0:
            broke(x, c, errno)
            return
        room = c.got.cap - c.got.end
        n = recv(c.fd, c.got.data + c.got.end, room, MSG_DONTWAIT)
        if n <= 0:
            if n == 0 and not read_answer(x, c, True):
                broke(x, c, 0)
            elif n < 0 and errno != EAGAIN and errno != EINTR:
                broke(x, c, errno)
            return
        c.got.end += n
        if c.state == GREETING:
            is_up(x, c.to)
            end(x, c)  # whatever else it says
        else:
            read_answer(x, c, False)
        if <size_t> n < room:
            return


cdef bint read_answer(exchange *x, connection *c, bint at_end) noexcept nogil:
    """See whether the answer is here; was it? at_end: no more will come."""
    cdef answer found
    cdef endpoint *e = c.to
    cdef job *j = c.job
    cdef int seen
    if c.state != BUSY:
        return False
    found.status, found.ends, found.words = STAT_RETRY, False, NULL
    found.used, found.at_end = 0, at_end
    found.value = found.text = view_of(NULL, 0)
    seen = e.speaks.read(asker_of(j), j, buf_view(&c.got), &found)
    if seen == MORE:
        return False
    c.answers += 1
    count_both(&e.answers, e.figures, ANSWERS)
    e.spent_ms += x.now_ms - c.since_ms
    e.silences = 0
    is_up(x, e)
    if seen == NONSENSE:
        found.status, found.ends, e.last_error = STAT_RETRY, True, found.words
    buf_clear(&j.value)
    if found.status == STAT_OK:
        found.value = view_until_nul(found.value)
        if buf_append_view(&j.value, found.value) < 0:
            found.status = STAT_RETRY
    j.of_key = seen == ANSWERED and found.status == STAT_RETRY
    if found.words != NULL:
        tell_trouble(x.log, asker_of(j), x.now_ms, found.words, found.text)
    done(x, j, found.status, found.words)
    c.job = NULL
    if found.ends or at_end or found.used != buf_len(&c.got) or x.now_ms < e.fresh_until_ms:
        if seen == ANSWERED and found.used < buf_len(&c.got) and not e.speaks.tells_apart:
            trust_no_more(x, e)
        end(x, c)
    elif x.now_ms - c.born_ms >= e.age_limit_ms:
        end(x, c)
    else:
        connection_rest(c, x.now_ms)
    pump(x, e)
    return True


cdef void broke(exchange *x, connection *c, int why) noexcept nogil:
    """The other side has ended it, or there was an error."""
    cdef endpoint *e = c.to
    cdef job *j = c.job
    cdef bint old = c.state == BUSY and c.answers > 0 and buf_len(&c.got) == 0
    cdef bint greeted = c.state == GREETING
    cdef const char *words = strerror(why) if why else <const char *> b"unexpected disconnect"
    end(x, c)
    if greeted:
        is_down(x, e, b"unexpected disconnect")
        return
    if old and j.tries == 0:
        j.tries += 1
        count_both(&e.retries, e.figures, RETRIES)
        while e.idle != NULL:  # they are likely to have the same fate
            end(x, e.idle)
        wait_again(e, j)
        open_one(x, e)
        return
    e.last_error = words
    fail(x, j, words)
    pump(x, e)


cdef void fail(exchange *x, job *j, const char *why) noexcept nogil:
    """There is no answer."""
    tell_trouble(x.log, asker_of(j), x.now_ms, b"lookup error: ", view_str(why))
    done(x, j, STAT_RETRY, why)


cdef void done(exchange *x, job *j, int status, const char *why) noexcept nogil:
    """Answer the job, or hand it to the workers. why: of RETRY, for a caller who wants to know."""
    cdef asker *a = asker_of(j)
    cdef int given = a.to.speaks.hands_over(a, j, status) if a.handed != NULL else 0
    if given > 0:
        queue_put(a.handed, j)
        return
    job_answer(j, STAT_RETRY if given < 0 else status, why, &x.woken)


# What is late, and what is old

cdef void sweep(exchange *x) noexcept nogil:
    """Now and then; what waits for connections is looked at in each turn."""
    cdef endpoint *e = x.endpoints
    cdef bint all = x.now_ms - x.swept_ms >= SWEEP_MS
    if all:
        x.swept_ms = x.now_ms
        x.busy = False
    while e != NULL:
        if e.first != NULL:
            pump(x, e)
        if all:
            sweep_endpoint(x, e)
        e = e.next


cdef void sweep_endpoint(exchange *x, endpoint *e) noexcept nogil:
    cdef connection *next
    cdef connection *c = e.all
    while c != NULL:
        next = c.next
        sweep_connection(x, e, c, x.now_ms - c.since_ms)
        c = next
    while e.first != NULL and x.now_ms - e.first.since_ms >= e.time_limit_ms:
        fail(x, take_waiting(e), b"no connection in time")
    if e.down and e.used and e.open == 0 and x.now_ms >= e.probe_ms:
        if not open_one(x, e) and e.down and e.open == 0:
            e.probe_ms = max(e.probe_ms, x.now_ms + SWEEP_MS)
    if e.first != NULL or e.open > e.ready or (e.down and e.used):
        x.busy = True


cdef void sweep_connection(exchange *x, endpoint *e, connection *c, uint64_t age) noexcept nogil:
    cdef job *j
    if c.state == CONNECTING and age >= e.connect_limit_ms:
        not_connected(x, c, b"time limit exceeded")
    elif c.state == GREETING and age >= e.connect_limit_ms:
        end(x, c)
        is_down(x, e, b"time limit exceeded")
    elif c.state == IDLE and (age >= e.idle_limit_ms or x.now_ms - c.born_ms >= e.age_limit_ms):
        end(x, c)
    elif c.state == BUSY:
        x.busy = True
        j = c.job
        if x.now_ms - j.since_ms >= e.time_limit_ms:
            if is_change(j) and buf_len(&c.out) == 0:
                connection_owe(c)
            else:
                end(x, c)
            e.silences += 1
            count_both(&e.late, e.figures, LATE)
            e.last_error = b"time limit exceeded"
            fail(x, j, e.last_error)
            if e.speaks.hello != NULL and e.silences >= SILENCES_MAX and not e.down:
                is_down(x, e, b"server is silent")
