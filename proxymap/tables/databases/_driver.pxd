# _driver - a thread for all connections of a server (see _driver.pyx)

from libc.stdint cimport uint64_t

from proxymap.tables._jobs cimport Queue, job
from proxymap.tables.databases._waiting cimport driver


cdef class Driver:
    cdef driver d
    cdef readonly Queue asks
    cdef readonly Queue notes
    cdef readonly Queue log

    cdef job *take_old(self, uint64_t now, uint64_t limit_ms)
