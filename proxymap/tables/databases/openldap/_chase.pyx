"""_chase - searches of a directory that follow referrals to other servers, over connections of one's own

For threads that may wait; one at a time asks a Chaser. libldap could follow referrals by itself,
but with calls that may wait for ever. So each search ends here first (_searches); then the
servers are asked that it has named, without login as stock does, and what they find is added.

Not as stock: where nothing was found and a server cannot be asked, it is not known
whether there is something. That is TableRetry, not "no such key".

Source: ldap_result(3), ldap_parse_reference(3) of OpenLDAP 2.5; RFC 4511, 4.1.10 and 4.5.3.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from proxymap.base._buf cimport buf_append, buf_clear, buf_len, view, view_of
from proxymap.base._clock cimport now_ms
from proxymap.tables._jobs cimport Queue
from proxymap.tables.databases._connection cimport (
    ANSWERED, BROKEN, WANT_READ, WANT_WRITE, Connection, connection,
)
from proxymap.tables.databases.database cimport database
from proxymap.tables.databases.openldap._entries cimport (
    Form, form, items, items_free, items_put_before, lib, take_entry, timeval,
)
from proxymap.tables.databases.openldap._searches cimport (
    form_of, ldap_err2string, ldap_msgfree, ldap_parse_result, ldap_result, ldap_search_ext, search_judged,
    search_on, search_over, session_of,
)

from proxymap.errors import QuestionRefused, TableRetry
from proxymap.tables.databases.hosts import ConnectFailed

cdef enum:  # ldap.h
    LDAP_SUCCESS = 0
    LDAP_REFERRAL = 10
    LDAP_SERVER_DOWN = -1
    LDAP_LOCAL_ERROR = -2
    LDAP_CONNECT_ERROR = -11
    LDAP_MSG_ONE = 0
    LDAP_RES_SEARCH_ENTRY = 0x64
    LDAP_RES_SEARCH_RESULT = 0x65
    LDAP_RES_SEARCH_REFERENCE = 0x73
    LDAP_SCOPE_BASE = 0
    LDAP_SCOPE_ONELEVEL = 1
    # Ours:
    HOPS_MAX = 5         # referrals from one server to the next, as many as libldap follows
    LINES_MAX = 1000     # for the log, that one lookup may leave

ctypedef int (*reference_function)(void *, void *, char ***, void *, int) noexcept nogil
ctypedef void (*free_function)(void **) noexcept nogil

cdef reference_function ldap_parse_reference = <reference_function> lib.symbol("ldap_parse_reference")
cdef free_function ber_memvfree = <free_function> lib.symbol("ber_memvfree")


cdef struct haul:
    # What a search has found.
    items found
    size_t entries


cdef class Chaser:
    """main: a connection to the table's own server, for the chaser alone.

    told(url): its (address, base or None, scope or None); ValueError if it cannot be used.
    reach(address, milliseconds): a Connection to it; ConnectFailed, TimeoutError.
    """

    cdef Connection main
    cdef database d    # what main asks for
    cdef Queue lines   # for the log
    cdef object told
    cdef object reach
    cdef dict others   # connections to other servers, by address
    cdef dict been     # (address, base, scope) of searches elsewhere: LDAP_* of those that are over, or None
    cdef str lost      # why a referral was not followed

    def __init__(self, Connection main not None, told, reach):
        self.main, self.told, self.reach, self.others = main, told, reach, {}
        self.lines = Queue(limit=LINES_MAX)
        search_on(main.c).keeps = True
        search_on(main.c).log = &self.lines.q

    def close(self):
        """End all connections."""
        self.others.clear()
        self.main.close()

    @property
    def born(self) -> float:
        """When it connected, about by time.monotonic."""
        return self.main.born

    def take_lines(self) -> list:
        """Warnings for the log."""
        return [line.name for line in self.lines.take_all(LINES_MAX)] if self.lines.held else []

    def search(self, Form wanted not None, bytes text not None, uint64_t limit_ms) -> list:
        """The values that are found with text: the base, NUL, and the filter.

        Raises QuestionRefused, TableRetry (of a referral); and, of the main connection, which is
        of no use then, ConnectFailed, TimeoutError.
        """
        cdef connection *c = self.main.c
        cdef uint64_t until_ms = now_ms() + limit_ms
        cdef int outcome
        cdef bytes name = wanted.name
        self.lost = None
        self.d.form, self.d.name = &wanted.f, view_of(name, len(name))
        c.question.of = &self.d
        buf_clear(&c.sql)
        if buf_append(&c.sql, text, len(text) + 1) < 0:
            raise MemoryError
        try:
            outcome = c.calls.start(c, view_of(text, len(text)))
            while outcome & (WANT_READ | WANT_WRITE):
                outcome = search_judged(c, self.search_under_way(until_ms))
            return self.answer(outcome)
        finally:
            c.calls.finish(c)

    cdef list answer(self, int outcome):
        cdef connection *c = self.main.c
        cdef str reason = self.main.reason
        cdef list found = []
        cdef view value
        if outcome == BROKEN:
            raise ConnectFailed(reason)
        if outcome != ANSWERED:
            raise TableRetry(f"{reason}: {self.lost}") if self.lost else QuestionRefused(reason)
        while c.calls.row(c):
            value = c.calls.column(c, 0)
            found.append(value.ptr[:value.len])
        if self.lost and not found:
            raise TableRetry(self.lost)
        return found

    cdef int search_under_way(self, uint64_t until_ms) except? LDAP_LOCAL_ERROR:
        """Take what the search of the main connection finds, there and elsewhere; its error, LDAP_*."""
        cdef connection *c = self.main.c
        cdef haul found
        cdef int error
        cdef list references = [], referrals = []
        found.found.first = found.found.last = NULL
        found.entries = 0
        self.been = {}
        try:
            error = gather(c, session_of(c).ld, search_on(c).msgid, until_ms, &found, references, referrals)
            search_over(c)
            if error == LDAP_SERVER_DOWN:
                raise ConnectFailed(text_of(error))
            error = self.follow_all(&found, error, references, referrals, self.request(), 0, until_ms)
            items_put_before(&search_on(c).found, &found.found)
            search_on(c).entries = found.entries
            return error
        finally:
            items_free(&found.found)

    cdef tuple request(self):
        """base, filter, attributes and scope of the search under way."""
        cdef size_t n = buf_len(&search_on(self.main.c).request)
        base, filter, *attributes, _ = search_on(self.main.c).request.data[:n].split(b"\0")
        return base, filter, attributes, search_on(self.main.c).scope

    cdef int follow_all(
        self, haul *found, int error, list references, list referrals, tuple request, int hops,
        uint64_t until_ms,
    ) except? LDAP_LOCAL_ERROR:
        """Add what is found elsewhere; error: of the search that said so. What it is then."""
        cdef int other
        for urls in references:
            other = self.follow(found, urls, request, True, hops, until_ms)
            if other and other != LDAP_REFERRAL:
                error = other
        if error == LDAP_REFERRAL:
            error = self.follow(found, referrals, request, False, hops, until_ms)
        return error

    cdef int follow(
        self, haul *found, list urls, tuple request, bint below, int hops, uint64_t until_ms
    ) except? LDAP_LOCAL_ERROR:
        """Search at the first of these that can be asked; LDAP_REFERRAL: none can, which is remembered.

        below: a part of what is searched lies there, not all of it.
        """
        trouble = f"more than {HOPS_MAX} referrals, one after the other"
        for url in urls if hops < HOPS_MAX else ():
            try:
                return self.search_at(found, url, request, below, hops + 1, until_ms)
            except (ConnectFailed, TimeoutError, ValueError) as error:
                trouble = f"referral to {url}: {str(error) or 'no answer in time'}"
        self.lost = self.lost or trouble
        return LDAP_REFERRAL

    cdef int search_at(
        self, haul *found, str url, tuple request, bint below, int hops, uint64_t until_ms
    ) except? LDAP_LOCAL_ERROR:
        """Search at the server that the URL names; what was found there before is not added again."""
        address, base, scope = self.told(url)
        if base is None:
            base = request[0]
        if scope is None:
            scope = LDAP_SCOPE_BASE if below and request[3] == LDAP_SCOPE_ONELEVEL else request[3]
        place = address, base, scope
        if place not in self.been:
            self.been[place] = None
            self.been[place] = self.search_there(
                address, found, (base, request[1], request[2], scope), hops, until_ms)
        elif self.been[place] is None:
            raise ValueError("it leads back")
        return self.been[place]

    cdef int search_there(
        self, address, haul *found, tuple request, int hops, uint64_t until_ms
    ) except? LDAP_LOCAL_ERROR:
        """Search at another server; its error, LDAP_*."""
        cdef int error
        cdef Connection one = self.others.pop(address, None)
        if one is not None:
            error = self.search_over_it(one, found, request, hops, until_ms)
            if error != LDAP_SERVER_DOWN:
                self.others[address] = one
                return error
        one = self.reach(address, until_ms - min(until_ms, now_ms()))
        error = self.search_over_it(one, found, request, hops, until_ms)
        if error == LDAP_SERVER_DOWN:
            raise ConnectFailed(text_of(error))
        self.others[address] = one
        return error

    cdef int search_over_it(
        self, Connection one, haul *found, tuple request, int hops, uint64_t until_ms
    ) except? LDAP_LOCAL_ERROR:
        """Search over a connection to another server; LDAP_SERVER_DOWN: it broke, and nothing is added."""
        cdef haul more
        cdef int error
        cdef int msgid = 0
        cdef list references = [], referrals = []
        more.found.first = more.found.last = NULL
        more.entries = 0
        try:
            error = send(self.main.c, session_of(one.c).ld, request, &msgid)
            if not error:
                error = gather(
                    self.main.c, session_of(one.c).ld, msgid, until_ms, &more, references, referrals)
            if error == LDAP_SERVER_DOWN or error == LDAP_CONNECT_ERROR:
                return LDAP_SERVER_DOWN
            error = self.follow_all(&more, error, references, referrals, request, hops, until_ms)
            items_put_before(&more.found, &found.found)
            found.found = more.found
            found.entries += more.entries
            more.found.first = more.found.last = NULL
            return error
        finally:
            items_free(&more.found)


cdef int send(connection *c, void *ld, tuple request, int *msgid) except? LDAP_LOCAL_ERROR:
    """Begin a search like that of c; request: see Chaser.request."""
    cdef const form *f = form_of(c)
    cdef bytes base = request[0]
    cdef bytes filter = request[1]
    cdef list names = request[2]
    cdef const char **attributes = <const char **> calloc(len(names) + 1, sizeof(char *))
    cdef int i, error
    if attributes == NULL:
        raise MemoryError
    for i in range(len(names)):
        attributes[i] = <bytes> names[i]
    error = ldap_search_ext(
        ld, base, request[3], filter, attributes, 0, NULL, NULL, &f.time_limit if f.limited else NULL,
        f.size_limit, msgid)
    free(attributes)
    return error


cdef int gather(
    connection *c, void *ld, int msgid, uint64_t until_ms, haul *found, list references, list referrals
) except? LDAP_LOCAL_ERROR:
    """Take all that a search finds, for that of c; its error, LDAP_*. TimeoutError: it takes too long.

    references: gets a list of URLs for each part that lies elsewhere; referrals: URLs if all of it does.
    """
    cdef void *message = NULL
    cdef int kind
    while True:
        with nogil:
            kind = next_message(ld, msgid, until_ms, &message)
        if kind == 0:
            raise TimeoutError
        if kind < 0:
            return LDAP_SERVER_DOWN
        if kind == LDAP_RES_SEARCH_RESULT:
            return end_of(ld, message, referrals)
        if kind == LDAP_RES_SEARCH_ENTRY:
            found.entries += 1
            if take_entry(form_of(c), ld, message, search_on(c).named, &found.found) < 0:
                search_on(c).no_memory = True
        elif kind == LDAP_RES_SEARCH_REFERENCE:
            references.append(reference(ld, message))
        ldap_msgfree(message)


cdef int next_message(void *ld, int msgid, uint64_t until_ms, void **message) noexcept nogil:
    """Wait for the next message of a search; its kind; 0: it is too late; less: the connection broke."""
    cdef timeval left
    cdef uint64_t ms, now = now_ms()
    if now > until_ms:
        return 0
    ms = until_ms - now
    left.tv_sec = ms // 1000
    left.tv_usec = ms % 1000 * 1000
    return ldap_result(ld, msgid, LDAP_MSG_ONE, &left, message)


cdef int end_of(void *ld, void *message, list referrals) except? LDAP_LOCAL_ERROR:
    """The error of a search that is over; the message is freed."""
    cdef char **urls = NULL
    cdef int error = LDAP_SUCCESS
    cdef int parsed = ldap_parse_result(ld, message, &error, NULL, NULL, &urls, NULL, True)
    referrals += texts(urls)
    return parsed or error


cdef list reference(void *ld, void *message):
    """The URLs of a reference."""
    cdef char **urls = NULL
    ldap_parse_reference(ld, message, &urls, NULL, False)
    return texts(urls)


cdef list texts(char **urls):
    """As text; they are freed."""
    cdef list found = []
    cdef int i = 0
    while urls != NULL and urls[i] != NULL:
        found.append((<bytes> urls[i]).decode(errors="surrogateescape"))
        i += 1
    if urls != NULL:
        ber_memvfree(<void **> urls)
    return found


cdef str text_of(int error):
    return (<bytes> ldap_err2string(error)).decode(errors="surrogateescape")
