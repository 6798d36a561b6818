"""environ - the environment that the process was started with

All tables of this type are one, whatever their names. An update is seen by
every one of them, but the process itself does not heed it: threads that use
the C library read its environment all the time. Nothing is ever deleted.

Source: DATABASE_README; tables.md 1.2, 5.
"""

import os

from proxymap.base._buf cimport view
from proxymap.tables.memory._records cimport MemoryTable, Records, memory_write
from proxymap.tables._table cimport table
from proxymap._words cimport *

cdef Records variables = Records()

for _name, _value in os.environb.items():
    variables.put(_name, _value)


cdef int environ_write(table *t, view key, const view *value, int *flags) noexcept nogil:
    return STAT_CONFIG if value == NULL else memory_write(t, key, value, flags)


cdef class EnvironTable(MemoryTable):
    def __cinit__(self, bytes type_name, Records held not None):
        self.t.write = environ_write
        self.t.sequence = NULL


def open_table(bytes type_name, bytes mapname, opening) -> EnvironTable:
    return EnvironTable(type_name, variables)
