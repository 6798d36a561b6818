"""test_doubts - what memcached may have that is older than a change: among threads, and without memory"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from fix_server import LIMIT

from proxymap.tables.network.doubts import Doubts, Order


class Table:
    """What Doubts sees of a MemcacheTable, and of its Endpoint, which owes nothing."""

    doubts_count = 0

    def __init__(self, asked: Callable[[], None] = lambda: None) -> None:
        self.endpoint, self.asked = self, asked

    @property
    def owing(self) -> int:
        self.asked()
        return 0


def test_a_table_may_be_opened_while_others_ask_what_is_owed() -> None:
    doubts: Any = Doubts(0)
    opener = threading.Thread(target=doubts.join, args=(Table(),))

    def open_another() -> None:
        opener.start()
        opener.join(0.1)

    table = Table(open_another)
    doubts.join(table)
    assert not doubts.owed
    opener.join(LIMIT)
    assert not opener.is_alive()


def test_change_that_cannot_begin_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order()
    assert order.begin_fill(order.version)

    def no_memory(self: object, timeout: float | None = None) -> bool:
        raise MemoryError

    with monkeypatch.context() as now:
        now.setattr(threading.Condition, "wait", no_memory)
        with pytest.raises(MemoryError), order.change():
            pass
    order.end_fill()
    with order.change():
        pass
    assert order.begin_fill(order.version)


def test_all_keys_are_doubtful_where_there_is_no_memory_for_one() -> None:
    class Full(dict[bytes, int]):
        def __setitem__(self, key: bytes, number: int) -> None:
            raise MemoryError

    doubts: Any = Doubts(0)
    doubts.add(b"k")
    doubts._numbers = Full(doubts._numbers)
    doubts.add(b"k")
    assert b"k" in doubts
