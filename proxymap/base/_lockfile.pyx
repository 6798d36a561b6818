"""_lockfile - a file that other processes write to as well: locked as Postfix does, and known again

The lock is fcntl's, on the whole file, taken as an "open file description"
lock: other processes see no difference, but it is ours alone and lasts until
we give it up, while a plain fcntl lock goes as soon as any descriptor of the
file is closed in this process.

In C, since it stands around each commit. Nor does it ask when the file was
written to: after that question the next write notes its time anew, and the sync of
that write takes a third longer (measured; ext4 since Linux 6.13).

Source: fcntl(2), F_OFD_SETLK; statx(2).
"""

import os

from libc.errno cimport EACCES, EAGAIN, EINTR, ENOENT, errno
from libc.stdio cimport SEEK_SET
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy
from posix.fcntl cimport F_RDLCK, F_UNLCK, F_WRLCK, fcntl, flock
from posix.types cimport off_t

from proxymap.base._map cimport map_close, map_data

cdef extern from *:
    int statx_file "statx"(int, const char *, int, unsigned int, file_status *) nogil
    enum: AT_FDCWD, AT_EMPTY_PATH, STATX_INO, STATX_SIZE


cdef bint set_lock(int fd, int kind, int how) noexcept nogil:
    """kind: F_WRLCK, F_RDLCK or F_UNLCK; how: F_OFD_SETLK or F_OFD_SETLKW. False with errno."""
    cdef flock lock
    lock.l_type = kind
    lock.l_whence = SEEK_SET
    lock.l_start = lock.l_len = lock.l_pid = 0
    return fcntl(fd, how, &lock) == 0


cdef int status_of(int fd, const char *path, file_status *s) noexcept nogil:
    """Of the file that path leads to; of fd, if path is NULL. 0, or -1 with errno."""
    if path == NULL:
        return statx_file(fd, b"", AT_EMPTY_PATH, STATX_INO | STATX_SIZE, s)
    return statx_file(AT_FDCWD, path, 0, STATX_INO | STATX_SIZE, s)


cdef class LockFile:
    """The file at `path`, whose descriptor `fd` is now this object's; not locked yet."""

    def __cinit__(self, str path not None, int fd):
        self.file.fd, self.path, self.left_size = fd, os.fsencode(path), -1
        self.file.region = NULL
        if status_of(fd, NULL, &self.identity) < 0:
            raise OSError(errno, os.strerror(errno), path)

    def __dealloc__(self):
        self.close()

    def close(self) -> None:
        """The lock goes with it."""
        map_close(&self.file)
        free(self.left)
        self.left = NULL
        self.head = 0
        self.left_size = -1

    @property
    def fd(self) -> int:
        return self.file.fd

    cpdef bint lock(self, bint wait=True, bint shared=False) except -1:
        """False if another has it and the caller does not wait."""
        cdef int kind = F_RDLCK if shared else F_WRLCK
        cdef bint locked = set_lock(self.file.fd, kind, F_OFD_SETLK)
        while not locked:
            if errno == EAGAIN or errno == EACCES:
                if not wait:
                    return False
            elif errno != EINTR:
                raise OSError(errno, os.strerror(errno), os.fsdecode(self.path))
            with nogil:
                locked = set_lock(self.file.fd, kind, F_OFD_SETLKW)
        return True

    cpdef unlock(self):
        if self.file.fd >= 0:
            set_lock(self.file.fd, F_UNLCK, F_OFD_SETLK)

    @property
    def size(self) -> int:
        """The size now, in bytes."""
        cdef file_status s
        if status_of(self.file.fd, NULL, &s) < 0:
            raise OSError(errno, os.strerror(errno), os.fsdecode(self.path))
        return s.stx_size

    cpdef bint is_current(self) except -1:
        """Is it still what the path leads to? Not if our map of it is spoiled: it is to be opened anew."""
        cdef file_status s
        return self.look(&s)

    cdef bint look(self, file_status *s) except -1:
        if self.file.region != NULL and self.file.region.damaged:
            return False
        if status_of(-1, self.path, s) == 0:
            return (s.stx_ino == self.identity.stx_ino and s.stx_dev_major == self.identity.stx_dev_major
                    and s.stx_dev_minor == self.identity.stx_dev_minor)
        if errno != ENOENT:
            raise OSError(errno, os.strerror(errno), os.fsdecode(self.path))
        return False

    cpdef leave(self, size_t head):
        """Remember size and the first `head` bytes, which every commit changes; nothing, where that fails.

        The bytes are mapped: to read them costs a hundredth of a commit.
        """
        cdef file_status s
        self.forget()
        if self.head != head:  # a file that was emptied may have other pages now
            self.head = 0
            free(self.left)
            self.left = <char *> malloc(head)
            if self.left == NULL or map_data(&self.file, head) < 0:
                return
            self.head = head
        if status_of(self.file.fd, NULL, &s) == 0 and s.stx_size >= head:
            memcpy(self.left, self.file.data, head)
            self.left_size = s.stx_size

    cpdef forget(self):
        self.left_size = -1

    cpdef bint is_as_left(self) except -1:
        """Is it still what the path leads to, and has nobody written to it since `leave`?"""
        cdef file_status s
        return (self.left_size >= 0 and self.look(&s) and <off_t> s.stx_size == self.left_size
                and memcmp(self.left, self.file.data, self.head) == 0 and not self.file.region.damaged)
