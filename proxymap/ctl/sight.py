"""sight - does a server's process see the same files as this command?

A container, a systemd unit or a chroot jail may show it another file by the same
name. Device and inode tell; the mount, or the jail, says why.

Source: proc(5): root, cwd, ns/mnt and mountinfo of a process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from proxymap.ctl.safety import as_user
from proxymap.errors import ConfigError

Identity = tuple[int, int]  # device, inode


def differences(pids: Iterable[int], files: Iterable[bytes]) -> Iterator[str]:
    """differences - a line for each process and file that is another one there; only root can tell"""
    paths = [os.fsdecode(file) for file in files]
    here = [_identity(path) for path in paths]
    for pid in pids if os.geteuid() == 0 else ():
        with contextlib.suppress(OSError, ConfigError):
            there = as_user("root", lambda pid=pid: _seen_by(pid, paths))  # type: ignore[misc]
            for path, ours, theirs in zip(paths, here, there, strict=True):
                if ours != (theirs and tuple(theirs)):
                    what = f"process {pid} sees {_shown(theirs)} as {path}, not {_shown(ours)}"
                    yield f"{what}: {_why(pid, path)}"


def _seen_by(pid: int, paths: list[str]) -> list[Identity | None]:
    """In a process of its own, which takes the root and the folder of that one."""
    os.chdir(f"/proc/{pid}/cwd")
    os.chroot(f"/proc/{pid}/root")
    return [_identity(path) for path in paths]


def _identity(path: str) -> Identity | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _shown(file: Iterable[int] | None) -> str:
    if file is None:
        return "no file"
    device, inode = file
    return f"file {inode} on device {os.major(device)}:{os.minor(device)}"


def _why(pid: int, path: str) -> str:
    """What makes it another file."""
    root = os.readlink(f"/proc/{pid}/root")
    if root != "/":
        return f"it is chrooted to {root}"
    if os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
        return f"it has mounts of its own, there {_mount_of(pid, path)}"
    return f"it works in {os.readlink(f'/proc/{pid}/cwd')}"


def _mount_of(pid: int, path: str) -> str:
    """The mount of that process that the path lies on: where, and of what."""
    best, source = "/", ""
    with open(f"/proc/{pid}/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            words = line.split(" ")
            point = words[4].encode().decode("unicode_escape")
            if len(point) >= len(best) and os.path.commonpath([point, os.path.abspath(path)]) == point:
                best, source = point, f"{words[words.index('-') + 1]}, {words[3]}"
    return f"{best} ({source})"
