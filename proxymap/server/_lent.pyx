"""_lent - lend a lone writer's connection to the worker that serves it

A client that changes something alone waits for its reply, then usually asks for its next change.
Each time the loop would have to be woken, and wake the writer; with a fast disk
that is a tenth of the whole time. So the loop lends the writer the connection
together with the job: the writer sends the reply itself, looks for a moment for
what comes next, and makes that change, too. Anything but a plain change of the
same table goes back to the loop with all that was received, and so does the
connection: after LENT_MS, when nothing comes, or when others have changes to make.

The loop neither reads nor writes a connection that it has lent, nor closes it,
and epoll does not watch it. The client's request is the writer's meanwhile, too.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t

from proxymap.base._buf cimport (
    buf, buf_append_view, buf_clear, buf_free, buf_init, buf_len, buf_reserve, buf_view, view, view_equal,
    view_of,
)
from proxymap.base._clock cimport now_ms, now_ns
from proxymap.base._eager cimport has_looked, is_time_to_look
from proxymap.base._os cimport MSG_DONTWAIT, MSG_NOSIGNAL, recv, sched_yield, send
from proxymap._codec cimport (
    FAULT_NONE, PARSE_OK, is_of_patterns, list_restart, reply_append, request, request_flags, request_read,
    scan, without_proxy,
)
from proxymap.metrics._counters cimport REQUESTS, STATUSES, count_one
from proxymap.server._asking cimport CHANGE_FITS, change_fits
from proxymap.tables._jobs cimport (
    JOB_DELETE, JOB_UPDATE, NEXT_JOB_NS, Job, Queue, job, queue,
)
from proxymap.tables._table cimport Table
from proxymap._words cimport *

cdef enum:
    READ_SIZE = 4096  # one recv; the loop reads what is longer


cdef view NONE = view_of(NULL, 0)


def make(Table table not None, list changes not None, Queue waiting not None) -> int:
    """Have the table make the changes, which are jobs; of one with a connection, those that follow, too.

    waiting: where the next changes of others are. Returns the ns that the latest took; raises what
    Table.write raises of it.
    """
    cdef job *j = (<Job?> changes[0]).j
    cdef bint goes_on = True
    cdef uint64_t began, took = 0
    while goes_on:
        began = now_ns()
        table.write(changes, reply)
        took = now_ns() - began
        reply(changes)
        with nogil:
            goes_on = j.lent.replied and take_next(j, &waiting.q)
    return took


def reply(list changes not None) -> None:
    """Reply to a change that was made alone, if its connection is lent and that was not done yet.

    The loop sends what the socket does not take, and all other replies.
    """
    cdef job *j = (<Job?> changes[0]).j
    if len(changes) == 1 and j.lent.fd >= 0 and j.lent.sent == 0:
        with nogil:
            send_reply(j)


cdef void send_reply(job *j) noexcept nogil:
    cdef buf text
    buf_init(&text)
    if reply_append(&text, <request *> j.lent.request, j.status, j.flags, NONE, NONE) == 0:
        j.lent.sent = max(send(j.lent.fd, text.data, buf_len(&text), MSG_NOSIGNAL | MSG_DONTWAIT), 0)
        j.lent.replied = j.lent.sent == buf_len(&text)
    buf_free(&text)


cdef bint take_next(job *j, queue *waiting) noexcept nogil:
    """Does the job ask for the client's next change by now? If not, it is to go back to the loop."""
    cdef bint taken
    if (j.status != STAT_OK and j.status != STAT_NOKEY) or now_ms() >= j.lent.until_ms:
        return False
    if not is_time_to_look(&waiting.looks):
        return False
    taken = receive(j, waiting) and read(j)
    has_looked(&waiting.looks, taken or waiting.held)
    return taken


cdef bint receive(job *j, queue *waiting) noexcept nogil:
    """Has anything come within a moment, before others have something to do?"""
    cdef uint64_t until
    cdef ssize_t n = 0
    if buf_reserve(&j.lent.rest, READ_SIZE) < 0:
        return False
    until = now_ns() + NEXT_JOB_NS
    while waiting.held == 0 and not waiting.closed and now_ns() < until:
        n = recv(j.lent.fd, j.lent.rest.data, READ_SIZE, MSG_DONTWAIT)
        if n >= 0 or (errno != EAGAIN and errno != EINTR):
            break
        sched_yield()
    j.lent.rest.end = max(n, 0)
    return n > 0


cdef bint read(job *j) noexcept nogil:
    """Is what was received such a change? Then it is in the job."""
    cdef request *before = <request *> j.lent.request
    cdef request r
    cdef scan seen
    cdef int verdict
    cdef size_t len = buf_len(&j.lent.rest)
    list_restart(&seen)
    if request_read(&seen, j.lent.rest.data, len, &r, &verdict) != len or verdict != PARSE_OK:
        return False
    if (r.kind != REQ_UPDATE and r.kind != REQ_DELETE) or r.fault != FAULT_NONE or is_of_patterns(&r):
        return False
    if (r.dialect != before.dialect or r.inst_flags != before.inst_flags
            or not view_equal(without_proxy(r.table), buf_view(&j.name))):
        return False
    return take_change(j, &r)


cdef bint take_change(job *j, const request *r) noexcept nogil:
    """Have the job ask for it. The loop deals with what is not UTF-8, and logs it."""
    cdef const request *before = <const request *> j.lent.request
    cdef view key = r.key
    cdef int flags = request_flags(r, j.flags)
    buf_clear(&j.lent.folded)
    if change_fits(j.t, j.lent.utf8, r, flags, &key, &j.lent.folded) != CHANGE_FITS:
        return False
    buf_clear(&j.key)
    buf_clear(&j.value)
    if buf_append_view(&j.key, key) < 0 or buf_append_view(&j.value, r.value) < 0:
        return False
    count_one(j.lent.figures, REQUESTS + before.kind * STATUSES + j.status)  # the loop counts the last one
    j.kind = JOB_UPDATE if r.kind == REQ_UPDATE else JOB_DELETE
    j.status = STAT_RETRY
    j.flags = j.lent.asked_flags = flags
    j.lent.taken += 1
    j.lent.sent = 0
    j.lent.replied = False
    (<request *> j.lent.request)[0] = r[0]
    buf_clear(&j.lent.rest)
    return True
