"""sockets - where clients connect: a socket of our own, or systemd's; may anybody connect to it?

Source: unix(7), sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import stat
from collections.abc import Iterable, Iterator

from proxymap.base._listen import PATH_MAX, path_of
from proxymap.errors import ConfigError

# socket is imported where it is used: a start under master(8) has no need of it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

BACKLOG = 4096  # connections that wait for accept; the kernel cuts it to net.core.somaxconn
SOCKET_MODE = 0o666  # as Postfix: the folder decides who may connect
LISTEN_FDS_START = 3


class Listeners:
    """Listening sockets. `publish` lets clients find them: from then on somebody must accept."""

    def __init__(self, sockets: list[socket.socket], path: str | None = None) -> None:
        self.sockets, self.path = sockets, path

    def publish(self) -> None:
        """Raises ConfigError if that cannot be done."""


class OwnSocket(Listeners):
    """A new socket at `path`; until it is published it has another name beside that.

    Only who holds the lock on PATH.lock looks at PATH and puts a socket there, so that of two
    servers that start at the same time one gives up. Others may have a say in the folder: nothing
    that is found there is opened or changed by its name. Raises ConfigError if PATH cannot be had.
    """

    path: str

    def __init__(self, path: str) -> None:
        super().__init__([], path)
        self._private = os.path.join(os.path.dirname(path), f".{os.getpid()}")
        self._lock = _locked(f"{path}.lock")
        try:
            refuse_occupied(path)
            sock = _bound(self._private)
            self._inode = os.lstat(self._private).st_ino
            self.sockets = [sock]
        except OSError as error:
            raise ConfigError(f"--listen unix:{path}: {error.strerror or error}") from None
        finally:
            if not self.sockets:
                self._unlock()

    def publish(self) -> None:
        try:
            os.rename(self._private, self.path)
        except OSError as error:
            raise ConfigError(f"--listen unix:{self.path}: {error.strerror}") from None
        self._unlock()

    def close(self) -> None:
        """Remove the socket, if it is still this one."""
        for name in (self._private, self.path):
            with contextlib.suppress(OSError):
                if os.lstat(name).st_ino == self._inode:
                    os.unlink(name)
        self._unlock()
        self.sockets[0].close()

    def _unlock(self) -> None:
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.unlink(f"{self.path}.lock")
            os.close(self._lock)
            self._lock = -1


@contextlib.contextmanager
def own_socket(listen: str) -> Iterator[Listeners]:
    """A new socket at PATH ("unix:PATH"), removed at the end. Raises ConfigError if PATH cannot be had."""
    kind, _, path = listen.partition(":")
    if kind != "unix" or not path:
        raise ConfigError(f'--listen "{listen}": expected unix:PATH')
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > PATH_MAX:
        raise ConfigError(f"--listen {listen}: a socket's path has at most {PATH_MAX} bytes")
    with contextlib.closing(OwnSocket(path)) as own:
        yield own


def _locked(path: str) -> int:
    """The descriptor of a new file at path, locked; ConfigError if somebody has it locked."""
    where = f"--listen unix:{path.removesuffix('.lock')}"
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise ConfigError(f"{where}: cannot lock {path}: {error.strerror}{advice(error, path)}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise ConfigError(f"{where}: another server is starting there") from None
        except FileNotFoundError:
            pass  # the holder has removed it
        os.close(fd)


def advice(error: OSError, path: str) -> str:
    """What to do about a folder that is not there, or not the server's."""
    if error.errno not in (errno.EACCES, errno.ENOENT):
        return ""
    user = pwd.getpwuid(os.geteuid()).pw_name
    return f"; {user} needs a folder of its own: install -d -o {user} {os.path.dirname(path)}"


def _bound(path: str) -> socket.socket:
    """A listening socket at path, where a killed server of our number may have left one. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, f"{path} is in the way: remove it, and see who puts such files there")
        os.unlink(path)
    import socket

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    umask = os.umask(0)
    try:
        os.fchmod(sock.fileno(), SOCKET_MODE)  # not by the path: another's link may be there by then
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def refuse_occupied(path: str) -> None:
    """ConfigError if PATH is no socket, or one that somebody serves. Raises OSError."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"--listen unix:{path}: this file is no socket; not touching it")
    except FileNotFoundError:
        return
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        result = probe.connect_ex(path)
    if result == errno.EACCES:
        raise ConfigError(
            f"--listen unix:{path}: this socket is another user's; remove it if nobody serves it"
        )
    if result != errno.ECONNREFUSED:
        raise ConfigError(f"--listen unix:{path}: another server is listening there; stop it first")


@contextlib.contextmanager
def inherited_sockets() -> Iterator[Listeners]:
    """The sockets that systemd's .socket unit opened for us."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit() or int(count) < 1:
        raise ConfigError("no socket to serve: give --listen unix:PATH, or start from a systemd .socket unit")
    import socket

    sockets = [socket.socket(fileno=fd) for fd in range(LISTEN_FDS_START, LISTEN_FDS_START + int(count))]
    for sock in sockets:
        os.set_inheritable(sock.fileno(), False)
        sock.setblocking(False)
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    yield Listeners(sockets)


def are_private(listeners: Iterable[int]) -> bool:
    """May other users not connect to these sockets: by the mode of a socket, or of a folder on its way?"""
    return all(map(_is_private, listeners))


def _is_private(listener: int) -> bool:
    name = path_of(listener)
    if not name:
        return False  # of the network, or in the abstract namespace
    path = os.path.abspath(os.fsdecode(name))
    try:
        private = not os.stat(path).st_mode & stat.S_IWOTH
        while not private and path != "/":
            path = os.path.dirname(path)
            private = not os.stat(path).st_mode & stat.S_IXOTH
    except OSError:
        return False
    return private
