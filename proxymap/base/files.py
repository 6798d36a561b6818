"""files - files and folders as Python sees them: stamps, whole contents, who may write where"""

from __future__ import annotations

import errno
import os
import pwd
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

Stamp = tuple[int, int, int, int, int]  # what tells one content of a file from another; see stamp_of

NO_FILE: Stamp = (0, 0, 0, 0, 0)
ATTEMPTS = 10  # to read a file that changes all the time
LINK_LIMIT = 40  # symlinks on one path, as Linux has it


def read_file(path: bytes, public: bool = False) -> tuple[bytes, Stamp]:
    """read_file - content and stamp of a file; read again if it changes meanwhile. Raises OSError

    public: only if others may read it, too, or a group that we are in.
    """
    for _ in range(ATTEMPTS):
        with open(os.fsdecode(path), "rb", opener=open_at_once) as opened:
            status = os.fstat(opened.fileno())
            if public and not _is_public(status):
                raise PermissionError(errno.EACCES, "only its owner may read it", os.fsdecode(path))
            stamp = stamp_of(status)
            content = opened.read()
            if stamp_of(os.fstat(opened.fileno())) == stamp:
                break
    return content, stamp


def _is_public(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IRGRP and status.st_gid in (os.getegid(), *os.getgroups()):
        return True
    return bool(status.st_mode & stat.S_IROTH)


def stamp_of(status: os.stat_result) -> Stamp:
    """stamp_of - what tells one content of a file from another: device, inode, size, times of change in ns"""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stamp_at(path: bytes) -> Stamp:
    """stamp_at - of the file that path leads to by now; all zero: there is none"""
    try:
        return stamp_of(os.stat(path))
    except OSError:
        return NO_FILE


def sync_folder(path: str) -> None:
    """sync_folder - make a file's name last"""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def folder_fault(path: str) -> str | None:
    """folder_fault - why a table at `path` must not be written to: others have a say in its folder; or None

    A user with the right to replace it by another file, or a link, would make us write there.
    """
    folder = os.path.dirname(os.path.realpath(path))
    status = os.stat(folder)
    if status.st_uid != os.geteuid():
        return f"the folder {folder} belongs to {user_name(status.st_uid)}, not to {user_name(os.geteuid())}"
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != os.getegid()):
        return f"others may write to the folder {folder} (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def path_steps(path: str) -> Iterator[str]:
    """path_steps - what the kernel goes by on the way to a path: each folder and symlink, then itself

    Source: path_resolution(7). OSError (ELOOP) for a path with too many symlinks.
    """
    at, links = "/", 0
    yield at
    parts = path.split("/")[::-1]
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        if part == "..":
            at = os.path.dirname(at)  # `at` has no symlinks in it
            continue
        step = os.path.join(at, part)
        yield step
        if not os.path.islink(step):
            at = step
            continue
        links += 1
        if links > LINK_LIMIT:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(step)
        parts += target.split("/")[::-1]
        at = "/" if target.startswith("/") else at


def open_at_once(path: str, flags: int) -> int:
    """open_at_once - an `opener` for regular files: a pipe or a device could keep us waiting, or never end"""
    fd = os.open(path, flags | os.O_NONBLOCK)
    status = os.fstat(fd)  # open() itself refuses a directory
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return fd
    if os.path.samestat(status, os.stat(os.devnull)):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", path)


def user_name(uid: int) -> str:
    """user_name - for a message"""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
