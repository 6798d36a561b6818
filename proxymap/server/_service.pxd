# _service - what one service has, and what it keeps for each connection (see _service.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, buf_view, view
from proxymap.base._clock cimport now_ns
from proxymap.metrics._counters cimport (
    LOOKUP_SECONDS, LOOKUPS, REQUESTS, SLOWER, STATUSES, count_one, count_size, figures,
)
from proxymap.server._cache cimport cache
from proxymap.server._catalog cimport catalog, instance
from proxymap._codec cimport request
from proxymap.server._flight cimport flights, waiter
from proxymap.tables._jobs cimport job, queue
from proxymap.tables._table cimport cursor, glimpse, table
from proxymap.server.tracing._trace cimport tracers
from proxymap._words cimport DICT_FLAGS_TRY, REQ_LOOKUP, STAT_RETRY

cdef enum:  # what became of a request
    SERVED = 0  # the reply, if any, is in out
    PARKED = 1  # ask again when session.waits_for is open
    SENT = 2    # a worker has it; work_answered makes the reply


cdef struct session:
    # What the service keeps for one connection.
    void *client         # whose it is
    int fd               # of the connection
    cursor *cursors
    instance *waits_for  # after PARKED and SENT
    request request      # the one that was read; after SENT the shape of the reply, its views are void
    int verdict          # on it, PARSE_*
    instance *found      # the instance that the request names, or NULL
    uint64_t forgotten   # catalog.forgotten at that time; if that has grown, `found` is void
    bint alone           # nothing has come behind it, and no other reply is to be sent before its own
    bint lent            # after SENT: the connection is the worker's (_lent) until its answer is back
    glimpse glimpse      # of what the answer will be looked for in
    int flags            # dictionary flags of a lookup that was sent
    bint due             # the answer from the cache is near the end of its life
    waiter waits         # for a question that others may ask as well
    int source           # of the answer to a lookup, FROM_*
    uint64_t asked_ns    # when the request was sent to a worker; 0: it was not
    uint64_t parked_ns   # when it began to wait for a table to open; 0: it did not


cdef struct service:
    catalog tables
    cache *results       # NULL: no cache
    queue *todo          # tables to open and to close
    queue *renewals      # tables to open again that are open, and opened at once
    job *retired         # what brought tables that will be closed when all jobs that name them are back
    queue *asks          # lookups that turn out to take long
    queue *done          # all answers
    queue *log
    bint writes          # proxywrite
    bint utf8_layer      # smtputf8_enable
    buf folded           # scratch: the folded key
    buf scratch          # scratch of the tables
    uint64_t requests    # answered, or sent to a worker
    table *config        # stands for the files of the configuration; NULL: unknown
    bint config_looking  # a worker looks at them, since no event tells of changes
    uint64_t config_ms   # when it may be asked again
    uint64_t turn        # of the loop
    size_t waiting_limit     # requests that may wait for one instance
    size_t value_size_limit  # bytes of a value; a longer one is RETRY
    bint lends           # may a worker have a connection?
    uint64_t cursors     # numbers the sequences that workers walk
    flights flights      # questions under way
    bint timed           # there are tables whose answers age
    uint64_t now_ms      # when this turn began, if so
    uint64_t stale_age_ms  # of the oldest answer that has stood in
    uint64_t dice        # for lifetimes that do not end together
    figures *figures     # what is counted of the service, by all its processes
    tracers tracing      # who follows the lookups
    uint64_t turn_ns     # when this turn began, if anybody does
    uint64_t slow_since_ns  # when the current second of lines about slow lookups began,
    unsigned int slow_lines  # how many were written in it,
    uint64_t slow_more   # and how many were not since the latest line


cdef void service_init(service *s, uint64_t seed) noexcept nogil
cdef void service_free(service *s) noexcept nogil
cdef void session_free(session *who) noexcept nogil
cdef cursor *session_cursor(session *who, instance *i) noexcept nogil
cdef void service_warn(service *s, view before, view what, view after) noexcept nogil
cdef void service_complain(service *s, instance *i, const char *what) noexcept nogil
cdef int service_too_long(service *s, const instance *i) noexcept nogil
cdef void service_warn_not_utf8(service *s, instance *i, const char *what, view text) noexcept nogil


cdef void service_trace(
    service *s, const session *who, view table, view key, int status, int source) noexcept nogil
cdef void service_tell_slow(service *s, const instance *i, int status, uint64_t began_ns) noexcept nogil


cdef inline void count_request(
    service *s, const instance *i, const session *who, view key, int status
) noexcept nogil:
    """The request of who has its reply: each is counted here, when that is appended, and nowhere else.

    key: of a lookup, as it was asked for in the end.
    """
    if s.tracing.count and who.request.kind == REQ_LOOKUP:
        service_trace(s, who, buf_view(&i.name), key, status, who.source)
    if who.request.kind == REQ_LOOKUP:
        count_one(i.figures, LOOKUPS + who.source * STATUSES + (status & STATUSES - 1))
        if who.asked_ns:
            count_size(i.figures, LOOKUP_SECONDS, SLOWER, now_ns() - who.asked_ns)
    else:
        count_one(i.figures, REQUESTS + who.request.kind * STATUSES + (status & STATUSES - 1))


cdef inline bint is_shared(const service *s, const instance *i) noexcept nogil:
    """Are the answers of this table kept, and given to all who ask at once?"""
    return s.results != NULL and i.t.cached


cdef inline bint is_crowded(const service *s, const instance *i) noexcept nogil:
    """Do as many requests wait for the table as may?"""
    return i.waiting + i.jobs >= s.waiting_limit


cdef inline void count_deferred(table *t, int status) noexcept nogil:
    """A client gets this answer of the table: if it is RETRY, its server knows how many there are."""
    cdef queue *asked = <queue *> t.asks
    if status == STAT_RETRY and asked != NULL:
        asked.deferred += 1


cdef inline uint64_t answers_owner(const instance *i, int flags) noexcept nogil:
    """Whose answers these are, in the cache and under way: of one open table, with the same try bits."""
    return i.cache_id << 2 | (flags & DICT_FLAGS_TRY) >> 2


cdef inline uint64_t generation_of(const instance *i) noexcept nogil:
    """Of the open table's content: an answer counts for one."""
    return i.t.generation(i.t) if i.t.generation != NULL else 0
