"""bounded - connections of redis-py's on which an answer takes no longer, and is no larger, than it may

redis-py waits so long for each piece of an answer, and takes as many as there are: a server
that sends a byte a second, or never ends, would keep a thread for ever, or fill our memory.
"""

from __future__ import annotations

import math
import time
from typing import Any

from redis import __version__
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from proxymap.errors import QuestionRefused

ANSWER_MAX = 4 << 20  # bytes

# redis-py has no public place to put a socket of one's own; a release without this one needs another way.
if not all(hasattr(kind, "_connect") for kind in (Connection, SSLConnection, UnixDomainSocketConnection)):
    raise ImportError(f"redis-py {__version__} makes its connections in a way that is not known here")


class BoundedSocket:
    """A socket whose reads are counted. until: when the answer has to be whole, by time.monotonic."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.until, self.left = math.inf, ANSWER_MAX

    def expect(self, seconds: float) -> None:
        """From now on there is an answer to come, within so many seconds."""
        self.until, self.left = time.monotonic() + seconds, ANSWER_MAX

    def sendall(self, data: bytes) -> None:
        self._wait()
        self._sock.sendall(data)

    def recv(self, size: int) -> bytes:
        self._wait()
        piece: bytes = self._sock.recv(size)
        self._count(len(piece))
        return piece

    def recv_into(self, *arguments: Any) -> int:
        self._wait()
        count: int = self._sock.recv_into(*arguments)
        self._count(count)
        return count

    def _wait(self) -> None:
        if self._sock.gettimeout() == 0:  # a look whether there is something
            return
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        if left < math.inf:
            self._sock.settimeout(left)

    def _count(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise QuestionRefused(f"the answer is larger than {ANSWER_MAX >> 20} MB")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Bounds:
    """What a class of connections gets: `expect` is to be called before each question."""

    _sock: BoundedSocket | None
    socket_timeout: float

    def _connect(self) -> BoundedSocket:
        bounded = BoundedSocket(super()._connect())  # type: ignore[misc]
        bounded.expect(self.socket_timeout)  # for the log-in
        return bounded

    def expect(self) -> None:
        """From now on there is an answer to come."""
        if self._sock is not None:
            self._sock.expect(self.socket_timeout)


class OverTcp(Bounds, Connection):  # type: ignore[misc]
    """redis://"""


class OverTls(Bounds, SSLConnection):  # type: ignore[misc]
    """rediss://"""


class OverUnix(Bounds, UnixDomainSocketConnection):  # type: ignore[misc]
    """unix://"""
