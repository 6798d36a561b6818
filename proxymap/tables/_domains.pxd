# _domains - the list of domains of a table, asked in C (see _domains.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, view
from proxymap.tables._table cimport table


cdef struct domain_rule:
    view name     # folded; borrowed
    table *t      # has domains for keys; NULL: the rule is a name
    bint wanted   # what the list says of a domain that matches


cdef struct domain_list:
    domain_rule *rules
    int count
    int *members   # numbers of those rules that are tables, in order
    int members_count
    int *slots     # hash of names -> number of the first rule with that name; -1: none
    size_t mask
    uint64_t seed
    bint utf8      # smtputf8_enable: how names are folded


cdef int domain_find(const domain_list *l, view domain, buf *scratch, table **trouble) noexcept nogil
cdef int domains_changed(const domain_list *l, table *t) noexcept nogil


cdef class Domains:
    cdef domain_list l
    cdef readonly list rules
