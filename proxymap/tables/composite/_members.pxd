# _members - a table that is made of others (see _members.pyx)

from proxymap.base._buf cimport buf, view
from proxymap.tables._table cimport Table, table


cdef struct member:
    table *t
    int flags    # its flag word, for good: that of a table opened with the flags of the whole


cdef struct members:
    member *each
    int count


cdef int member_lookup(const member *m, view key, buf *folded, buf *scratch, view *value) noexcept nogil


cdef class Members(Table):
    cdef members m
    cdef readonly list tables  # the members' owners
    cdef bint on_loop  # does every member answer there?
    cdef ask_member(self, int i, bytes key, list lines)
