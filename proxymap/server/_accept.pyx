"""_accept - takes connections, as long as there are descriptors for them

Where descriptors or memory have run out, or the system refuses, the listeners are not
watched for a moment, since they stay readable. Some descriptors are kept for tables: their
files must open however many clients there are. The kernel gives out the lowest
number that is free, so a client with a high one tells that few are left.

One thread, the loop's; no GIL. Source: accept4(2), getrlimit(2).
"""

from libc.errno cimport EAGAIN, ECONNABORTED, EEXIST, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from posix.unistd cimport close

from proxymap.base._buf cimport view, view_str
from proxymap.base._clock cimport now_ms
from proxymap.base._os cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLIN, SOCK_CLOEXEC, SOCK_NONBLOCK, accept4, epoll_ctl, epoll_event,
)
from proxymap.metrics._counters cimport PAUSES, count_one
from proxymap.server._client cimport clients, source
from proxymap.server._turn cimport client_new
from proxymap.tables._jobs cimport LEVEL_ERROR, log_line

cdef extern from "<fcntl.h>" nogil:
    enum: F_DUPFD_CLOEXEC
    int fcntl(int, int, int)

cdef extern from "<string.h>" nogil:
    const char *strerror(int)

cdef enum:
    ACCEPTS = 64    # connections taken in one turn, so that a storm of them delays nobody for long
    PAUSE_MS = 100  # without accepting, when that has failed


cdef int watch_source(int epoll, source *s, int operation) noexcept nogil:
    """0, or -1 with errno; to watch what is watched already is no failure."""
    cdef epoll_event e
    e.events = EPOLLIN
    e.data.ptr = s
    return 0 if epoll_ctl(epoll, operation, s.fd, &e) == 0 or errno == EEXIST else -1


cdef void accept_set(listening *l, bint accepting) noexcept nogil:
    """Watch the listeners, or do not. Where the kernel has no room for them, try again after a pause."""
    cdef int i
    cdef bint failed = False
    if l.accepting != accepting:
        for i in range(l.count):
            if watch_source(l.epoll, &l.listeners[i], EPOLL_CTL_ADD if accepting else EPOLL_CTL_DEL) < 0:
                failed = accepting
        l.accepting = accepting and not failed
        l.resume_ms = now_ms() + PAUSE_MS


cdef bint accept_is_pausing(const listening *l) noexcept nogil:
    return not l.accepting and l.count


cdef void accept_resume(listening *l) noexcept nogil:
    """End a pause, if it has been long enough and there are descriptors again."""
    cdef int lowest
    if now_ms() < l.resume_ms:
        return
    if l.kept_from:
        lowest = fcntl(l.listeners[0].fd, F_DUPFD_CLOEXEC, 0)
        if lowest >= 0:
            close(lowest)
        if lowest < 0 or lowest >= l.kept_from:
            l.resume_ms = now_ms() + PAUSE_MS
            return
    accept_set(l, True)


cdef void pause(listening *l, clients *all, const char *why) noexcept nogil:
    cdef view parts[3]
    parts[0] = view_str(b"accept connection: ")
    parts[1] = view_str(why)
    parts[2] = view_str(b"; pausing")
    log_line(all.service.log, LEVEL_ERROR, parts, 3)
    accept_set(l, False)
    count_one(all.service.figures, PAUSES)


cdef void accept_clients(listening *l, clients *all, source *listener) noexcept nogil:
    """Take those that wait. If that fails, say so, and pause, since the listener stays readable."""
    cdef int fd, _
    for _ in range(ACCEPTS):
        fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            client_new(all, fd)
            if l.kept_from and fd >= l.kept_from:
                pause(l, all, b"the last file descriptors are kept for tables")
                return
        elif errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
            pause(l, all, b"out of file descriptors or memory")
            return
        elif errno == EAGAIN:
            return
        elif errno != EINTR and errno != ECONNABORTED:
            pause(l, all, strerror(errno))
            return
