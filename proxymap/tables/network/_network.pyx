"""_network - the exchange and its tables, as Python sees them

The thread itself is `_exchange`. Everything here may be called by any thread.
"""

import os
from weakref import WeakSet, finalize

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy
from posix.unistd cimport close as close_fd

from proxymap._words cimport *
from proxymap.base._buf cimport buf, buf_append, view, view_of
from proxymap.base._clock cimport now_ms
from proxymap.base._os cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, epoll_create1, epoll_ctl, epoll_event, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock,
)
from proxymap.metrics._counters cimport OF_SERVER, figures_of
from proxymap.tables._jobs cimport (
    JOB_EXPLAIN, Job, Queue, job, job_free, job_new, queue_put,
)
from proxymap.tables._table cimport SLOW_LOOKUP, STAT_LATER, Table, table
from proxymap.tables.network._endpoint cimport ADDRESS_SIZE, ADDRESSES_MAX, asker, endpoint, protocol
from proxymap.tables.network._exchange cimport run_exchange

from proxymap.errors import TableRetry

cdef enum:
    LINES_MAX = 1000
    GRACE_MS = 30000  # a caller waits so much longer than the exchange should take


cdef class Protocol:
    """How a type speaks; one for each."""


cdef Protocol protocol_of(const protocol *p):
    cdef Protocol made = Protocol.__new__(Protocol)
    made.p = p
    return made


cdef class Exchange:
    """Asks servers, in `run`. asks: the queue for jobs; notes: what it tells its keeper; log: lines."""

    def __cinit__(self):
        self.asks, self.notes, self.log = Queue(wakes_loop=True), Queue(), Queue(limit=LINES_MAX)
        self.x.asks, self.x.notes, self.x.log = &self.asks.q, &self.notes.q, &self.log.q
        self.asks.q.sleepy = True
        pthread_mutex_init(&self.x.lock, NULL)
        self.x.epoll = epoll_create1(EPOLL_CLOEXEC)

    def __init__(self):
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.ptr = NULL
        if self.x.epoll < 0 or epoll_ctl(self.x.epoll, EPOLL_CTL_ADD, self.asks.eventfd, &event) < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if self.x.epoll >= 0:
            close_fd(self.x.epoll)

    def run(self):
        """Serve, for ever."""
        with nogil:
            run_exchange(&self.x)

    def wake(self):
        os.eventfd_write(self.asks.eventfd, 1)

    def take_lines(self) -> list:
        """Lines for the log: (level, text) of each."""
        self.x.lines_noted = False
        return [(line.status, line.name) for line in self.log.take_all(LINES_MAX)]

    def resolved(self, Endpoint of not None, list addresses not None):
        """The packed addresses of a name; none: it is not known."""
        pthread_mutex_lock(&self.x.lock)
        of.e.found = 0
        for packed in addresses[:ADDRESSES_MAX]:
            of.e.news_of[of.e.found].size = len(packed)
            memcpy(of.e.news_of[of.e.found].data, <const char *> <bytes> packed, len(packed))
            of.e.found += 1
        of.e.news = self.x.news = True
        pthread_mutex_unlock(&self.x.lock)
        self.wake()

    def wanted(self, Job note not None) -> int:
        """Of NOTE_RESOLVE: the number of the endpoint."""
        return <uint64_t> note.j.asker


cdef class Endpoint:
    """A server. addresses: packed; if there are none, `shown` is a name to look up."""

    def __init__(
        self, Exchange exchange not None, str maptype not None, Protocol speaks not None, str shown not None,
        list addresses not None, *, int connection_limit, double time_limit, double connect_time_limit,
        double idle_limit, double age_limit, double probe_interval, double longest_gap
    ):
        cdef endpoint *e = <endpoint *> calloc(1, sizeof(endpoint))  # stays: see keeper.py
        if e == NULL:
            raise MemoryError
        self.exchange, self.maptype, self.shown, self.e = exchange, maptype, shown, e
        self.tables = WeakSet()
        self.since_ms = now_ms()
        self.text = os.fsencode(shown)
        e.speaks = speaks.p
        e.shown = view_of(self.text, len(self.text))
        e.last = &e.first
        e.named = not addresses
        for packed in addresses:
            assert len(packed) <= ADDRESS_SIZE
            e.addresses[e.count].size = len(packed)
            memcpy(e.addresses[e.count].data, <const char *> <bytes> packed, len(packed))
            e.count += 1
        e.limit = connection_limit
        named = os.fsencode(f"{maptype} {shown}")
        e.figures = figures_of(OF_SERVER, view_of(named, len(named)))
        e.time_limit_ms = <uint64_t> (time_limit * 1000)
        e.connect_limit_ms = <uint64_t> (connect_time_limit * 1000)
        e.idle_limit_ms, e.age_limit_ms = <uint64_t> (idle_limit * 1000), <uint64_t> (age_limit * 1000)
        e.probe_first_ms = <uint64_t> (probe_interval * 1000)
        e.probe_last_ms = <uint64_t> (longest_gap * 1000)
        pthread_mutex_lock(&exchange.x.lock)
        e.next = exchange.x.arrived
        exchange.x.arrived = e
        pthread_mutex_unlock(&exchange.x.lock)
        exchange.wake()

    # What the workers' watchdog and `servers` see

    def describe(self) -> dict:
        """What is known of it, for the administrator; see databases/reports."""
        state = "down" if self.e.down else "up"
        seconds = (now_ms() - self.e.down_since_ms) // 1000 if self.e.down else None
        host = {"host": self.shown, "state": state, "seconds": seconds, "last_error": self.last_error or None}
        return {
            "server": f"{self.maptype} {self.shown}", "state": state, "hosts": [host],
            "tables": sorted(os.fsdecode(table.type_name) for table in list(self.tables)),
            "seconds": (now_ms() - self.since_ms) / 1000, **self.figures,
        }

    def give_up_late(self, limit_ms) -> list:
        """The exchange waits for nobody, so it is never late itself."""
        return []

    def close(self, until):
        """There is no goodbye in these protocols."""

    @property
    def last_error(self) -> str:
        """What failed last: words of the system's, or ours, which all stay where they are."""
        words = b"" if self.e.last_error == NULL else <bytes> self.e.last_error
        return os.fsdecode(words.removeprefix(b"lookup error: "))

    @property
    def owing(self) -> int:
        """How many changes that were given up may still be carried out?"""
        return self.e.owing

    @property
    def number(self) -> int:
        return <uint64_t> self.e

    @property
    def down(self) -> bool:
        return self.e.down

    def count(self, int change):
        """So many more tables use it; probes of a server that is down are for them."""
        self.e.used += change

    @property
    def figures(self) -> dict:
        """For the administrator, and for tests."""
        return {
            "open": self.e.open, "opening": self.e.open - self.e.ready, "waiting": self.e.waiting,
            "busy": self.e.busy, "limit": self.e.limit, "answers": self.e.answers, "retries": self.e.retries,
            "late": self.e.late, "shed": 0, "mean_ms": self.e.spent_ms / (self.e.answers or 1),
        }


cdef int network_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    return STAT_LATER


cdef class NetworkTable(Table):
    """A table whose questions go to an endpoint. A subclass calls `serve` when it is whole."""

    def __cinit__(self, *args, **kwargs):
        self.t.lookup = network_lookup
        self.t.slow = SLOW_LOOKUP

    cdef serve(self, asker *a, Endpoint to):
        """Have the loop's lookups asked there. a: the first thing in what t.self is to point to."""
        self.a = a
        self.endpoint = self.server = to
        a.to = to.e
        a.name = view_of(self.type_name, len(self.type_name))
        self.t.self = a
        self.t.asks = &to.exchange.asks.q
        self.crews = (to,)
        to.tables.add(self)
        to.count(1)
        finalize(self, to.count, -1).atexit = False

    cdef job *send(self, int kind, bytes key, bytes value, Queue replies) except NULL:
        """Put a question to the server; the answer comes into `replies`, which `wait` takes it from."""
        cdef job *j = job_new(kind)
        if j == NULL:
            raise MemoryError
        if buf_append(&j.key, key, len(key)) < 0 or buf_append(&j.value, value, len(value)) < 0:
            job_free(j)
            raise MemoryError
        j.t, j.replies = &self.t, &replies.q
        Py_INCREF(replies)  # the job names both until `wait` has it back, whatever the caller does
        Py_INCREF(self)
        queue_put(&self.endpoint.exchange.asks.q, j)
        return j

    cdef tuple wait(self, Queue replies):
        """(status, value, why) of the next answer."""
        cdef Job answered = replies.take((self.endpoint.e.time_limit_ms + GRACE_MS) / 1000.0)
        if answered is None:
            return STAT_RETRY, b"", "no answer in time"  # the job keeps what it names
        Py_DECREF(replies)
        Py_DECREF(self)
        value = b""
        if answered.j.status == STAT_OK:
            value = answered.j.value.data[:answered.j.value.end] if answered.j.value.end else b""
        return answered.j.status, value, os.fsdecode(answered.name)

    def ask(self, bytes key not None, int flags):
        cdef Queue replies = Queue()
        self.send(JOB_EXPLAIN, key, b"", replies)
        status, value, why = self.wait(replies)
        if status == STAT_RETRY:
            raise TableRetry(f"{self.endpoint.shown}: {why}" if why else "temporary error")
        return status, flags, value

    def explain(self, bytes key not None) -> list:
        return [f"asked at {self.endpoint.shown}"]
