"""_report - what is known of the tables, for the administrator; and answers forgotten at his word

With the GIL, between two turns of the loop.
"""

import os

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport view, view_of
from proxymap.base._clock cimport now_ms
from proxymap.server._cache cimport cache_forget, cache_forget_all
from proxymap.server._catalog cimport OPENING, catalog_next, instance
from proxymap.server._flight cimport flight_forget
from proxymap.server._service cimport service
from proxymap.tables._table cimport SLOW_LOOKUP, Table


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
        "joined": i.joined, "stale": i.stale, "errors": i.errors,
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
    return "open" if i.t.reason == NULL else "unavailable"


cdef dict kept(const instance *i):
    """For how many seconds answers are kept, where they age; None where they do not, or are not kept."""
    if not i.t.timed:
        return None
    return {
        "cache_ttl": i.t.keeps.ttl_ms / 1000, "cache_negative_ttl": i.t.keeps.negative_ttl_ms / 1000,
        "cache_stale_ttl": i.t.keeps.stale_ttl_ms / 1000,
    }


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
    if not negative:
        s.tables.last_id += 1
        i.cache_id = s.tables.last_id  # so that questions under way find nobody to keep their answers
    return forgotten
