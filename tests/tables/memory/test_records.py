"""test_records - records in memory, against a dict; the tables that hold them are internal and environ"""

from __future__ import annotations

import os
import threading

import pytest
from contract import FIXED, NOKEY, OK, Contract, Records, found
from hypothesis import given, settings
from hypothesis import strategies as st

from proxymap.tables._table import Table
from proxymap.tables.memory import _records
from proxymap.tables.opening import open_table


class TestRecords(Contract):
    longest_key = 100_000 - 1

    def make(self, records: Records) -> Table:
        held = _records.Records()
        for key, value in records:
            assert held.put(key, value)
        return _records.RecordsTable(b"records:x", held)


class TestMemory(TestRecords):
    def make(self, records: Records) -> Table:
        held = _records.Records()
        for key, value in records:
            held.put(key, value)
        return _records.MemoryTable(b"memory:x", held)


keys = st.one_of(st.binary(max_size=3), st.sampled_from([b"", b"a", b"b", b"a" * 40_000]))
values = st.one_of(st.binary(max_size=40), st.just(b"v" * 40_000))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(keys, values, st.booleans()), max_size=200))
def test_puts_agree_with_a_dict(puts: list[tuple[bytes, bytes, bool]]) -> None:
    held, expected = _records.Records(), {}
    for key, value, replace in puts:
        assert held.put(key, value, replace) == (key not in expected)
        if replace or key not in expected:
            expected[key] = value
    assert len(held) == len(expected)
    table = _records.RecordsTable(b"x:x", held)
    assert table.sequence() == list(expected.items())
    for key in [*expected, b"none", b"a\0"]:
        assert found(table, key) == expected.get(key)


def test_a_million_records_are_held_in_little_more_than_their_bytes() -> None:
    held = _records.Records()
    for i in range(1_000_000):
        held.put(b"%d" % i, b"%d" % -i)
    table = _records.RecordsTable(b"x:x", held)
    asked = [b"%d" % i for i in range(0, 1_000_000, 997)]
    assert [found(table, key) for key in asked] == [b"%d" % -int(key) for key in asked]
    assert found(table, b"1000000") is None


def test_environ_holds_the_environment_whatever_its_name() -> None:
    for name in (b"environ:x", b"environ:y"):
        table = open_table(name)
        assert table.flags == FIXED
        for key, value in os.environb.items():
            if key != b"PYTEST_CURRENT_TEST":  # which changes all the time
                assert found(table, key) == value
        assert found(table, b"NO_SUCH_VARIABLE") is None
        with pytest.raises(TypeError):
            table.sequence()


def test_internal_is_empty_and_each_name_and_flag_word_is_a_table_of_its_own() -> None:
    tables = [open_table(b"internal:a"), open_table(b"internal:b"), open_table(b"internal:a", 1 << 16)]
    assert len(set(map(id, tables))) == 3
    assert open_table(b"internal:a") is tables[0]
    assert open_table(b"internal:a", writes=True) is not tables[0]
    for table in tables:
        assert table.lookup(b"a")[::2] == (NOKEY, b"")
        assert table.sequence() == []


def test_threads_look_up_environ_side_by_side() -> None:
    table = open_table(b"environ:x")
    key, value = next(item for item in os.environb.items())
    answers: set[tuple[int, bytes]] = set()

    def read() -> None:
        for _ in range(2000):
            answers.add(table.lookup(key)[::2])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {(OK, value)}
