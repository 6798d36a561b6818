"""_trace - lookups as they are answered, for those who follow them

A tracer has a filter and a ring of events. The loop's thread alone writes into
the ring, one other thread alone reads from it (Tracer.take); neither waits. What
finds no room, or is too much for a second, is counted and left out. Tracers come
and go between two turns of the loop, which holds a reference to each.

Source: unix(7), SO_PEERCRED: the client's process is the one that has connected.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from proxymap.base._buf cimport view, view_equal, view_of
from proxymap.base._clock cimport now_ns, wall_clock_ns

cdef extern from * nogil:
    """
    #include <sys/socket.h>
    #include <sys/types.h>
    /* The process at the other end of a Unix socket; 0: unknown. */
    struct proxymap_peer { pid_t pid; uid_t uid; gid_t gid; };
    static int proxymap_client_of(int fd)
    {
        struct proxymap_peer peer = {0, 0, 0};
        socklen_t size = sizeof(peer);
        if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
            return 0;
        return peer.pid;
    }
    """
    int client_of "proxymap_client_of"(int fd)

cdef enum:
    SECOND_NS = 1000000000


cdef bint trace_begin(tracers *all, tracer *t) noexcept nogil:
    """Tell t from now on; False if there are too many."""
    cdef int i
    for i in range(TRACERS_MAX):
        if all.each[i] == NULL:
            all.each[i] = t
            all.count += 1
            return True
    return False


cdef void trace_end(tracers *all, tracer *t) noexcept nogil:
    """Tell t no more."""
    cdef int i
    for i in range(TRACERS_MAX):
        if all.each[i] == t:
            all.each[i] = NULL
            all.count -= 1


cdef void trace_answer(tracers *all, const answer *a) noexcept nogil:
    """Tell of it whoever wants to know."""
    cdef uint64_t now = now_ns()
    cdef uint64_t took = now - a.began_ns if now > a.began_ns else 0
    cdef tracer *t
    cdef int i
    for i in range(TRACERS_MAX):
        t = all.each[i]
        if t != NULL and wants(t, a, took):
            put(t, a, now, took)


cdef bint wants(const tracer *t, const answer *a, uint64_t took) noexcept nogil:
    if took < t.slow_ns or (t.status >= 0 and a.status != t.status):
        return False
    if t.table.ptr != NULL and not view_equal(t.table, a.table):
        return False
    return t.key.ptr == NULL or same_letters(t.key, a.key)


cdef bint same_letters(view a, view b) noexcept nogil:
    """Are these the same, without regard to the case of ASCII letters?"""
    cdef size_t i
    if a.len != b.len:
        return False
    for i in range(a.len):
        if lower(a.ptr[i]) != lower(b.ptr[i]):
            return False
    return True


cdef inline char lower(char c) noexcept nogil:
    return c + 32 if c"A" <= c <= c"Z" else c


cdef void put(tracer *t, const answer *a, uint64_t now, uint64_t took) noexcept nogil:
    cdef event *e
    if now - t.second_ns >= SECOND_NS:
        t.second_ns, t.in_second = now, 0
    if t.in_second >= t.rate or t.written - published(&t.read) >= TRACE_RING:
        publish(&t.left_out, t.left_out + 1)
        return
    t.in_second += 1
    e = &t.ring[t.written % TRACE_RING]
    e.when_ns, e.took_ns, e.client = wall_clock_ns(), took, client_of(a.fd)
    e.status, e.source = a.status, a.source
    e.table_len, e.key_len = a.table.len, a.key.len
    if a.table.len:
        memcpy(e.table, a.table.ptr, min(a.table.len, <size_t> TRACE_TABLE))
    if a.key.len:
        memcpy(e.key, a.key.ptr, min(a.key.len, <size_t> TRACE_KEY))
    publish(&t.written, t.written + 1)


cdef class Tracer:
    """Follows the lookups that are wanted; see Loop.trace.

    table, key: only of these; slow: seconds that they took at least; status: STAT_*.
    rate: events a second. MemoryError if there is none for the ring.
    """

    def __cinit__(
        self, *, bytes table=None, bytes key=None, double slow=0, int status=-1, uint64_t rate=1000
    ):
        self.table, self.key = table, key
        if table is not None:
            self.t.table = view_of(table, len(table))
        if key is not None:
            self.t.key = view_of(key, len(key))
        self.t.slow_ns, self.t.status, self.t.rate = <uint64_t> (slow * 1e9), status, rate
        self.t.ring = <event *> calloc(TRACE_RING, sizeof(event))
        if self.t.ring == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.t.ring)

    def take(self, uint64_t limit) -> list:
        """The oldest events, so many at most: (seconds since 1970, seconds it took, process id of the

        client or 0, status, source, table, key, is one of these cut?). One thread at a time.
        """
        cdef uint64_t until = min(published(&self.t.written), self.t.read + limit)
        cdef event *e
        found = []
        while self.t.read < until:
            e = &self.t.ring[self.t.read % TRACE_RING]
            found.append((
                e.when_ns / 1e9, e.took_ns / 1e9, e.client, e.status, e.source,
                e.table[:min(e.table_len, <size_t> TRACE_TABLE)],
                e.key[:min(e.key_len, <size_t> TRACE_KEY)],
                e.table_len > TRACE_TABLE or e.key_len > TRACE_KEY,
            ))
            publish(&self.t.read, self.t.read + 1)
        return found

    @property
    def left_out(self) -> int:
        """Events that were wanted, but came too fast."""
        return published(&self.t.left_out)
