# _session - a connection of libldap, which connections of a driver share (see _session.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._os cimport pthread_mutex_t
from proxymap.tables.databases._connection cimport connection


cdef struct session:
    # A connection of libldap; connections of the driver share it, one for each search.
    void *ld
    int fd                 # a duplicate of the library's, which closes its own when it likes
    uint64_t born_ms
    pthread_mutex_t lock
    int users              # that hold this struct: connections, and a Session
    int carried            # connections
    bint leaving           # it gets no more of them
    # The driver's thread changes these:
    connection *first      # those that the driver has
    connection *watcher    # the one of them that epoll knows
    int epoll
    bint writes            # epoll tells when it can be written to
    int error              # why it broke, LDAP_*; 0: it is good
    int waiting            # searches under way
    uint64_t asked_ms      # when the first of these began
    uint64_t heard_ms      # when something came last
    uint64_t answers


cdef bint session_join(session *s) noexcept nogil
cdef void session_leave(session *s, bint politely, bint leaving) noexcept nogil


cdef class Session:
    cdef session *s


cdef Session session_made(void *ld, int fd)
