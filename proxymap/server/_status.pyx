"""_status - reports to master(8): TAKEN while this process is overloaded, AVAIL when it is not

master starts another process when a connection waits and none of the service's
processes is available. Postfix's own server says TAKEN and AVAIL with each
request; one loop serves hundreds of clients, so ours says TAKEN only while it
cannot serve more promptly: when it was busy in every turn for BUSY_MS. AVAIL
follows after CALM_MS without a busy turn. It goes on accepting meanwhile, for
master may have reached its process limit.

The first request served is reported as TAKEN and AVAIL: that earns the use count
which spares a successor the throttling, should this process crash
(master.md 2.3). It is not reported earlier, since a process that crashes before it
has done any work must be throttled.

A message is 12 bytes in native order: pid, generation, status. The channel is
shared, flags included, hence the per-call MSG_DONTWAIT. The loop's thread only.

Source: multi_server(3); master.md 2.1 to 2.3.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from proxymap.base._clock cimport now_ms
from proxymap.base._os cimport MSG_DONTWAIT, MSG_NOSIGNAL, send

cdef enum:
    TAKEN = 0
    AVAIL = 1
    BUSY_MS = 200   # longer than a burst
    CALM_MS = 1000  # so that master is not told back and forth


cdef void status_init(channel *c, int fd, unsigned int pid, unsigned int generation) noexcept nogil:
    memset(c, 0, sizeof(channel))
    c.fd = fd
    c.pid = pid
    c.generation = generation


cdef void tell(channel *c, int status) noexcept nogil:
    """One message; if the channel is full it is sent again later. epoll sees when master is gone."""
    cdef unsigned int message[3]
    message[0] = c.pid
    message[1] = c.generation
    message[2] = status
    if send(c.fd, message, sizeof(message), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(message):
        c.taken = status == TAKEN


cdef bint status_is_changing(const channel *c) noexcept nogil:
    """Must status_watch be called before long, even if nothing happens?"""
    return c.taken or c.since_ms


cdef void status_watch(channel *c, bint busy, bint served) noexcept nogil:
    """Take note of one turn: was it busy, has the process served any request yet?"""
    cdef uint64_t now
    if served and not c.introduced:
        c.introduced = True
        tell(c, TAKEN)
        tell(c, AVAIL)
    if busy == c.taken:
        c.since_ms = 0
        return
    now = now_ms()
    if c.since_ms == 0:
        c.since_ms = now
    elif now - c.since_ms >= <uint64_t> (CALM_MS if c.taken else BUSY_MS):
        c.since_ms = 0
        tell(c, TAKEN if busy else AVAIL)
