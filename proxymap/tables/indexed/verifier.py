"""verifier - libdb looks at a damaged file in a process of its own, which may crash and has a time limit

libdb's verify may crash or go round for ever. A helper process waits for
descriptors of files on its standard input, a socket, and verifies one after
the other; one that comes to no end is killed. It leaves after IDLE seconds.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from contextlib import suppress

START = 60.0  # seconds for a helper to start, on a busy host
SECONDS = 5  # for a file of no size
BYTES_A_SECOND = 20 << 20
IDLE = 60  # seconds
ANSWER = 1024  # bytes
NO_END = "damaged: libdb comes to no end with it"
CRASH = "damaged: libdb crashes on it"

# An alarm ends it also when nobody is there any more to kill it.
HELPER = f"""
import sys
sys.path[:] = sys.argv[1:]
import os
try:
    import resource, signal, socket
    from berkeleydb import db
except ModuleNotFoundError:
    os.write(0, b"forbidden")
    sys.exit()
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
peer = socket.socket(fileno=0)
peer.settimeout({IDLE})
peer.send(b"ready")
while True:
    try:
        text, (file,), _, _ = socket.recv_fds(peer, {ANSWER}, 1)
    except (OSError, ValueError):
        break
    flags, limit = map(int, text.split())
    signal.alarm(limit)
    answer = b"0"
    try:
        db.DB().verify(f"/proc/self/fd/{{file}}", flags=flags)
    except db.DBError as error:
        answer = f"{{error.args[0]}} {{error.args[1]}}".encode()
    signal.alarm(0)
    os.close(file)
    peer.send(answer)
"""


class Helper:
    """One process. `owner` is the process that started it; a fork of that has no use for it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.peer, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-ISc", HELPER, *sys.path],
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self.peer.settimeout(START)
        try:
            word = self.peer.recv(ANSWER)
            if word == b"forbidden":  # root could, before it became mail_owner
                raise PermissionError(errno.EACCES, "the process that verifies files may not load berkeleydb")
            if word != b"ready":
                raise OSError("the process that verifies files does not start")
        except OSError:
            self.end()
            raise

    def ask(self, file: int, flags: int, limit: int) -> bytes:
        """Empty: it has crashed. TimeoutError."""
        self.peer.settimeout(limit)
        socket.send_fds(self.peer, [b"%d %d" % (flags, limit + 1)], [file])
        return self.peer.recv(ANSWER)

    def end(self) -> None:
        self.peer.close()
        self.process.kill()
        self.process.wait()


_idle: list[Helper] = []


def _a_helper() -> Helper:
    with suppress(IndexError):
        while True:
            helper = _idle.pop()
            if helper.owner != os.getpid():
                continue
            if helper.process.poll() is None:
                return helper
            helper.end()
    return Helper()


def verify(file: int, flags: int) -> tuple[int, str] | None:
    """What libdb says of the file: its error number and text; None: it is sound. Any thread.

    OSError: no process can be started for it.
    """
    limit = SECONDS + os.fstat(file).st_size // BYTES_A_SECOND
    helper = _a_helper()
    trouble = CRASH
    try:
        number, _, text = helper.ask(file, flags, limit).decode().partition(" ")
        if number:
            _idle.append(helper)
            return (int(number), text) if number != "0" else None
    except TimeoutError:
        trouble = NO_END
    helper.end()
    return 0, trouble
