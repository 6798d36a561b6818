# _memcache - memcached's protocol, and a table that speaks it (see _memcache.pyx)

from proxymap.tables._jobs cimport queue
from proxymap.tables._domains cimport domain_list
from proxymap.tables._template cimport Program, program
from proxymap.tables._table cimport Table, cursor
from proxymap.tables.network._endpoint cimport asker
from proxymap.tables.network._network cimport NetworkTable


cdef struct memcache:
    asker a
    const program *key_format
    bint addresses_only          # is there a list of domains?
    const domain_list *domains   # NULL: it is asked in Python
    size_t line_limit, data_limit
    const char *stores           # " FLAGS TTL " of set and add
    queue *log
    int doubts                   # keys that must not be asked for; see memcache.py


cdef class MemcacheTable(NetworkTable):
    cdef memcache m
    cdef object format_program, domain_program
    cdef bytes stores
    cdef bint on_exchange        # may the exchange answer without Python?
    cdef public Table backup
    cdef dict walks              # number of who walks -> _Walk


cdef class _Walk:
    cdef cursor c
