"""_service - what one service has, and the lines that it logs

The struct `service` is shared by the four files that serve requests: _requests
(which reply a request gets), _opening (tables are opened, swapped and closed),
_asking (a table is asked on the loop) and _work (a worker is asked). A `session`
is what these four keep for one connection.

One thread, the loop's; no GIL. The texts are Postfix's where it has one.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from proxymap.base._buf cimport buf_clear, buf_free, buf_view, view, view_str
from proxymap.server._catalog cimport catalog_free, catalog_init, instance
from proxymap.metrics._counters cimport OF_SERVICE, figures_of
from proxymap.server._flight cimport flights_free, flights_init
from proxymap.tables._jobs cimport LEVEL_WARNING, log_line
from proxymap.tables._table cimport cursor
from proxymap._words cimport STAT_RETRY

cdef enum:
    CURSORS_MAX = 16  # sequences that one connection may have under way


cdef void service_init(service *s, uint64_t seed) noexcept nogil:
    memset(s, 0, sizeof(service))
    s.lends = True
    s.figures = figures_of(OF_SERVICE, view_str(b""))
    s.dice = seed | 1
    s.waiting_limit = s.value_size_limit = <size_t> -1
    catalog_init(&s.tables, seed)
    flights_init(&s.flights, seed)


cdef void service_free(service *s) noexcept nogil:
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


cdef int service_too_long(service *s, const instance *i) noexcept nogil:
    """A value that is not sent: it would hold up all others while it is copied. Returns the status, RETRY."""
    service_warn(s, view_str(b"table "), buf_view(&i.name),
                 view_str(b" has a value over value_size_limit; answering RETRY"))
    return STAT_RETRY
