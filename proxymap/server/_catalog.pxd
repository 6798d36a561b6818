# _catalog - (type:name, instance flags) -> open table (see _catalog.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, view
from proxymap.metrics._counters cimport figures
from proxymap.tables._jobs cimport job
from proxymap.tables._table cimport table

cdef enum:  # what a worker is doing for an instance; docs/architecture.md has a diagram
    AT_REST = 0
    OPENING = 1   # it opens the table, for the first time or again, and requests wait
    RENEWING = 2  # it opens the new content, and the old table answers meanwhile
    LOOKING = 3   # it looks whether the files of a polled table have changed, and requests wait


cdef struct instance:
    # A table as one kind of client sees it: same name, same dialect, same instance flags.
    instance *chain     # next in the same slot
    uint64_t hash
    buf name            # type:name
    int dialect
    int inst_flags
    int given_flags     # all flags of the request that named it first: it is opened with these
    int open_flags      # the flags of the freshly opened table
    int flags           # the dictionary's flag word as the latest request left it (3.6)
    table *t            # NULL until it was opened once
    job *brought        # the job that brought t, and will have it closed
    uint64_t id         # another one for each table that t has been
    uint64_t cache_id   # the same for the cache, and another one after each flush
    bint approved       # may its name still be served?
    uint64_t lookups    # asked of it, and the answers that came from the cache
    uint64_t hits
    uint64_t joined     # lookups that joined a question under way
    uint64_t stale      # old answers that stood in
    uint64_t errors     # answers of RETRY and CONFIG
    uint64_t opened_ms  # when t came
    uint64_t since_ms   # when it was first asked for
    int state           # AT_REST or another of those above
    uint64_t began_ms   # when the worker was asked
    bint look_again     # something has happened to the files since the worker began
    bint doubtful       # the new content could not be opened, for no fault of its own: try again
    bint anew           # open it again then, whatever they look like
    bint complained     # the log has a line about what cannot be done with it
    uint64_t retry_ms   # when opening again may be tried
    uint64_t looked     # the turn in which a polled table was looked at
    unsigned long used  # when it was last asked for, in requests
    void *waiters       # connections that wait until it is open
    size_t waiting      # how many connections wait for that, or for answers that are shared
    unsigned int jobs   # requests that workers have; their replies need it
    figures *figures    # what is counted of its table, by all processes


cdef struct approved:
    approved *chain
    uint64_t hash
    buf name


cdef struct catalog:
    instance *slots[1024]
    approved *approved[1024]
    unsigned int count
    uint64_t seed
    uint64_t last_id
    uint64_t forgotten   # instances that made room so far
    unsigned long clock  # requests so far
    instance *latest     # that was found


cdef void catalog_init(catalog *c, uint64_t seed) noexcept nogil
cdef void catalog_free(catalog *c) noexcept nogil
cdef int catalog_approve(catalog *c, view name) noexcept nogil
cdef void catalog_approve_none(catalog *c) noexcept nogil
cdef void catalog_recheck(catalog *c) noexcept nogil
cdef bint catalog_is_approved(const catalog *c, view name) noexcept nogil
cdef instance *catalog_find(catalog *c, view name, int dialect, int inst_flags) noexcept nogil
cdef instance *catalog_next(const catalog *c, const instance *i) noexcept nogil
cdef void catalog_give_up(catalog *c)
cdef instance *catalog_add(
    catalog *c, view name, int dialect, int inst_flags, int flags, job **retired) noexcept nogil
cdef job *catalog_opened(catalog *c, instance *i, job *j, bint utf8_layer) noexcept nogil
