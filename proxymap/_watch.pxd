# _watch - inotify: which folders and files are watched, and did anything happen to them? (see _watch.pyx)

from proxymap._buf cimport buf

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    WATCH_SLOTS = 256


cdef struct watched_name:
    buf name
    watched_name *chain


cdef struct watch:
    int fd                   # inotify; -1: there is none
    pthread_mutex_t lock     # of the names, which workers add to
    watched_name *names[WATCH_SLOTS]


cdef class Watch:
    cdef watch w


cdef bint watch_take(watch *w) noexcept nogil
