"""_drive - what the thread does that drives all connections of a server

It takes jobs from its queue (_waiting), has a connection ask for each, and puts the
answers where the jobs say. All of it is C, without the GIL; the library's calls do not
wait. What has to wait (connecting, closing) and what needs Python (the log) is
the pool's, which gets notes (pool.py).

    job -> question (database) -> text -> library -> rows -> value -> job

A question that the server refuses is answered RETRY and hurts nobody else. When a
connection breaks with a question that was not its first, the question is asked once
more on another, since the server may have closed it long before. Whatever is
unclear is RETRY, never NOKEY.

Jobs that are under way belong to the driver, but the minder may answer them
(Driver.give_up_late) if it hangs: so what is under way changes hands under the lock.

Source: epoll(7), eventfd(2).
"""

from libc.errno cimport EAGAIN, errno
from libc.stdint cimport uint32_t, uint64_t
from posix.unistd cimport read

from proxymap._words cimport STAT_OK, STAT_RETRY
from proxymap.base._buf cimport (
    buf_append, buf_append_view, buf_clear, buf_len, buf_view, view, view_of, view_str,
)
from proxymap.base._clock cimport now_ms, now_ns
from proxymap.base._os cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLOUT, MSG_DONTWAIT, epoll_event, epoll_wait,
    pthread_mutex_lock, pthread_mutex_unlock, recv,
)
from proxymap.metrics._counters cimport ANSWERS, LATE, RETRIES, count_one
from proxymap.tables._jobs cimport (
    JOB_EXPLAIN, LEVEL_WARNING, job, job_answer, job_new, log_line, note_put, queue_put, queue_sleep,
    queue_wake,
)
from proxymap.tables.databases._budget cimport budget_earn, budget_spend
from proxymap.tables.databases._connection cimport (
    ANSWERED, BROKEN, ENDED_BROKEN, ENDED_DOWN, ENDED_LATE, ENDED_OLD, ENDED_SPOILED, FAILED, SPOILED,
    WANT_READ, WANT_WRITE, connection, connection_say, connection_watch,
)
from proxymap.tables.databases._waiting cimport (
    NOTE_DROP, NOTE_ENDED, NOTE_GROW, NOTE_LINES, NOTE_SUSPECT, driver, waiting_collect, waiting_late,
    waiting_learn, waiting_next, waiting_return,
)
from proxymap.tables.databases.database cimport (
    database, question_begin, question_end, question_row, question_text, question_value,
)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_PEEK

cdef enum:
    EVENTS = 64
    PATIENCE_NS = 1000000  # a job that has waited for so long is worth another connection
    PATIENCE_MS = 1
    OPENING_MAX = 4        # connections that are opened at the same time
    SWEEP_MS = 100         # between two looks for late jobs and old connections
    SHED_MS = 20           # between two looks for jobs that come while others wait
    REFUSE_MS = 10         # the same while no server can be reached
    IDLE_MS = 1000         # the same while nothing is under way
    TRIES = 3              # times that a job is asked, at most
    PROOF = 10             # answers after which twice as many connections are allowed


# The loop

cdef void drive(driver *d) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef connection *c
    cdef uint64_t ticks
    cdef int i, n
    while not d.stopping:
        n = epoll_wait(d.epoll, events, EVENTS, time_to_wait(d))
        d.turn += 1
        d.heard_all = 0 <= n < EVENTS
        for i in range(n):
            c = <connection *> events[i].data.ptr
            if c == NULL:
                read(d.asks.eventfd, &ticks, sizeof(ticks))
            elif c.has_ended:
                pass  # in this turn
            elif c.calls.heard != NULL:
                hear(d, c, ready_of(events[i].events))
            elif c.busy:
                settle(d, c, c.calls.go_on(c, ready_of(events[i].events)))
            elif not c.calls.is_good(c):
                end(d, c, ENDED_OLD)
        take_orders(d)
        match(d)
        sweep(d)
        end_turn(d)
    take_orders(d)  # connections that have just arrived end, too
    leave_hosts(d, <uint64_t> -1)
    end_turn(d)


cdef void hear(driver *d, connection *c, int ready) noexcept nogil:
    """Settle each that something has come for, of the connections that share the socket of c."""
    cdef int outcome
    cdef connection *other = c.calls.heard(c, ready, &outcome)
    while other != NULL:
        settle(d, other, outcome)
        other = c.calls.heard(c, ready, &outcome)
    if outcome == BROKEN and not c.has_ended:
        end(d, c, ENDED_OLD)
        distrust(d, c.host)


cdef inline int ready_of(uint32_t events) noexcept nogil:
    cdef int ready = WANT_WRITE if events & EPOLLOUT else 0
    return ready | WANT_READ if events & ~<uint32_t> EPOLLOUT else ready


cdef int time_to_wait(driver *d) noexcept nogil:
    """Milliseconds until something is to be done without an event."""
    if d.waiting.count:  # then jobs that come wake nobody
        return PATIENCE_MS if may_grow(d) else SHED_MS
    if d.has_refused:  # the same: clients that ask again at once take the CPU from nobody
        d.has_refused = False
        return REFUSE_MS
    if queue_sleep(d.asks):
        return SWEEP_MS if d.busy else IDLE_MS
    return 0


cdef void end_turn(driver *d) noexcept nogil:
    """Wake the threads that wait for the answers of this turn, and have lines logged."""
    cdef bint note = False
    cdef connection *next
    if d.woken != NULL:
        queue_wake(d.woken)
        d.woken = NULL
    while d.ended != NULL:
        next = d.ended.next
        if note_put(d.notes, NOTE_ENDED, d.ended) < 0:
            break  # without memory; in the next turn
        d.ended = next
    if d.log.held:
        pthread_mutex_lock(&d.lock)
        note = not d.lines_noted
        d.lines_noted = True
        pthread_mutex_unlock(&d.lock)
    if note and note_put(d.notes, NOTE_LINES, NULL) < 0:
        d.lines_noted = False


cdef void suspect(driver *d, int host) noexcept nogil:
    """A host has been silent for a while: the pool is to look whether it is alive."""
    cdef job *note = job_new(NOTE_SUSPECT)
    if note != NULL:
        note.status = host
        queue_put(d.notes, note)


cdef void take_orders(driver *d) noexcept nogil:
    """What the pool has for the driver."""
    cdef connection *c
    cdef uint64_t down
    pthread_mutex_lock(&d.lock)
    while d.arrived != NULL:
        c = d.arrived
        d.arrived = c.next
        c.next = d.all
        d.all = c
        connection_watch(c, d.epoll, EPOLL_CTL_ADD, False)
        make_idle(d, c)
    down = d.down_hosts
    d.down_hosts = 0
    pthread_mutex_unlock(&d.lock)
    if down:
        leave_hosts(d, down)


cdef void leave_hosts(driver *d, uint64_t hosts) noexcept nogil:
    """Hosts are down, a bit for each: what they were asked is asked elsewhere."""
    cdef connection *next
    cdef connection *c = d.all
    while c != NULL:
        next = c.next
        if hosts >> c.host & 1:
            end(d, c, ENDED_DOWN)
        c = next


# Jobs to connections

cdef void match(driver *d) noexcept nogil:
    """Have idle connections ask for the jobs that wait; have another opened if that takes too long."""
    cdef job *j
    waiting_collect(d)
    while d.waiting.count and (d.refusing or trusted(d)):
        j = waiting_next(d)
        if j != NULL:
            ask(d, d.idle, j)
    if not d.waiting.count:
        d.starved_ns = 0
    elif d.open + d.opening == 0 or (d.starved_ns and now_ns() - d.starved_ns >= PATIENCE_NS):
        grow(d)
        d.starved_ns = now_ns()
    elif not d.starved_ns:
        d.starved_ns = now_ns()


cdef inline bint may_grow(driver *d) noexcept nogil:
    """Is there room for another connection, and more that waits than connections are under way?"""
    cdef int more = min(OPENING_MAX, <int> d.waiting.count)
    return d.open + d.opening < min(d.limit, d.allowed) and d.opening < more


cdef void grow(driver *d) noexcept nogil:
    """Have another connection opened, if there may be one."""
    cdef bint may
    pthread_mutex_lock(&d.lock)
    may = may_grow(d)
    if may:
        d.opening += 1
    pthread_mutex_unlock(&d.lock)
    if may and note_put(d.notes, NOTE_GROW, NULL) < 0:
        pthread_mutex_lock(&d.lock)
        d.opening -= 1
        pthread_mutex_unlock(&d.lock)


cdef bint trusted(driver *d) noexcept nogil:
    """Is there an idle connection that has nothing unread, so is not closed? It is the first one then."""
    cdef char byte
    while d.idle != NULL:
        if d.heard_all and d.idle.idle_turn != d.turn:
            return True
        if (recv(d.idle.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 and errno == EAGAIN
                or d.idle.calls.is_good(d.idle)):
            return True
        end(d, d.idle, ENDED_OLD)
    return False


cdef void ask(driver *d, connection *c, job *j) noexcept nogil:
    """Begin to ask for j on the idle connection c."""
    cdef const database *table = <const database *> j.t.self
    cdef int status = question_begin(&c.question, table, buf_view(&j.key), &d.scratch, d.log)
    if status == STAT_OK:
        buf_clear(&c.sql)
        buf_clear(&j.value)
        status = question_text(&c.question, c.calls.quote, c, &c.sql)
        if status == STAT_OK and buf_append(&c.sql, b"\0", 1) < 0:
            status = STAT_RETRY
    if status != STAT_OK:
        job_answer(j, status, b"no memory", &d.woken)
        return
    d.idle = c.next_idle
    c.result_required = table.result_set_required
    c.used_ms = now_ms()
    c.began_ns = now_ns()
    pthread_mutex_lock(&d.lock)
    c.busy, c.given_up, c.suspect, c.job = True, False, False, j
    d.busy += 1
    pthread_mutex_unlock(&d.lock)
    settle(d, c, c.calls.start(c, view_of(c.sql.data, buf_len(&c.sql) - 1)))


cdef void settle(driver *d, connection *c, int outcome) noexcept nogil:
    """Act on what a call of the library has come to."""
    cdef bint writes = outcome & WANT_WRITE
    if not outcome & (ANSWERED | FAILED | SPOILED | BROKEN):
        if writes != c.watches_write:
            connection_watch(c, d.epoll, EPOLL_CTL_MOD, writes)
        return
    if outcome == BROKEN:
        end(d, c, ENDED_BROKEN)
        return
    waiting_learn(d, c)
    if outcome == ANSWERED:
        take_rows(d, c)
    else:
        complain(d, c)
        refused(d, c, c.text)
    if outcome == SPOILED or c.spent:
        end(d, c, ENDED_SPOILED)
        return
    if c.used_ms - c.born_ms >= d.age_limit_ms:  # it may be busy whenever `sweep` looks
        end(d, c, ENDED_OLD)
        return
    c.calls.finish(c)
    c.answers += 1
    d.answered[c.host] += 1
    prove(d)
    if c.watches_write:
        connection_watch(c, d.epoll, EPOLL_CTL_MOD, False)
    make_idle(d, c)


cdef void prove(driver *d) noexcept nogil:
    """A server that was down gets more to do as it answers."""
    d.answers += 1
    count_one(d.figures, ANSWERS)
    budget_earn(&d.tries)
    if d.allowed < d.limit:
        d.successes += 1
        if d.successes >= PROOF:
            d.successes = 0
            d.allowed *= 2


cdef void take_rows(driver *d, connection *c) noexcept nogil:
    """Make the answer of what was found."""
    cdef job *j = c.job
    cdef int status = STAT_OK
    cdef int n
    while status == STAT_OK and c.calls.row(c):
        question_row(&c.question)
        for n in range(c.columns):
            status = question_value(&c.question, c.calls.column(c, n), &j.value, d.log)
            if status != STAT_OK:
                break
    if status == STAT_OK or c.question.over:
        status = question_end(&c.question, d.log)
    if j.kind == JOB_EXPLAIN:
        explain(c, j)
    if c.question.over:
        refused(d, c, b"too many values (expansion_limit)")
    else:
        answer_of(d, c, status, b"no memory")


cdef void explain(connection *c, job *j) noexcept nogil:
    """Which host was asked what, and how many rows that gave."""
    buf_clear(&j.name)
    buf_append_view(&j.name, buf_view(&c.shown))
    buf_append(&j.name, b"\0", 1)
    buf_append(&j.name, c.sql.data, buf_len(&c.sql) - 1)
    j.cursor = c.question.rows


cdef void complain(driver *d, connection *c) noexcept nogil:
    """The server refuses a question."""
    cdef view parts[6]
    parts[0] = c.question.of.name
    parts[1] = view_str(b": query failed: ")
    parts[2] = view_str(c.text)
    parts[3] = view_str(b" (host ")
    parts[4] = buf_view(&c.shown)
    parts[5] = view_str(b")")
    log_line(d.log, LEVEL_WARNING, parts, 6)


# Answers

cdef job *take_away(driver *d, connection *c) noexcept nogil:
    """The job of c, which is the caller's now; NULL if somebody else has answered it."""
    cdef job *j
    cdef bint given_up
    pthread_mutex_lock(&d.lock)
    j = c.job
    given_up = c.given_up
    c.job = NULL
    if c.busy:
        c.busy = False
        d.busy -= 1
    pthread_mutex_unlock(&d.lock)
    if not given_up:
        return j
    j.kind = NOTE_DROP
    queue_put(d.notes, j)
    return NULL


cdef void answer_of(driver *d, connection *c, int status, const char *why) noexcept nogil:
    """Answer the job of c."""
    cdef job *j = take_away(d, c)
    if j != NULL:
        job_answer(j, status, why, &d.woken)


cdef void refused(driver *d, connection *c, const char *why) noexcept nogil:
    """Answer the job of c: its question has no answer, whichever connection asks it."""
    cdef job *j = take_away(d, c)
    if j != NULL:
        j.of_key = True
        job_answer(j, STAT_RETRY, why, &d.woken)


# Connections

cdef void make_idle(driver *d, connection *c) noexcept nogil:
    c.idle_turn = d.turn
    c.next_idle = d.idle
    d.idle = c


cdef void end(driver *d, connection *c, int why) noexcept nogil:
    """Give the connection to the pool, which closes it; see to its job."""
    cdef bint busy = c.busy
    cdef bint reused = c.answers > 0
    cdef job *j = NULL
    connection_watch(c, d.epoll, EPOLL_CTL_DEL, False)
    if busy:
        j = take_away(d, c)
    unlink(d, c)
    c.has_ended, c.ended_why = True, why
    c.suspended = busy and (why == ENDED_LATE or why == ENDED_DOWN)
    c.next = d.ended
    d.ended = c
    if j != NULL:
        if may_try_again(d, why, reused, j):
            j.tries += 1
            d.retries += 1
            count_one(d.figures, RETRIES)
            waiting_return(d, j)
        else:
            job_answer(
                j, STAT_RETRY, b"no answer in time" if why == ENDED_LATE else b"the connection broke",
                &d.woken)
    if why == ENDED_BROKEN and reused:
        distrust(d, c.host)


cdef bint may_try_again(driver *d, int why, bint reused, job *j) noexcept nogil:
    if j.tries + 1 >= TRIES:
        return False
    return why == ENDED_DOWN or (why == ENDED_BROKEN and reused and budget_spend(&d.tries, now_ms()))


cdef void distrust(driver *d, int host) noexcept nogil:
    """One connection broke, so others are likely to be broken, too: the next try is on a new one."""
    cdef connection *next
    cdef connection *c = d.idle
    while c != NULL:
        next = c.next_idle
        if c.host == host and c.answers:
            end(d, c, ENDED_OLD)
        c = next


cdef void unlink(driver *d, connection *c) noexcept nogil:
    """Take it out of all lists."""
    cdef connection **link = &d.idle
    while link[0] != NULL:
        if link[0] == c:
            link[0] = c.next_idle
            break
        link = &link[0].next_idle
    pthread_mutex_lock(&d.lock)
    link = &d.all
    while link[0] != NULL:
        if link[0] == c:
            link[0] = c.next
            break
        link = &link[0].next
    d.open -= 1
    pthread_mutex_unlock(&d.lock)


cdef void sweep(driver *d) noexcept nogil:
    """Now and then: answer what is too late, end what is too old."""
    cdef uint64_t now = now_ms()
    cdef connection *next
    cdef connection *c
    if now - d.swept_ms < SWEEP_MS:
        return
    d.swept_ms = now
    waiting_late(d, now)
    c = d.all
    while c != NULL:
        next = c.next
        if c.busy:
            if c.given_up or now - c.job.since_ms >= d.time_limit_ms:
                d.late += 1
                count_one(d.figures, LATE)
                waiting_learn(d, c)
                connection_say(c, b"no answer in time")
                complain(d, c)
                c.waited = not c.given_up and c.used_ms - c.job.since_ms > d.time_limit_ms / 2
                end(d, c, ENDED_LATE)
            elif now - c.used_ms >= d.suspect_ms and not c.suspect:
                c.suspect = True
                suspect(d, c.host)
        elif now - c.used_ms >= d.idle_limit_ms or now - c.born_ms >= d.age_limit_ms:
            end(d, c, ENDED_OLD)
        c = next
