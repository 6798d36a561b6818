# _counters - counters that all processes of a service share (see _counters.pyx)

from libc.stdint cimport uint32_t, uint64_t

from proxymap.base._buf cimport view

cdef extern from *:
    """
    #define proxymap_add(p, n) ((void) __atomic_fetch_add(p, n, __ATOMIC_RELAXED))
    #define proxymap_bits(n) ((n) ? 64 - __builtin_clzll(n) : 0)
    """
    void atomic_add "proxymap_add"(uint64_t *p, uint64_t n) noexcept nogil
    int bits "proxymap_bits"(uint64_t n) noexcept nogil

cdef enum:
    ROWS = 1024       # of tables, servers and the service itself; some hundred tables are many
    KINDS = 3         # OF_*; of each the last rows have one for what finds no room
    NAME_MAX = 236    # bytes; of a longer name the end gives way to a hash
    CELLS = 160
    STATUSES = 8      # cells for what a request was answered, STAT_*

cpdef enum:  # what a row is about
    OF_SERVICE = 1  # the service as a whole; its name is empty
    OF_TABLE = 2    # type:name
    OF_SERVER = 3   # type and hosts of a database server

cpdef enum:  # where the answer to a lookup came from
    FROM_TABLE = 0   # the table was asked at once
    FROM_SERVER = 1  # a worker, or a database server
    FROM_CACHE = 2
    FROM_JOINED = 3  # the same, on another client's question
    FROM_STALE = 4   # an old answer stood in
    FROM_SHED = 5    # nobody was asked: too many wait
    SOURCES = 6

cpdef enum:  # how values are counted by size, see count_size
    BUCKETS = 24     # cells; that behind them has the sum
    FASTER = 10      # the first bucket ends at 2 to the power of this, in ns
    SLOWER = 14

cpdef enum:  # cells of a table's row
    LOOKUPS = 0            # source * STATUSES + status
    REQUESTS = 48          # REQ_* * STATUSES + status; of lookups nothing
    OPENINGS = 96          # OPENED or OPEN_FAILED
    LOOKUP_SECONDS = 104   # of those that were not answered at once

cpdef enum:
    OPENED = 0
    OPEN_FAILED = 1

cpdef enum:  # cells of a server's row
    ANSWERS = 0
    LATE = 1
    SHED = 2
    RETRIES = 3
    PROBES = 4
    ERRORS = 8             # ERROR_*
    QUEUE_SECONDS = 32     # from the question to its turn, as far as it is measured

cpdef enum:  # what went wrong with a server
    ERROR_FAILED = 0       # a connection or a probe
    ERROR_DOWN = 1         # a host went down

cpdef enum:  # cells of the service's row
    REFUSED = 0            # REFUSED_*
    CONNECTIONS = 8        # accepted
    HANGUPS = 9            # clients that made room for others
    PAUSES = 10            # times that accepting paused
    STARTS = 11            # processes that have begun to serve
    RELOADS = 12
    LOG_LOST = 13          # lines
    EVICTIONS = 14         # answers that made room in the cache
    TURN_SECONDS = 32      # of the loop; of one turn in TURNS_APART
    TURN_CLIENTS = 64

cpdef enum:  # why a request was refused that names no open table
    REFUSED_UNAPPROVED = 0
    REFUSED_READ_ONLY = 1  # a change, asked of the read-only service
    REFUSED_BAD = 2        # not understood
    REFUSED_TOO_LONG = 3   # over request_size_limit
    REFUSED_MEMORY = 4     # there is none


cdef struct figures:
    # A row. Found once, then only added to.
    uint32_t state       # ROW_*
    uint32_t kind        # OF_*
    uint64_t hash        # of kind and name
    uint32_t len         # of the name
    char name[236]
    uint64_t cells[160]


cdef figures *figures_of(int kind, view name) noexcept nogil


cdef inline void count_one(figures *f, int cell) noexcept nogil:
    """One more."""
    atomic_add(&f.cells[cell], 1)


cdef inline void count_both(uint64_t *own, figures *f, int cell) noexcept nogil:
    """One more, of this process and of all."""
    own[0] += 1
    count_one(f, cell)


cdef inline void count_more(figures *f, int cell, uint64_t n) noexcept nogil:
    atomic_add(&f.cells[cell], n)


cdef inline void count_size(figures *f, int first, int shift, uint64_t size) noexcept nogil:
    """A value of that size: into the bucket that ends at 2 ** (shift + bucket), and into the sum."""
    cdef int bucket = bits((size - 1) >> shift) if size else 0
    atomic_add(&f.cells[first + min(bucket, BUCKETS - 1)], 1)
    atomic_add(&f.cells[first + BUCKETS], size)


cdef class Figures:
    cdef figures *f
