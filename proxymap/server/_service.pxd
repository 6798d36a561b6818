# _service - the five requests: request -> reply, or request -> job (see _service.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf
from proxymap.server._cache cimport cache
from proxymap.server._catalog cimport catalog, instance
from proxymap._codec cimport request, scan
from proxymap.tables._jobs cimport job, queue
from proxymap.tables._table cimport cursor, glimpse, table

cdef enum:  # what became of a request
    SERVED = 0  # the reply, if any, is in out
    PARKED = 1  # ask again when session.waits_for is open
    SENT = 2    # a worker has it; service_answered makes the reply


cdef struct session:
    # What the service keeps for one connection.
    void *client         # whose it is
    int fd               # of the connection
    cursor *cursors
    instance *waits_for  # after PARKED and SENT
    request request      # the one that was read; after SENT the shape of the reply, its views are void
    int verdict          # on it, PARSE_*
    instance *found      # whom it is for, or NULL; void if the catalog
    uint64_t forgotten   # has forgotten more than that since
    bint alone           # nothing has come behind it, and no other reply is to be sent before its own
    bint lent            # after SENT: the connection is the worker's (_lent) until its answer is back
    glimpse glimpse      # of what the answer will be looked for in


cdef struct service:
    catalog tables
    cache *results       # NULL: no cache
    queue *todo          # tables to open and to close
    queue *asks          # lookups that turn out to take long
    queue *log
    bint writes          # proxywrite
    bint utf8_layer      # smtputf8_enable
    buf folded           # scratch: the folded key
    buf scratch          # scratch of the tables
    uint64_t requests
    table *config        # stands for the files of the configuration; NULL: unknown
    uint64_t turn        # of the loop
    bint lends           # may a worker have a connection?
    uint64_t cursors     # numbers the sequences that workers walk


cdef void service_init(service *s, uint64_t seed) noexcept nogil
cdef void service_free(service *s) noexcept nogil
cdef size_t service_read(service *s, session *who, scan *seen, const char *data, size_t len) noexcept nogil
cdef void service_foresee(service *s, session *who) noexcept nogil
cdef int service_request(service *s, session *who, buf *out) noexcept nogil
cdef int service_answered(service *s, session *who, job *j, buf *out) noexcept nogil
cdef void service_turn(service *s) noexcept nogil
cdef void service_look(service *s) noexcept nogil
cdef instance *service_opened(service *s, job *j) noexcept nogil
cdef void session_free(session *who) noexcept nogil
