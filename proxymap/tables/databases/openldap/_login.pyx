"""_login - connects to directories, by the host's libldap, and logs in

All of this may wait, so it is the pool's threads that do it: a name is resolved, a
socket connected, the library is given it, TLS and bind follow. What hangs ends when
the socket is shut down (Attempt.abort). Then the socket must not block any more, and
further connections to the same host join the session.

libldap reads /etc/ldap/ldap.conf, and would read an `ldaprc` in the working folder,
which is Postfix's queue_directory: it is loaded by a thread that works in `/`.

Source: ldap_table(5); ldap_set_option(3), ldap_sasl_bind(3), openldap.h of OpenLDAP 2.5.
"""

import os
import socket
import threading
from urllib.parse import unquote, urlsplit

from libc.stdint cimport uint64_t
from libc.string cimport strlen

from proxymap.base._clock cimport now_ms
from proxymap.tables.databases._connection cimport WANT_WRITE, Attempt, Connection, wait_for
from proxymap.tables.databases.openldap._entries cimport lib, timeval
from proxymap.tables.databases.openldap._searches cimport joined, ldap_err2string
from proxymap.tables.databases.openldap._session cimport Session, session_leave, session_made

from proxymap.tables.databases.hosts import ConnectFailed

cdef extern from "<sched.h>" nogil:
    enum: CLONE_FS
    int unshare(int)

cdef enum:  # ldap.h, openldap.h, sasl.h
    LDAP_PROTO_TCP = 1
    LDAP_PROTO_IPC = 3
    LDAP_OPT_DEREF = 0x0002
    LDAP_OPT_REFERRALS = 0x0008
    LDAP_OPT_PROTOCOL_VERSION = 0x0011
    LDAP_OPT_DIAGNOSTIC_MESSAGE = 0x0032
    LDAP_OPT_TIMEOUT = 0x5002
    LDAP_OPT_NETWORK_TIMEOUT = 0x5005
    LDAP_OPT_SOCKBUF = 0x5008
    LDAP_OPT_X_TLS_CACERTFILE = 0x6002
    LDAP_OPT_X_TLS_CACERTDIR = 0x6003
    LDAP_OPT_X_TLS_CERTFILE = 0x6004
    LDAP_OPT_X_TLS_KEYFILE = 0x6005
    LDAP_OPT_X_TLS_REQUIRE_CERT = 0x6006
    LDAP_OPT_X_TLS_CIPHER_SUITE = 0x6008
    LDAP_OPT_X_TLS_RANDOM_FILE = 0x6009
    LDAP_OPT_X_TLS_NEWCTX = 0x600f
    LDAP_OPT_X_TLS_NEVER = 0
    LDAP_OPT_X_TLS_DEMAND = 2
    LDAP_OPT_X_SASL_SSF_MIN = 0x6107
    LDAP_TIMEOUT = -5
    LDAP_SASL_QUIET = 2
    LBER_SBIOD_BEFORE_TLS = 15
    SASL_CB_LIST_END = 0
    SASL_CB_USER = 0x4001
    SASL_CB_AUTHNAME = 0x4002
    SASL_CB_PASS = 0x4004
    SASL_CB_GETREALM = 0x4008

cdef struct berval:
    size_t len
    const char *ptr

cdef struct sasl_interact:  # sasl_interact_t
    unsigned long id
    const char *challenge
    const char *prompt
    const char *default_result
    const void *result
    unsigned int len

cdef struct answers:  # to what SASL asks
    const char *user
    const char *name
    const char *password
    const char *realm

ctypedef int (*init_function)(int, int, const char *, void **) noexcept nogil
ctypedef int (*option_function)(void *, int, const void *) noexcept nogil
ctypedef int (*get_function)(void *, int, void *) noexcept nogil
ctypedef int (*bind_function)(
    void *, const char *, const char *, const berval *, void *, void *, berval **
) noexcept nogil
ctypedef int (*interact_function)(void *, unsigned int, void *, void *) noexcept nogil
ctypedef int (*sasl_function)(
    void *, const char *, const char *, void *, void *, unsigned int, interact_function, void *
) noexcept nogil
ctypedef int (*tls_function)(void *, void *, void *) noexcept nogil
ctypedef int (*layer_function)(void *, void *, int, void *) noexcept nogil
ctypedef int (*one_function)(void *) noexcept nogil
ctypedef void (*free_function)(void *) noexcept nogil

cdef init_function ldap_init_fd = <init_function> lib.symbol("ldap_init_fd")
cdef option_function ldap_set_option = <option_function> lib.symbol("ldap_set_option")
cdef get_function ldap_get_option = <get_function> lib.symbol("ldap_get_option")
cdef bind_function ldap_sasl_bind_s = <bind_function> lib.symbol("ldap_sasl_bind_s")
cdef sasl_function ldap_sasl_interactive_bind_s = <sasl_function> lib.symbol("ldap_sasl_interactive_bind_s")
cdef tls_function ldap_start_tls_s = <tls_function> lib.symbol("ldap_start_tls_s")
cdef one_function ldap_install_tls = <one_function> lib.symbol("ldap_install_tls")
cdef tls_function ldap_unbind_ext = <tls_function> lib.symbol("ldap_unbind_ext")
cdef free_function ldap_memfree = <free_function> lib.symbol("ldap_memfree")
cdef layer_function ber_sockbuf_add_io = <layer_function> lib.symbol("ber_sockbuf_add_io")
cdef void *read_ahead = lib.symbol("ber_sockbuf_io_readahead")


cdef void begin():
    """Have the library read its files, on this thread."""
    cdef int version = 0
    if unshare(CLONE_FS) < 0:  # some containers allow no process that
        os.environ["LDAPNOINIT"] = "1"  # so it reads no file at all
    else:
        os.chdir("/")
    with nogil:
        ldap_get_option(NULL, LDAP_OPT_PROTOCOL_VERSION, &version)


def _begin():
    begin()


_thread = threading.Thread(target=_begin, name="libldap")
_thread.start()
_thread.join()


cdef int answer(void *ld, unsigned int flags, void *context, void *asked) noexcept nogil:
    """What SASL wants to know."""
    cdef sasl_interact *one = <sasl_interact *> asked
    cdef answers *known = <answers *> context
    cdef const char *text
    while one.id != SASL_CB_LIST_END:
        text = b""
        if one.id == SASL_CB_USER:
            text = known.user
        elif one.id == SASL_CB_AUTHNAME:
            text = known.name
        elif one.id == SASL_CB_PASS:
            text = known.password
        elif one.id == SASL_CB_GETREALM:
            text = known.realm
        one.result = text
        one.len = <unsigned int> strlen(text)
        one += 1
    return 0


cdef class OpenLDAP:
    """Connects to the servers of one table, with its `login` (login.LdapLogin)."""

    cdef object login
    cdef dict sessions  # the latest, by address
    cdef object lock
    cdef dict locks     # so that connections which are opened at the same time share one

    def __init__(self, login):
        self.login = login
        self.sessions, self.locks, self.lock = {}, {}, threading.Lock()

    def connect(self, address, Attempt attempt not None, uint64_t limit_ms):
        """A Connection to the address, logged in; waits. Raises ConnectFailed, TimeoutError."""
        cdef uint64_t until_ms = now_ms() + limit_ms
        cdef Connection one
        with self.lock:
            lock = self.locks.setdefault(address, threading.Lock())
        if not lock.acquire(timeout=limit_ms / 1000.0):
            raise TimeoutError
        try:
            one = self.join(address, attempt)
            return one if one is not None else self.open(address, attempt, until_ms)
        finally:
            lock.release()

    cdef Connection join(self, address, Attempt attempt):
        """A connection over the session that there is; None if there is none that takes it."""
        cdef Session shared = self.sessions.get(address)
        return None if shared is None else joined(shared, attempt.host, os.fsencode(address.shown))

    cdef Connection open(self, address, Attempt attempt, uint64_t until_ms):
        cdef Session shared = self.log_in(address, attempt, until_ms)
        self.sessions[address] = shared
        try:
            return joined(shared, attempt.host, os.fsencode(address.shown))
        finally:
            session_leave(shared.s, True, False)

    cdef Session log_in(self, address, Attempt attempt, uint64_t until_ms):
        cdef object peer = reach(address.host, attempt, until_ms)
        cdef bytes url = os.fsencode(address.host)
        cdef const char *where = url
        cdef bint local = url.startswith(b"ldapi:")
        cdef int fd = peer.fileno()
        cdef int error
        cdef void *ld = NULL
        with nogil:
            error = ldap_init_fd(fd, LDAP_PROTO_IPC if local else LDAP_PROTO_TCP, where, &ld)
        if error:
            peer.close()
            raise ConnectFailed(f"Unable to init LDAP server {address.shown}: {text_of(error)}")
        peer.detach()  # it is the library's now
        try:
            self.set_options(ld, until_ms)
            self.protect(ld, address.shown)
            self.bind(ld, address.shown)
            if attempt.know(-1):
                raise TimeoutError
            os.set_blocking(fd, False)
            self.read_ahead(ld, address.host)
            return session_made(ld, os.dup(fd))
        except BaseException:
            with nogil:
                ldap_unbind_ext(ld, NULL, NULL)
            if attempt.aborted:
                raise TimeoutError from None
            raise

    cdef int set_options(self, void *ld, uint64_t until_ms) except -1:
        cdef timeval left
        cdef int version = self.login.version
        cdef int dereference = self.login.dereference
        cdef uint64_t now = now_ms()
        left.tv_sec = <long> ((until_ms - now) // 1000 + 1 if until_ms > now else 1)
        left.tv_usec = 0
        ldap_set_option(ld, LDAP_OPT_PROTOCOL_VERSION, &version)
        ldap_set_option(ld, LDAP_OPT_DEREF, &dereference)
        ldap_set_option(ld, LDAP_OPT_REFERRALS, NULL)  # LDAP_OPT_OFF
        ldap_set_option(ld, LDAP_OPT_TIMEOUT, &left)
        ldap_set_option(ld, LDAP_OPT_NETWORK_TIMEOUT, &left)
        return 0

    cdef int protect(self, void *ld, str shown) except -1:
        """TLS, if it is wanted."""
        cdef int error
        cdef bint ldaps = shown.lower().startswith("ldaps:")
        cdef bint starts = self.login.start_tls
        if not ldaps and not starts:
            return 0
        self.set_tls(ld)
        if ldaps:
            with nogil:
                error = ldap_install_tls(ld)
            if error:
                raise failed(ld, "TLS cannot be had", error)
        if starts:
            with nogil:
                error = ldap_start_tls_s(ld, NULL, NULL)
            if error:
                raise failed(ld, "Unable to set STARTTLS", error)
        return 0

    cdef int set_tls(self, void *ld) except -1:
        cdef int demand = LDAP_OPT_X_TLS_DEMAND if self.login.tls_require_cert else LDAP_OPT_X_TLS_NEVER
        cdef int client = 0
        cdef int number
        cdef bytes value
        ldap_set_option(ld, LDAP_OPT_X_TLS_REQUIRE_CERT, &demand)
        for number, text in (
            (LDAP_OPT_X_TLS_CACERTFILE, self.login.tls_ca_cert_file),
            (LDAP_OPT_X_TLS_CACERTDIR, self.login.tls_ca_cert_dir),
            (LDAP_OPT_X_TLS_CERTFILE, self.login.tls_cert), (LDAP_OPT_X_TLS_KEYFILE, self.login.tls_key),
            (LDAP_OPT_X_TLS_RANDOM_FILE, self.login.tls_random_file),
            (LDAP_OPT_X_TLS_CIPHER_SUITE, self.login.tls_cipher_suite),
        ):
            value = os.fsencode(text)
            if value and ldap_set_option(ld, number, <const char *> value):
                raise ConnectFailed(f"TLS: libldap does not take {text}")
        if ldap_set_option(ld, LDAP_OPT_X_TLS_NEWCTX, &client):
            raise ConnectFailed("Unable to allocate new TLS context: see to its files and its cipher suite")
        return 0

    cdef int bind(self, void *ld, str shown) except -1:
        cdef bytes name = os.fsencode(self.login.bind_dn)
        cdef bytes password = os.fsencode(self.login.bind_pw)
        cdef const char *dn = name
        cdef berval credentials
        cdef int error
        if self.login.bind == "no":
            return 0
        if self.login.bind == "sasl":
            error = self.sasl(ld, name, password)
        else:
            credentials.ptr, credentials.len = password, len(password)
            with nogil:
                error = ldap_sasl_bind_s(ld, dn, NULL, &credentials, NULL, NULL, NULL)
        if error:
            who = self.login.bind_dn or "empty or implicit"
            raise failed(ld, f"Unable to bind to server {shown} with dn {who}", error)
        return 0

    cdef int sasl(self, void *ld, bytes name, bytes password) except? -1:
        cdef answers known
        cdef size_t least = self.login.sasl_minssf
        cdef bytes mechanisms = os.fsencode(self.login.sasl_mechs)
        cdef bytes realm = os.fsencode(self.login.sasl_realm)
        cdef bytes user = os.fsencode(self.login.sasl_authz_id)
        cdef const char *mechs = mechanisms
        cdef int error
        if not mechanisms:
            mechs = NULL
        known.name, known.password, known.realm, known.user = name, password, realm, user
        ldap_set_option(ld, LDAP_OPT_X_SASL_SSF_MIN, &least)
        with nogil:
            error = ldap_sasl_interactive_bind_s(ld, NULL, mechs, NULL, NULL, LDAP_SASL_QUIET, answer, &known)
        return error

    cdef int read_ahead(self, void *ld, str url) except -1:
        """Read what comes at once, and not header by header, where no other layer does that."""
        cdef void *sockbuf = NULL
        if self.login.bind != "sasl" and not self.login.start_tls and not url.startswith("ldaps:"):
            if ldap_get_option(ld, LDAP_OPT_SOCKBUF, &sockbuf) == 0 and sockbuf != NULL:
                ber_sockbuf_add_io(sockbuf, read_ahead, LBER_SBIOD_BEFORE_TLS, NULL)
        return 0


cdef object reach(str url, Attempt attempt, uint64_t until_ms):
    """A socket that is connected to the server, and blocks."""
    parts = urlsplit(url)
    if parts.scheme == "ldapi":
        found = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", unquote(parts.netloc))]
    else:
        try:
            name = os.fsencode(parts.hostname)  # text would need a codec, which a jail may lack
            found = socket.getaddrinfo(name, parts.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConnectFailed(f"{parts.hostname}: {error.strerror}") from None
    error = None
    for number, (family, kind, protocol, _, where) in enumerate(found):
        now = now_ms()
        if now >= until_ms:
            break
        peer = socket.socket(family, kind, protocol)
        try:
            connect(peer, where, attempt, now + (until_ms - now) // <uint64_t> (len(found) - number))
            return peer
        except OSError as trouble:
            peer.close()
            error = trouble
    if error is None or isinstance(error, TimeoutError):
        raise TimeoutError
    raise ConnectFailed(f"Can't contact LDAP server: {error.strerror}")


cdef int connect(peer, where, Attempt attempt, uint64_t until_ms) except -1:
    cdef int fd = peer.fileno()
    cdef int ready
    peer.setblocking(False)
    if attempt.know(fd):
        raise TimeoutError
    try:
        peer.connect(where)
    except BlockingIOError:
        with nogil:
            ready = wait_for(fd, WANT_WRITE, until_ms)
        if not ready or attempt.aborted:
            raise TimeoutError from None
        if number := peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number)) from None
    peer.setblocking(True)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if peer.family != socket.AF_UNIX:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return 0


cdef str text_of(int error):
    return os.fsdecode(<bytes> ldap_err2string(error))


cdef object failed(void *ld, str what, int error):
    """With what the server, or the library, adds to it; TimeoutError if it took too long."""
    cdef char *told = NULL
    if error == LDAP_TIMEOUT:
        return TimeoutError()
    text = f"{what}: {error} ({text_of(error)})"
    ldap_get_option(ld, LDAP_OPT_DIAGNOSTIC_MESSAGE, &told)
    if told != NULL:
        if told[0]:
            text += f": {os.fsdecode(<bytes> told)}"
        ldap_memfree(told)
    return ConnectFailed(text)
