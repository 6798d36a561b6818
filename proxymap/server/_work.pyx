"""_work - requests that workers answer: the job goes out, its answer becomes the reply

A writer is lent the connection of a client that changes something alone (_lent).
One thread, the loop's; no GIL.
"""

from proxymap.base._buf cimport (
    buf, buf_append_view, buf_consume, buf_len, buf_view, view, view_of,
)
from proxymap.base._clock cimport now_ms, now_ns
from proxymap.base._fold cimport utf8_valid
from proxymap.metrics._counters cimport FROM_SERVER, FROM_SHED
from proxymap.server._asking cimport ask_check
from proxymap.server._catalog cimport instance
from proxymap._codec cimport reply_append, request
from proxymap.tables._jobs cimport (
    JOB_DELETE, JOB_LOOKUP, JOB_SEQUENCE, JOB_UPDATE, job, job_free, job_new, queue, queue_put,
)
from proxymap.server._opening cimport opening_job_is_back
from proxymap.server._service cimport (
    SENT, SERVED, count_deferred, count_request, is_crowded, service, service_tell_slow, service_too_long,
    service_warn_not_utf8, session, session_cursor,
)
from proxymap.tables._table cimport STAT_LATER, cursor
from proxymap._words cimport *

cdef enum:
    LENT_MS = 100  # how long a worker may have a connection


cdef view NONE = view_of(NULL, 0)


cdef int work_send(
    service *s, session *who, instance *i, const request *r, int flags, buf *out
) noexcept nogil:
    """Have a worker do what r asks, or RETRY if there is none. The views of r are void afterwards."""
    cdef view key = r.key
    cdef bint change = r.kind == REQ_UPDATE or r.kind == REQ_DELETE
    cdef queue *to = <queue *> (i.t.changes if change else i.t.asks)
    cdef int status = ask_check(s, i, r, flags, &key)
    cdef job *j
    if to == NULL and not change:
        to = s.asks
    if status == STAT_LATER and is_crowded(s, i):
        status = STAT_RETRY
        who.source = FROM_SHED
    if status == STAT_LATER:
        j = job_for(s, who, i, r, flags, key)
        who.lent = (change and j != NULL and s.lends and who.alone and i.t.jobs == 0
                    and lend(who, i, j) == 0)
        if j != NULL and to != NULL and queue_put(to, j) == 0:
            i.jobs += 1
            i.t.jobs += 1
            who.waits_for = i
            who.source = FROM_SERVER
            who.asked_ns = now_ns()
            return SENT
        if j != NULL:
            job_free(j)
        status = STAT_RETRY
        who.source = FROM_SHED
    count_request(s, i, who, r.key, status)
    reply_append(out, r, status, flags, NONE, NONE)
    return SERVED


cdef int lend(session *who, const instance *i, job *j) noexcept nogil:
    """Give the worker the connection, too; -1 without memory."""
    if buf_append_view(&j.name, buf_view(&i.name)) < 0:
        return -1
    j.lent.fd = who.fd
    j.lent.request = &who.request
    j.lent.figures = i.figures
    j.lent.utf8 = i.open_flags & DICT_FLAG_UTF8_ACTIVE
    j.lent.until_ms = now_ms() + LENT_MS
    return 0


cdef job *job_for(
    service *s, session *who, instance *i, const request *r, int flags, view key
) noexcept nogil:
    """What is asked of a worker, with copies of all it needs; NULL without memory."""
    cdef cursor *c
    cdef job *j = job_new(JOB_LOOKUP)
    if j == NULL:
        return NULL
    j.flags = flags
    j.asker = who
    j.replies = s.done
    j.t = i.t
    if r.kind == REQ_UPDATE:
        j.kind = JOB_UPDATE
        j.status = STAT_RETRY
    elif r.kind == REQ_DELETE:
        j.kind = JOB_DELETE
        j.status = STAT_RETRY
    elif r.kind == REQ_SEQUENCE:
        j.kind = JOB_SEQUENCE
        c = session_cursor(who, i)
        if c == NULL:
            job_free(j)
            return NULL
        if c.position == 0:
            s.cursors += 1
            c.position = s.cursors
        j.cursor = c.position
        j.first = r.function == FUNC_FIRST
        return j
    if buf_append_view(&j.key, key) < 0 or (
        r.kind == REQ_UPDATE and buf_append_view(&j.value, r.value) < 0
    ):
        job_free(j)
        return NULL
    return j


cdef void work_answered(service *s, session *who, job *j, buf *out) noexcept nogil:
    """Append the reply to the request that j answers."""
    cdef instance *i = who.waits_for
    cdef view key = buf_view(&j.key), value = buf_view(&j.value)
    if j.kind == JOB_UPDATE or j.kind == JOB_DELETE:
        key = value = NONE
    who.waits_for = NULL
    s.requests += j.lent.taken
    i.jobs -= 1
    opening_job_is_back(s, j.t)
    if j.status == STAT_OK and value.len > s.value_size_limit:
        j.status = service_too_long(s, i)
    i.errors += j.status == STAT_RETRY or j.status == STAT_CONFIG
    count_deferred(i.t, j.status)
    if (j.status == STAT_OK and j.kind == JOB_LOOKUP and i.open_flags & DICT_FLAG_UTF8_ACTIVE
            and not utf8_valid(value)):
        service_warn_not_utf8(s, i, b': non-UTF-8 value "', value)
        j.status = STAT_CONFIG
    if who.request.dialect == DIALECT_3_6:
        if j.lent.taken:
            i.flags = j.lent.asked_flags
        i.flags = (i.flags & DICT_FLAGS_REQUEST) | (j.flags & ~DICT_FLAGS_REQUEST)  # others asked meanwhile
    if j.shed:
        who.source = FROM_SHED
    elif j.kind == JOB_LOOKUP:
        service_tell_slow(s, i, j.status, who.asked_ns)
    count_request(s, i, who, key, j.status)
    reply_append(out, &who.request, j.status, j.flags, key, value)
    buf_consume(out, min(j.lent.sent, buf_len(out)))  # there may be no memory for a reply
