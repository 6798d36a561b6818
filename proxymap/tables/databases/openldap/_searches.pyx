"""_searches - searches of a directory, many at a time over one session of the host's libldap

A connection of the driver is one search at a time; those to the same host share a
session, whose messages say which search they belong to. What a search finds is kept
as a list of values, in order. A value of a special attribute names entries; they
are searched for next, and what they hold takes its place in the list. The answer is
there when only plain values are left.

Not as stock: a special value that leads back to itself ends the lookup at once.

Source: ldap_table(5); ldap_result(3), ldap_search_ext(3) of OpenLDAP 2.5; RFC 4511.
"""

from libc.errno cimport EAGAIN, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport strlen

from proxymap.base._buf cimport buf_append, buf_clear, buf_free, view, view_of, view_str
from proxymap.base._clock cimport now_ms
from proxymap.base._os cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, MSG_DONTWAIT, epoll_ctl, epoll_event,
    recv,
)
from proxymap.tables._jobs cimport LEVEL_WARNING, log_line
from proxymap.tables.databases._connection cimport (
    ANSWERED, BROKEN, ENDED_OLD, FAILED, TEXT_SIZE, WANT_READ, WANT_WRITE, Connection, connection,
    connection_say, library, made,
)
from proxymap.tables.databases._waiting cimport driver
from proxymap.tables.databases.openldap._entries cimport (
    common_attributes, form, item, items_add, items_free, items_put_before, items_take, lib, quote,
    take_entry, text_of, timeval,
)
from proxymap.tables.databases.openldap._session cimport Session, session, session_join, session_leave

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...)

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *, const char *, size_t)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_PEEK

cdef enum:  # ldap.h
    LDAP_SUCCESS = 0
    LDAP_NO_SUCH_OBJECT = 32
    LDAP_BUSY = 51
    LDAP_UNAVAILABLE = 52
    LDAP_SERVER_DOWN = -1
    LDAP_NO_MEMORY = -10
    LDAP_CONNECT_ERROR = -11
    LDAP_MSG_ONE = 0
    LDAP_RES_ANY = -1
    LDAP_RES_SEARCH_ENTRY = 0x64
    LDAP_RES_SEARCH_RESULT = 0x65
    LDAP_SCOPE_BASE = 0
    # Ours:
    RECENT_MS = 1000  # a connection that was used so lately has not ended for being idle
    LARGE = 4096      # bytes; what is larger may not be sent at once

cdef struct url_parts:  # LDAPURLDesc
    url_parts *next
    char *scheme
    char *host
    int port
    char *dn
    char **attributes
    int scope
    char *filter
    char **extensions
    int critical

ctypedef int (*abandon_function)(void *, int, void *, void *) noexcept nogil
ctypedef int (*is_url_function)(const char *) noexcept nogil
ctypedef int (*url_function)(const char *, url_parts **) noexcept nogil
ctypedef void (*free_function)(url_parts *) noexcept nogil

cdef search_function ldap_search_ext = <search_function> lib.symbol("ldap_search_ext")
cdef result_function ldap_result = <result_function> lib.symbol("ldap_result")
cdef message_function ldap_msgid = <message_function> lib.symbol("ldap_msgid")
cdef message_function ldap_msgfree = <message_function> lib.symbol("ldap_msgfree")
cdef parse_function ldap_parse_result = <parse_function> lib.symbol("ldap_parse_result")
cdef abandon_function ldap_abandon_ext = <abandon_function> lib.symbol("ldap_abandon_ext")
cdef text_function ldap_err2string = <text_function> lib.symbol("ldap_err2string")
cdef is_url_function ldap_is_ldap_url = <is_url_function> lib.symbol("ldap_is_ldap_url")
cdef url_function ldap_url_parse = <url_function> lib.symbol("ldap_url_parse")
cdef free_function ldap_free_urldesc = <free_function> lib.symbol("ldap_free_urldesc")


cdef const char *ANYTHING = b"(objectclass=*)"


# Asking

cdef int start(connection *c, view text) noexcept nogil:
    """text: the base, NUL, the filter."""
    finish(c)
    c.columns = 1
    c.spent = False
    return ask(c, text.ptr, form_of(c).scope, text.ptr + strlen(text.ptr) + 1, form_of(c).attributes)


cdef int ask(
    connection *c, const char *base, int scope, const char *filter, const char **attributes
) noexcept nogil:
    """Begin a search."""
    cdef session *s = session_of(c)
    cdef search *now = search_on(c)
    cdef const form *f = form_of(c)
    cdef int error
    if s.error:
        return broke(c, s.error)
    if not s.waiting:
        s.asked_ms = now_ms()
    now.entries = 0
    if now.keeps and keep(now, base, scope, filter, attributes) < 0:
        return failed(c, LDAP_NO_MEMORY)
    error = ldap_search_ext(
        s.ld, base, scope, filter, attributes, 0, NULL, NULL, &f.time_limit if f.limited else NULL,
        f.size_limit, &now.msgid)
    if error == LDAP_SUCCESS:
        s.waiting += 1
        return WANT_READ | WANT_WRITE if strlen(filter) > LARGE else WANT_READ
    now.msgid = -1
    if error == LDAP_SERVER_DOWN or error == LDAP_CONNECT_ERROR or error == LDAP_BUSY:
        s.error = error
        return broke(c, error)
    return failed(c, error)


cdef int keep(
    search *now, const char *base, int scope, const char *filter, const char **attributes
) noexcept nogil:
    """Remember the request, for it may have to go elsewhere."""
    cdef int i = 0
    cdef int trouble
    buf_clear(&now.request)
    now.scope = scope
    trouble = buf_append(&now.request, base, strlen(base) + 1)
    trouble |= buf_append(&now.request, filter, strlen(filter) + 1)
    while attributes[i] != NULL:
        trouble |= buf_append(&now.request, attributes[i], strlen(attributes[i]) + 1)
        i += 1
    return trouble


cdef int broke(connection *c, int error) noexcept nogil:
    cdef session *s = session_of(c)
    cdef connection *other = s.first if s.error and s.answers else NULL
    while other != NULL:  # each is as old as the session: what is asked on it is asked once more
        other.answers = max(other.answers, <uint64_t> 1)
        other = search_on(other).next
    connection_say(c, ldap_err2string(error))
    return BROKEN


cdef int failed(connection *c, int error) noexcept nogil:
    """The server, or the library, refuses the question."""
    snprintf(c.text, TEXT_SIZE, b"Search error %d: %s", error, ldap_err2string(error))
    return FAILED


cdef connection *heard(connection *c, int ready, int *outcome) noexcept nogil:
    cdef session *s = session_of(c)
    cdef connection *other
    cdef timeval no_time
    cdef void *message = NULL
    cdef int kind
    no_time.tv_sec = no_time.tv_usec = 0
    while not s.error:
        kind = ldap_result(s.ld, LDAP_RES_ANY, LDAP_MSG_ONE, &no_time, &message)
        if kind == 0:
            if s.writes and ready & WANT_WRITE:
                watch_writes(c, False)
            outcome[0] = 0
            return NULL
        if kind < 0:
            s.error = LDAP_SERVER_DOWN
            break
        s.heard_ms = now_ms()
        other = searcher(s, ldap_msgid(message))
        if other == NULL:
            s.leaving = s.leaving or ldap_msgid(message) == 0  # a goodbye
            ldap_msgfree(message)
            continue
        outcome[0] = take(other, message, kind)
        if not outcome[0] & (WANT_READ | WANT_WRITE):
            return other
    outcome[0] = BROKEN
    other = waiting_one(s)
    if other != NULL:
        search_over(other)
        broke(other, s.error)
    return other


cdef connection *searcher(session *s, int msgid) noexcept nogil:
    """Whose search it is; NULL: nobody's, or nobody's any more."""
    cdef connection *c = s.first
    while c != NULL and search_on(c).msgid != msgid:
        c = search_on(c).next
    return c


cdef connection *waiting_one(session *s) noexcept nogil:
    cdef connection *c = s.first
    while c != NULL and search_on(c).msgid < 0:
        c = search_on(c).next
    return c


cdef void search_over(connection *c) noexcept nogil:
    """The search of c is no longer under way."""
    search_on(c).msgid = -1
    session_of(c).waiting -= 1


cdef int take(connection *c, void *message, int kind) noexcept nogil:
    """What comes of a message; it is freed."""
    cdef search *now = search_on(c)
    cdef void *ld = session_of(c).ld
    cdef int error = LDAP_SUCCESS
    cdef int parsed
    if kind == LDAP_RES_SEARCH_RESULT:
        search_over(c)
        parsed = ldap_parse_result(ld, message, &error, NULL, NULL, NULL, NULL, True)
        session_of(c).answers += 1
        return search_judged(c, parsed or error)
    if kind == LDAP_RES_SEARCH_ENTRY:
        now.entries += 1
        if take_entry(form_of(c), ld, message, now.named, &now.found) < 0:
            now.no_memory = True
    ldap_msgfree(message)
    return WANT_READ


cdef int search_judged(connection *c, int error) noexcept nogil:
    """A search has ended so; go on with the next, or have the answer."""
    cdef search *now = search_on(c)
    cdef const form *f = form_of(c)
    if error == LDAP_BUSY or error == LDAP_UNAVAILABLE:
        return broke(c, error)
    if error == LDAP_NO_SUCH_OBJECT and now.named != NULL:
        warn_of_absent(c, now.named)
    elif error == LDAP_NO_SUCH_OBJECT and not f.base_varies:
        snprintf(c.text, TEXT_SIZE, b"Search base '%.500s' not found: %d: %s", c.sql.data + c.sql.start,
                 error, ldap_err2string(error))
        return FAILED
    elif error and error != LDAP_NO_SUCH_OBJECT:
        return failed(c, error)
    if now.no_memory:
        return failed(c, LDAP_NO_MEMORY)
    if f.size_limit and now.entries > <size_t> f.size_limit:
        connection_say(c, b"Query size limit exceeded")
        return FAILED
    items_put_before(&now.todo, &now.found)
    return go_through(c)


cdef int go_through(connection *c) noexcept nogil:
    """Take values from the list, up to the next that names entries."""
    cdef search *now = search_on(c)
    cdef item *one = items_take(&now.todo)
    cdef int outcome
    while one != NULL:
        if one.attribute < form_of(c).wanted:
            items_add(&now.values, one)
        else:
            items_add(&now.done, one)
            now.named = one
            outcome = follow(c, one)
            if outcome != ANSWERED:
                return outcome
        one = items_take(&now.todo)
    c.spent = session_of(c).leaving
    return ANSWERED


cdef int follow(connection *c, item *one) noexcept nogil:
    """Search for what a special value names; ANSWERED: there is nothing to be searched for."""
    cdef item *before = one.parent
    if one.depth >= form_of(c).recursion_limit:
        return complain(c, b"Recursion limit exceeded for", one)
    while before != NULL:
        if before.len == one.len and strncasecmp(text_of(before), text_of(one), one.len) == 0:
            return complain(c, b"there is a loop through", one)
        before = before.parent
    if ldap_is_ldap_url(text_of(one)):
        return follow_url(c, one)
    return ask(c, text_of(one), LDAP_SCOPE_BASE, ANYTHING, form_of(c).attributes)


cdef int complain(connection *c, const char *what, item *one) noexcept nogil:
    snprintf(c.text, TEXT_SIZE, b"%s special attribute %s=%.600s", what, form_of(c).attributes[one.attribute],
             text_of(one))
    return FAILED


cdef int follow_url(connection *c, item *one) noexcept nogil:
    """Its host does not count, and of its attributes those that are wanted anyway."""
    cdef const form *f = form_of(c)
    cdef url_parts *url = NULL
    cdef const char **attributes = f.attributes
    cdef const char *base = b""
    cdef const char *filter = ANYTHING
    cdef int outcome = ANSWERED
    if ldap_url_parse(text_of(one), &url) != 0:
        return complain(c, b"malformed URL in", one)
    if url.attributes != NULL and url.attributes[0] != NULL:
        attributes = common_attributes(f, url.attributes)
    if attributes == NULL:
        outcome = failed(c, LDAP_NO_MEMORY)
    elif attributes[0] != NULL:
        if url.dn != NULL:
            base = url.dn
        if url.filter != NULL:
            filter = url.filter
        outcome = ask(c, base, url.scope, filter, attributes)
    if attributes != f.attributes:
        free(attributes)
    ldap_free_urldesc(url)
    return outcome


cdef void warn_of_absent(connection *c, item *one) noexcept nogil:
    cdef driver *d = <driver *> c.question.of.server
    cdef view parts[4]
    parts[0] = c.question.of.name
    parts[1] = view_str(b": DN ")
    parts[2] = view_of(text_of(one), one.len)
    parts[3] = view_str(b" not found, skipping")
    if d != NULL or search_on(c).log != NULL:
        log_line(search_on(c).log if d == NULL else d.log, LEVEL_WARNING, parts, 4)


# The answer

cdef bint row(connection *c) noexcept nogil:
    cdef search *now = search_on(c)
    now.row = now.values.first if now.row == NULL else now.row.next
    return now.row != NULL


cdef view column(connection *c, int n) noexcept nogil:
    return view_of(text_of(search_on(c).row), search_on(c).row.len)


cdef void finish(connection *c) noexcept nogil:
    cdef search *now = search_on(c)
    items_free(&now.found)
    items_free(&now.todo)
    items_free(&now.values)
    items_free(&now.done)
    now.named = now.row = NULL
    now.no_memory = False


# The session

cdef void watch(connection *c, int epoll, int operation, bint writes) noexcept nogil:
    cdef session *s = session_of(c)
    if operation == EPOLL_CTL_ADD:
        search_on(c).next = s.first
        s.first = c
        s.epoll = epoll
        if s.watcher == NULL:
            s.watcher = c
            tell_epoll(s, operation)
    elif operation == EPOLL_CTL_DEL:
        leave(c)
    elif writes and not s.writes:
        watch_writes(c, True)


cdef void watch_writes(connection *c, bint writes) noexcept nogil:
    cdef session *s = session_of(c)
    s.writes = writes
    tell_epoll(s, EPOLL_CTL_MOD)


cdef void tell_epoll(session *s, int operation) noexcept nogil:
    cdef epoll_event e
    e.events = EPOLLIN | (EPOLLOUT if s.writes else 0)
    e.data.ptr = s.watcher
    epoll_ctl(s.epoll, operation, s.fd, &e)


cdef void leave(connection *c) noexcept nogil:
    """c is not the driver's any more; another watches for the rest."""
    cdef session *s = session_of(c)
    cdef connection **link = &s.first
    while link[0] != NULL:
        if link[0] == c:
            link[0] = search_on(c).next
            break
        link = &search_on(link[0]).next
    if search_on(c).msgid >= 0:
        if not s.error:
            ldap_abandon_ext(s.ld, search_on(c).msgid, NULL, NULL)
        search_over(c)
    if s.watcher == c:
        s.watcher = s.first
        tell_epoll(s, EPOLL_CTL_DEL if s.first == NULL else EPOLL_CTL_MOD)


cdef int go_on(connection *c, int ready) noexcept nogil:
    """`heard` does that."""
    return WANT_READ


cdef bint is_good(connection *c) noexcept nogil:
    """Something has come, which may be for another; or the end."""
    cdef char byte
    cdef ssize_t n = recv(session_of(c).fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT)
    return not session_of(c).error and (n > 0 or (n < 0 and errno == EAGAIN))


cdef void cancel(connection *c) noexcept nogil:
    """The server was told already (see leave)."""


cdef void close(connection *c, bint politely) noexcept nogil:
    cdef session *s = session_of(c)
    finish(c)
    buf_free(&search_on(c).request)
    free(c.result)
    session_leave(s, politely, c.has_ended and (c.ended_why != ENDED_OLD or now_ms() - c.used_ms < RECENT_MS))


cdef library calls
calls.start, calls.go_on, calls.row, calls.column = start, go_on, row, column
calls.finish, calls.is_good, calls.quote = finish, is_good, quote
calls.cancel, calls.close = cancel, close
calls.heard, calls.watch = heard, watch


cdef Connection joined(Session shared, int host, bytes shown):
    """Another connection over the session; None if it gets no more, or owes answers for too long."""
    cdef session *s = shared.s
    cdef search *under_way
    cdef Connection one
    if not session_join(s):
        return None
    under_way = <search *> calloc(1, sizeof(search))
    if under_way == NULL:
        session_leave(s, True, False)
        raise MemoryError
    under_way.msgid = -1
    try:
        one = made(&calls, s, s.fd, host, shown)
    except MemoryError:
        free(under_way)
        session_leave(s, True, False)
        raise
    one.c.result = under_way
    one.c.born_ms = s.born_ms
    one.c.answers = s.answers > 0  # the server may have closed it meanwhile, as one that was used
    return one
