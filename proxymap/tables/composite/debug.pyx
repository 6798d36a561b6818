"""debug - debug:type:name: the table called type:name, and a line in the log for each question

Lookups, updates and deletions are logged, with the key as the table is asked
for it; a walk through the table is not. A worker asks, since the log is not
the loop's.

Source: debug in DATABASE_README(5) of Postfix 3.11 and as observed; tables.md 5.
"""

import os

from proxymap.base._buf cimport buf, view
from proxymap.tables.composite._members cimport Members, members
from proxymap.tables._table cimport SLOW_LOOKUP, Table, cursor, table
from proxymap._words cimport *

from proxymap.errors import ProxymapError

WORDS = {STAT_OK: "success", STAT_NOKEY: "failed"}


cdef inline table *inner(table *t) noexcept nogil:
    return (<const members *> t.self).each[0].t


cdef int debug_sequence(
    table *t, cursor *c, int function, buf *scratch, view *key, view *value
) noexcept nogil:
    return inner(t).sequence(inner(t), c, function, scratch, key, value)


cdef int debug_write(table *t, view key, const view *value, int *flags) noexcept nogil:
    return inner(t).write(inner(t), key, value, flags)


cdef class DebugTable(Members):
    """debug:type:name, with the flags of the table type:name"""

    cdef object inform
    cdef str name  # the table's

    def __cinit__(self, bytes type_name, list names, opening):
        cdef Table one = self.tables[0]
        self.inform = opening.host.inform
        self.name = os.fsdecode(one.type_name)
        self.on_loop = False
        self.t.flags, self.t.fold_bit = one.t.flags, one.t.fold_bit
        self.t.slow = SLOW_LOOKUP | one.t.slow
        if one.t.sequence != NULL:
            self.t.sequence = debug_sequence
        if one.t.write != NULL:
            self.t.write = debug_write

    def ask(self, bytes key not None, int flags):
        try:
            status, flags, value = (<Table> self.tables[0]).ask(key, flags)
        except ProxymapError:
            self.say("lookup:", key, ' = "error"')
            raise
        shown = {STAT_OK: os.fsdecode(value), STAT_NOKEY: "not_found"}.get(status, "error")
        self.say("lookup:", key, f' = "{shown}"')
        return status, flags, value

    def write(self, list changes, on_disk=None):
        try:
            self.tables[0].write(changes, on_disk)
        finally:
            for change in changes:
                what = "delete" if change.value is None else "update"
                shown = "" if change.value is None else f' = "{os.fsdecode(change.value)}"'
                self.say(f"{what}:", change.key, f"{shown}: {WORDS.get(change.status, 'error')}")

    cdef say(self, str what, bytes key, str rest):
        self.inform(f'{self.name} {what} "{os.fsdecode(key)}"{rest}')

    def explain(self, bytes key not None) -> list:
        return self.tables[0].explain(key)

    @property
    def answers(self):
        """What a worker walks through."""
        return self.tables[0].answers


def open_table(bytes type_name, bytes mapname, opening) -> DebugTable:
    return DebugTable(type_name, [mapname], opening)
