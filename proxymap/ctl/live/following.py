"""following - what all processes of a service tell as it happens, also those that begin later"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from proxymap.ctl.options import socket_of
from proxymap.ctl.outcome import no_process
from proxymap.errors import ConfigError
from proxymap.server.control import follow_all

LOOK = 1.0  # seconds between two looks for new processes
LINE_MAX = 1 << 20  # bytes
GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Follower:
    """Asks each process for a stream. note: told when one comes or goes, and why one refuses.

    Iterate: (process id, object) as they come; None when nothing has come for a while. Ends never
    by itself; BrokenPipeError when nobody reads standard output any more.
    """

    def __init__(self, arguments: argparse.Namespace, note: Callable[[str], None], **request: Any) -> None:
        self.path, self.note, self.request = socket_of(arguments), note, request
        self._looks = select.poll()
        self._askers: dict[int, tuple[int, socket.socket, bytearray]] = {}  # by descriptor
        self._refused: set[int] = set()
        self._out = sys.stdout.fileno()

    def __enter__(self) -> Follower:
        """OSError if there is no process; ConfigError if one refuses."""
        self._looks.register(self._out, 0)
        self._look()
        if not self._askers:
            raise no_process(self.path)
        return self

    def __exit__(self, *details: object) -> None:
        for _, asker, _ in self._askers.values():
            asker.close()

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]] | None]:
        began = looked = time.monotonic()
        while True:
            events = self._looks.poll(LOOK * 1000)
            for fd, what in events:
                if fd == self._out:
                    if what & GONE:
                        raise BrokenPipeError
                else:
                    yield from self._read(fd, strict=time.monotonic() - began < LOOK)
            yield None
            if time.monotonic() - looked >= LOOK:
                looked = time.monotonic()
                self._look()

    def _look(self) -> None:
        """Ask processes that are new."""
        known = {pid for pid, _, _ in self._askers.values()} | self._refused
        for pid, asker in follow_all(self.path, known, **self.request):
            asker.setblocking(False)
            self._askers[asker.fileno()] = pid, asker, bytearray()
            self._looks.register(asker, select.POLLIN)

    def _read(self, fd: int, strict: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """The whole lines that a process has sent. strict: a refusal is an error."""
        pid, asker, text = self._askers[fd]
        try:
            more = asker.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        text += more
        *lines, rest = text.split(b"\n")
        text[:] = rest
        for line in lines:
            try:
                told = json.loads(line)
            except (ValueError, RecursionError):
                told = None
            if not isinstance(told, dict) or isinstance(told.get("error"), str):
                refusal = told["error"] if isinstance(told, dict) else "its answer is not understood"
                self._refused.add(pid)
                self._forget(fd)
                if strict:
                    raise ConfigError(f"process {pid}: {refusal}")
                self.note(f"process {pid}: {refusal}")
                return
            if told.keys() == {"ok"}:
                self.note(f"following process {pid}")
            else:
                yield pid, told
        if not more or len(text) > LINE_MAX:
            self._forget(fd)
            self.note(f"process {pid} tells no more" + ("" if self._askers else "; waiting for another one"))

    def _forget(self, fd: int) -> None:
        self._looks.unregister(fd)
        self._askers.pop(fd)[1].close()
