"""_listen - listening UNIX-domain sockets as descriptors, for which the module socket is not imported

Source: unix(7), accept(2).
"""

from libc.errno cimport EINTR, errno
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from proxymap.base._os cimport SHUT_RDWR, SOCK_CLOEXEC, accept4, shutdown, sockaddr

import os

cdef extern from "<sys/socket.h>" nogil:
    enum: AF_UNIX, SOCK_STREAM
    int socket(int, int, int)
    int bind(int, const sockaddr *, unsigned int)
    int listen(int, int)
    int getsockname(int, sockaddr *, unsigned int *)

cdef extern from "<sys/stat.h>" nogil:
    int fchmod(int, unsigned int)

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]

PATH_MAX = 107  # bytes of a socket's path; unix(7)


def listen_at(bytes path, int mode, int backlog) -> int:
    """The descriptor of a new socket at path, where there is nothing. Raises OSError.

    The mode is set before there is a name: the folder's owner may put a link in its place.
    """
    cdef sockaddr_un address
    cdef int fd
    if len(path) > PATH_MAX:
        raise OSError(f"the path has more than {PATH_MAX} bytes")
    memset(&address, 0, sizeof(address))
    address.sun_family = AF_UNIX
    memcpy(address.sun_path, <const char *> path, len(path))
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    if fchmod(fd, mode) == 0 and bind(fd, <sockaddr *> &address, sizeof(address)) == 0:
        if listen(fd, backlog) == 0:
            return fd
    error = OSError(errno, os.strerror(errno))
    close(fd)
    raise error


def path_of(int listener) -> bytes:
    """Where the socket is in the file system; empty for one that is not. Raises OSError."""
    cdef sockaddr_un address
    cdef unsigned int size = sizeof(address)
    memset(&address, 0, sizeof(address))
    if getsockname(listener, <sockaddr *> &address, &size) != 0:
        raise OSError(errno, os.strerror(errno))
    if address.sun_family != AF_UNIX:
        return b""
    return address.sun_path[:sizeof(address.sun_path)].partition(b"\0")[0]


def accept_from(int listener) -> int:
    """The descriptor of the next connection, waited for without the GIL. Raises OSError."""
    cdef int fd
    with nogil:
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)
        while fd < 0 and errno == EINTR:
            fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    return fd


def stop_listening(int listener) -> None:
    """Wake the thread that waits in accept_from, which gets an error; the descriptor stays open."""
    shutdown(listener, SHUT_RDWR)
