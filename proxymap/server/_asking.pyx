"""_asking - an open table is asked on the loop: lookup, through the cache where that is on; sequence; update

Each function returns the status of the reply, or STAT_LATER: a worker is to be
asked (_work). One thread, the loop's; no GIL. Source: tables.md 2.
"""

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, view, view_of
from proxymap.base._fold cimport utf8_valid
from proxymap.metrics._counters cimport FROM_CACHE
from proxymap.server._cache cimport cache_find, cache_store, entry, entry_value
from proxymap.server._catalog cimport instance
from proxymap._codec cimport request
from proxymap.server._service cimport (
    answers_owner, generation_of, is_shared, service, service_complain, service_warn_not_utf8, session,
    session_cursor,
)
from proxymap.tables._table cimport SLOW_SEQUENCE, SLOW_WRITE, STAT_LATER, cursor, table, table_fold
from proxymap._words cimport *


cdef view NONE = view_of(NULL, 0)

cdef enum:
    ASKED_TWICE = 2  # hits in one life that make an answer worth asking for anew


cdef int ask_lookup(
    service *s, session *who, instance *i, view key, int *flags, view *value
) noexcept nogil:
    cdef const char *unfolded = key.ptr
    cdef int status = fold_key(s, i, flags[0], &key)
    if status != STAT_OK:
        return status
    if is_shared(s, i):
        status = lookup_cached(s, who, i, key, flags, value)
    elif i.t.lookup == NULL:
        return STAT_LATER
    elif who.glimpse.of == i.t and key.ptr == unfolded:
        status = i.t.lookup_foreseen(i.t, key, &who.glimpse, flags, &s.scratch, value)
    else:
        status = i.t.lookup(i.t, key, flags, &s.scratch, value)
    if (status == STAT_OK and i.open_flags & DICT_FLAG_UTF8_ACTIVE and value.len <= s.value_size_limit
            and not utf8_valid(value[0])):
        service_warn_not_utf8(s, i, b': non-UTF-8 value "', value[0])
        return STAT_CONFIG
    return status


cdef int lookup_cached(
    service *s, session *who, instance *i, view key, int *flags, view *value
) noexcept nogil:
    """The generation is read before the table: an answer is at least as new as it is marked."""
    cdef uint64_t owner = answers_owner(i, flags[0])
    cdef uint64_t generation = generation_of(i)
    cdef entry *e = cache_find(s.results, owner, generation, key)
    cdef int before = flags[0]
    cdef int status
    if e != NULL and e.life.fresh_until > s.now_ms and e.status != STAT_RETRY:
        i.hits += 1
        who.source = FROM_CACHE
        flags[0] &= ~e.cleared
        value[0] = entry_value(e)
        if e.asked < 255:
            e.asked += 1
        who.due = e.life.refresh_from <= s.now_ms and e.asked >= ASKED_TWICE
        return e.status
    if i.t.lookup == NULL:
        return STAT_LATER
    status = i.t.lookup(i.t, key, flags, &s.scratch, value)
    if not i.t.timed and (status == STAT_OK or status == STAT_NOKEY):
        cache_store(s.results, owner, generation, key, status, before & ~flags[0],
                    value[0] if status == STAT_OK else NONE, NULL)
    return status


cdef int ask_sequence(
    service *s, session *who, instance *i, int function, view *key, view *value
) noexcept nogil:
    cdef cursor *c
    if i.t.slow & SLOW_SEQUENCE:
        return STAT_LATER
    if i.t.sequence == NULL:
        service_complain(s, i, b" cannot do what was asked: this table type has no sequence")
        return STAT_CONFIG
    c = session_cursor(who, i)
    if c == NULL:
        return STAT_RETRY
    return i.t.sequence(i.t, c, function, &s.scratch, key, value)


cdef int ask_write(service *s, instance *i, const request *r, int *flags) noexcept nogil:
    """An update or a delete."""
    cdef view key = r.key
    cdef int status
    if i.t.slow & SLOW_WRITE:
        return STAT_LATER
    if i.t.write == NULL:
        service_complain(s, i, b" cannot do what was asked: this table type has no updates")
        return STAT_CONFIG
    status = check_change(s, i, r, flags[0], &key)
    if status != STAT_LATER:
        return status
    return i.t.write(i.t, key, &r.value if r.kind == REQ_UPDATE else NULL, flags)


# Keys and values that fit

cdef int fold_key(service *s, instance *i, int flags, view *key) noexcept nogil:
    """Fold and check the key as the flags and the UTF-8 layer ask; STAT_OK to go on."""
    cdef int status = table_fold(i.t, i.open_flags & DICT_FLAG_UTF8_ACTIVE, flags, key, &s.folded)
    if status == STAT_NOKEY:
        service_warn_not_utf8(s, i, b': non-UTF-8 key "', key[0])
    return status


cdef int ask_check(service *s, instance *i, const request *r, int flags, view *key) noexcept nogil:
    """Fold the request's key, if it has one; STAT_LATER to go on."""
    cdef int status
    if r.kind == REQ_SEQUENCE:
        return STAT_LATER
    if r.kind == REQ_LOOKUP:
        status = fold_key(s, i, flags, key)
        return STAT_LATER if status == STAT_OK else status
    return check_change(s, i, r, flags, key)


cdef int check_change(service *s, instance *i, const request *r, int flags, view *key) noexcept nogil:
    """Fold the key of an update or delete; STAT_LATER to go on. What is not UTF-8 is said to be done."""
    cdef int fit = change_fits(i.t, i.open_flags & DICT_FLAG_UTF8_ACTIVE, r, flags, key, &s.folded)
    if fit == CHANGE_FITS:
        return STAT_LATER
    if fit == CHANGE_NO_MEMORY:
        return STAT_RETRY
    if fit == CHANGE_BAD_KEY:
        service_warn_not_utf8(s, i, b': non-UTF-8 key "', key[0])
    else:
        service_warn_not_utf8(s, i, b': non-UTF-8 value "', r.value)
    return STAT_OK


cdef int change_fits(
    const table *t, bint utf8, const request *r, int flags, view *key, buf *scratch
) noexcept nogil:
    """Fold the key of an update or delete; returns CHANGE_*. Any thread."""
    cdef int status = table_fold(t, utf8, flags, key, scratch)
    if status != STAT_OK:
        return CHANGE_BAD_KEY if status == STAT_NOKEY else CHANGE_NO_MEMORY
    if utf8 and r.kind == REQ_UPDATE and not utf8_valid(r.value):
        return CHANGE_BAD_VALUE
    return CHANGE_FITS
