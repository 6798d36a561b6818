"""_connection - a connection to a database server, as its client library drives it

A connection is made by a thread that may wait (_mariadb, _pq), driven by one
that must not (_driver), and closed by one that may. It belongs to one of them
at a time: the one that has the Connection, or the driver.
"""

import os
import socket
import threading

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport strlen

from proxymap.base._buf cimport buf_append, buf_free, view, view_of
from proxymap.base._clock cimport now_ms
from proxymap.base._os cimport EPOLLIN, EPOLLOUT, epoll_ctl, epoll_event

from proxymap.tables.databases.hosts import ConnectFailed

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN, POLLOUT
    int poll(pollfd *, unsigned long, int)


cdef enum:
    OUTCOMES = ANSWERED | FAILED | SPOILED | BROKEN


cdef void connection_free(connection *c) noexcept nogil:
    buf_free(&c.shown)
    buf_free(&c.sql)
    free(c)


cdef void connection_say(connection *c, const char *text) noexcept nogil:
    """Keep what a library says, without the line breaks at its end."""
    cdef size_t n = min(strlen(text), <size_t> (TEXT_SIZE - 1))
    cdef size_t i
    while n and (text[n - 1] == c"\n" or text[n - 1] == c" "):
        n -= 1
    for i in range(n):
        c.text[i] = text[i]
    c.text[n] = 0


cdef void connection_watch(connection *c, int epoll, int operation, bint writes) noexcept nogil:
    """Have epoll tell when something comes, and when it can be written to if `writes`; see EPOLL_CTL_*."""
    cdef epoll_event e
    c.watches_write = writes
    if c.calls.watch != NULL:
        c.calls.watch(c, epoll, operation, writes)
        return
    e.events = EPOLLIN | (EPOLLOUT if writes else 0)
    e.data.ptr = c
    epoll_ctl(epoll, operation, c.fd, &e)


cdef int wait_for(int fd, int wants, uint64_t until_ms) noexcept nogil:
    """Wait until fd is ready; WANT_*, or 0 if it is too late (see now_ms)."""
    cdef pollfd p
    cdef uint64_t now
    cdef int found
    p.fd = fd
    p.events = (POLLIN if wants & WANT_READ else 0) | (POLLOUT if wants & WANT_WRITE else 0)
    while True:
        now = now_ms()
        if now >= until_ms:
            return 0
        p.revents = 0
        found = poll(&p, 1, <int> min(until_ms - now, <uint64_t> 60000))
        if found > 0:
            break
        if found < 0 and errno != EINTR:
            return 0
    if p.revents & ~(POLLIN | POLLOUT):
        return wants  # an error, which the library is to see
    return (WANT_READ if p.revents & POLLIN else 0) | (WANT_WRITE if p.revents & POLLOUT else 0)


cdef class Connection:
    """A connection that no driver has."""

    def __cinit__(self):
        self.c = NULL

    def __dealloc__(self):
        if self.c != NULL:
            self.c.calls.close(self.c, False)
            connection_free(self.c)

    @property
    def host(self) -> int:
        return self.c.host

    @property
    def shown(self) -> bytes:
        return self.c.shown.data[:self.c.shown.end]

    @property
    def suspended(self) -> bool:
        """Was a question under way when it was ended?"""
        return self.c.suspended

    @property
    def fresh(self) -> bool:
        """Has it never had an answer?"""
        return self.c.answers == 0

    @property
    def born(self) -> float:
        """When it was made, by a clock that is up to some milliseconds behind time.monotonic."""
        return self.c.born_ms / 1000.0

    @property
    def asked(self) -> float:
        """When its latest question began, by the same clock."""
        return self.c.used_ms / 1000.0

    @property
    def waited(self) -> bool:
        """Did it end late because its question had waited for long before it was asked?"""
        return self.c.waited

    @property
    def reason(self) -> str:
        """What the library said last."""
        return os.fsdecode(<bytes> self.c.text)

    def run(self, bytes sql not None, uint64_t limit_ms) -> bool:
        """Run a statement whose answer nobody needs; waits. Does the server obey?

        Raises ConnectFailed when the connection breaks, TimeoutError.
        """
        cdef connection *c = self.c
        cdef uint64_t until_ms = now_ms() + limit_ms
        cdef view text = view_of(sql, len(sql))
        cdef int outcome, ready
        with nogil:
            outcome = c.calls.start(c, text)
            while not outcome & OUTCOMES:
                ready = wait_for(c.fd, outcome, until_ms)
                if not ready:
                    break
                outcome = c.calls.go_on(c, ready)
        if not outcome & OUTCOMES:
            c.suspended = True
            raise TimeoutError
        if outcome & (SPOILED | BROKEN) or c.spent:
            raise ConnectFailed(self.reason)
        c.calls.finish(c)
        return outcome == ANSWERED

    def cancel(self):
        """Have the server give up the question that is under way; `close` is to follow. May wait for long."""
        with nogil:
            self.c.calls.cancel(self.c)

    def close(self, bint politely=True):
        """End it. politely: tell the server, if it can be told at once."""
        cdef connection *c = self.c
        self.c = NULL
        if c != NULL:
            with nogil:
                c.calls.close(c, politely)
                connection_free(c)


cdef Connection made(const library *calls, void *handle, int fd, int host, bytes shown):
    """Of what a library has connected; the caller closes handle if this raises."""
    cdef Connection wrapper = Connection.__new__(Connection)
    cdef connection *c = <connection *> calloc(1, sizeof(connection))
    if c == NULL:
        raise MemoryError
    if buf_append(&c.shown, shown, len(shown)) < 0:
        connection_free(c)
        raise MemoryError
    c.calls, c.handle, c.fd, c.host = calls, handle, fd, host
    c.born_ms = c.used_ms = now_ms()
    wrapper.c = c
    return wrapper


cdef class Attempt:
    """An attempt to connect, which another thread may end. host: its number, the pool's."""

    def __init__(self, int host):
        self.host = host
        self.fd = -1
        self.aborted = False
        self.lock = threading.Lock()

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)

    cdef int know(self, int fd) except -1:
        """The library uses this socket; -1: none any more. Returns whether the attempt was ended."""
        with self.lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1
            if fd >= 0:
                self.fd = os.dup(fd)  # the library may close its own at any time
            return self.aborted

    def abort(self):
        """Have it end soon, with an error. It may go on for a while, in the resolver's hands."""
        with self.lock:
            self.aborted = True
            if self.fd >= 0:
                shut_down(self.fd)


def shut_down(int fd):
    """End the wait of the thread that waits for this socket."""
    cdef object peer = socket.socket(fileno=os.dup(fd))
    try:
        peer.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is not connected yet
        pass
    finally:
        peer.close()
