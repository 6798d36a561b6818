# _drive - what the thread does that drives all connections of a server (see _drive.pyx)

from proxymap.tables.databases._waiting cimport driver


cdef void drive(driver *d) noexcept nogil
