# _network - the exchange and its tables, as Python sees them (see _network.pyx)

from libc.stdint cimport uint64_t

from proxymap.tables._jobs cimport Queue, job
from proxymap.tables._table cimport Table
from proxymap.tables.network._endpoint cimport asker, endpoint, protocol
from proxymap.tables.network._exchange cimport exchange


cdef class Protocol:
    cdef const protocol *p


cdef Protocol protocol_of(const protocol *p)


cdef class Exchange:
    cdef exchange x
    cdef readonly Queue asks
    cdef readonly Queue notes
    cdef readonly Queue log


cdef class Endpoint:
    cdef endpoint *e
    cdef readonly Exchange exchange
    cdef object __weakref__
    cdef readonly str maptype
    cdef readonly str shown
    cdef readonly object tables
    cdef bytes text
    cdef uint64_t since_ms


cdef class NetworkTable(Table):
    cdef asker *a            # what t.self points to; a subclass has it
    cdef readonly Endpoint endpoint
    cdef public object server  # what the workers' watchdog sees

    cdef serve(self, asker *a, Endpoint to)
    cdef job *send(self, int kind, bytes key, bytes value, Queue replies) except NULL
    cdef tuple wait(self, Queue replies)
