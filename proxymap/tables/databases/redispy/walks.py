"""walks - all keys that begin alike, one after the other, by SCAN

What is there from the first record to the last is met at least once; what comes or goes
meanwhile may be. A walk has a connection of its own: where it stands is known to one process
only, so it ends (RETRY) with the first trouble, or when nobody goes on with it, and begins anew.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

from redis.exceptions import RedisError

from proxymap.errors import TableRetry
from proxymap.tables.databases.redispy.nodes import Node

AT_A_TIME = 1000  # keys that Redis looks at before it serves others
EMPTY_MAX = 60.0  # seconds that Redis may look at keys without one that is ours
WALKS_MAX = 16  # under way, each with a connection; the one that rested longest makes room


def keys_like(nodes: list[Node], prefix: bytes, suffix: bytes) -> Iterator[bytes]:
    """keys_like - of all these nodes; TableRetry if one fails"""
    pattern = b"%b*%b" % (escaped(prefix), escaped(suffix))
    for node in nodes:
        try:
            yield from _keys_of(node, pattern)
        except (RedisError, OSError, TypeError, ValueError) as error:  # or it is no answer to SCAN
            raise TableRetry(f"{node.address.shown}: {error}") from None


def _keys_of(node: Node, pattern: bytes) -> Iterator[bytes]:
    line = node.connect()
    try:
        place = b"0"
        before: set[bytes] = set()
        until = time.monotonic() + EMPTY_MAX
        while True:
            place, found = line.ask(["SCAN", place, "MATCH", pattern, "COUNT", AT_A_TIME])
            if not all(isinstance(key, bytes) for key in (place, *found)):
                raise TypeError("no answer to SCAN")
            for key in dict.fromkeys(found):
                if key not in before:
                    yield key
                    until = time.monotonic() + EMPTY_MAX
            before = set(found)
            if place == b"0":
                return
            if time.monotonic() > until:
                raise TableRetry(f"{node.address.shown}: no record for {EMPTY_MAX:g} s")
    finally:
        node.end(line)


def escaped(text: bytes) -> bytes:
    """escaped - as it stands for itself in a pattern of Redis"""
    return re.sub(rb"([*?\[\]\\^-])", rb"\\\1", text)


class Walks:
    """Those of one table, by the number of the connection that walks."""

    def __init__(self) -> None:
        self._resting: dict[int, tuple[float, Iterator[tuple[bytes, bytes]]]] = {}  # since when; in order
        self._lock = threading.Lock()

    def step(self, number: int, fresh: Iterator[tuple[bytes, bytes]] | None) -> tuple[bytes, bytes] | None:
        """The next record of the walk with this number, or of a fresh one; None at the end."""
        with self._lock:
            _, walk = self._resting.pop(number, (0.0, None))
        if fresh is not None:
            walk = fresh
        if walk is None:
            raise TableRetry("this walk has ended; begin anew")
        record = next(walk, None)
        if record is not None:
            with self._lock:
                self._resting[number] = time.monotonic(), walk
                old = self._taken(len(self._resting) - WALKS_MAX)
            old.clear()
        return record

    def trim(self, limit: float) -> None:
        """End those that nobody has gone on with for so many seconds."""
        since = time.monotonic() - limit
        with self._lock:
            old = self._taken(sum(rested <= since for rested, _ in self._resting.values()))
        old.clear()  # which closes connections

    def _taken(self, count: int) -> list[Iterator[tuple[bytes, bytes]]]:
        """With the lock: so many that rested longest, which are not there any more."""
        return [self._resting.pop(number)[1] for number in list(self._resting)[: max(0, count)]]
