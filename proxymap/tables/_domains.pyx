"""_domains - the list of domains of a table, asked in C

The first rule that matches decides. Names are found by hash; before the first
that matches only tables have to be asked, each of which answers on the loop.
domains.py reads the list.
"""

import os

from libc.stdlib cimport calloc, free, malloc

from proxymap.base._buf cimport buf, buf_free, buf_init, view, view_equal, view_of
from proxymap.base._fold cimport fold_ascii, fold_utf8, utf8_valid
from proxymap.base._hash cimport hash_view
from proxymap.tables._table cimport CHANGED_NOT, CHANGED_SPOILED, Table, origins_changed, table
from proxymap._words cimport *


cdef int domain_find(const domain_list *l, view domain, buf *scratch, table **trouble) noexcept nogil:
    """STAT_OK, STAT_NOKEY: the domain is in the list, or is not. STAT_RETRY: trouble with a table."""
    cdef view folded = domain
    cdef int found, i, status
    trouble[0] = NULL
    if (fold_utf8(&folded, scratch) if l.utf8 and utf8_valid(domain) else fold_ascii(&folded, scratch)) < 0:
        return STAT_RETRY
    found = find_name(l, folded)
    for i in range(l.members_count):
        if l.members[i] > found:
            break
        status = ask_member(l.rules[l.members[i]].t, domain, folded)
        if status == STAT_OK:
            found = l.members[i]
        elif status != STAT_NOKEY:
            trouble[0] = l.rules[l.members[i]].t
            return STAT_RETRY
    return STAT_OK if found < l.count and l.rules[found].wanted else STAT_NOKEY


cdef inline int find_name(const domain_list *l, view name) noexcept nogil:
    """The number of the first rule with that name, or l.count."""
    cdef size_t slot = hash_view(name, l.seed) & l.mask
    while l.slots[slot] >= 0:
        if view_equal(l.rules[l.slots[slot]].name, name):
            return l.slots[slot]
        slot = (slot + 1) & l.mask
    return l.count


cdef int ask_member(table *t, view domain, view folded) noexcept nogil:
    cdef buf scratch
    cdef view value
    cdef int flags = DICT_FLAGS_TRY
    cdef int status
    buf_init(&scratch)
    status = t.lookup(t, folded if t.flags & DICT_FLAG_FIXED else domain, &flags, &scratch, &value)
    if t.damaged != NULL and t.damaged(t):
        status = STAT_RETRY
    buf_free(&scratch)
    return status


cdef int domains_changed(const domain_list *l, table *t) noexcept nogil:
    """Of t, whose list it is, or NULL: one that has changed is not to be trusted; files stay good."""
    cdef table *one
    cdef int i
    for i in range(l.members_count if l != NULL else 0):
        one = l.rules[l.members[i]].t
        if one.changed != NULL and one.changed(one) != CHANGED_NOT:
            return CHANGED_SPOILED
    return origins_changed(t)


cdef class Domains:
    """rules: (name, folded, or a Table that answers on the loop; is what matches wanted?) in order."""

    def __cinit__(self, list rules not None, bint utf8):
        cdef size_t size = 4
        while size < 2 * <size_t> len(rules):
            size *= 2
        self.rules = rules
        self.l.count = len(rules)
        self.l.utf8 = utf8
        self.l.mask = size - 1
        self.l.seed = int.from_bytes(os.urandom(8), "little")
        self.l.rules = <domain_rule *> calloc(len(rules) + 1, sizeof(domain_rule))
        self.l.members = <int *> calloc(len(rules) + 1, sizeof(int))
        self.l.slots = <int *> malloc(size * sizeof(int))
        if self.l.rules == NULL or self.l.members == NULL or self.l.slots == NULL:
            raise MemoryError
        for slot in range(size):
            self.l.slots[<size_t> slot] = -1
        for number, (what, wanted) in enumerate(rules):
            self._add(number, what, wanted)

    def __dealloc__(self):
        free(self.l.rules)
        free(self.l.members)
        free(self.l.slots)

    def __contains__(self, bytes domain not None):
        cdef view asked = view_of(domain, len(domain))
        cdef buf scratch
        cdef table *trouble
        cdef int status
        buf_init(&scratch)
        with nogil:
            status = domain_find(&self.l, asked, &scratch, &trouble)
        buf_free(&scratch)
        return status == STAT_OK

    def _add(self, int number, what, bint wanted):
        cdef domain_rule *rule = &self.l.rules[number]
        cdef size_t slot
        rule.wanted = wanted
        if isinstance(what, Table):
            if not answers_on_loop(what):
                raise ValueError("this table answers on a worker thread")
            rule.t = &(<Table> what).t
            self.l.members[self.l.members_count] = number
            self.l.members_count += 1
            return
        rule.name = view_of(<bytes> what, len(what))
        if find_name(&self.l, rule.name) == self.l.count:
            slot = hash_view(rule.name, self.l.seed) & self.l.mask
            while self.l.slots[slot] >= 0:
                slot = (slot + 1) & self.l.mask
            self.l.slots[slot] = number


def answers_on_loop(Table one not None) -> bool:
    """Can a table be asked without waiting for anything?"""
    return one.t.lookup != NULL and not one.t.slow
