"""_mariadb - MariaDB and MySQL servers, by the host's libmariadb and its non-blocking calls

Each non-blocking call of the library has a _start and a _cont, which return what
they wait for, or 0 when they are finished. A query is sent, and its answer read
when the first bytes of it are there; all result sets are read into memory.

To connect may wait: for names in the library's resolver, for TLS, and for the
server. The library of 2024 (3.3) leaves a TLS socket in blocking mode; so
O_NONBLOCK is set here.

Source: mysql_table(5); mysql.h and errmsg.h of Connector/C 3.3, whose numbers are below.
"""

import os

from libc.stdint cimport uint64_t

from proxymap._words cimport STAT_NOKEY, STAT_OK, STAT_RETRY
from proxymap.base._buf cimport buf, buf_reserve, view, view_of
from proxymap.base._clock cimport now_ms
from proxymap.base._dl cimport Library
from proxymap.base._os cimport SHUT_RDWR, shutdown
from proxymap.tables.databases._connection cimport (
    ANSWERED, BROKEN, FAILED, SPOILED, WANT_READ, WANT_WRITE, Attempt, Connection, connection,
    connection_say, library, made, wait_for,
)

from proxymap.tables.databases.hosts import ConnectFailed

cdef enum:  # mysql.h, mariadb_com.h, errmsg.h, mysqld_error.h
    OPT_CONNECT_TIMEOUT = 0
    OPT_READ_DEFAULT_FILE = 4
    OPT_READ_DEFAULT_GROUP = 5
    OPT_SET_CHARSET_NAME = 7
    OPT_LOCAL_INFILE = 8
    OPT_SSL_VERIFY_SERVER_CERT = 21
    OPT_NONBLOCK = 6000
    CLIENT_MULTI_RESULTS = 1 << 17
    CR_MIN = 2000
    CR_OUT_OF_MEMORY = 2008
    CR_NET_PACKET_TOO_LARGE = 2020
    CR_MAX = 2999
    CR_MARIADB_MIN = 5000
    CR_MARIADB_MAX = 5999
    ER_CON_COUNT_ERROR = 1040
    ER_SERVER_SHUTDOWN = 1053
    ER_ABORTING_CONNECTION = 1152
    ER_NET_PACKET_TOO_LARGE = 1153
    ER_NET_READ_ERROR = 1158
    ER_NET_WRITE_INTERRUPTED = 1161
    ER_TOO_MANY_USER_CONNECTIONS = 1203
    ER_USER_LIMIT_REACHED = 1226
    ER_CONNECTION_KILLED = 1927
    ER_SESSION_WAS_KILLED = 3169
    ER_CLIENT_INTERACTION_TIMEOUT = 4031

cdef enum:  # what is under way
    SENDING
    SENT      # and nothing has come yet
    READING
    STORING
    NEXT
    READ_AHEAD = 16384  # bytes that the library reads at a time, ma_pvio.h
    TRIES = 1000  # calls until a broken connection has let go of what was under way

# What it has from an option file or its own configuration may be less. MariaDB before 10.1 has no such thing.
TIME_LIMIT = (
    b"SET SESSION max_statement_time ="
    b" IF(@@max_statement_time > 0, LEAST(@@max_statement_time, %d), %d)"
)
SONAME = "libmariadb.so.3"
TLS = ("tls_key_file", "tls_cert_file", "tls_CAfile", "tls_CApath", "tls_ciphers")

ctypedef int (*int_function)(void *) noexcept nogil
ctypedef void *(*pointer_function)(void *) noexcept nogil
ctypedef void (*void_function)(void *) noexcept nogil
ctypedef const char *(*text_function)(void *) noexcept nogil
ctypedef int (*options_function)(void *, int, const void *) noexcept nogil
ctypedef char (*ssl_function)(
    void *, const char *, const char *, const char *, const char *, const char *) noexcept nogil
ctypedef int (*connect_function)(
    void **, void *, const char *, const char *, const char *, const char *, unsigned int, const char *,
    unsigned long) noexcept nogil
ctypedef int (*send_function)(int *, void *, const char *, unsigned long) noexcept nogil
ctypedef int (*start_function)(void *, void *) noexcept nogil
ctypedef int (*cont_function)(void *, void *, int) noexcept nogil
ctypedef int (*charset_function)(int *, void *, const char *) noexcept nogil
ctypedef unsigned long (*escape_function)(void *, char *, const char *, unsigned long) noexcept nogil
ctypedef int (*server_init_function)(int, char **, char **) noexcept nogil

cdef Library lib = Library(
    "mysql", [SONAME], "libmariadb3 (Debian, Ubuntu), mariadb-connector-c (Fedora, Alpine)")

cdef pointer_function mysql_init = <pointer_function> lib.symbol("mysql_init")
cdef options_function mysql_options = <options_function> lib.symbol("mysql_options")
cdef ssl_function mysql_ssl_set = <ssl_function> lib.symbol("mysql_ssl_set")
cdef connect_function mysql_real_connect_start = <connect_function> lib.symbol("mysql_real_connect_start")
cdef cont_function mysql_real_connect_cont = <cont_function> lib.symbol("mysql_real_connect_cont")
cdef charset_function mysql_set_character_set_start = <charset_function> lib.symbol(
    "mysql_set_character_set_start")
cdef cont_function mysql_set_character_set_cont = <cont_function> lib.symbol("mysql_set_character_set_cont")
cdef text_function mysql_character_set_name = <text_function> lib.symbol("mysql_character_set_name")
cdef int_function mysql_get_socket = <int_function> lib.symbol("mysql_get_socket")
cdef text_function mysql_get_server_info = <text_function> lib.symbol("mysql_get_server_info")
cdef int_function mysql_errno = <int_function> lib.symbol("mysql_errno")
cdef text_function mysql_error = <text_function> lib.symbol("mysql_error")
cdef send_function mysql_send_query_start = <send_function> lib.symbol("mysql_send_query_start")
cdef cont_function mysql_send_query_cont = <cont_function> lib.symbol("mysql_send_query_cont")
cdef start_function mysql_read_query_result_start = <start_function> lib.symbol(
    "mysql_read_query_result_start")
cdef cont_function mysql_read_query_result_cont = <cont_function> lib.symbol("mysql_read_query_result_cont")
cdef start_function mysql_store_result_start = <start_function> lib.symbol("mysql_store_result_start")
cdef cont_function mysql_store_result_cont = <cont_function> lib.symbol("mysql_store_result_cont")
cdef start_function mysql_next_result_start = <start_function> lib.symbol("mysql_next_result_start")
cdef cont_function mysql_next_result_cont = <cont_function> lib.symbol("mysql_next_result_cont")
cdef int_function mysql_more_results = <int_function> lib.symbol("mysql_more_results")
cdef int_function mysql_field_count = <int_function> lib.symbol("mysql_field_count")
cdef int_function mysql_num_fields = <int_function> lib.symbol("mysql_num_fields")
cdef pointer_function mysql_fetch_row = <pointer_function> lib.symbol("mysql_fetch_row")
cdef pointer_function mysql_fetch_lengths = <pointer_function> lib.symbol("mysql_fetch_lengths")
cdef void_function mysql_free_result = <void_function> lib.symbol("mysql_free_result")
cdef escape_function mysql_real_escape_string = <escape_function> lib.symbol("mysql_real_escape_string")
cdef void_function mysql_close = <void_function> lib.symbol("mysql_close")

if (<server_init_function> lib.symbol("mysql_server_init"))(0, NULL, NULL):
    raise ImportError(f"{SONAME} cannot be initialised")


# Asking

cdef struct step_result:  # of a call that has finished
    int number      # of those that return an int or a char, which is the first byte of it
    void *result    # of store_result


cdef int start(connection *c, view text) noexcept nogil:
    cdef step_result done
    done.number = 0
    c.result = NULL
    c.status = ANSWERED
    c.spent = False
    c.step = SENDING
    return proceed(c, mysql_send_query_start(&done.number, c.handle, text.ptr, text.len), &done)


cdef int go_on(connection *c, int ready) noexcept nogil:
    cdef step_result done
    cdef int waits
    done.number = 0
    done.result = NULL
    if c.step == SENT:
        c.step = READING
        waits = mysql_read_query_result_start(&done.number, c.handle)
    elif c.step == SENDING:
        waits = mysql_send_query_cont(&done.number, c.handle, ready)
    elif c.step == READING:
        waits = mysql_read_query_result_cont(&done.number, c.handle, ready)
    elif c.step == STORING:
        waits = mysql_store_result_cont(&done.result, c.handle, ready)
    else:
        waits = mysql_next_result_cont(&done.number, c.handle, ready)
    return proceed(c, waits, &done)


cdef int proceed(connection *c, int waits, step_result *done) noexcept nogil:
    """Take step after step until one waits, or the answer is there."""
    while not waits:
        if c.step == SENDING:
            if done.number:
                return trouble(c)
            c.step = SENT
            return WANT_READ
        if c.step == STORING:
            if not keep(c, done.result):
                return trouble(c)
            if not (mysql_more_results(c.handle) & 0xff):
                return judged(c)
            c.step = NEXT
            done.number = 0
            waits = mysql_next_result_start(&done.number, c.handle)
            continue
        if c.step == NEXT and done.number < 0:
            return judged(c)
        if done.number:
            return trouble(c)
        c.step = STORING
        done.result = NULL
        waits = mysql_store_result_start(&done.result, c.handle)
    return waits & (WANT_READ | WANT_WRITE) or WANT_READ


cdef bint keep(connection *c, void *result) noexcept nogil:
    """A result set was read; or there was none, or trouble, which is False."""
    if result == NULL:
        return mysql_field_count(c.handle) == 0
    if c.result != NULL:
        mysql_free_result(result)
        connection_say(c, b"multiple result sets returning data are not supported")
        c.status = FAILED
    else:
        c.result = result
    return True


cdef struct read_ahead:  # the beginning of MARIADB_PVIO, in all versions; MYSQL begins with a pointer to it
    void *data
    const char *cache
    const char *at
    size_t held


cdef bint has_unread(const connection *c) noexcept nogil:
    """Has the library read more than the answer? The next question would have that for its own."""
    cdef const read_ahead *r = (<const read_ahead **> c.handle)[0]
    return r != NULL and r.cache != NULL and r.held <= READ_AHEAD and r.cache <= r.at < r.cache + r.held


cdef int judged(connection *c) noexcept nogil:
    """All has been read."""
    c.spent = has_unread(c)
    if c.result != NULL:
        c.columns = mysql_num_fields(c.result)
    elif c.result_required and c.status == ANSWERED:
        connection_say(c, b"query returned no result set (require_result_set = yes)")
        c.status = FAILED
    return c.status


cdef int trouble(connection *c) noexcept nogil:
    """Whose fault is the library's error?"""
    cdef int number = mysql_errno(c.handle)
    connection_say(c, mysql_error(c.handle))
    if number in (CR_OUT_OF_MEMORY, CR_NET_PACKET_TOO_LARGE, ER_NET_PACKET_TOO_LARGE):
        return SPOILED
    if CR_MIN <= number <= CR_MAX or CR_MARIADB_MIN <= number <= CR_MARIADB_MAX or number == 0:
        return BROKEN
    if ER_NET_READ_ERROR <= number <= ER_NET_WRITE_INTERRUPTED or number in (
        ER_SERVER_SHUTDOWN, ER_ABORTING_CONNECTION, ER_CONNECTION_KILLED, ER_SESSION_WAS_KILLED,
        ER_CLIENT_INTERACTION_TIMEOUT,
    ):
        return BROKEN
    return FAILED


cdef bint row(connection *c) noexcept nogil:
    if c.result == NULL:
        return False
    c.values = <char **> mysql_fetch_row(c.result)
    if c.values == NULL:
        return False
    c.lengths = <unsigned long *> mysql_fetch_lengths(c.result)
    return True


cdef view column(connection *c, int n) noexcept nogil:
    return view_of(c.values[n], c.lengths[n])


cdef void finish(connection *c) noexcept nogil:
    if c.result != NULL:
        mysql_free_result(c.result)
        c.result = NULL


cdef bint is_good(connection *c) noexcept nogil:
    """The server says nothing unasked but goodbye."""
    return False


cdef void cancel(connection *c) noexcept nogil:
    """A server looks now and then whether its client is still there."""


cdef void close(connection *c, bint politely) noexcept nogil:
    cdef int _
    if not politely:
        shutdown(c.fd, SHUT_RDWR)
        for _ in range(TRIES):  # what is suspended would be lost memory
            if not c.suspended or go_on(c, WANT_READ | WANT_WRITE) & ~(WANT_READ | WANT_WRITE):
                break
    finish(c)
    mysql_close(c.handle)


cdef int quote(void *context, view text, buf *out) noexcept nogil:
    cdef connection *c = <connection *> context
    cdef unsigned long n
    if buf_reserve(out, 2 * text.len + 1) < 0:
        return STAT_RETRY
    n = mysql_real_escape_string(c.handle, out.data + out.end, text.ptr, text.len)
    if n == <unsigned long> -1:
        return STAT_NOKEY
    out.end += n
    return STAT_OK


cdef library calls
calls.start, calls.go_on, calls.row, calls.column = start, go_on, row, column
calls.finish, calls.is_good, calls.quote = finish, is_good, quote
calls.cancel, calls.close = cancel, close


# Connecting

cdef class MariaDB:
    """Connects to the servers of one table, with its `login` (mysql.MysqlLogin).

    time_limit: seconds after which a server should give a question up.
    """

    cdef object login
    cdef dict texts
    cdef int time_limit
    cheapest = b"SELECT 1"  # question, which shows whether a server is up

    def __init__(self, login, int time_limit):
        self.login, self.time_limit = login, time_limit
        self.texts = {
            name: os.fsencode(value)
            for name, value in login._asdict().items() if isinstance(value, str)
        }

    cdef const char *text(self, str name) except? NULL:
        """The parameter, or NULL if it is not set or empty; it lives as long as this does."""
        cdef bytes found = self.texts.get(name, b"")
        return <const char *> found if found else NULL

    def connect(self, address, Attempt attempt not None, uint64_t limit_ms):
        """A Connection to the address, logged in; waits. Raises ConnectFailed, TimeoutError."""
        cdef void *handle = mysql_init(NULL)
        cdef uint64_t until_ms = now_ms() + limit_ms
        cdef Connection wrapped
        if handle == NULL:
            raise MemoryError
        try:
            self.set_options(handle, limit_ms)
            self.log_in(handle, address, attempt, until_ms)
            self.set_charset(handle, attempt, until_ms)
            fd = mysql_get_socket(handle)
            os.set_blocking(fd, False)
            shown = os.fsencode(address.shown)
            wrapped = made(&calls, handle, fd, attempt.host, shown)
        except BaseException:
            with nogil:
                mysql_close(handle)
            raise
        if b"MariaDB" in mysql_get_server_info(handle):
            wrapped.run(TIME_LIMIT % (self.time_limit, self.time_limit), limit_ms)
        return wrapped

    cdef int set_options(self, void *handle, uint64_t limit_ms) except -1:
        cdef unsigned int seconds = <unsigned int> ((limit_ms + 999) // 1000)
        cdef unsigned int no = 0
        cdef char verify = bool(self.login.tls_verify_cert)
        mysql_options(handle, OPT_NONBLOCK, NULL)
        mysql_options(handle, OPT_LOCAL_INFILE, &no)
        if self.text("option_file") != NULL:
            mysql_options(handle, OPT_READ_DEFAULT_FILE, self.text("option_file"))
        if self.text("option_group") != NULL:
            mysql_options(handle, OPT_READ_DEFAULT_GROUP, self.text("option_group"))
        if self.text("charset") != NULL:
            mysql_options(handle, OPT_SET_CHARSET_NAME, self.text("charset"))
        mysql_options(handle, OPT_CONNECT_TIMEOUT, &seconds)
        if any(self.texts.get(name) for name in TLS):
            mysql_ssl_set(
                handle, self.text("tls_key_file"), self.text("tls_cert_file"), self.text("tls_CAfile"),
                self.text("tls_CApath"), self.text("tls_ciphers"),
            )
        if self.login.tls_verify_cert is not None:
            mysql_options(handle, OPT_SSL_VERIFY_SERVER_CERT, &verify)
        return 0

    cdef int log_in(self, void *handle, address, Attempt attempt, uint64_t until_ms) except -1:
        cdef bytes place = os.fsencode(address.host)
        cdef const char *host = NULL
        cdef const char *path = NULL
        cdef const char *user = self.text("user")
        cdef const char *password = NULL
        cdef const char *dbname = self.text("dbname")
        cdef unsigned int port = address.port or 0
        cdef void *connected = NULL
        cdef int waits
        if address.kind == "unix":
            path = place
        else:
            host = place
        if self.login.password is not None:
            password = <bytes> self.texts["password"]
        with nogil:
            waits = mysql_real_connect_start(
                &connected, handle, host, user, password, dbname, port, path, CLIENT_MULTI_RESULTS)
        while waits:
            ready = self.wait(handle, attempt, waits, until_ms)
            with nogil:
                waits = mysql_real_connect_cont(&connected, handle, ready)
        if attempt.know(-1) or (connected == NULL and now_ms() >= until_ms):
            raise TimeoutError
        if connected == NULL:
            raise self.failed(handle)
        return 0

    cdef int set_charset(self, void *handle, Attempt attempt, uint64_t until_ms) except -1:
        """An option file may have said otherwise."""
        cdef const char *name = self.text("charset")
        cdef int number = 0
        cdef int waits
        if name == NULL or mysql_character_set_name(handle) == self.texts["charset"]:
            return 0
        with nogil:
            waits = mysql_set_character_set_start(&number, handle, name)
        while waits:
            ready = self.wait(handle, attempt, waits, until_ms)
            with nogil:
                waits = mysql_set_character_set_cont(&number, handle, ready)
        if number:
            shown = self.login.charset
            raise ConnectFailed(f"mysql_set_character_set '{shown}' failed: {self.failed(handle)}")
        return 0

    cdef int wait(self, void *handle, Attempt attempt, int waits, uint64_t until_ms) except -1:
        """Until the library can go on; when it is too late, that is with an error."""
        cdef int fd = mysql_get_socket(handle)
        cdef int wants = waits & (WANT_READ | WANT_WRITE) or WANT_READ
        cdef int ready = 0
        if not attempt.know(fd):
            with nogil:
                ready = wait_for(fd, wants, until_ms)
        if not ready:
            shutdown(fd, SHUT_RDWR)
        return ready or wants

    cdef object failed(self, void *handle):
        cdef int number = mysql_errno(handle)
        text = os.fsdecode(<bytes> mysql_error(handle))
        many = number in (ER_CON_COUNT_ERROR, ER_TOO_MANY_USER_CONNECTIONS, ER_USER_LIMIT_REACHED)
        return ConnectFailed(text, too_many=many)
