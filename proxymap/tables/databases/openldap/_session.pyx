"""_session - a connection of libldap, which connections of a driver share: one for each search

It ends with the last of them. Which may join is known to any thread, what is under
way to the driver's alone (_searches).

Source: ldap_unbind_ext(3).
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close as close_fd

from proxymap.base._clock cimport now_ms
from proxymap.base._os cimport (
    SHUT_RDWR, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, shutdown,
)
from proxymap.tables.databases.openldap._entries cimport lib

cdef enum:
    SILENT_MS = 1000  # a session that owes answers for so long gets no more connections

ctypedef int (*unbind_function)(void *, void *, void *) noexcept nogil

cdef unbind_function ldap_unbind_ext = <unbind_function> lib.symbol("ldap_unbind_ext")


cdef bint session_join(session *s) noexcept nogil:
    """A connection more; False: it gets no more, or it owes answers for too long."""
    cdef uint64_t now = now_ms()
    cdef bint may
    pthread_mutex_lock(&s.lock)
    may = not (s.leaving or s.error or (s.waiting and now - max(s.asked_ms, s.heard_ms) > SILENT_MS))
    s.carried += may
    s.users += may
    pthread_mutex_unlock(&s.lock)
    return may


cdef void session_leave(session *s, bint politely, bint leaving) noexcept nogil:
    """A connection less; the last ends the session."""
    cdef bint last
    pthread_mutex_lock(&s.lock)
    s.carried -= 1
    s.leaving = s.leaving or leaving or s.carried == 0
    last = s.carried == 0
    pthread_mutex_unlock(&s.lock)
    if last:
        if not politely:
            shutdown(s.fd, SHUT_RDWR)
        ldap_unbind_ext(s.ld, NULL, NULL)
        close_fd(s.fd)
        s.fd = -1
    session_free(s)


cdef void session_free(session *s) noexcept nogil:
    """A user less."""
    cdef bint last
    pthread_mutex_lock(&s.lock)
    s.users -= 1
    last = s.users == 0
    pthread_mutex_unlock(&s.lock)
    if last:
        pthread_mutex_destroy(&s.lock)
        free(s)


cdef class Session:
    """A session, logged in; it ends with the last connection that it carries."""

    def __dealloc__(self):
        if self.s != NULL:
            session_free(self.s)


cdef Session session_made(void *ld, int fd):
    """Of what was logged in. fd: a duplicate of its socket. Both are the session's now.

    It carries one connection, which the caller has leave when another has joined.
    """
    cdef Session one = Session.__new__(Session)
    one.s = <session *> calloc(1, sizeof(session))
    if one.s == NULL:
        raise MemoryError
    pthread_mutex_init(&one.s.lock, NULL)
    one.s.ld, one.s.fd = ld, fd
    one.s.users, one.s.carried = 2, 1
    one.s.born_ms = one.s.heard_ms = now_ms()
    return one
