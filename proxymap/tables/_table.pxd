# _table - what a table must offer the loop (see _table.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, view, view_until_nul
from proxymap.base._stamp cimport stamp
from proxymap.base._watch cimport Watch, Way
from proxymap._words cimport *

cpdef enum:  # the file of an open table, compared with what was opened
    CHANGED_NOT = 0
    CHANGED_REPLACED = 1  # its name leads to another file, or none; what is open is as good as ever
    CHANGED_SPOILED = 2   # it was written over or cut: what is open is not to be trusted


cdef enum:  # what lookup may return besides STAT_*
    STAT_LATER = 100  # this one takes long: a worker is to ask, through Table.ask

cpdef enum:  # what workers do for a table that the loop cannot ask itself
    SLOW_LOOKUP = 1
    SLOW_SEQUENCE = 2
    SLOW_WRITE = 4


cdef struct cursor:
    # Where one connection stands in the sequence of one table.
    uint64_t of          # which table, by the number that the catalog gave it
    uint64_t position    # the table's own; 0: not begun, or at the end. Of a slow table: its number
    buf key              # the latest key, for tables that seek by key
    cursor *next         # of the same connection


cdef struct origin:
    # A file that a table was loaded from.
    const char *path   # borrowed from Table.files
    stamp seen         # as it was when it was loaded, or refused
    const bint *written  # points to: is it being written, by this name? NULL: that is not known
    const bint *own    # the same by any name
    origin *next


cdef extern from *:
    """
    #define proxymap_prefetch(p) __builtin_prefetch(p)
    """
    void prefetch "proxymap_prefetch"(const void *p) noexcept nogil


cdef enum:
    GLIMPSES = 2  # places that a key may be at


cdef struct glimpse:
    # How far foresee has come with a key; all zero at first.
    const table *of           # which table; NULL: it was not asked
    int step
    uint64_t at[GLIMPSES]     # where it looks (0: nowhere), and what for; the table's own
    uint64_t what[GLIMPSES]


cdef struct policy:
    # How long the cache keeps answers of a table that is asked over time; ms, see server/_sharing.
    uint64_t ttl_ms               # 0: values are not kept
    uint64_t negative_ttl_ms      # the same for "no"
    uint64_t error_ttl_ms         # for a question that was refused
    uint64_t stale_ttl_ms         # how much longer a value may stand in for one that cannot be had,
    uint64_t stale_negative_ttl_ms  # and a "no"
    uint64_t stale_wait_ms        # how long a client waits before it gets such an old answer
    int refresh_percent           # of a life, at its end: a hit has the answer asked for anew


cdef struct table:
    # The answers below return STAT_*. Views that they hand out stay valid until
    # the caller's scratch is used again or the table is closed.

    # Key to value. flags is the dictionary's flag word: read, and try bits cleared. NULL: it is slow.
    int (*lookup)(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil
    # Have the CPU fetch what lookup will read: of that the next part, each time that it is called, when
    # the part before has come. False: there is no more. It changes no answer. NULL: not worth while.
    bint (*foresee)(table *t, view key, int flags, glimpse *g) noexcept nogil
    # Lookup of the key that foresee saw; comes with that.
    int (*lookup_foreseen)(
        table *t, view key, const glimpse *g, int *flags, buf *scratch, view *value
    ) noexcept nogil
    # The first or the next record; NULL: this type has no sequence.
    int (*sequence)(table *t, cursor *c, int function, buf *scratch, view *key, view *value) noexcept nogil
    # Lookup by a thread that has all the time in the world: never STAT_LATER. NULL: lookup itself.
    int (*lookup_patiently)(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil
    # Store value, or delete (value NULL), without touching a disk. NULL: there are no such updates.
    int (*write)(table *t, view key, const view *value, int *flags) noexcept nogil
    # Changes whenever answers may change; NULL: never.
    uint64_t (*generation)(table *t) noexcept nogil
    # What has become of the file behind it, CHANGED_*; NULL: nothing ever.
    int (*changed)(table *t) noexcept nogil
    # Was the file cut or written to until now? Then what was answered is void. NULL: never.
    bint (*damaged)(table *t) noexcept nogil

    origin *origins      # the files behind it
    bint quick           # is opened in no time: requests wait for the new content after a change
    bint incomplete      # something that it is made of could not be opened: try again now and then
    bint polled          # no event tells of changes: look each turn
    unsigned int jobs    # out to workers; it stays open while there are any
    unsigned int retired  # references to drop when there are none

    int slow             # SLOW_*: what is asked of workers
    void *asks           # struct queue: where jobs for them go; NULL: the service's own
    void *changes        # struct queue: where updates and deletes go

    void *self           # what the type itself needs
    bint cached          # may the cache stand in front of it?
    bint timed           # then answers are kept for a time, as `keeps` says; else until `generation` changes
    policy keeps
    uint64_t slow_log_ns  # a lookup that a worker or server has answered after so long is logged; 0: none
    int flags            # implementation and try bits, as an open reply shows them
    int fold_bit         # which request bit makes the type fold keys without the UTF-8 layer; 0: none
    void *owner          # the Table that this struct is part of (borrowed)
    const char *reason   # of a surrogate: why the table could not be opened; else NULL


cdef int table_flags(const table *t, int given, bint utf8_layer) noexcept nogil
cdef int table_fold(const table *t, bint utf8_layer, int flags, view *key, buf *scratch) noexcept nogil

ctypedef int (*find_function)(
    table *t, view key, bint nul, const glimpse *g, buf *scratch, view *value
) noexcept nogil


cdef inline int table_try_nul(
    find_function find, table *t, view key, const glimpse *g, int *flags, buf *scratch, view *value
) noexcept nogil:
    """Look up key in an indexed file, where keys may be stored with a trailing NUL or without.

    With both try bits set the NUL comes first; the first hit decides and clears
    the other bit. A value ends at its first NUL. Source: tables.md 4.2.
    """
    cdef int status = STAT_NOKEY
    if flags[0] & DICT_FLAG_TRY1NULL:
        status = find(t, key, True, g, scratch, value)
        if status == STAT_OK:
            flags[0] &= ~DICT_FLAG_TRY0NULL
    if status == STAT_NOKEY and flags[0] & DICT_FLAG_TRY0NULL:
        status = find(t, key, False, g, scratch, value)
        if status == STAT_OK:
            flags[0] &= ~DICT_FLAG_TRY1NULL
    if status == STAT_OK:
        value[0] = view_until_nul(value[0])
    return status


cdef class Table:
    cdef object __weakref__
    cdef table t
    cdef readonly bytes type_name
    cdef readonly list files    # paths, in the order of origins
    cdef list ways              # how its files are watched, see _watch
    cdef public object parts    # names of the tables that it is made of, or asks
    cdef public int heeded      # flags of its opening that made a difference to what it holds
    cdef public int faults      # rules or lines that were skipped when it was loaded
    cdef public str trouble     # the latest, for the administrator; empty: none
    cdef public bint watches_content  # must each write to its files be seen, or only whole changes?
    cdef public bint watches_writers  # is it of interest that somebody is writing to them?
    cdef public object crews  # who work on its queues; see attach in _jobs

    cdef forget_origins(self)
    cpdef watch(self, Watch watch)


cdef int origins_changed(table *t) noexcept nogil
cdef bint origins_replaced(table *t) noexcept nogil


cdef class Surrogate(Table):
    cdef bytes text


cdef class Slow(Table):
    cdef readonly object answers
