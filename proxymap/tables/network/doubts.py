"""doubts - what memcached may have that is older than a change that was confirmed

A change is *owed* when its time was up before memcached answered: a memcached that was
stopped, or a network that was cut, may carry it out at any time later. Until its
connection says that this is over (Endpoint.owing), memcached confirms nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from itertools import count
from math import inf
from weakref import WeakSet, WeakValueDictionary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables.network._memcache import MemcacheTable
    from proxymap.tables.network._network import Endpoint

DOUBTS_MAX = 10_000  # keys; if there are more, or there is no memory for one, all are doubtful


class Doubts:
    """Keys of which memcached may have an old value, now or later; all instances of a table share them."""

    def __init__(self, ttl: int) -> None:
        """ttl: seconds that memcached keeps a value; 0: for ever."""
        self._ttl = ttl if ttl > 0 else inf
        self._numbers: dict[bytes, int] = {}  # in the order in which they were added last
        self._next = count()
        self._all_until = 0.0
        self._servers: set[Endpoint] = set()
        self._tables: WeakSet[MemcacheTable] = WeakSet()
        self._lock = threading.Lock()

    def join(self, table: MemcacheTable) -> None:
        """The table wants to know how many there are."""
        with self._lock:
            self._servers.add(table.endpoint)
            self._tables.add(table)
            table.doubts_count = len(self)

    @property
    def owed(self) -> bool:
        """May a change that was given up still be carried out?"""
        with self._lock:
            return any(server.owing for server in self._servers)

    def __len__(self) -> int:
        return len(self._numbers) + self._are_all

    @property
    def _are_all(self) -> bool:
        return time.monotonic() < self._all_until

    def __contains__(self, key: bytes) -> bool:
        return key in self._numbers or self._are_all

    def add(self, key: bytes) -> None:
        with self._changed():
            try:
                self._numbers.pop(key, None)
                if len(self._numbers) < DOUBTS_MAX:
                    self._numbers[key] = next(self._next)
                    return
            except MemoryError:
                pass
            self._all_until = inf

    def discard(self, key: bytes, number: int | None = None) -> None:
        """number: only if it was not added anew since."""
        with self._changed():
            if number is None or self._numbers.get(key) == number:
                self._numbers.pop(key, None)

    def clear(self) -> None:
        with self._changed():
            self._numbers.clear()
            self._all_until = 0.0

    def some(self, limit: int) -> list[tuple[bytes, int]]:
        """The oldest, each with its number. Only while nothing is owed: ttl then begins for the rest."""
        with self._changed():
            if self._all_until == inf:
                self._all_until = time.monotonic() + self._ttl
            return list(self._numbers.items())[:limit]

    @contextlib.contextmanager
    def _changed(self) -> Iterator[None]:
        with self._lock:
            yield
            for table in self._tables:
                table.doubts_count = len(self)


class Order:
    """Changes, one piece at a time, and values that lookups give memcached: none overtakes another."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._fills, self._changing = 0, False
        self.version = 0

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        with self._state:
            self.version += 1
            self._state.wait_for(lambda: not self._changing)
            self._changing = True
        try:
            with self._state:
                self._state.wait_for(lambda: not self._fills)
            yield
        finally:
            with self._state:
                self.version += 1
                self._changing = False
                self._state.notify_all()

    def begin_fill(self, version: int) -> bool:
        """May a value go to memcached that was looked up when this was the version?"""
        with self._state:
            may = version == self.version and not self._changing
            self._fills += may
            return may

    def end_fill(self) -> None:
        with self._state:
            self._fills -= 1
            self._state.notify_all()


# Of the tables that are open, by name: one that is opened anew goes on with what was known.
_doubts: WeakValueDictionary[bytes, Doubts] = WeakValueDictionary()
_orders: WeakValueDictionary[bytes, Order] = WeakValueDictionary()


def doubts_of(type_name: bytes, ttl: int) -> Doubts:
    return _doubts.setdefault(type_name, Doubts(ttl))


def order_of(type_name: bytes) -> Order:
    return _orders.setdefault(type_name, Order())
