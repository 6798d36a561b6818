"""files - the file that a service's counters lie in: SOCKET.metrics beside the served socket

All processes of the service map it; it stays when they end. What is not as we
leave it (another release's, cut, damaged) is set aside and begun anew. A file
that cannot be had is no reason not to serve: counters then end with the process.

Source: flock(2), posix_fallocate(3); master.md (mail_owner owns private/).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from struct import Struct

from proxymap.metrics import _counters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC = b"PXMCOUNT"
HEADER = Struct("=8sQQ64s")  # MAGIC, layout, when it was begun in ns of the wall clock, name of the service
MODE = 0o600
PATIENCE = 1.0  # seconds, for another process that begins the file
PAUSE = 0.01
TRIES = 10  # with a file that is replaced while it is opened


def path_beside(socket: str) -> str:
    """path_beside - where the counters of the server of that socket are"""
    return f"{socket}.metrics"


def count_in(path: str, service: str, warn: Callable[[str], None]) -> None:
    """count_in - have this process count in that file, or in its own memory if that cannot be"""
    try:
        fd = _open(path, service, warn)
        try:
            _counters.attach(fd)
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # close() does not: what is mapped stays open, and locked with it
            os.close(fd)
    except OSError as error:
        why = error.strerror or str(error)
        warn(f"counters of this process end with it: {path}: {why}")


def _open(path: str, service: str, warn: Callable[[str], None]) -> int:
    """A descriptor of the file, which is in order. OSError."""
    for _ in range(TRIES):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, MODE)
        try:
            _check_owner(fd)
            _lock(fd)
            if not _leads_to(path, fd):
                os.close(fd)
                continue
            if os.fstat(fd).st_size == 0:
                _begin(path, fd, service)
            elif not _is_ours(fd):
                os.rename(path, f"{path}.old")
                warn(f"{path} is damaged or of another release: set aside as {path}.old, counting from 0")
                os.close(fd)
                continue
            return fd
        except BaseException:
            os.close(fd)
            raise
    raise OSError(errno.EBUSY, "it is replaced all the time")


def _check_owner(fd: int) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
        raise OSError(errno.EPERM, "another user's file is in the way, or no plain file")


def _lock(fd: int) -> None:
    """For as long as it is open. Who else has it is only about to begin the file."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE)


def _leads_to(path: str, fd: int) -> bool:
    """Does the name still mean the file?"""
    try:
        there, here = os.stat(path, follow_symlinks=False), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _is_ours(fd: int) -> bool:
    header = os.pread(fd, HEADER.size, 0)
    if len(header) != HEADER.size or os.fstat(fd).st_size != _counters.FILE_SIZE:
        return False
    magic, layout, _, _ = HEADER.unpack(header)
    return bool(magic == MAGIC and layout == _counters.LAYOUT)


def _begin(path: str, fd: int, service: str) -> None:
    """All of it has its place on the disk from now on; the header comes last."""
    try:
        os.posix_fallocate(fd, 0, _counters.FILE_SIZE)
        os.pwrite(fd, HEADER.pack(MAGIC, _counters.LAYOUT, time.time_ns(), service.encode()[:64]), 0)
    except OSError:
        os.unlink(path)
        raise
