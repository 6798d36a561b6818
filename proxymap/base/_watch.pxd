# _watch - inotify: which folders and files are watched, and did anything happen to them? (see _watch.pyx)

from libc.stdint cimport uint32_t

from proxymap.base._buf cimport buf
from proxymap.base._os cimport pthread_mutex_t

cdef enum:
    WATCH_SLOTS = 256


cdef struct watched_name:
    int folder               # by its watch descriptor
    buf name
    bint written             # somebody writes to this file, and has not closed it yet
    bint eager               # each write to it has to be known at once
    int uses                 # by a Way; changed with the GIL
    watched_name *chain


cdef struct watch:
    int fd                   # inotify; -1: there is none
    pthread_mutex_t lock     # of the names, which workers add to, and of taking events
    bint taken               # by a worker; the loop has yet to look
    watched_name *names[WATCH_SLOTS]


cdef class Way:
    cdef object of            # the Watch
    cdef watched_name **names
    cdef int count
    cdef readonly bint tells  # is each change an event?
    cdef const bint *written  # is somebody writing to the file, by its name? NULL: that is not known
    cdef const bint *own      # the same by any name, such as a hard link or a bind mount

    cdef int hold(self, watched_name *n) except -1


cdef class Watch:
    cdef watch w
    cdef Way add_file(self, bytes path, bint content, bint writers)
    cdef watched_name *add_name(self, Way way, bytes folder, bytes name, uint32_t mask) except? NULL


cdef bint watch_take(watch *w) noexcept nogil
cdef bint watch_was_taken(watch *w) noexcept nogil
