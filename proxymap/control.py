"""control - what an administrator asks of a running server: its tables, a flush, a reload

A socket of its own beside the one that is served, `SOCKET.PID.ctl`, open to its
owner and root alone: one process, one socket. A request is one line of JSON,
{"do": WORD, ...}; the reply is one line, {"ok": VALUE} or {"error": TEXT}.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

from proxymap.log import Log

# json and glob are imported where they are used: the server has no need of them at its start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Command = Callable[[dict[str, Any]], Any]

MODE = 0o600
PATH_MAX = 107  # bytes of a socket's path; unix(7)
LINE_MAX = 65536  # bytes of a request
PATIENCE = 5.0  # seconds for one who asks


class Refused(Exception):
    """The request cannot be done; the text says why."""


class Control:
    """Serves the commands on a thread of its own. Cannot be had: a warning, and the server goes on."""

    def __init__(self, path: str, commands: dict[str, Command], log: Log) -> None:
        self.path, self.commands, self.log = path, commands, log
        self._socket: socket.socket | None = None

    def start(self) -> None:
        try:
            self._socket = _listening(self.path)
        except OSError as error:
            self.log.warning(f"no control socket {self.path}: {error.strerror or error}")
            return
        threading.Thread(target=self._run, args=(self._socket,), name="control", daemon=True).start()

    def stop(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            self._socket.close()

    def _run(self, listener: socket.socket) -> None:
        import json

        while True:
            try:
                asker, _ = listener.accept()
            except OSError:
                return  # closed by stop
            with asker, contextlib.suppress(OSError):
                asker.settimeout(PATIENCE)
                asker.sendall(json.dumps(self._answer(asker)).encode() + b"\n")

    def _answer(self, asker: socket.socket) -> dict[str, Any]:
        import json

        line = b""
        while not line.endswith(b"\n") and len(line) <= LINE_MAX and (more := asker.recv(LINE_MAX)):
            line += more
        try:
            request = json.loads(line)
            return {"ok": self.commands[request.pop("do")](request)}
        except Refused as refusal:
            return {"error": str(refusal)}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"error": f'expected {{"do": one of {" ".join(self.commands)}}}'}


def _listening(path: str) -> socket.socket:
    if len(os.fsencode(path)) > PATH_MAX:
        raise OSError(f"the path has more than {PATH_MAX} bytes")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a process that had our number
    listener = socket.socket(socket.AF_UNIX)
    os.fchmod(listener.fileno(), MODE)  # not by the path: the folder's owner may have put a link there
    listener.bind(path)
    listener.listen(8)  # from now on one can connect
    return listener


# The other end


def ask_all(socket_path: str, **request: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Ask each process that serves that socket: (process id, reply).

    A control socket that nobody serves is passed over. PermissionError: the caller may not ask.
    """
    import glob
    import json

    for path in sorted(glob.glob(glob.escape(socket_path) + ".*.ctl")):
        with socket.socket(socket.AF_UNIX) as asker:
            asker.settimeout(PATIENCE)
            try:
                asker.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                continue
            asker.sendall(json.dumps(request).encode() + b"\n")
            with asker.makefile("rb") as reply:
                yield int(path.split(".")[-2]), json.loads(reply.readline())
