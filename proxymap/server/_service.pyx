"""_service - what one service has, and the lines that it logs

The struct `service` is shared by the four files that serve requests: _requests
(which reply a request gets), _opening (tables are opened, swapped and closed),
_asking (a table is asked on the loop) and _work (a worker is asked). A `session`
is what these four keep for one connection.

One thread, the loop's; no GIL. The texts are Postfix's where it has one.
"""

from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from proxymap.base._buf cimport buf_clear, buf_free, buf_view, view, view_str
from proxymap.base._clock cimport now_ns
from proxymap.server._catalog cimport catalog_free, catalog_init, instance
from proxymap.metrics._counters cimport OF_SERVICE, figures_of
from proxymap.server._flight cimport flights_free, flights_init
from proxymap.server.tracing._trace cimport answer, trace_answer
from proxymap.tables._jobs cimport LEVEL_INFO, LEVEL_WARNING, job, job_free, log_line
from proxymap.tables._table cimport cursor
from proxymap._words cimport STAT_NOKEY, STAT_OK, STAT_RETRY

cdef enum:
    CURSORS_MAX = 16  # sequences that one connection may have under way
    SLOW_LINES = 25   # about slow lookups in a second: the log takes twice as many of a kind
    SLOW_TEXT = 120
    SECOND_NS = 1000000000


cdef void service_init(service *s, uint64_t seed) noexcept nogil:
    memset(s, 0, sizeof(service))
    s.lends = True
    s.figures = figures_of(OF_SERVICE, view_str(b""))
    s.dice = seed | 1
    s.waiting_limit = s.value_size_limit = <size_t> -1
    catalog_init(&s.tables, seed)
    flights_init(&s.flights, seed)


cdef void service_free(service *s) noexcept nogil:
    cdef job *brought
    while s.retired != NULL:
        brought = s.retired
        s.retired = brought.next
        job_free(brought)
    flights_free(&s.flights)
    catalog_free(&s.tables)
    buf_free(&s.folded)
    buf_free(&s.scratch)


# What is kept for one connection

cdef void session_free(session *who) noexcept nogil:
    cdef cursor *c
    while who.cursors != NULL:
        c = who.cursors
        who.cursors = c.next
        buf_free(&c.key)
        free(c)


cdef cursor *session_cursor(session *who, instance *i) noexcept nogil:
    """The connection's cursor in that instance; the oldest makes room if there are too many."""
    cdef cursor **link = &who.cursors
    cdef cursor *c
    cdef int count = 0
    while link[0] != NULL:
        if link[0].of == i.id:
            return link[0]
        count += 1
        if count == CURSORS_MAX:
            break
        link = &link[0].next
    c = link[0]
    if c != NULL:
        link[0] = c.next
    else:
        c = <cursor *> calloc(1, sizeof(cursor))
        if c == NULL:
            return NULL
    buf_clear(&c.key)
    c.position = 0
    c.of = i.id
    c.next = who.cursors
    who.cursors = c
    return c


# Who follows

cdef void service_trace(
    service *s, const session *who, view table, view key, int status, int source
) noexcept nogil:
    """Tell those who follow the lookups of this answer."""
    cdef answer a
    a.table, a.key = table, key
    a.status, a.source, a.fd = status, source, who.fd
    a.began_ns = who.asked_ns if who.asked_ns else s.turn_ns
    if who.parked_ns:
        a.began_ns = who.parked_ns
    trace_answer(&s.tracing, &a)


# What is logged

cdef void service_warn(service *s, view before, view what, view after) noexcept nogil:
    cdef view parts[3]
    parts[0] = before
    parts[1] = what
    parts[2] = after
    log_line(s.log, LEVEL_WARNING, parts, 3)


cdef void service_complain(service *s, instance *i, const char *what) noexcept nogil:
    """Say once of each instance what cannot be done with it."""
    if not i.complained:
        i.complained = True
        service_warn(s, view_str(b"table "), buf_view(&i.name), view_str(what))


cdef void service_warn_not_utf8(service *s, instance *i, const char *what, view text) noexcept nogil:
    cdef view parts[4]
    parts[0] = buf_view(&i.name)
    parts[1] = view_str(what)
    parts[2] = text
    parts[3] = view_str(b'": malformed UTF-8 or invalid codepoint')
    log_line(s.log, LEVEL_WARNING, parts, 4)


cdef void service_tell_slow(service *s, const instance *i, int status, uint64_t began_ns) noexcept nogil:
    """Log a lookup that began then and is answered now, if that took longer than slow_lookup_log_limit.

    So many in a second; how many there were besides is said with the next one.
    """
    cdef view parts[3]
    cdef char text[SLOW_TEXT]
    cdef uint64_t now
    cdef int len
    if i.t.slow_log_ns == 0 or began_ns == 0:
        return
    now = now_ns()
    if now - began_ns < i.t.slow_log_ns:
        return
    if now - s.slow_since_ns >= SECOND_NS:
        s.slow_since_ns, s.slow_lines = now, 0
    if s.slow_lines >= SLOW_LINES:
        s.slow_more += 1
        return
    s.slow_lines += 1
    len = snprintf(text, SLOW_TEXT, b": %.3f s, status %s, source server",
                   (now - began_ns) / 1e9, status_name(status))
    if s.slow_more and len < SLOW_TEXT:
        snprintf(text + len, SLOW_TEXT - len, b"; %llu more before", <unsigned long long> s.slow_more)
        s.slow_more = 0
    parts[0], parts[1], parts[2] = view_str(b"slow lookup in "), buf_view(&i.name), view_str(text)
    log_line(s.log, LEVEL_INFO, parts, 3)


cdef const char *status_name(int status) noexcept nogil:
    """As it is called on the wire."""
    if status == STAT_OK:
        return b"OK"
    if status == STAT_NOKEY:
        return b"NOKEY"
    return b"RETRY" if status == STAT_RETRY else b"CONFIG"


cdef int service_too_long(service *s, const instance *i) noexcept nogil:
    """A value that is not sent: it would hold up all others while it is copied. Returns the status, RETRY."""
    service_warn(s, view_str(b"table "), buf_view(&i.name),
                 view_str(b" has a value over value_size_limit; answering RETRY"))
    return STAT_RETRY
