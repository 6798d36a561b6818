"""_catalog - (type:name, instance flags) -> open table, and the names that are approved

An instance is a table as one kind of client sees it; several instances may
share one open table, since flags are no part of a table. Which instances there
are is up to the clients, so their number is bounded: the one longest unused
makes room. Each instance holds one reference to its table, and the job that
brought it; a table that it gives up goes with that job to the caller, who has
it closed where the GIL is: that needs no memory.

One thread, the loop's. Source: tables.md 2.2 to 2.5 (sharing, flags).
"""

from cpython.ref cimport Py_DECREF
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from proxymap.base._buf cimport buf_append_view, buf_free, buf_view, view, view_equal
from proxymap.base._clock cimport now_ms
from proxymap.base._hash cimport hash_view
from proxymap.metrics._counters cimport OF_TABLE, figures_of
from proxymap.tables._jobs cimport job, job_free
from proxymap.tables._table cimport CHANGED_SPOILED, table, table_flags
from proxymap._words cimport *

cdef enum:
    SLOTS = 1024
    INSTANCES_MAX = 4096  # a few flag words for each of some hundred approved tables
    INSTANCES_OF_A_TABLE = 64  # Postfix's programs know some ten flag words


cdef void catalog_init(catalog *c, uint64_t seed) noexcept nogil:
    memset(c, 0, sizeof(catalog))
    c.seed = seed


cdef void catalog_free(catalog *c) noexcept nogil:
    """Free the catalog; the tables were given up before."""
    cdef instance *i
    cdef int slot
    for slot in range(SLOTS):
        while c.slots[slot] != NULL:
            i = c.slots[slot]
            c.slots[slot] = i.chain
            if i.brought != NULL:
                job_free(i.brought)
            buf_free(&i.name)
            free(i)
    catalog_approve_none(c)


cdef void catalog_approve_none(catalog *c) noexcept nogil:
    cdef approved *a
    cdef int slot
    for slot in range(SLOTS):
        while c.approved[slot] != NULL:
            a = c.approved[slot]
            c.approved[slot] = a.chain
            buf_free(&a.name)
            free(a)


cdef int catalog_approve(catalog *c, view name) noexcept nogil:
    """Approve type:name; 0, or -1 without memory."""
    cdef approved *a
    if catalog_is_approved(c, name):
        return 0
    a = <approved *> calloc(1, sizeof(approved))
    if a == NULL:
        return -1
    if buf_append_view(&a.name, name) < 0:
        free(a)
        return -1
    a.hash = hash_view(name, c.seed)
    a.chain = c.approved[a.hash % SLOTS]
    c.approved[a.hash % SLOTS] = a
    return 0


cdef void catalog_recheck(catalog *c) noexcept nogil:
    """After new approvals: which instances may be served?"""
    cdef instance *i = catalog_next(c, NULL)
    while i != NULL:
        i.approved = catalog_is_approved(c, buf_view(&i.name))
        i = catalog_next(c, i)


cdef bint catalog_is_approved(const catalog *c, view name) noexcept nogil:
    cdef uint64_t hash = hash_view(name, c.seed)
    cdef approved *a = c.approved[hash % SLOTS]
    while a != NULL and not (a.hash == hash and view_equal(buf_view(&a.name), name)):
        a = a.chain
    return a != NULL


cdef instance *catalog_find(catalog *c, view name, int dialect, int inst_flags) noexcept nogil:
    """The instance, or NULL if no request has named it yet."""
    cdef instance *i = c.latest
    cdef uint64_t hash
    if i == NULL or not is_called(i, name, dialect, inst_flags):
        hash = hash_view(name, c.seed)
        i = c.slots[hash % SLOTS]
        while i != NULL and not (i.hash == hash and is_called(i, name, dialect, inst_flags)):
            i = i.chain
        if i == NULL:
            return NULL
        c.latest = i
    c.clock += 1
    i.used = c.clock
    return i


cdef instance *catalog_next(const catalog *c, const instance *i) noexcept nogil:
    """The instance after i, in no order; the first if i is NULL, NULL after the last."""
    cdef int slot = 0
    if i != NULL:
        if i.chain != NULL:
            return i.chain
        slot = i.hash % SLOTS + 1
    while slot < SLOTS and c.slots[slot] == NULL:
        slot += 1
    return c.slots[slot] if slot < SLOTS else NULL


cdef void catalog_give_up(catalog *c):
    """Drop the references to tables. With the GIL, at the end of the loop's life."""
    cdef instance *i = catalog_next(c, NULL)
    while i != NULL:
        if i.t != NULL and i.t.jobs == 0:  # a worker that hangs may still use it
            Py_DECREF(<object> i.t.owner)
            i.t = NULL
        i = catalog_next(c, i)


cdef inline bint is_called(const instance *i, view name, int dialect, int inst_flags) noexcept nogil:
    return i.inst_flags == inst_flags and i.dialect == dialect and view_equal(buf_view(&i.name), name)


cdef int instances_of(const catalog *c, view name) noexcept nogil:
    """How many instances does the table have?"""
    cdef const instance *i = c.slots[hash_view(name, c.seed) % SLOTS]
    cdef int count = 0
    while i != NULL:
        count += view_equal(buf_view(&i.name), name)
        i = i.chain
    return count


cdef job *make_room(catalog *c, const view *name) noexcept nogil:
    """Forget the instance longest unused, of that table or (NULL) of all; returns what brought its table."""
    cdef instance *oldest = NULL
    cdef instance *i = catalog_next(c, NULL)
    cdef instance **link
    cdef job *brought
    while i != NULL:
        if i.state == AT_REST and i.waiters == NULL and not i.jobs:
            if (oldest == NULL or i.used < oldest.used) and (
                name == NULL or view_equal(buf_view(&i.name), name[0])
            ):
                oldest = i
        i = catalog_next(c, i)
    if oldest == NULL:
        return NULL
    link = &c.slots[oldest.hash % SLOTS]
    while link[0] != oldest:
        link = &link[0].chain
    link[0] = oldest.chain
    c.count -= 1
    c.forgotten += 1
    c.latest = NULL
    brought = oldest.brought
    buf_free(&oldest.name)
    free(oldest)
    return brought


cdef instance *catalog_add(
    catalog *c, view name, int dialect, int inst_flags, int flags, job **retired
) noexcept nogil:
    """A new instance, not open yet, or NULL without memory. retired: what brought a table that makes room."""
    cdef instance *i
    retired[0] = NULL
    if instances_of(c, name) >= INSTANCES_OF_A_TABLE:
        retired[0] = make_room(c, &name)
    elif c.count >= INSTANCES_MAX:
        retired[0] = make_room(c, NULL)
    i = <instance *> calloc(1, sizeof(instance))
    if i == NULL:
        return NULL
    if buf_append_view(&i.name, name) < 0:
        free(i)
        return NULL
    i.figures = figures_of(OF_TABLE, name)
    i.since_ms = now_ms()
    i.approved = True
    i.dialect = dialect
    i.inst_flags = inst_flags
    i.given_flags = flags
    i.hash = hash_view(name, c.seed)
    i.chain = c.slots[i.hash % SLOTS]
    c.slots[i.hash % SLOTS] = i
    c.clock += 1
    i.used = c.clock
    c.count += 1
    return i


cdef int flags_of_unopened(const instance *i, const table *t) noexcept nogil:
    """What a client is told of a table that cannot be opened, or a member of it: of patterns, as by stock.

    A client of 3.6 folds keys itself, and asks for parts of addresses, or does not, by what it is
    told once, and would ask for the wrong keys when the table opens later: it gets the truth.
    """
    if i.dialect == DIALECT_3_11:
        return i.open_flags | (DICT_FLAG_SURROGATE if t.reason != NULL else 0)
    if t.fold_bit == DICT_FLAG_FOLD_FIX:
        return (i.open_flags & ~DICT_FLAG_PATTERN) | DICT_FLAG_FIXED
    return i.open_flags


cdef job *catalog_opened(catalog *c, instance *i, job *j, bint utf8_layer) noexcept nogil:
    """Let what j brings be the instance's table; returns what brought the one that it replaces, or NULL.

    A table that cannot be opened any more does not replace one that still can
    be trusted: then j itself is returned.
    """
    cdef table *t = j.t
    cdef table *old = i.t
    cdef job *retired = i.brought
    i.state = AT_REST
    if t.reason != NULL and old != NULL and old.reason == NULL and not old.polled:
        if old.changed == NULL or old.changed(old) != CHANGED_SPOILED:
            return j
    i.t = t
    i.brought = j
    i.open_flags = table_flags(t, i.given_flags, utf8_layer)
    if t.reason != NULL or t.incomplete:
        i.open_flags = flags_of_unopened(i, t)
    if old == NULL or old.reason != NULL or old.incomplete:
        i.flags = i.open_flags
    c.last_id += 1
    i.id = i.cache_id = c.last_id
    return retired
