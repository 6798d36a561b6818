# _lockfile - a file that other processes write to as well (see _lockfile.pyx)

from libc.stdint cimport uint32_t, uint64_t
from posix.types cimport off_t

from proxymap.base._map cimport mapped

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <sys/stat.h>
    """
    struct file_status "statx":
        uint32_t stx_dev_major, stx_dev_minor
        uint64_t stx_ino
        uint64_t stx_size

cdef extern from "<fcntl.h>" nogil:
    int F_OFD_SETLK   # not waited for
    int F_OFD_SETLKW


cdef bint set_lock(int fd, int kind, int how) noexcept nogil


cdef class LockFile:
    cdef mapped file        # its descriptor, and its first bytes as they are now
    cdef bytes path
    cdef file_status identity
    cdef off_t left_size    # of the file, as we left it; -1: not known
    cdef char *left         # and its first bytes,
    cdef size_t head        # so many

    cpdef bint lock(self, bint wait=*, bint shared=*) except -1
    cpdef unlock(self)
    cpdef bint is_current(self) except -1
    cdef bint look(self, file_status *s) except -1
    cpdef leave(self, size_t head)
    cpdef forget(self)
    cpdef bint is_as_left(self) except -1
