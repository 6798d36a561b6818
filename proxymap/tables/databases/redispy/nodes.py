"""nodes - one process of Redis: connections to it, each used by one thread at a time

A connection on which anything went wrong is closed: no answer is ever taken for that to
another question.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.exceptions import TimeoutError as TimedOut

from proxymap.errors import QuestionRefused
from proxymap.tables.databases.hosts import DatabaseHost
from proxymap.tables.databases.redispy.places import SENTINEL, Place, connection_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables.databases.addresses import Address

Command = Sequence[bytes | str | int]


class Line:
    """A connection. Times are those of time.monotonic."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.born = self.rested = time.monotonic()

    def ask(self, command: Command) -> Any:
        """What the process answers: bytes, a number, a list or None. Raises what redis-py does.

        Raises QuestionRefused for an answer that is too large.
        """
        self.connection.expect()
        self.connection.send_command(*command)
        try:
            return self.connection.read_response()
        except (RecursionError, IndexError) as error:
            raise InvalidResponse(f"not the protocol of Redis: {type(error).__name__}") from None

    def is_dead(self) -> bool:
        """Was it closed, or is there something that nobody asked for?"""
        try:
            return bool(self.connection.can_read(0))
        except (RedisError, OSError, QuestionRefused):  # refused: more than an answer may have
            return True

    def end(self) -> None:
        self.connection.disconnect()


class Node:
    """host: what is known of its health. probed: does a thread find out if it is well again?

    answers: how many questions it has answered.
    """

    def __init__(self, place: Place, address: Address, host: DatabaseHost, timeout: float) -> None:
        self.place, self.address, self.host, self.timeout = place, address, host, timeout
        self.probed = False
        self.open = self.busy = self.answers = 0
        self._idle: list[Line] = []
        self._lock = threading.Lock()
        self._ended_before = 0.0  # connections that were made before then are of no use

    def ask(self, *commands: Command) -> Any:
        """The answer to the last of these, which go over one connection. Raises what redis-py does.

        A connection that rested and turns out to be cut does not count.
        """
        line = self._rested()
        if line is not None:
            try:
                return self._ask(line, commands)
            except NotConnected:
                pass
        return self._ask(self.connect(), commands)

    def told(self) -> dict[str, str]:
        """What it says of itself, as far as the login allows. Raises what redis-py does."""
        try:
            text = self.ask(["INFO"])
        except ResponseError:
            return {}
        if not isinstance(text, bytes):
            raise InvalidResponse("no answer to INFO")
        pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines())
        return {name: value for name, _, value in pairs}

    def connect(self) -> Line:
        """A new connection, logged in; `end` or `rest` take it back."""
        line = Line(connection_to(self.place, self.address, self.timeout))
        with self._lock:
            self.open += 1
            self.busy += 1
        try:
            line.connection.connect()
            if self.place.kind == SENTINEL:
                self._see_role(line)
        except TimedOut as error:  # another matter than an answer that takes long
            self.end(line)
            raise NotConnected(str(error)) from None
        except BaseException:
            self.end(line)
            raise
        return line

    def _see_role(self, line: Line) -> None:
        try:
            role = line.ask(["ROLE"])
        except ResponseError:  # the login does not allow that
            return
        if not isinstance(role, list) or role[:1] != [b"master"]:
            raise NotConnected(f"{self.address.shown} is no master, whatever sentinels say")

    def _ask(self, line: Line, commands: Sequence[Command]) -> Any:
        try:
            for command in commands:
                answer = line.ask(command)
        except ResponseError:
            self.rest(line)
            raise
        except BaseException:
            self.end(line)
            raise
        self.rest(line)
        return answer

    def _rested(self) -> Line | None:
        """A connection that is there, the latest first."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                line = self._idle.pop()
                self.busy += 1
            if not line.is_dead():
                return line
            self.end(line)

    def rest(self, line: Line) -> None:
        """Keep it for the next question."""
        line.rested = time.monotonic()
        with self._lock:
            if line.born >= self._ended_before:
                self._idle.append(line)
                self.busy -= 1
                return
        self.end(line)

    def end(self, line: Line) -> None:
        """Close a connection that is in use."""
        with self._lock:
            self.open -= 1
            self.busy -= 1
        line.end()

    def leave(self) -> None:
        """Close all connections; those in use when their answers are there."""
        self._ended_before = time.monotonic()
        self.trim(0.0, 0.0)

    def trim(self, idle_limit: float, age_limit: float) -> None:
        """Close those that rested, or have lived, for so many seconds."""
        now = time.monotonic()
        with self._lock:
            old = [
                line for line in self._idle
                if now - line.rested >= idle_limit or now - line.born >= age_limit
            ]  # fmt: skip
            self._idle = [line for line in self._idle if line not in old]
            self.open -= len(old)
        for line in old:
            line.end()
