# _opening - tables are opened, opened again, swapped and closed (see _opening.pyx)

from proxymap.base._buf cimport view
from proxymap.server._catalog cimport LOOKING, OPENING, instance
from proxymap._codec cimport request
from proxymap.tables._jobs cimport job
from proxymap.server._service cimport service
from proxymap.tables._table cimport table

cdef instance *opening_add(service *s, const request *r) noexcept nogil
cdef bint opening_look_closely(service *s, instance *i) noexcept nogil
cdef bint opening_start(service *s, instance *i, int state, bint settle) noexcept nogil
cdef instance *opening_done(service *s, job *j) noexcept nogil
cdef void opening_config_done(service *s, job *j) noexcept nogil
cdef void opening_turn(service *s) noexcept nogil
cdef void opening_look(service *s) noexcept nogil
cdef void opening_anew(service *s, view name) noexcept nogil
cdef void opening_distrust(service *s, instance *i) noexcept nogil
cdef void opening_job_is_back(service *s, table *t) noexcept nogil


cdef inline bint opening_ready(service *s, instance *i) noexcept nogil:
    """Can a request be answered now? If not, a worker is opening the table, or looks at its files."""
    if i.state == OPENING or i.state == LOOKING:
        return False
    if i.t != NULL and i.t.reason == NULL and not (i.t.incomplete or i.t.polled or i.doubtful):
        return True
    return opening_look_closely(s, i)
