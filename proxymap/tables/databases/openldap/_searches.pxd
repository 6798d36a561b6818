# _searches - searches of a directory over sessions that share them (see _searches.pyx)

from proxymap.tables.databases._connection cimport Connection
from proxymap.tables.databases.openldap._session cimport Session


cdef Connection joined(Session shared, int host, bytes shown)
