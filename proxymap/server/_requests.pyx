"""_requests - the five requests: which reply does each get?

Finds the table of a request in the catalog, asks it and appends the reply. A
table that is not open yet is opened by a worker: the request is parked, and
served again once it is. What the loop cannot answer becomes a job (_work).

What is wrong with a request or a table becomes a status here and nowhere else.
One thread, the loop's; no GIL. Source: proxymap(8); wire.md, tables.md 1 and 2.
"""

from libc.string cimport memset

from proxymap.base._buf cimport buf, buf_len, buf_view, memchr, view, view_of, view_str
from proxymap.metrics._counters cimport (
    FROM_SHED, FROM_TABLE, REFUSED, REFUSED_BAD, REFUSED_MEMORY, REFUSED_READ_ONLY, REFUSED_UNAPPROVED,
    count_one,
)
from proxymap.server._asking cimport ask_check, ask_lookup, ask_sequence, ask_write
from proxymap.server._cache cimport cache_foresee
from proxymap.server._catalog cimport OPENING, RENEWING, catalog_find, catalog_is_approved, instance
from proxymap._codec cimport (
    FAULT_MISSING, FAULT_NONE, FAULT_NUMBER, FAULT_UNEXPECTED, PARSE_BAD, PARSE_OK, PARSE_SILENT,
    PARSE_UNKNOWN, is_of_patterns, reply_append, reply_append_bare, request, request_flags, request_read,
    scan, without_proxy,
)
from proxymap.tables._jobs cimport LEVEL_WARNING, log_line
from proxymap.server._opening cimport opening_add, opening_distrust, opening_ready, opening_start
from proxymap.server._service cimport (
    PARKED, SERVED, answers_owner, count_request, is_crowded, is_shared, service, service_too_long,
    service_trace, service_warn, session,
)
from proxymap.server._sharing cimport sharing_refresh, sharing_send
from proxymap.server._work cimport work_send
from proxymap.server.tracing._trace cimport FROM_NOBODY
from proxymap.tables._table cimport STAT_LATER, glimpse
from proxymap._words cimport *


cdef size_t session_read(service *s, session *who, scan *seen, const char *data, size_t len) noexcept nogil:
    """Read the list at data, and find its table; call session_serve next.

    Returns its length, or 0 while it is incomplete (see request_read).
    """
    cdef request *r = &who.request
    cdef size_t n = request_read(seen, data, len, r, &who.verdict)
    if n == 0 or who.verdict != PARSE_OK:
        return n
    who.found = catalog_find(&s.tables, without_proxy(r.table), r.dialect, r.inst_flags)
    who.forgotten = s.tables.forgotten
    memset(&who.glimpse, 0, sizeof(glimpse))
    return n


cdef void session_foresee(service *s, session *who) noexcept nogil:
    """Have the CPU fetch some of what the request that was read is about; the next part, each time.

    Keys usually arrive folded; if not, the prefetch is merely wasted.
    """
    cdef instance *i = who.found
    cdef int flags
    if who.verdict != PARSE_OK or who.request.kind != REQ_LOOKUP or i == NULL:
        return
    if who.forgotten != s.tables.forgotten:
        return  # it may be gone since
    if i.t == NULL:
        return
    flags = flags_to_serve(i, &who.request)
    if is_shared(s, i):
        cache_foresee(s.results, answers_owner(i, flags), who.request.key, &who.glimpse)
    elif i.t.foresee != NULL:
        who.glimpse.of = i.t
        i.t.foresee(i.t, who.request.key, flags, &who.glimpse)


cdef inline int flags_to_serve(const instance *i, request *r) noexcept nogil:
    """The dictionary flags to serve r with.

    A client of 3.11 sends the flags that it got: what opened only later was of patterns for it. With
    these no key is folded, and an indexed file has none that matches. It gets those of the open table.
    """
    if is_of_patterns(r) and i.open_flags & DICT_FLAG_FIXED:
        r.flags = i.open_flags
    return request_flags(r, i.flags)


cdef int session_serve(service *s, session *who, buf *out) noexcept nogil:
    """Serve the request that was read; returns SERVED, PARKED or SENT."""
    cdef request *r = &who.request
    cdef instance *i
    if r.fault != FAULT_NONE:
        warn_of_fault(s, r)
    if who.verdict == PARSE_SILENT:
        return SERVED
    if who.verdict == PARSE_UNKNOWN:
        service_warn(s, view_str(b'unrecognized request: "'), r.name, view_str(b'", ignored'))
        reply_append_bare(out, STAT_BAD)
        count_one(s.figures, REFUSED + REFUSED_BAD)
        return SERVED
    if who.verdict == PARSE_BAD:
        return refuse_list(s, r, out)
    if (r.kind == REQ_UPDATE or r.kind == REQ_DELETE) and not s.writes:
        return deny_change(s, who, out)
    r.table = without_proxy(r.table)
    who.asked_ns, who.source = 0, FROM_SHED
    i = who.found
    if i == NULL or who.forgotten != s.tables.forgotten:  # others were served since
        i = catalog_find(&s.tables, r.table, r.dialect, r.inst_flags)
    if i == NULL or not i.approved:
        if r.table.len == 0 or memchr(r.table.ptr, c":", r.table.len) == NULL:
            return refuse(s, who, STAT_BAD, REFUSED_BAD, out)
        if not catalog_is_approved(&s.tables, r.table):
            return deny(s, who, out)
        i = opening_add(s, r)
        if i == NULL:
            return refuse(s, who, STAT_RETRY, REFUSED_MEMORY, out)
    if not opening_ready(s, i):
        if is_crowded(s, i):
            return answer(s, i, who, STAT_RETRY, 0, out)
        who.waits_for = i
        return PARKED
    if i.t == NULL:
        return answer(s, i, who, STAT_RETRY, 0, out)  # without memory to have it opened
    if r.kind == REQ_OPEN:
        return answer(s, i, who, STAT_OK, i.flags if r.dialect == DIALECT_3_6 else i.open_flags, out)
    who.source = FROM_TABLE
    return serve(s, who, i, r, out)


# The ladder from trouble to status

cdef view NONE = view_of(NULL, 0)


cdef int refuse_list(service *s, const request *r, buf *out) noexcept nogil:
    """It is not what this request has to be."""
    count_one(s.figures, REFUSED + REFUSED_BAD)
    reply_append(out, r, STAT_BAD, 0, NONE, NONE)
    return SERVED


cdef int refuse(service *s, const session *who, int status, int why, buf *out) noexcept nogil:
    """No table is asked, and none counts it. why: REFUSED_*."""
    cdef const request *r = &who.request
    count_one(s.figures, REFUSED + why)
    if s.tracing.count and r.kind == REQ_LOOKUP:
        service_trace(s, who, r.table, r.key, status, FROM_NOBODY)
    reply_append(out, r, status, 0, NONE, NONE)
    return SERVED


cdef int answer(
    service *s, const instance *i, const session *who, int status, int flags, buf *out
) noexcept nogil:
    """A reply without key and value."""
    count_request(s, i, who, who.request.key, status)
    reply_append(out, &who.request, status, flags, NONE, NONE)
    return SERVED


cdef int deny_change(service *s, const session *who, buf *out) noexcept nogil:
    cdef const request *r = &who.request
    service_warn(s, view_str(b"refusing "), r.table,
                 view_str(b" update request on non-proxywrite service" if r.kind == REQ_UPDATE
                          else b" delete request on non-proxywrite service"))
    return refuse(s, who, STAT_DENY, REFUSED_READ_ONLY, out)


cdef int deny(service *s, const session *who, buf *out) noexcept nogil:
    cdef const request *r = &who.request
    cdef view parts[4]
    service_warn(s, view_str(b'request for unapproved table: "'), r.table, view_str(b'"'))
    parts[0] = view_str(b"to approve this table for read-write access, list proxy:" if s.writes
                        else b"to approve this table for read-only access, list proxy:")
    parts[1] = r.table
    parts[2] = view_str(b" in main.cf:proxy_write_maps" if s.writes else b" in main.cf:proxy_read_maps")
    log_line(s.log, LEVEL_WARNING, parts, 3)
    return refuse(s, who, STAT_DENY, REFUSED_UNAPPROVED, out)


cdef int serve(service *s, session *who, instance *i, request *r, buf *out) noexcept nogil:
    """A lookup, update, delete or sequence on an open table."""
    cdef view key = NONE, value = NONE
    cdef int flags = flags_to_serve(i, r)
    cdef size_t before = buf_len(out)
    cdef int status
    i.lookups += r.kind == REQ_LOOKUP
    if i.t.reason != NULL:
        status = unavailable(s, i, r, flags)
    elif r.kind == REQ_LOOKUP:
        who.due = False
        status = ask_lookup(s, who, i, r.key, &flags, &value)
    elif r.kind == REQ_SEQUENCE:
        status = ask_sequence(s, who, i, r.function, &key, &value)
    else:
        status = ask_write(s, i, r, &flags)
    if status == STAT_LATER:
        if r.dialect == DIALECT_3_6:
            i.flags = flags
        if r.kind == REQ_LOOKUP and is_shared(s, i):
            return sharing_send(s, who, i, r, flags, out)
        return work_send(s, who, i, r, flags, out)
    if status == STAT_RETRY and i.t.reason == NULL and i.t.changed != NULL:
        opening_distrust(s, i)
    elif status == STAT_OK and value.len > s.value_size_limit:
        i.errors += 1
        status = service_too_long(s, i)
    if r.dialect == DIALECT_3_6:
        i.flags = flags
    reply_append(out, r, status, flags, key, value)
    if who.due and r.kind == REQ_LOOKUP:
        sharing_refresh(s, i, r, flags)
    if (status == STAT_OK or status == STAT_NOKEY) and i.t.damaged != NULL and i.t.damaged(i.t):
        out.end = out.start + before
        if r.kind == REQ_LOOKUP and i.state != RENEWING and opening_start(s, i, OPENING, True):
            who.waits_for = i
            return PARKED  # what is there now is to answer
        opening_distrust(s, i)
        return answer(s, i, who, STAT_RETRY, flags, out)
    count_request(s, i, who, r.key, status)
    return SERVED


cdef int unavailable(service *s, instance *i, const request *r, int flags) noexcept nogil:
    """The table could not be opened. What is not UTF-8 is not asked for, nor stored, all the same."""
    cdef view parts[4]
    cdef view key = r.key
    cdef int status = ask_check(s, i, r, flags, &key)
    if status != STAT_LATER:
        return status
    i.errors += 1
    parts[0] = buf_view(&i.name)
    parts[1] = view_str(b" is unavailable. ")
    parts[2] = view_str(i.t.reason)
    log_line(s.log, LEVEL_WARNING, parts, 3)
    return STAT_RETRY


cdef void warn_of_fault(service *s, const request *r) noexcept nogil:
    """Postfix's words for a list that is not as it should be."""
    cdef view parts[7]
    cdef view socket_name = view_str(b"proxywrite socket" if s.writes else b"proxymap socket")
    parts[2] = view_str(b" in input from " if r.fault == FAULT_MISSING else b" from ")
    parts[3] = socket_name
    if r.fault == FAULT_MISSING:
        parts[0] = view_str(b"missing attribute ")
        parts[1] = view_str(r.wanted)
        log_line(s.log, LEVEL_WARNING, parts, 4)
    elif r.fault == FAULT_UNEXPECTED:
        parts[0] = view_str(b"unexpected attribute ")
        parts[1] = r.got
        parts[4] = view_str(b" (expecting: ")
        parts[5] = view_str(r.wanted)
        parts[6] = view_str(b")")
        log_line(s.log, LEVEL_WARNING, parts, 7)
    elif r.fault == FAULT_NUMBER:
        parts[0] = view_str(b"malformed numerical data")
        parts[1] = view_str(b"")
        parts[4] = view_str(b" while reading input attribute value: ")
        parts[5] = r.got
        log_line(s.log, LEVEL_WARNING, parts, 6)
