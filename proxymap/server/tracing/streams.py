"""streams - line after line to one asker of the control socket, as things happen

Each stream has a thread of its own, so that an asker that is slow, is stopped or has
forgotten us delays nobody: what it does not read in time, its source leaves out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from proxymap.base.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PAUSE = 0.1  # seconds between two looks for something to send
UNSENT_MAX = 65536  # bytes; no more is taken while so many wait
PATIENCE = 60.0  # seconds in which an asker has to read something, if something waits for it


class Stream:
    """JSON objects, one a line, from `take` to an asker, until one of both is gone.

    take: what there is by now, each time that it is called. end: called once when it is over.
    over: does the server end?
    """

    def __init__(
        self, take: Callable[[], Iterable[Any]], end: Callable[[], object], over: Callable[[], bool]
    ) -> None:
        self.take, self.end, self.over = take, end, over

    def start(self, fd: int) -> None:
        """Serve the asker at the other end of that descriptor, which is ours from now on. RuntimeError."""
        try:
            start_thread("stream", lambda: self._run(fd))
        except RuntimeError:
            os.close(fd)
            self.end()
            raise

    def _run(self, fd: int) -> None:
        import socket

        try:
            with socket.socket(fileno=fd) as asker:
                asker.setblocking(False)
                self._serve(asker)
        except OSError:
            pass  # it is gone
        finally:
            self.end()

    def _serve(self, asker: Any) -> None:
        import json
        import select

        unsent = bytearray(json.dumps({"ok": None}).encode() + b"\n")
        looks = select.poll()
        moved = time.monotonic()
        while not self.over():
            if len(unsent) < UNSENT_MAX:
                unsent += b"".join(json.dumps(one).encode() + b"\n" for one in self.take())
            try:
                del unsent[: asker.send(unsent) if unsent else 0]
                moved = time.monotonic()
            except BlockingIOError:
                if time.monotonic() - moved >= PATIENCE:
                    return
            looks.register(asker, select.POLLOUT if unsent else 0)
            for _, events in looks.poll(PAUSE * 1000):
                if events & (select.POLLHUP | select.POLLERR):
                    return
