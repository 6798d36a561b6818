"""walks - all keys that begin alike, one after the other, by SCAN

What is there from the first record to the last is met at least once; what comes or goes
meanwhile may be. A walk has connections of its own: where it stands is known to one process
only, so it ends (RETRY) with the first trouble, and begins anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from redis.exceptions import RedisError

from proxymap.errors import TableRetry
from proxymap.tables.databases.redispy.nodes import Node

AT_A_TIME = 1000  # keys that Redis looks at before it serves others
WALKS_MAX = 64  # under way; the one that rested longest makes room


def keys_like(nodes: list[Node], prefix: bytes, suffix: bytes) -> Iterator[bytes]:
    """keys_like - of all these nodes; TableRetry if one fails"""
    pattern = b"%b*%b" % (escaped(prefix), escaped(suffix))
    for node in nodes:
        try:
            yield from _keys_of(node, pattern)
        except (RedisError, OSError) as error:
            raise TableRetry(f"{node.address.shown}: {error}") from None


def _keys_of(node: Node, pattern: bytes) -> Iterator[bytes]:
    line = node.connect()
    try:
        place = b"0"
        before: set[bytes] = set()
        while True:
            place, found = line.ask(["SCAN", place, "MATCH", pattern, "COUNT", AT_A_TIME])
            fresh = [key for key in dict.fromkeys(found) if key not in before]
            yield from fresh
            before = set(found)
            if place == b"0":
                return
    finally:
        node.end(line)


def escaped(text: bytes) -> bytes:
    """escaped - as it stands for itself in a pattern of Redis"""
    return re.sub(rb"([*?\[\]\\^-])", rb"\\\1", text)


class Walks:
    """Those of one table, by the number of the connection that walks."""

    def __init__(self) -> None:
        self._under_way: dict[int, Iterator[tuple[bytes, bytes]]] = {}  # in order of use

    def step(self, number: int, fresh: Iterator[tuple[bytes, bytes]] | None) -> tuple[bytes, bytes] | None:
        """The next record of the walk with this number, or of a fresh one; None at the end."""
        walk = self._under_way.pop(number, None) if fresh is None else fresh
        if walk is None:
            raise TableRetry("this walk has ended; begin anew")
        record = next(walk, None)
        if record is not None:
            self._under_way[number] = walk
            while len(self._under_way) > WALKS_MAX:
                self._under_way.pop(next(iter(self._under_way)), None)
        return record
