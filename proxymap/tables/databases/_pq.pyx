"""_pq - PostgreSQL servers, by the host's libpq and its non-blocking calls

A query is text and may have several statements; the last result counts. Nothing is
prepared, so that a pooler between us and the server may do as it likes.

To connect may wait: for names in the library's resolver, and for the server.

Source: pgsql_table(5); libpq-fe.h of PostgreSQL 15, whose numbers are below.
"""

import os

from libc.stdint cimport uint64_t
from libc.string cimport memcmp

from proxymap._words cimport STAT_NOKEY, STAT_OK, STAT_RETRY
from proxymap.base._buf cimport buf, buf_reserve, view, view_of
from proxymap.base._clock cimport now_ms
from proxymap.base._dl cimport Library
from proxymap.base._os cimport SHUT_RDWR, shutdown
from proxymap.tables.databases._connection cimport (
    ANSWERED, BROKEN, FAILED, SPOILED, WANT_READ, WANT_WRITE, Attempt, connection, connection_say, library,
    made, wait_for,
)

from proxymap.tables.databases.hosts import ConnectFailed

cdef enum:  # libpq-fe.h, postgres_ext.h
    CONNECTION_OK = 0
    CONNECTION_BAD = 1
    POLLING_FAILED = 0
    POLLING_READING = 1
    POLLING_WRITING = 2
    POLLING_OK = 3
    EMPTY_QUERY = 0
    COMMAND_OK = 1
    TUPLES_OK = 2
    COPY_OUT = 3
    COPY_IN = 4
    BAD_RESPONSE = 5
    FATAL_ERROR = 7
    COPY_BOTH = 8
    TRANS_IDLE = 0
    PG_DIAG_SQLSTATE = 67  # its letter C
    SENDING = 1  # steps: the query is not sent yet, as a whole
    READING = 2

SONAME = "libpq.so.5"
TOO_MANY = ("too many connections", "too many clients", "remaining connection slots are reserved")

ctypedef int (*int_function)(const void *) noexcept nogil
ctypedef void *(*pointer_function)(const void *) noexcept nogil
ctypedef void (*void_function)(void *) noexcept nogil
ctypedef const char *(*text_function)(const void *) noexcept nogil
ctypedef const char *(*field_function)(const void *, int) noexcept nogil
ctypedef void *(*connect_function)(const char **, const char **, int) noexcept nogil
ctypedef int (*send_function)(void *, const char *) noexcept nogil
ctypedef int (*set_function)(void *, int) noexcept nogil
ctypedef int (*cell_function)(const void *, int, int) noexcept nogil
ctypedef char *(*value_function)(const void *, int, int) noexcept nogil
ctypedef size_t (*escape_function)(void *, char *, const char *, size_t, int *) noexcept nogil
ctypedef int (*cancel_function)(void *, char *, int) noexcept nogil
ctypedef void (*notice_function)(void *, const char *) noexcept nogil
ctypedef void *(*set_notice_function)(void *, notice_function, void *) noexcept nogil

cdef Library lib = Library("pgsql", [SONAME], "libpq5 (Debian, Ubuntu), libpq (Fedora, Alpine)")

cdef connect_function PQconnectStartParams = <connect_function> lib.symbol("PQconnectStartParams")
cdef int_function PQconnectPoll = <int_function> lib.symbol("PQconnectPoll")
cdef int_function PQstatus = <int_function> lib.symbol("PQstatus")
cdef int_function PQsocket = <int_function> lib.symbol("PQsocket")
cdef text_function PQerrorMessage = <text_function> lib.symbol("PQerrorMessage")
cdef set_function PQsetnonblocking = <set_function> lib.symbol("PQsetnonblocking")
cdef set_notice_function PQsetNoticeProcessor = <set_notice_function> lib.symbol("PQsetNoticeProcessor")
cdef void_function PQfinish = <void_function> lib.symbol("PQfinish")
cdef send_function PQsendQuery = <send_function> lib.symbol("PQsendQuery")
cdef int_function PQflush = <int_function> lib.symbol("PQflush")
cdef int_function PQconsumeInput = <int_function> lib.symbol("PQconsumeInput")
cdef int_function PQisBusy = <int_function> lib.symbol("PQisBusy")
cdef pointer_function PQgetResult = <pointer_function> lib.symbol("PQgetResult")
cdef int_function PQtransactionStatus = <int_function> lib.symbol("PQtransactionStatus")
cdef int_function PQresultStatus = <int_function> lib.symbol("PQresultStatus")
cdef text_function PQresultErrorMessage = <text_function> lib.symbol("PQresultErrorMessage")
cdef field_function PQresultErrorField = <field_function> lib.symbol("PQresultErrorField")
cdef int_function PQntuples = <int_function> lib.symbol("PQntuples")
cdef int_function PQnfields = <int_function> lib.symbol("PQnfields")
cdef cell_function PQgetisnull = <cell_function> lib.symbol("PQgetisnull")
cdef cell_function PQgetlength = <cell_function> lib.symbol("PQgetlength")
cdef value_function PQgetvalue = <value_function> lib.symbol("PQgetvalue")
cdef pointer_function PQgetCancel = <pointer_function> lib.symbol("PQgetCancel")
cdef cancel_function PQcancel = <cancel_function> lib.symbol("PQcancel")
cdef void_function PQfreeCancel = <void_function> lib.symbol("PQfreeCancel")
cdef void_function PQclear = <void_function> lib.symbol("PQclear")
cdef escape_function PQescapeStringConn = <escape_function> lib.symbol("PQescapeStringConn")


# Asking

cdef int start(connection *c, view text) noexcept nogil:
    c.result = NULL
    c.status = ANSWERED
    c.spent = False
    c.step = SENDING
    if not PQsendQuery(c.handle, text.ptr):
        return broke(c)
    return send_rest(c)


cdef int send_rest(connection *c) noexcept nogil:
    cdef int left = PQflush(c.handle)
    if left < 0:
        return broke(c)
    if left:
        return WANT_READ | WANT_WRITE
    c.step = READING
    return WANT_READ


cdef int go_on(connection *c, int ready) noexcept nogil:
    cdef void *result
    if ready & WANT_READ and not PQconsumeInput(c.handle):
        return broke(c)
    if c.step == SENDING:
        return send_rest(c)
    while not PQisBusy(c.handle):
        result = PQgetResult(c.handle)
        if result == NULL:
            return judged(c)
        if not keep(c, result):
            return SPOILED
    return WANT_READ


cdef bint keep(connection *c, void *result) noexcept nogil:
    """The latest result counts. False: copying has begun, which has no end."""
    cdef int status = PQresultStatus(result)
    finish(c)
    c.result = result
    if status == COPY_IN or status == COPY_OUT or status == COPY_BOTH:
        connection_say(c, b"the query copies, and gives no rows")
        return False
    if status == EMPTY_QUERY:
        connection_say(c, b"the query is empty")
        c.status = FAILED
    elif status == FATAL_ERROR or status == BAD_RESPONSE:
        connection_say(c, PQresultErrorMessage(result))
        c.status = BROKEN if is_goodbye(PQresultErrorField(result, PG_DIAG_SQLSTATE)) else FAILED
    return True


cdef bint is_goodbye(const char *sqlstate) noexcept nogil:
    """Does the server end the connection? Its codes for that are 57P01 to 57P05."""
    return sqlstate != NULL and memcmp(sqlstate, b"57P0", 4) == 0


cdef int judged(connection *c) noexcept nogil:
    """All has been read."""
    if PQstatus(c.handle) != CONNECTION_OK:
        c.status = BROKEN
    elif c.status == FAILED and PQtransactionStatus(c.handle) != TRANS_IDLE:
        return SPOILED
    if c.status == ANSWERED:
        c.spent = PQtransactionStatus(c.handle) != TRANS_IDLE
        c.rows = c.at_row = 0
        c.columns = 0
        if c.result != NULL and PQresultStatus(c.result) == TUPLES_OK:
            c.rows = PQntuples(c.result)
            c.columns = PQnfields(c.result)
    return c.status


cdef int broke(connection *c) noexcept nogil:
    connection_say(c, PQerrorMessage(c.handle))
    return BROKEN


cdef bint row(connection *c) noexcept nogil:
    c.at_row += 1
    return c.at_row <= c.rows


cdef view column(connection *c, int n) noexcept nogil:
    cdef int at = <int> c.at_row - 1
    if PQgetisnull(c.result, at, n):
        return view_of(NULL, 0)
    return view_of(PQgetvalue(c.result, at, n), PQgetlength(c.result, at, n))


cdef void finish(connection *c) noexcept nogil:
    if c.result != NULL:
        PQclear(c.result)
        c.result = NULL


cdef bint is_good(connection *c) noexcept nogil:
    """A server may tell its settings and notices at any time."""
    return PQconsumeInput(c.handle) and not PQisBusy(c.handle) and PQstatus(c.handle) == CONNECTION_OK


cdef void cancel(connection *c) noexcept nogil:
    """A server does not notice that its client is gone until the question ends. This connects anew."""
    cdef char reason[256]
    cdef void *request = PQgetCancel(c.handle)
    if request != NULL:
        PQcancel(request, reason, sizeof(reason))
        PQfreeCancel(request)


cdef void close(connection *c, bint politely) noexcept nogil:
    finish(c)
    if not politely:
        shutdown(c.fd, SHUT_RDWR)
    PQfinish(c.handle)


cdef int quote(void *context, view text, buf *out) noexcept nogil:
    cdef connection *c = <connection *> context
    cdef int error = 0
    cdef size_t n
    if buf_reserve(out, 2 * text.len + 1) < 0:
        return STAT_RETRY
    n = PQescapeStringConn(c.handle, out.data + out.end, text.ptr, text.len, &error)
    if error:
        return STAT_NOKEY
    out.end += n
    return STAT_OK


cdef void hear_nothing(void *context, const char *text) noexcept nogil:
    """What a server says besides; libpq would write it to standard error."""


cdef library calls
calls.start, calls.go_on, calls.row, calls.column = start, go_on, row, column
calls.finish, calls.is_good, calls.quote = finish, is_good, quote
calls.cancel, calls.close = cancel, close


# Connecting

cdef class PostgreSQL:
    """Connects to the servers of one table, with its `login` (pgsql.PgsqlLogin)."""

    cdef object login
    cheapest = b"SELECT 1"  # question, which shows whether a server is up

    def __init__(self, login):
        self.login = login

    def parameters(self, address) -> dict:
        """The parameters for libpq, by its names; a URI has all but the encoding."""
        login = self.login
        if address.kind == "uri":
            told = {"dbname": address.host}
        else:
            told = {
                "host": address.host, "port": str(address.port) if address.port else "",
                "dbname": login.dbname, "user": login.user, "password": login.password,
            }
        told["client_encoding"] = login.encoding
        return {name: os.fsencode(value) for name, value in told.items() if value}

    def connect(self, address, Attempt attempt not None, uint64_t limit_ms):
        """A Connection to the address, logged in; waits. Raises ConnectFailed, TimeoutError."""
        cdef const char *names[8]
        cdef const char *values[8]
        cdef uint64_t until_ms = now_ms() + limit_ms
        cdef void *handle
        cdef int n = 0
        told = {name.encode(): value for name, value in self.parameters(address).items()}
        for name, value in told.items():
            names[n], values[n] = <bytes> name, <bytes> value
            n += 1
        names[n] = values[n] = NULL
        with nogil:
            handle = PQconnectStartParams(names, values, 1)
        if handle == NULL:
            raise MemoryError
        try:
            PQsetNoticeProcessor(handle, hear_nothing, NULL)
            self.log_in(handle, attempt, until_ms)
            PQsetnonblocking(handle, 1)
            return made(&calls, handle, PQsocket(handle), attempt.host, os.fsencode(address.shown))
        except BaseException:
            with nogil:
                PQfinish(handle)
            raise

    cdef int log_in(self, void *handle, Attempt attempt, uint64_t until_ms) except -1:
        cdef int outcome = POLLING_WRITING
        cdef int fd, wants, ready
        while outcome != POLLING_OK and outcome != POLLING_FAILED and PQstatus(handle) != CONNECTION_BAD:
            fd = PQsocket(handle)
            wants = WANT_READ if outcome == POLLING_READING else WANT_WRITE
            if attempt.know(fd):
                raise TimeoutError
            with nogil:
                ready = wait_for(fd, wants, until_ms)
            if not ready:
                raise TimeoutError
            with nogil:
                outcome = PQconnectPoll(handle)
        if attempt.know(-1):
            raise TimeoutError
        if PQstatus(handle) != CONNECTION_OK:
            raise failed(handle)
        return 0


cdef object failed(void *handle):
    text = os.fsdecode(<bytes> PQerrorMessage(handle)).strip()
    return ConnectFailed(text, too_many=any(words in text for words in TOO_MANY))
