# _driver - a thread for all connections of a server (see _driver.pyx)

from proxymap.tables._jobs cimport Queue
from proxymap.tables.databases._drive cimport driver


cdef class Driver:
    cdef driver d
    cdef readonly Queue asks
    cdef readonly Queue notes
    cdef readonly Queue log
    cdef list lost  # what jobs name that were never answered
