"""_loop - epoll, accept, timers: drives clients; holds the loop's one `with nogil`

`run` serves until something needs the daemon: a signal, or `wake`. Between two
returns the loop thread never takes the GIL, so no Python thread can delay a
reply. What needs Python goes to the workers as a job; the eventfd of the
answers wakes the loop.

One turn: wait (see wait_eagerly), take the events, answer, free what was
closed. There is no other call per request than a recv and a send.

As a child of master(8) the loop also watches the status channel, whose end is
the word to leave, tells master when it is overloaded (_status), counts
connections for max_use, and times max_idle while there are none.

Source: epoll(7), accept4(2), timerfd_create(2), multi_server(3).
"""

import os

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport close, read

from proxymap.base._buf cimport view_of, view_str
from proxymap.metrics._counters cimport (
    FASTER, OF_SERVICE, TURN_CLIENTS, TURN_SECONDS, count_size, figures_of,
)
from proxymap.server._accept cimport (
    accept_clients, accept_is_pausing, accept_resume, accept_set, listening, watch_source,
)
from proxymap.server._cache cimport cache, cache_free, cache_init
from proxymap.server._catalog cimport catalog_approve, catalog_approve_none, catalog_give_up, catalog_recheck
from proxymap.server._client cimport (
    SOURCE_ANSWERS, SOURCE_CLIENT, SOURCE_IDLE, SOURCE_LISTENER, SOURCE_STATUS, SOURCE_TIMER, SOURCE_WAKE,
    SOURCE_WATCH, client, clients, clients_free, clients_hang_up, clients_init, clients_let_go_quiet,
    clients_sweep, clients_tick, clients_waiting, source,
)
from proxymap.base._clock cimport now_ms, now_ns
from proxymap.base._eager cimport eagerness, has_looked, is_time_to_look
from proxymap.base._os cimport (
    CLOCK_MONOTONIC, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, TFD_CLOEXEC, TFD_NONBLOCK, epoll_create1,
    epoll_event, epoll_wait, itimerspec, timerfd_create, timerfd_settime,
)
from proxymap.tables._jobs cimport JOB_LOOK, JOB_OPEN, Queue, job, job_free, queue, queue_take, queue_wake
from proxymap.server._opening cimport opening_anew, opening_config_done, opening_look, opening_turn
from proxymap.server._service cimport service, service_free, service_init
from proxymap.server._report cimport forget_answers, report_key, report_tables
from proxymap.server._status cimport channel, status_init, status_is_changing, status_watch
from proxymap.server._turn cimport (
    client_answered, client_new, client_noticed, clients_landed, clients_opened, clients_patience,
    clients_serve, clients_take_old,
)
from proxymap.server.tracing._trace cimport Tracer, trace_begin, trace_end
from proxymap.tables._table cimport Table
from proxymap.base._watch cimport Watch, watch, watch_take, watch_was_taken

cdef enum:
    EVENTS = 256       # taken in one turn
    KEPT_FOR_TABLES = 64  # descriptors that clients may not have, but of few descriptors an eighth
    QUIET_MS = 100     # a client that asks nothing for so long is idle
    PATIENCE_MS = 800  # at the end, with clients that ask without pause
    LINGER_MS = 30     # after the last was told end-of-file, for what it may have sent just before
    PAUSE_MS = 100     # without accepting, when descriptors or memory have run out
    EAGER_NS = 50000   # a client that was answered asks again within that time, or after a while
    TURNS_APART = 64   # of those that are measured
    BUSY_EVENTS = 64   # ready in one turn: a client that comes now waits some hundred microseconds

cpdef enum:  # why run returned
    END_WOKEN = 1   # the wake descriptor is readable
    END_MASTER = 2  # the status channel is at its end: reload, stop, or master is gone
    END_IDLE = 3    # no client for max_idle
    END_USED = 4    # max_use connections have ended, and none is left

cdef extern from *:
    """
    #include <stdint.h>
    typedef volatile uint64_t proxymap_turns;
    """
    ctypedef uint64_t volatile_u64 "proxymap_turns"


cdef struct loop:
    int epoll
    clients all
    service service
    cache results
    listening door
    source answers
    source wake
    source timer
    source changes        # inotify
    watch *watch
    queue *done
    size_t answered       # jobs that were there before this turn looked for changes of files
    eagerness looks       # whether waiting eagerly pays off
    int ended             # END_*: run is to return
    # As a child of master:
    source status_end     # fd -1: no master
    channel status        # to master
    source idle           # timer of max_idle
    uint64_t max_use      # 0: no limit
    uint64_t max_idle     # seconds; 0: no limit
    bint idling           # no client is connected, and the loop has seen to it
    # For the watchdog, which another thread reads:
    volatile_u64 turns
    volatile_u64 waiting


cdef void take_answers(loop *l) noexcept nogil:
    """Hand the workers' answers to those who wait for them; what has come in this turn, in the next one."""
    cdef job *j
    cdef size_t _
    for _ in range(l.answered):
        j = queue_take(l.done, 0)
        if j == NULL:
            return
        if j.kind == JOB_LOOK and j.asker == NULL:
            opening_config_done(&l.service, j)
        elif j.kind == JOB_OPEN or j.kind == JOB_LOOK:
            clients_opened(&l.all, j)
        else:
            if j.shared:
                clients_landed(&l.all, j)
            else:
                client_answered(&l.all, j)
            job_free(j)


cdef void take_event(loop *l, source *s) noexcept nogil:
    cdef uint64_t count
    if s.kind == SOURCE_LISTENER:
        accept_clients(&l.door, &l.all, s)
    elif s.kind == SOURCE_ANSWERS:
        read(s.fd, &count, sizeof(count))
        take_answers(l)
        if l.done.held:
            queue_wake(l.done)  # what has come since: the word of it may have been read, too
    elif s.kind == SOURCE_TIMER:
        read(s.fd, &count, sizeof(count))
        clients_tick(&l.all)
    elif s.kind == SOURCE_IDLE:
        l.ended = END_IDLE
    elif s.kind == SOURCE_STATUS:
        l.ended = END_MASTER
    elif s.kind != SOURCE_WATCH:  # which was taken before all others
        l.ended = END_WOKEN


# The life of a child of master

cdef void set_idle_timer(loop *l, uint64_t seconds) noexcept nogil:
    cdef itimerspec when
    memset(&when, 0, sizeof(when))
    when.it_value.tv_sec = <long> seconds
    timerfd_settime(l.idle.fd, 0, &when, NULL)


cdef void watch_use(loop *l) noexcept nogil:
    """max_idle counts while no client is connected; max_use is obeyed when none is."""
    if l.all.count and l.idling:
        l.idling = False
        set_idle_timer(l, 0)
    elif l.all.count == 0 and not l.idling:
        l.idling = True
        if l.max_use and l.all.closed >= l.max_use:
            l.ended = END_USED
        else:
            set_idle_timer(l, l.max_idle)


cdef void take_changes(loop *l, const epoll_event *events, int n) noexcept nogil:
    """Before all else, so that a request that came after a change gets the new content."""
    cdef bint ready = n == EVENTS  # a full turn may have left the watch out
    cdef bint concerned = False
    cdef int i
    for i in range(n):
        ready |= events[i].data.ptr == &l.changes
    if ready and watch_take(l.watch):
        concerned = True
    if watch_was_taken(l.watch):  # asked last: a worker that was quicker has said so first
        concerned = True
    if concerned:
        opening_look(&l.service)


cdef int wait_eagerly(loop *l, epoll_event *events) noexcept nogil:
    """The events of the next moment, if waiting for that long found some lately; -1 with errno.

    See _eager.
    """
    cdef uint64_t until
    cdef int n
    if not is_time_to_look(&l.looks):
        return 0
    n = epoll_wait(l.epoll, events, EVENTS, 0)
    if n:
        return n
    until = now_ns() + EAGER_NS
    while n == 0 and now_ns() < until:
        n = epoll_wait(l.epoll, events, EVENTS, 0)
    has_looked(&l.looks, n)
    return n


cdef int serve_turn(loop *l, int timeout_ms) noexcept nogil:
    """One turn; 0, or -1 with errno if epoll itself fails."""
    cdef epoll_event events[EVENTS]
    cdef client *ready[EVENTS]
    cdef source *s
    cdef bint paused = accept_is_pausing(&l.door)
    cdef int i, n, count = 0
    cdef uint64_t began = 0
    if paused or (l.status.fd >= 0 and status_is_changing(&l.status)):
        timeout_ms = PAUSE_MS
    timeout_ms = clients_patience(&l.all, timeout_ms)
    l.waiting = 1
    n = wait_eagerly(l, events)
    if n == 0:
        n = epoll_wait(l.epoll, events, EVENTS, timeout_ms)
    l.waiting = 0
    l.turns += 1
    if n < 0:
        return 0 if errno == EINTR else -1
    if l.turns % TURNS_APART == 0:
        began = now_ns()
    opening_turn(&l.service)
    l.answered = l.done.held
    take_changes(l, events, n)
    for i in range(n):
        s = <source *> events[i].data.ptr
        if s.kind == SOURCE_CLIENT:
            ready[count] = <client *> s
            client_noticed(ready[count], events[i].events)
            count += 1
        else:
            take_event(l, s)
    clients_serve(&l.all, ready, count)
    clients_take_old(&l.all)
    clients_sweep(&l.all)
    if l.status.fd >= 0:
        status_watch(&l.status, n >= BUSY_EVENTS or l.service.todo.held > 0, l.service.requests > 0)
    if paused:
        accept_resume(&l.door)
    measured(l, began, count)
    return 0


cdef void measured(loop *l, uint64_t began, int served) noexcept nogil:
    """A turn that began then has served so many clients; 0: this one is not measured."""
    if began:
        count_size(l.service.figures, TURN_SECONDS, FASTER, now_ns() - began)
        count_size(l.service.figures, TURN_CLIENTS, 0, served)


cdef class Loop:
    """The loop over the given listening sockets (descriptors, non-blocking; they stay the caller's).

    todo, renewals, asks: the queues to the workers, for tables to open, for those that are open to
    be renewed, and for lookups; done: from them; log: to the logger. watching: what they watch
    files with. config: stands for the files of the configuration.
    wake_fd: readable when `run` is to return. settings: see `configure`.
    status_fd, generation: of a child of master; max_use, max_idle: 0 for no limit.
    """

    cdef loop l
    cdef Queue todo, renewals, asks, done, log
    cdef Watch watching
    cdef Table config
    cdef list tracers  # that the loop tells of lookups
    cdef uint64_t seed
    cdef size_t cache_size
    cdef int cache_negative_share

    def __cinit__(
        self, list listeners, Queue todo not None, Queue renewals not None, Queue asks not None,
        Queue done not None, Queue log not None, Watch watching not None, int wake_fd, *,
        Table config=None, bint writes=False, int status_fd=-1, unsigned int generation=0,
        uint64_t max_use=0, uint64_t max_idle=0, **settings
    ):
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.todo, self.renewals, self.asks, self.done, self.log = todo, renewals, asks, done, log
        self.l.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.l.timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self.l.idle.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.l.epoll < 0 or self.l.timer.fd < 0 or self.l.idle.fd < 0:
            raise OSError(errno, os.strerror(errno))
        service_init(&self.l.service, self.seed)
        self.l.service.todo = &todo.q
        self.l.service.renewals = &renewals.q
        self.l.service.asks = &asks.q
        self.l.service.log = &log.q
        self.l.service.writes = writes
        if clients_init(&self.l.all, &self.l.service, self.l.epoll, self.l.timer.fd) < 0:
            raise MemoryError
        self.configure(**settings)
        self.tracers = []
        self.l.done = self.l.service.done = &done.q
        self.watching = watching
        self.l.watch = &watching.w
        self.config = config
        if config is not None:
            self.l.service.config = &self.config.t
        status_init(&self.l.status, status_fd, os.getpid(), generation)
        self.l.max_use = max_use
        self.l.max_idle = max_idle
        self.watch_sources(listeners, done.eventfd, wake_fd)

    def configure(
        self, *, approved, bint utf8_layer=True, bint greeting=True, size_t cache_size=0,
        int cache_negative_share=25, size_t request_size_limit=1 << 20, size_t value_size_limit=1 << 24,
        size_t waiting_limit=2000, size_t buffer_size_limit=1 << 26, ipc_timeout=3600
    ):
        """Obey these settings from now on; bytes and seconds. Not while `run` is under way.

        approved: the names of the tables that may be served. What is open stays open.
        """
        catalog_approve_none(&self.l.service.tables)
        for name in approved:
            if catalog_approve(&self.l.service.tables, view_of(name, len(name))) < 0:
                raise MemoryError
        catalog_recheck(&self.l.service.tables)
        self.l.service.utf8_layer = utf8_layer
        self.l.service.value_size_limit, self.l.service.waiting_limit = value_size_limit, waiting_limit
        self.l.all.greeting = greeting
        self.l.all.request_size_limit = request_size_limit
        self.l.all.buffer_size_limit = buffer_size_limit
        self.l.all.ipc_timeout_ms = <uint64_t> (ipc_timeout * 1000)
        if cache_size != self.cache_size or cache_negative_share != self.cache_negative_share:
            self.l.service.results = NULL
            cache_free(&self.l.results)
            if cache_size and cache_init(
                    &self.l.results, cache_size, cache_negative_share, self.seed ^ 1) < 0:
                raise MemoryError
            self.l.results.figures = self.l.service.figures
            self.l.service.results = &self.l.results if cache_size else NULL
            self.cache_size, self.cache_negative_share = cache_size, cache_negative_share

    def watch_sources(self, list listeners, int answers_fd, int wake_fd):
        cdef int i
        cdef source *s
        cdef source *sources[6]
        cdef listening *door = &self.l.door
        door.listeners = <source *> calloc(len(listeners) + 1, sizeof(source))
        if door.listeners == NULL:
            raise MemoryError
        door.epoll = self.l.epoll
        door.count = len(listeners)
        limit = os.sysconf("SC_OPEN_MAX")
        door.kept_from = max(0, limit - min(KEPT_FOR_TABLES, limit // 8))
        for i in range(door.count):
            door.listeners[i].kind = SOURCE_LISTENER
            door.listeners[i].fd = listeners[i]
        self.l.answers.kind, self.l.answers.fd = SOURCE_ANSWERS, answers_fd
        self.l.wake.kind, self.l.wake.fd = SOURCE_WAKE, wake_fd
        self.l.timer.kind = SOURCE_TIMER
        self.l.changes.kind, self.l.changes.fd = SOURCE_WATCH, self.watching.fd
        self.l.idle.kind = SOURCE_IDLE
        self.l.status_end.kind, self.l.status_end.fd = SOURCE_STATUS, self.l.status.fd
        sources = [&self.l.answers, &self.l.wake, &self.l.timer, &self.l.changes, &self.l.idle,
                   &self.l.status_end]
        for s in sources:
            if s.fd >= 0 and watch_source(self.l.epoll, s, EPOLL_CTL_ADD) < 0:
                raise OSError(errno, os.strerror(errno))
        accept_set(door, True)

    def __dealloc__(self):
        if self.l.all.received != NULL:
            clients_free(&self.l.all)
        if self.l.door.listeners != NULL:
            catalog_give_up(&self.l.service.tables)
            service_free(&self.l.service)
        if self.l.results.slots != NULL:
            cache_free(&self.l.results)
        free(self.l.door.listeners)
        if self.l.epoll > 0:
            close(self.l.epoll)
        if self.l.timer.fd > 0:
            close(self.l.timer.fd)
        if self.l.idle.fd > 0:
            close(self.l.idle.fd)

    def run(self) -> int:
        """Serve until something needs the daemon; returns what, END_*. OSError if the loop cannot go on."""
        cdef int failed = 0
        self.l.ended = 0
        self.l.service.figures = self.l.results.figures = figures_of(OF_SERVICE, view_str(b""))
        with nogil:
            watch_use(&self.l)
            while not failed and not self.l.ended:
                failed = serve_turn(&self.l, -1)
                watch_use(&self.l)
        if failed:
            raise OSError(errno, os.strerror(errno))
        return self.l.ended

    def add_client(self, int fd):
        """Serve a connection that was accepted elsewhere, without greeting it; the loop closes fd."""
        cdef bint greeting = self.l.all.greeting
        self.l.all.greeting = False
        client_new(&self.l.all, fd)
        self.l.all.greeting = greeting

    @property
    def progress(self):
        """(turns so far, is it waiting for events?), for a watchdog in another thread."""
        return self.l.turns, bool(self.l.waiting)

    def accept_all(self):
        """Take all connections that wait to be accepted."""
        cdef int i
        cdef size_t before
        for i in range(self.l.door.count):
            before = self.l.all.count + 1
            while self.l.all.count != before:
                before = self.l.all.count
                accept_clients(&self.l.door, &self.l.all, &self.l.door.listeners[i])

    def stop_accepting(self):
        accept_set(&self.l.door, False)
        self.l.door.count = 0

    def drain(self, double seconds) -> int:
        """Answer what has arrived and let all clients go; returns how many were left when time was up.

        Without master that includes connections that wait to be accepted; under master its next
        child accepts them. Clients that wait for a table or a worker may take all the time there
        is; a client that still asks without pause is let go before that.
        """
        cdef uint64_t start_ms = now_ms()
        cdef uint64_t until_ms = start_ms + <uint64_t> (seconds * 1000)
        cdef uint64_t look_ms = start_ms + QUIET_MS
        cdef uint64_t linger_ms = 0
        cdef size_t before
        if self.l.status.fd < 0:
            self.accept_all()
        self.stop_accepting()
        watch_source(self.l.epoll, &self.l.wake, EPOLL_CTL_DEL)  # they stay readable, and would end each turn
        if self.l.status.fd >= 0:
            watch_source(self.l.epoll, &self.l.status_end, EPOLL_CTL_DEL)
            self.l.status.fd = -1
        self.l.all.closing = True
        self.l.service.lends = False  # a client that is let go has its reply from the loop
        with nogil:
            clients_let_go_quiet(&self.l.all)
            while self.l.all.count and now_ms() < until_ms:
                before = self.l.all.let_go
                serve_turn(&self.l, 10)
                if now_ms() >= start_ms + PATIENCE_MS:
                    clients_hang_up(&self.l.all)
                elif now_ms() >= look_ms:
                    clients_let_go_quiet(&self.l.all)
                    look_ms = now_ms() + QUIET_MS
                if self.l.all.let_go != before:
                    linger_ms = now_ms() + LINGER_MS
                elif clients_waiting(&self.l.all) == 0 and now_ms() >= linger_ms:
                    break
        return clients_waiting(&self.l.all)

    def tables(self) -> list:
        """What is known of each instance of a table. Not while `run` is under way."""
        return report_tables(&self.l.service)

    def open_anew(self, bytes name=None):
        """Open all tables that have files, or those of that name, whatever the files look like."""
        opening_anew(&self.l.service, view_str(name) if name is not None else view_of(NULL, 0))

    def flush(self, bytes name=None, bytes key=None, bint negative=False) -> tuple:
        """Forget answers, see forget_answers; (instances that are meant, answers forgotten)."""
        return forget_answers(&self.l.service, name, key, negative)

    def known(self, bytes name not None, bytes key not None) -> list:
        """What the cache has of a key, and whether it is being asked for; see report_key."""
        return report_key(&self.l.service, name, key)

    def trace(self, Tracer tracer not None) -> bool:
        """Have it told of lookups that it wants; False if there are too many. Between two turns."""
        self.tracers.append(tracer)  # first: it may fail
        if not trace_begin(&self.l.service.tracing, &tracer.t):
            self.tracers.pop()
            return False
        return True

    def untrace(self, Tracer tracer not None):
        """Have it told of nothing any more. Between two turns."""
        trace_end(&self.l.service.tracing, &tracer.t)
        self.tracers.remove(tracer)

    def counters(self) -> dict:
        """What has been served so far, and what is held."""
        return {
            "requests": self.l.service.requests,
            "clients": self.l.all.count,
            "buffered_bytes": self.l.all.buffered,
            "instances": self.l.service.tables.count,
            "cache_bytes": [self.l.results.found.bytes, self.l.results.absent.bytes],
            "stale_age": self.l.service.stale_age_ms / 1000,
        }
