# _report - what is known of the tables, for the administrator (see _report.pyx)

from proxymap.server._service cimport service

cdef list report_tables(service *s)
cdef list report_key(service *s, bytes name, bytes key)
cdef tuple forget_answers(service *s, bytes name, bytes key, bint negative)
