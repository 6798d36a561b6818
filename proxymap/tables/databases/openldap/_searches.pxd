# _searches - searches of a directory over sessions that share them (see _searches.pyx)

from proxymap.base._buf cimport buf
from proxymap.tables._jobs cimport queue
from proxymap.tables.databases._connection cimport Connection, connection
from proxymap.tables.databases.openldap._entries cimport form, item, items, timeval
from proxymap.tables.databases.openldap._session cimport Session, session

ctypedef int (*search_function)(
    void *, const char *, int, const char *, const char **, int, void *, void *, const timeval *, int, int *
) noexcept nogil
ctypedef int (*result_function)(void *, int, int, timeval *, void **) noexcept nogil
ctypedef int (*message_function)(void *) noexcept nogil
ctypedef int (*parse_function)(void *, void *, int *, char **, char **, char ***, void *, int) noexcept nogil
ctypedef const char *(*text_function)(int) noexcept nogil

cdef search_function ldap_search_ext
cdef result_function ldap_result
cdef message_function ldap_msgfree
cdef parse_function ldap_parse_result
cdef text_function ldap_err2string


cdef struct search:
    # What is under way on a connection.
    int msgid          # -1: nothing
    connection *next   # of the session
    item *named        # the special value that is searched for; NULL: it is the first search
    items found        # by the search that is under way
    items todo         # to be looked at when it is over
    items values       # the answer so far
    items done         # special values
    item *row          # of the answer
    size_t entries     # of this search
    bint no_memory
    # Of a connection that follows referrals (_chase):
    bint keeps         # the request that is under way,
    int scope          # its scope,
    buf request        # and base, filter and attributes, each with its NUL
    queue *log         # for warnings; others have the driver's


cdef inline session *session_of(connection *c) noexcept nogil:
    return <session *> c.handle


cdef inline search *search_on(connection *c) noexcept nogil:
    return <search *> c.result


cdef inline const form *form_of(connection *c) noexcept nogil:
    return <const form *> c.question.of.form


cdef int search_judged(connection *c, int error) noexcept nogil
cdef void search_over(connection *c) noexcept nogil
cdef Connection joined(Session shared, int host, bytes shown)
