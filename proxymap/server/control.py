"""control - what an administrator asks of a running server: its tables, a flush, a reload

A socket of its own beside the one that is served, `SOCKET.PID.ctl`, open to its
owner and root alone: one process, one socket. A request is one line of JSON,
{"do": WORD, ...}; the reply is one line, {"ok": VALUE} or {"error": TEXT}. Where a
command is a Stream (tracing/streams), lines follow {"ok": null}, from another thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Container, Iterator

from proxymap.base._listen import accept_from, listen_at, stop_listening
from proxymap.server.log import Log
from proxymap.server.tracing.streams import Stream

# json and socket are imported where they are used: the server has no need of them at its start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    Command = Callable[[dict[str, Any]], Any]

MODE = 0o600
BACKLOG = 64  # connections that wait; more are refused
LINE_MAX = 65536  # bytes of a request
ANSWER_MAX = 64 << 20  # bytes of a reply: some hundred thousand tables
ASKER_PATIENCE = 10.0  # seconds for a whole answer
SERVER_PATIENCE = 2.0  # seconds for a whole request, and to take its answer; others wait meanwhile
PAUSE = 0.1  # seconds, when descriptors have run out


class Refused(Exception):
    """The request cannot be done; the text says why."""


class Control:
    """Serves the commands on a thread of its own. Cannot be had: a warning, and the server goes on.

    beside: the socket that is served.
    """

    def __init__(self, beside: str, commands: dict[str, Command], log: Log) -> None:
        self.beside, self.commands, self.log = beside, commands, log
        self.path = f"{beside}.{os.getpid()}.ctl"
        self._listener = -1
        self._lock = threading.Lock()  # the thread closes what `stop` wakes it with
        self._stopping = False

    def listen(self) -> None:
        """Have the socket. Who connects is served when it starts."""
        try:
            self._listener = _listener_at(self.path)
        except OSError as error:
            self.log.warning(f"no control socket {self.path}: {error.strerror or error}")

    def start(self) -> None:
        if self._listener < 0:
            return
        threading.Thread(target=self._run, args=(self._listener,), name="control", daemon=True).start()

    def stop(self) -> None:
        """Nobody finds us from now on. One request may still be under way."""
        self._stopping = True
        with self._lock:
            if self._listener >= 0:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
                stop_listening(self._listener)

    def _run(self, listener: int) -> None:
        _remove_stale(self.beside)
        while not self._stopping:
            try:
                asker = accept_from(listener)
            except OSError:
                if not self._stopping:
                    time.sleep(PAUSE)
                continue
            try:
                self._serve(asker)
            except OSError:
                pass  # who asked is gone, or too slow
            except Exception as error:  # whatever it is: the thread must live
                self.log.error(f"control request: {type(error).__name__}: {error}")
        with self._lock:
            self._listener = -1
            os.close(listener)

    def _serve(self, fd: int) -> None:
        try:
            import json
            import socket
        except ImportError:
            os.close(fd)
            raise
        with socket.socket(fileno=fd) as asker:
            reply = self._answer(_line_from(asker, LINE_MAX, SERVER_PATIENCE))
            if isinstance(reply.get("ok"), Stream):
                reply["ok"].start(asker.detach())
                return
            asker.settimeout(SERVER_PATIENCE)
            asker.sendall(json.dumps(reply).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        import json

        try:
            request = json.loads(line)
            command = self.commands[request.pop("do")]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {"error": f'expected {{"do": one of {" ".join(self.commands)}}}'}
        try:
            return {"ok": command(request)}
        except Refused as refusal:
            return {"error": str(refusal)}
        except Exception as error:
            self.log.exception("control request failed", error=error)
            return {"error": "failed unexpectedly; the server's log says why"}


def _listener_at(path: str) -> int:
    try:
        os.unlink(path)  # of a process that had our number
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OSError(error.errno, f"another user's file is in the way ({error.strerror})") from None
    return listen_at(os.fsencode(path), MODE, BACKLOG)


def _remove_stale(beside: str) -> None:
    """Remove the sockets that killed processes of our user have left."""
    with contextlib.suppress(OSError):
        for pid, path in _sockets_beside(beside):
            with contextlib.suppress(OSError, OverflowError):
                if _is_stale(pid, path):
                    os.unlink(path)


def _is_stale(pid: int, path: str) -> bool:
    """No such process, and nobody answers: it may live in another PID namespace. Raises OSError."""
    status = os.lstat(path)
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        pass
    else:
        return False
    import socket

    with socket.socket(socket.AF_UNIX) as asker:
        asker.setblocking(False)
        try:
            asker.connect(path)
        except ConnectionRefusedError:
            return True
    return False


def _line_from(asker: socket.socket, limit: int, patience: float) -> bytes:
    """One line, cut at the limit or where the peer ends it; OSError if it does not come in time."""
    until = time.monotonic() + patience
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= limit:
        asker.settimeout(max(until - time.monotonic(), 0.001))
        more = asker.recv(LINE_MAX)
        if not more:
            break
        line += more
    return bytes(line)


# The other end


def ask_all(
    socket_path: str, patience: float = ASKER_PATIENCE, **request: Any
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Ask each process that serves that socket: (process id, reply). Raises OSError, with the path.

    Others may have put sockets into the folder, too: only those of root, of the caller and of the
    owners of the served socket and its folder are asked. A reply is {"ok": VALUE} or {"error": TEXT}.
    A process that has gone, or goes before it has answered, is passed over. patience: seconds for
    each answer.
    """
    trusted = _trusted_with(socket_path)
    for pid, path in _sockets_beside(socket_path):
        try:
            reply = _ask(path, request, trusted, patience)
        except (ConnectionError, FileNotFoundError):
            continue
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path) from None
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), path) from None
        if reply is not None:
            yield pid, reply


def follow_all(
    socket_path: str, known: Container[int], **request: Any
) -> Iterator[tuple[int, socket.socket]]:
    """Ask each process but the known ones for a Stream: (process id, where its lines come). As ask_all."""
    import json

    trusted = _trusted_with(socket_path)
    for pid, path in _sockets_beside(socket_path):
        if pid in known:
            continue
        asker = None
        try:
            asker = _connected(path, trusted)
            if asker is not None:
                asker.sendall(json.dumps(request).encode() + b"\n")
        except (ConnectionError, FileNotFoundError):
            if asker is not None:
                asker.close()
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), path) from None
        if asker is not None:
            yield pid, asker


def _trusted_with(socket_path: str) -> set[int]:
    """The users whose control sockets are asked."""
    trusted = {0, os.geteuid()}
    for path in (socket_path, os.path.dirname(socket_path) or "."):
        with contextlib.suppress(OSError):
            trusted.add(os.lstat(path).st_uid)
    return trusted


def _sockets_beside(socket_path: str) -> list[tuple[int, str]]:
    """(process id, control socket) of each process that serves, or served, that socket."""
    folder, name = os.path.split(socket_path)
    found = []
    for file in os.listdir(folder or "."):
        number = file.removeprefix(f"{name}.").removesuffix(".ctl")
        if number.isdecimal() and file == f"{name}.{number}.ctl":
            found.append((int(number), os.path.join(folder, file)))
    return sorted(found)


def _ask(path: str, request: dict[str, Any], trusted: set[int], patience: float) -> dict[str, Any] | None:
    """The reply; None from a stranger, or if the process ended before it was complete."""
    import json

    asker = _connected(path, trusted, patience)
    if asker is None:
        return None
    with asker:
        asker.sendall(json.dumps(request).encode() + b"\n")
        line = _line_from(asker, ANSWER_MAX, patience)
    if not line.endswith(b"\n"):
        return None if len(line) <= ANSWER_MAX else {"error": f"its answer has more than {ANSWER_MAX} bytes"}
    return _checked(line)


def _connected(path: str, trusted: set[int], patience: float = ASKER_PATIENCE) -> socket.socket | None:
    """A connection to a control socket; None if it is a stranger's."""
    import socket
    from struct import Struct

    status = os.lstat(path)
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid not in trusted:
        return None
    asker = socket.socket(socket.AF_UNIX)
    try:
        asker.settimeout(patience)
        asker.connect(path)
        credentials = Struct("3i")  # process, user, group
        told = asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
        if credentials.unpack(told)[1] in trusted:
            return asker
    except BaseException:
        asker.close()
        raise
    asker.close()
    return None


def _checked(line: bytes) -> dict[str, Any]:
    """A reply, which has one of the two forms; if it has not, that is the error."""
    import json

    with contextlib.suppress(ValueError, RecursionError):
        reply = json.loads(line)
        if isinstance(reply, dict) and (reply.keys() == {"ok"} or isinstance(reply.get("error"), str)):
            return reply
    return {"error": "its answer is not understood"}
