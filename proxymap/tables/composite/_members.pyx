"""_members - a table that is made of others: what unionmap and pipemap have in common

The members are opened when the whole is, and keep the flags that they were
opened with, whatever flags requests carry: try bits, folding and UTF-8 layer
are their own. A member that cannot be opened is a surrogate.

Where every member answers on the loop, so does the whole: in C, as long as all
goes well. Any trouble is STAT_LATER: a worker then asks each member in Python,
has all the time that they need, and says which of them is in trouble, and why.
Where a member has workers of its own, the whole has them, too.

Source: tables.md 2.2, 2.6, 7.
"""

import os
from contextlib import suppress

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from proxymap.base._buf cimport buf, view
from proxymap.base._fold cimport utf8_valid
from proxymap.tables._table cimport (
    CHANGED_NOT, SLOW_LOOKUP, STAT_LATER, Table, table, table_flags, table_fold,
)
from proxymap._words cimport *
from proxymap.errors import ProxymapError
from proxymap.config.source import split_braced


cdef int member_lookup(const member *m, view key, buf *folded, buf *scratch, view *value) noexcept nogil:
    """Ask a member: STAT_OK, STAT_NOKEY, or STAT_LATER. Key and value must not lie in either buf."""
    cdef int flags = m.flags
    cdef bint utf8_layer = flags & DICT_FLAG_UTF8_ACTIVE
    cdef int status = table_fold(m.t, utf8_layer, flags, &key, folded)
    if status == STAT_OK:
        status = m.t.lookup(m.t, key, &flags, scratch, value)
    if status == STAT_NOKEY or (status == STAT_OK and not (utf8_layer and not utf8_valid(value[0]))):
        return status
    return STAT_LATER


cdef bint members_damaged(table *t) noexcept nogil:
    cdef const members *m = <const members *> t.self
    cdef int i
    for i in range(m.count):
        if m.each[i].t.damaged != NULL and m.each[i].t.damaged(m.each[i].t):
            return True
    return False


cdef uint64_t members_generation(table *t) noexcept nogil:
    """Each member's only grows, and so does the sum."""
    cdef const members *m = <const members *> t.self
    cdef uint64_t sum = 0
    cdef int i
    for i in range(m.count):
        if m.each[i].t.generation != NULL:
            sum += m.each[i].t.generation(m.each[i].t)
    return sum


cdef int members_changed(table *t) noexcept nogil:
    """The worst of what became of the members."""
    cdef const members *m = <const members *> t.self
    cdef int worst = CHANGED_NOT, i
    for i in range(m.count):
        if m.each[i].t.changed != NULL:
            worst = max(worst, m.each[i].t.changed(m.each[i].t))
    return worst


def names_of(bytes type_name, bytes mapname) -> list:
    """The members of TYPE:{type:name, ...}. Raises ValueError if the name is not such a list."""
    names = []
    with suppress(ValueError):
        names = split_braced(mapname)
    if not names or not all(b":" in name for name in names):
        shown = os.fsdecode(type_name)
        maptype = shown.partition(":")[0]
        raise ValueError(f'bad syntax: "{shown}"; need "{maptype}:{{type:name...}}"')
    return names


cdef class Members(Table):
    """A table over those called `names`.

    A subclass sets t.lookup if on_loop is set, and has `combine(key, lines)`: a
    value or None, found with ask_member.
    """

    def __cinit__(self, bytes type_name, list names, opening):
        cdef Table one
        cdef table *first
        cdef int i
        self.tables = [opening.member(name) for name in names]
        self.m.each = <member *> calloc(len(names), sizeof(member))
        if self.m.each == NULL:
            raise MemoryError
        self.m.count = len(names)
        self.t.quick = self.on_loop = True
        for i, one in enumerate(self.tables):
            self.m.each[i].t = &one.t
            self.m.each[i].flags = table_flags(&one.t, opening.flags, opening.host.utf8)
            self.t.slow |= one.t.slow & SLOW_LOOKUP
            self.on_loop = self.on_loop and one.t.lookup != NULL
            self.files += one.files
            self.t.polled = self.t.polled or one.t.polled
            self.t.quick = self.t.quick and (one.t.quick or one.t.changed == NULL)
            self.t.incomplete = self.t.incomplete or one.t.incomplete
            if one.t.reason != NULL:
                self.t.incomplete = True
                opening.host.warn(f"{os.fsdecode(one.type_name)} is unavailable. {os.fsdecode(one.reason)}")
        self.t.self = &self.m
        first = self.m.each[0].t
        self.t.flags = first.flags & (DICT_FLAG_FIXED | DICT_FLAG_PATTERN)
        if first.flags & DICT_FLAG_PATTERN and first.fold_bit == DICT_FLAG_FOLD_FIX:
            self.t.fold_bit = DICT_FLAG_FOLD_FIX  # looked up once it can be opened: see Surrogate
        self.t.generation = members_generation
        self.t.changed = members_changed
        self.t.damaged = members_damaged

    def __dealloc__(self):
        free(self.m.each)

    def ask(self, bytes key not None, int flags):
        value = self.combine(key, None)
        return (STAT_NOKEY, flags, b"") if value is None else (STAT_OK, flags, value)

    def explain(self, bytes key not None) -> list:
        lines = []
        with suppress(ProxymapError):  # told in lines
            self.combine(key, lines)
        return lines

    @property
    def at_a_time(self) -> int:
        return min((one.at_a_time for one in self.tables if one.at_a_time), default=0)

    cdef ask_member(self, int i, bytes key, list lines):
        """What a member answers, a value or None; tells it to lines too. Trouble is raised with its name."""
        one = self.tables[i]
        name = os.fsdecode(one.type_name)
        try:
            value = one.answer(key, self.m.each[i].flags)
        except ProxymapError as error:
            if lines is not None:
                lines.append(f"{name}: {error}")
            raise type(error)(f"{name}: {error}") from error
        if lines is not None:
            lines.append(f"{name}: {'not found' if value is None else os.fsdecode(value)}")
            folded = one.fold(key, self.m.each[i].flags)
            if folded is not None:
                lines += ["  " + line for line in one.explain(folded)]
        return value
