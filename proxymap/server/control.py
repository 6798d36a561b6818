"""control - what an administrator asks of a running server: its tables, a flush, a reload

A socket of its own beside the one that is served, `SOCKET.PID.ctl`, open to its
owner and root alone: one process, one socket. A request is one line of JSON,
{"do": WORD, ...}; the reply is one line, {"ok": VALUE} or {"error": TEXT}.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator

from proxymap.server.log import Log

# json is imported where it is used: the server has no need of it at its start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Command = Callable[[dict[str, Any]], Any]

MODE = 0o600
PATH_MAX = 107  # bytes of a socket's path; unix(7)
BACKLOG = 64  # who comes while so many wait is refused
LINE_MAX = 65536  # bytes of a request
ASKER_PATIENCE = 10.0  # seconds for an answer
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
        self._socket: socket.socket | None = None
        self._stopping = False

    def start(self) -> None:
        try:
            self._socket = _listening(self.path)
        except OSError as error:
            self.log.warning(f"no control socket {self.path}: {error.strerror or error}")
            return
        threading.Thread(target=self._run, args=(self._socket,), name="control", daemon=True).start()

    def stop(self) -> None:
        """Nobody finds us from now on. One request may still be under way."""
        self._stopping = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
            self._socket.close()
            self._socket = None

    def _run(self, listener: socket.socket) -> None:
        _remove_stale(self.beside)
        while not self._stopping:
            try:
                asker, _ = listener.accept()
            except OSError:
                time.sleep(PAUSE)
                continue
            with asker:
                try:
                    self._serve(asker)
                except OSError:
                    pass  # who asked is gone, or too slow
                except Exception as error:  # whatever it is: the thread must live
                    self.log.error(f"control request: {type(error).__name__}: {error}")

    def _serve(self, asker: socket.socket) -> None:
        import json

        reply = self._answer(_line_from(asker))
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


def _listening(path: str) -> socket.socket:
    if len(os.fsencode(path)) > PATH_MAX:
        raise OSError(f"the path has more than {PATH_MAX} bytes")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a process that had our number
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), MODE)  # not by the path: the folder's owner may have put a link there
        listener.bind(path)
        listener.listen(BACKLOG)  # from now on one can connect
    except OSError:
        listener.close()
        raise
    return listener


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
    with socket.socket(socket.AF_UNIX) as asker:
        asker.setblocking(False)
        try:
            asker.connect(path)
        except ConnectionRefusedError:
            return True
    return False


def _line_from(asker: socket.socket) -> bytes:
    """One line, or what there is of it at the end; OSError if it does not come in time."""
    until = time.monotonic() + SERVER_PATIENCE
    line = b""
    while not line.endswith(b"\n") and len(line) <= LINE_MAX:
        asker.settimeout(max(until - time.monotonic(), 0.001))
        more = asker.recv(LINE_MAX)
        if not more:
            break
        line += more
    return line


# The other end


def ask_all(socket_path: str, **request: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Ask each process that serves that socket: (process id, reply). Raises OSError, with the path.

    Whoever is gone, or goes before it has answered, is passed over.
    """
    for pid, path in _sockets_beside(socket_path):
        try:
            reply = _ask(path, request)
        except (ConnectionError, FileNotFoundError):
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), path) from None
        if reply is not None:
            yield pid, reply


def _sockets_beside(socket_path: str) -> list[tuple[int, str]]:
    """(process id, control socket) of each process that serves, or served, that socket."""
    folder, name = os.path.split(socket_path)
    is_ours = re.compile(re.escape(name) + r"\.(\d+)\.ctl")
    matches = map(is_ours.fullmatch, os.listdir(folder or "."))
    return sorted((int(match[1]), os.path.join(folder, match[0])) for match in matches if match)


def _ask(path: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """The reply; None if the process ended before it was complete."""
    import json

    with socket.socket(socket.AF_UNIX) as asker:
        asker.settimeout(ASKER_PATIENCE)
        asker.connect(path)
        asker.sendall(json.dumps(request).encode() + b"\n")
        with asker.makefile("rb") as replies:
            line = replies.readline()
    reply: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    return reply
