"""_report - what is known of the tables, for the administrator; and answers forgotten at his word

With the GIL, between two turns of the loop.
"""

import os

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport view, view_of
from proxymap.base._clock cimport now_ms
from proxymap.server._cache cimport cache_find, cache_forget, cache_forget_all, entry
from proxymap.server._catalog cimport LOOKING, OPENING, catalog_next, instance
from proxymap.server._flight cimport flight, flight_close, flight_find, flight_forget
from proxymap.server._service cimport generation_of, service
from proxymap.tables._table cimport SLOW_LOOKUP, Table
from proxymap._words cimport STAT_NOKEY, STAT_OK


cdef list report_tables(service *s):
    """A dictionary for each instance."""
    cdef instance *i = catalog_next(&s.tables, NULL)
    found = []
    while i != NULL:
        found.append(describe(i, now_ms()))
        i = catalog_next(&s.tables, i)
    return found


cdef bytes name_of(const instance *i):
    return i.name.data[i.name.start:i.name.end]


cdef dict describe(instance *i, uint64_t now):
    known = {
        "table": os.fsdecode(name_of(i)), "dialect": "3.11" if i.dialect else "3.6", "flags": i.inst_flags,
        "approved": bool(i.approved), "lookups": i.lookups, "cache_hits": i.hits,
        "joined": i.joined, "stale": i.stale, "errors": i.errors, "seconds": (now - i.since_ms) / 1000,
    }
    if i.state == OPENING:
        known["opening_seconds"] = (now - i.began_ms) // 1000
    if i.t == NULL:
        return {**known, "state": "being opened" if i.state == OPENING else "unavailable"}
    table = <Table> i.t.owner
    return {
        **known, "state": state_of(i), "generation": i.id,
        "age_seconds": (now - i.opened_ms) // 1000, "files": [os.fsdecode(path) for path in table.files],
        "entries": table.entries, "bytes": table.size, "index_bytes": table.index_bytes,
        "slow": bool(i.t.slow & SLOW_LOOKUP), "cached": i.t.cached, "keeps": kept(i),
        "trouble": table.trouble or None,
    }


cdef str state_of(const instance *i):
    if i.state == OPENING:
        return "being opened"
    if i.state == LOOKING and now_ms() - i.began_ms > 1000:
        return "being looked at"
    return "open" if i.t.reason == NULL else "unavailable"


cdef dict kept(const instance *i):
    """For how many seconds answers are kept, where they age; None where they do not, or are not kept."""
    if not i.t.timed:
        return None
    return {
        "cache_ttl": i.t.keeps.ttl_ms / 1000, "cache_negative_ttl": i.t.keeps.negative_ttl_ms / 1000,
        "cache_error_ttl": i.t.keeps.error_ttl_ms / 1000, "cache_stale_ttl": i.t.keeps.stale_ttl_ms / 1000,
        "cache_stale_negative_ttl": i.t.keeps.stale_negative_ttl_ms / 1000,
        "cache_stale_wait": i.t.keeps.stale_wait_ms / 1000,
        "cache_refresh_percent": i.t.keeps.refresh_percent,
    }


cdef list report_key(service *s, bytes name, bytes key):
    """What is known of a key: a dictionary for each instance of the table that keeps an answer or asks."""
    cdef instance *i = catalog_next(&s.tables, NULL)
    cdef uint64_t bits
    found = []
    while i != NULL:
        if name_of(i) == name and i.t != NULL and i.t.timed and s.results != NULL:
            for bits in range(4):
                known = known_of(s, i, i.cache_id << 2 | bits, view_of(key, len(key)))
                if known:
                    shown = "3.11" if i.dialect else "3.6"
                    found.append({"dialect": shown, "flags": i.inst_flags, **known})
        i = catalog_next(&s.tables, i)
    return found


cdef dict known_of(service *s, const instance *i, uint64_t owner, view key):
    """Times in seconds, below 0 if they are over."""
    cdef entry *e = cache_find(s.results, owner, generation_of(i), key)
    cdef uint64_t now = now_ms()
    known = {"asking": True} if flight_find(&s.flights, owner, key) != NULL else {}
    if e != NULL:
        known["status"] = {STAT_OK: "OK", STAT_NOKEY: "NOKEY"}.get(e.status, "RETRY")
        known["age"] = (now - e.life.since) / 1000
        known["fresh"] = (<double> e.life.fresh_until - <double> now) / 1000
        known["stale"] = (<double> e.life.stale_until - <double> now) / 1000
    return known


cdef tuple forget_answers(service *s, bytes name, bytes key, bint negative):
    """Forget what is kept for all tables or for one: all of it, "no" only, or what is about one key.

    (instances of that name, answers that were forgotten). What is under way is not kept either.
    """
    cdef instance *i = catalog_next(&s.tables, NULL)
    cdef int count = 0
    cdef size_t forgotten = 0
    while i != NULL:
        if name is None or name_of(i) == name:
            count += 1
            if key is not None:
                forgotten += forget_key(s, i, key)
            else:
                forgotten += forget_table(s, i, negative)
        i = catalog_next(&s.tables, i)
    return count, forgotten


cdef size_t forget_key(service *s, const instance *i, bytes key) except? -1:
    """With either try bit, both, or none."""
    cdef view wanted = view_of(key, len(key))
    cdef size_t forgotten = 0
    cdef uint64_t bits
    for bits in range(4):
        flight_forget(&s.flights, i.cache_id << 2 | bits, wanted)
        if s.results != NULL:
            forgotten += cache_forget(s.results, i.cache_id << 2 | bits, wanted)
    return forgotten


cdef size_t forget_table(service *s, instance *i, bint negative) except? -1:
    cdef size_t forgotten = 0
    if s.results != NULL:
        forgotten = cache_forget_all(s.results, i.cache_id, negative)
    if negative:
        forget_flights(s, i)
    else:
        s.tables.last_id += 1
        i.cache_id = s.tables.last_id  # so that questions under way find nobody to keep their answers
    return forgotten


cdef void forget_flights(service *s, const instance *i) noexcept:
    """No answer that is under way is kept: it may be a "no" from before."""
    cdef flight *f = s.flights.first
    while f != NULL:
        if f.owner >> 2 == i.cache_id:
            flight_close(&s.flights, f)
            f.keeps = False
        f = f.next
