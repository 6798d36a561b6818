"""_report - what is known of the tables, for the administrator; and answers forgotten at his word

With the GIL, between two turns of the loop.
"""

import os

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport view_of
from proxymap.base._clock cimport now_ms
from proxymap.server._cache cimport cache_clear, cache_forget
from proxymap.server._catalog cimport OPENING, catalog_next, instance
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
        "approved": bool(i.approved), "lookups": i.lookups, "cache_hits": i.hits, "errors": i.errors,
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
        "slow": bool(i.t.slow & SLOW_LOOKUP), "cached": i.t.cached, "trouble": table.trouble or None,
    }


cdef str state_of(const instance *i):
    if i.state == OPENING:
        return "being opened"
    return "open" if i.t.reason == NULL else "unavailable"


cdef int forget_answers(service *s, bytes name, bytes key) except -1:
    """The answers of all tables or of one, all or those to one key; how many instances were hit?"""
    cdef instance *i = catalog_next(&s.tables, NULL)
    cdef int count = 0
    if name is None and s.results != NULL:
        cache_clear(s.results)
    while i != NULL:
        if name is None or name_of(i) == name:
            count += 1
            if key is None:
                s.tables.last_id += 1
                i.cache_id = s.tables.last_id
            else:
                forget_key(s, i, key)
        i = catalog_next(&s.tables, i)
    return count


cdef int forget_key(service *s, const instance *i, bytes key) except -1:
    """With either try bit, both, or none."""
    cdef uint64_t bits
    if s.results != NULL:
        for bits in range(4):
            cache_forget(s.results, i.cache_id << 2 | bits, view_of(key, len(key)))
    return 0
