"""unionmap - unionmap:{type:name, ...}: the values of all members, joined by commas

There is no comma behind an empty beginning, and nothing but empty values is as
good as nothing. Trouble with one member is the answer, whatever others found.

Source: unionmap in DATABASE_README(5) and postmap(1) as observed; tables.md 7.
"""

from proxymap.base._buf cimport (
    buf, buf_append, buf_append_view, buf_clear, buf_free, buf_init, buf_len, buf_view, view,
)
from proxymap.tables.composite._members cimport Members, member_lookup, members
from proxymap.tables._table cimport STAT_LATER, table
from proxymap._words cimport *

from proxymap.tables.composite._members import names_of


cdef int union_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    """The values are collected in scratch; the members have one of their own."""
    cdef const members *m = <const members *> t.self
    cdef buf folded, own
    cdef int status = STAT_NOKEY, i
    cdef view found
    buf_init(&folded)
    buf_init(&own)
    buf_clear(scratch)
    for i in range(m.count):
        status = member_lookup(&m.each[i], key, &folded, &own, &found)
        if status == STAT_OK and (
            buf_len(scratch) and buf_append(scratch, b",", 1) < 0
            or buf_append_view(scratch, found) < 0
        ):
            status = STAT_LATER
        if status == STAT_LATER:
            break
    buf_free(&folded)
    buf_free(&own)
    if status == STAT_LATER:
        return status
    value[0] = buf_view(scratch)
    return STAT_OK if value.len else STAT_NOKEY


cdef class UnionTable(Members):
    """unionmap:{type:name, ...}"""

    def __cinit__(self, *args):
        if self.on_loop:
            self.t.lookup = union_lookup

    def combine(self, bytes key, list lines):
        joined = b""
        for i in range(self.m.count):
            value = self.ask_member(i, key, lines)
            if value is not None:
                joined += b"," + value if joined else value
        return joined or None


def open_table(bytes type_name, bytes mapname, opening) -> UnionTable:
    return UnionTable(type_name, names_of(type_name, mapname), opening)
