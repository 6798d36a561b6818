# _lockfile - a file that other processes write to as well (see _lockfile.pyx)

cdef extern from "<fcntl.h>" nogil:
    int F_OFD_SETLK   # not waited for
    int F_OFD_SETLKW


cdef bint set_lock(int fd, int kind, int how) noexcept nogil
