"""pipemap - pipemap:{type:name, ...}: the value of each member is the key of the next

The last value is the answer; a member without one, or in trouble, ends it.

Source: pipemap in DATABASE_README(5) and postmap(1) as observed; tables.md 7.
"""

from proxymap.base._buf cimport buf, buf_free, buf_init, view
from proxymap.tables.composite._members cimport Members, member_lookup, members
from proxymap.tables._table cimport table
from proxymap._words cimport *

from proxymap.tables.composite._members import names_of


cdef int pipe_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    """A value may lie in the scratch of its member while it is the next one's key.

    So there are two, used in turn, and the last one is the caller's.
    """
    cdef const members *m = <const members *> t.self
    cdef buf folded, other
    cdef int status = STAT_OK, i
    buf_init(&folded)
    buf_init(&other)
    for i in range(m.count):
        status = member_lookup(&m.each[i], key, &folded, scratch if (m.count - i) % 2 else &other, &key)
        if status != STAT_OK:
            break
    buf_free(&folded)
    buf_free(&other)
    value[0] = key
    return status


cdef class PipeTable(Members):
    """pipemap:{type:name, ...}"""

    def __cinit__(self, *args):
        if self.on_loop:
            self.t.lookup = pipe_lookup

    def combine(self, bytes key, list lines):
        for i in range(self.m.count):
            key = self.ask_member(i, key, lines)
            if key is None:
                break
        return key


def open_table(bytes type_name, bytes mapname, opening) -> PipeTable:
    return PipeTable(type_name, names_of(type_name, mapname), opening)
