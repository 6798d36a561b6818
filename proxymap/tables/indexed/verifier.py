"""verifier - libdb looks at a damaged file in a process of its own, which may crash and has a time limit

libdb's verify may crash or go round for ever. The verifier is a process that takes
descriptors of files from a socket and forks for each; an alarm ends a fork that comes to
no end. It runs this file as a script, starts when a file is first to be verified, and
leaves after IDLE seconds without one. Where this user may not run Python, as mail_owner
may not run root's, in a chroot and in a sandbox, it is a fork of the server instead: made
by stand_by(), it lives as long as the server.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from contextlib import suppress

START = 60.0  # seconds for the verifier to start, on a busy host
SECONDS = 5  # for a file of no size
BYTES_A_SECOND = 20 << 20
IDLE = 60  # seconds
QUESTION = 8192  # bytes: two numbers and a path
ANSWER = 1024  # bytes
NO_END = "damaged: libdb comes to no end with it"
CRASH = "damaged: libdb crashes on it"
DESCRIPTORS_MAX = 1 << 16  # none that a server inherits or has at its start is higher


# In the server


class Verifier:
    """The process, and the socket that leads to it. OSError if it cannot be had."""

    def __init__(self, *, forked: bool = False) -> None:
        self.peer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer.settimeout(START)
        child = self.pid = 0
        try:
            with theirs:
                child = os.fork() if forked else spawn(theirs.fileno())
                if not child:
                    serve(theirs.fileno())
            self.pid = int(self.peer.recv(ANSWER) or 0)
            if not self.pid:
                raise OSError("the process that verifies files does not start")
        except OSError:
            self.end()
            raise
        finally:
            if child:  # it has made way for a child of its own, or does not start
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

    def end(self) -> None:
        """It still answers what it was asked."""
        with suppress(OSError):  # it has left
            self.peer.shutdown(socket.SHUT_RDWR)
        self.peer.close()
        if self.pid:
            with suppress(ChildProcessError):  # it is init's, unless we are process 1 of a container
                os.waitpid(self.pid, 0)


def spawn(peer: int) -> int:
    """Run this file with that standard input; returns the number of the process."""
    command = [sys.executable, "-IS", __file__, *sys.path]
    actions = [(os.POSIX_SPAWN_DUP2, peer, 0)]
    return os.posix_spawn(command[0], command, os.environ, file_actions=actions)


_verifier: Verifier | None = None
_lock = threading.Lock()


def stand_by(alone: bool = False) -> None:
    """Have a verifier now, if it cannot be started later: alone says so.

    Call this when privileges were dropped and there are no threads yet.
    """
    global _verifier
    from berkeleydb import db

    files = (os.__file__, __file__, db.__file__)
    runs = os.access(sys.executable, os.X_OK) and all(os.access(file, os.R_OK) for file in files)
    if alone or not runs:
        with suppress(OSError):  # its lack is told when a file is to be verified
            _verifier = _verifier or Verifier(forked=True)


def verify(file: int, path: str, flags: int) -> tuple[int, str] | None:
    """What libdb says of the file: its error number and text; None: it is sound. Any thread.

    path: used where there is no /proc; the caller sees afterwards if it led to that file.
    OSError: no process can be had for it.
    """
    limit = SECONDS + os.fstat(file).st_size // BYTES_A_SECOND
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            _ask(b"%d %d %b" % (flags, limit + 1, os.fsencode(path)), [file, theirs.fileno()])
        ours.settimeout(limit)
        try:
            number, _, text = ours.recv(ANSWER).decode().partition(" ")
        except TimeoutError:
            return 0, NO_END
    if number == NO_FORK:
        raise OSError(text)
    if not number:
        return 0, CRASH
    return (int(number), text) if number != "0" else None


def _ask(question: bytes, files: list[int]) -> None:
    global _verifier
    with _lock:
        if _verifier is not None:
            try:
                socket.send_fds(_verifier.peer, [question], files)
            except (BrokenPipeError, ConnectionResetError):
                _verifier.end()
                _verifier = None
            else:
                return
        _verifier = Verifier()
        socket.send_fds(_verifier.peer, [question], files)


def dismiss() -> None:
    """End the verifier; the next file has a new one."""
    global _verifier
    with _lock:
        if _verifier is not None:
            _verifier.end()
            _verifier = None


# In the verifier

NO_FORK = "none"


def serve(peer: int, idle: float | None = None) -> None:
    """Verify what comes from the socket until it is closed, in a child that init inherits. Never returns.

    The server would not notice its end: it would be a zombie until the next file.
    idle: leave when nothing came for so many seconds.
    """
    try:
        if os.fork():
            return
        from berkeleydb import db  # noqa: F401

        asker = alone_with(peer)
        asker.settimeout(idle)
        asker.send(b"%d" % os.getpid())
        while True:
            try:
                question, files, _, _ = socket.recv_fds(asker, QUESTION, 2)
            except TimeoutError:
                asker.shutdown(socket.SHUT_RD)  # from now on the server starts another; what has come is read
                continue
            if not question:
                break
            take(question, *files)
    finally:
        os._exit(0)


def alone_with(peer: int) -> socket.socket:
    """Keep nothing of the server's but the socket, as standard input; let what ends the server pass.

    The server may have to open tables before it ends, and the socket tells when it has.
    """
    os.dup2(peer, 0)
    nothing, _ = os.pipe()  # where there is no /dev/null
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.closerange(3, DESCRIPTORS_MAX)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return socket.socket(fileno=0)


def take(question: bytes, file: int, reply: int) -> None:
    """Have a fork verify the file."""
    try:
        if not os.fork():
            answer(question, file, reply)
    except OSError as error:
        with suppress(OSError):
            os.write(reply, f"{NO_FORK} {error.strerror}".encode())
    os.close(file)
    os.close(reply)


def answer(question: bytes, file: int, reply: int) -> None:
    """Verify the file. Never returns."""
    from berkeleydb import db

    try:
        flags, limit, path = question.split(b" ", 2)
        signal.alarm(int(limit))
        by_number = f"/proc/self/fd/{file}"
        db.DB().verify(by_number if os.path.exists(by_number) else os.fsdecode(path), flags=int(flags))
        os.write(reply, b"0")
    except db.DBError as error:
        os.write(reply, f"{error.args[0]} {error.args[1]}".encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.path[:] = sys.argv[1:]
    serve(0, IDLE)
