"""rehearsal - start a daemon as master(8) would, but on a socket of ours

A daemon that does not start makes master hold the service back for
service_throttle_time, a minute in which no mail passes, and putting master.cf
back does not end it. So that is found out before. The same holds for a daemon
that dies of what it is asked, as Postfix's own does: an understudy is asked.

Source: master.md 1.1 to 1.4: arguments, environment and descriptors.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator

from proxymap.config.settings import Settings
from proxymap.ctl.mastercf import STOCK, Entry
from proxymap.ctl.safety import Fault

GREETING = b"protocol\0proxymap_protocol\0\0"
START_LIMIT = 15.0  # seconds until it greets
SILENT_LIMIT = 2.0  # seconds that it has to live, where servers do not greet (before Postfix 3.6)
FLOW_FDS = 3, 4  # a pipe that proxymap does not use; but Postfix's own dies if they are not open
STATUS_FD, LISTEN_FD = 5, 6  # where master's children have them
FIRST_FREE = 10  # of our own descriptors: clear of these


def rehearse(program: str, entry: Entry, settings: Settings) -> Iterator[Fault]:
    """rehearse - why `program` does not start as the service of `entry`; nothing if it does"""
    with tempfile.TemporaryFile() as log:
        with _listening() as (path, listener), contextlib.ExitStack() as stack:
            try:
                child = stack.enter_context(_child(program, entry, settings, listener, log.fileno()))
            except OSError as trouble:
                yield Fault(program, f"cannot be started: {trouble.strerror}", "install proxymap again")
                return
            works = _greets(path, child, settings.greets)
        if not works:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines() or ["no word of why"]
            what = f"does not work as {entry.service}: {lines[-1]}"
            yield Fault(program, what, "put that right; master.cf was not changed")


@contextlib.contextmanager
def understudy(program: str, entry: Entry, settings: Settings) -> Iterator[Callable[[], str]]:
    """understudy - gives what starts `program` as the service of `entry`, anew each time; returns its socket

    If it dies of a question, master knows nothing of that. OSError: it does not start.
    """
    with _listening() as (path, listener), open(os.devnull, "wb") as log, contextlib.ExitStack() as running:

        def start() -> str:
            running.close()
            child = running.enter_context(_child(program, entry, settings, listener, log.fileno()))
            if not _greets(path, child, settings.greets):
                raise ConnectionRefusedError(f"{program} does not start")
            return path

        yield start


@contextlib.contextmanager
def _listening() -> Iterator[tuple[str, socket.socket]]:
    """The path of a socket that listens, and the socket."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(folder, "s")
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        yield path, listener


@contextlib.contextmanager
def _child(
    program: str, entry: Entry, settings: Settings, listener: socket.socket, log: int
) -> Iterator[int]:
    """The daemon as a child of ours, for a while."""
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.ExitStack() as stack:
        high = [fcntl.fcntl(s.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_FREE) for s in (theirs, listener)]
        for fd in high:
            stack.callback(os.close, fd)
        actions = [
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0),
            *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in FLOW_FDS),
            (os.POSIX_SPAWN_DUP2, high[0], STATUS_FD),
            (os.POSIX_SPAWN_DUP2, high[1], LISTEN_FD),
        ]
        environment = {"MAIL_CONFIG": settings.config_directory, "LANG": "C", "GENERATION": "0"}
        child = os.posix_spawn(program, _arguments(program, entry), environment, file_actions=actions)
        try:
            yield child
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _arguments(program: str, entry: Entry) -> list[str]:
    """As master builds them; -l: without the lock of others; -V: what goes to the log is shown to us too."""
    name = [] if entry.service == STOCK else ["-n", entry.service]
    chroot = ["-c"] if entry.chroot == "y" else []
    return [program, *name, "-t", "unix", "-u", *chroot, "-l", "-V", *entry.arguments]


def _greets(path: str, child: int, greets: bool) -> bool:
    """Does the child take a connection, and say what a server says first?"""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        ended = os.pidfd_open(child)
        try:
            limit = START_LIMIT if greets else SILENT_LIMIT
            ready, _, _ = select.select([connection.fileno(), ended], [], [], limit)
        finally:
            os.close(ended)
        if not greets:
            return not ready
        connection.setblocking(False)
        return connection.fileno() in ready and connection.recv(len(GREETING)) == GREETING
