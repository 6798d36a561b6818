"""fix_listening - a server in a thread of the test's own process, which can leave and end its connections"""

from __future__ import annotations

import contextlib
import socket
import socketserver
from typing import Self


class Listening:
    """`server` is None while it does not listen; `sockets` are its open connections."""

    server: socketserver.ThreadingTCPServer | None = None
    sockets: set[socket.socket]

    def leave(self) -> None:
        """Listen no more, and end all connections."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
        self.cut()

    def cut(self) -> None:
        for one in list(self.sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.leave()
