"""internal - records that live as long as the process; empty when it starts

Source: DATABASE_README; tables.md 1.2, 4.7, 5.
"""

from proxymap.tables.memory._records cimport MemoryTable, Records


def open_table(bytes type_name, bytes mapname, opening) -> MemoryTable:
    return MemoryTable(type_name, Records())
