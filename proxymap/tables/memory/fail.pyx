"""fail - a table that is always down: every answer is RETRY, and none is logged

Source: DATABASE_README; tables.md 1.2.
"""

from proxymap.base._buf cimport buf, view
from proxymap.tables._table cimport Table, cursor, table
from proxymap._words cimport *


cdef int fail_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    return STAT_RETRY


cdef int fail_sequence(
    table *t, cursor *c, int function, buf *scratch, view *key, view *value
) noexcept nogil:
    return STAT_RETRY


cdef int fail_write(table *t, view key, const view *value, int *flags) noexcept nogil:
    return STAT_RETRY


cdef class FailTable(Table):
    def __cinit__(self, bytes type_name):
        self.t.flags = DICT_FLAG_PATTERN
        self.t.lookup = fail_lookup
        self.t.sequence = fail_sequence
        self.t.write = fail_write


def open_table(bytes type_name, bytes mapname, opening) -> FailTable:
    return FailTable(type_name)
