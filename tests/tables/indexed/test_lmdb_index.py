"""test_lmdb_index - an LMDB table that is asked much: answered by its index as by a walk"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
from contract import BOTH, NOKEY, OK, TRY0, TRY1
from hypothesis import given, settings
from hypothesis import strategies as st

from proxymap.server._doors import lookup_loop
from proxymap.tables.indexed.lmdb import LmdbTable

FORMATS = {"0.9": 0, "1.0": 1}  # py-lmdb's lib_version
LIMIT = 1 << 26
ENOUGH = 20000  # lookups after which the index of a table of these tests is whole

each_format = pytest.mark.parametrize("lib", FORMATS.values(), ids=FORMATS)


@contextmanager
def writer(path: Path, lib: int = 0) -> Iterator[Any]:
    options = {"subdir": False, "lock": False, "map_size": 1 << 30, "sync": False, "lib_version": lib}
    with lmdb.open(str(path), **options) as env:
        yield env


def store(path: Path, records: dict[bytes, bytes], lib: int = 0) -> None:
    with writer(path, lib) as env, env.begin(write=True) as txn:
        for key, value in records.items():
            txn.put(key, value)


def delete(path: Path, keys: Iterable[bytes], lib: int = 0) -> None:
    with writer(path, lib) as env, env.begin(write=True) as txn:
        for key in keys:
            txn.delete(key)


@pytest.fixture(scope="module", params=["copies", "places"], autouse=True)
def room(request: pytest.FixtureRequest) -> str:
    """For copies of the records, or only for their places."""
    global copies
    copies = request.param == "copies"
    return str(request.param)


copies = True


def opened(path: Path, limit: int | None = None) -> LmdbTable:
    if limit is None:
        table = LmdbTable(b"lmdb:t", bytes(path))
        limit = LIMIT if copies else max(4096, 32 * table.entries)
    return LmdbTable(b"lmdb:t", bytes(path), limit)


def ask_until_indexed(table: LmdbTable) -> None:
    for _ in range(ENOUGH):
        if table.index_is_whole:
            return
        table.lookup(b"any")
    raise AssertionError("there is still no index")


def many(count: int) -> dict[bytes, bytes]:
    return {b"user%d@example.com" % i: b"box%d" % i for i in range(count)}


def value_of(table: LmdbTable, key: bytes, flags: int = BOTH) -> bytes | None:
    status, _, value = table.lookup(key, flags)
    assert status in (OK, NOKEY)
    return value if status == OK else None


@each_format
def test_every_key_is_found_and_no_other(tmp_path: Path, lib: int) -> None:
    records = many(5000)
    store(tmp_path / "t", records, lib)
    table = opened(tmp_path / "t")
    ask_until_indexed(table)
    assert table.index_bytes >= 8 * len(records)
    stored = sum(len(key) + len(value) for key, value in records.items())
    assert (table.index_bytes > stored) == copies
    for key, value in records.items():
        assert value_of(table, key) == value
        assert value_of(table, key + b"x") is None
        assert value_of(table, key[:-1]) is None


def test_answers_are_right_while_it_is_being_made(tmp_path: Path) -> None:
    records = many(3000)
    store(tmp_path / "t", records)
    table = opened(tmp_path / "t")
    rng = random.Random(1)
    keys = list(records)
    asked = 0
    while not table.index_is_whole:
        key = rng.choice(keys)
        assert value_of(table, key) == records[key]
        assert value_of(table, b"no" + key) is None
        asked += 1
    assert asked > 20


KEYS = st.binary(min_size=1, max_size=40).filter(lambda key: key != b"\0")


@settings(max_examples=50)
@given(st.dictionaries(KEYS, st.binary(max_size=60), max_size=200), st.sampled_from([0, 1]))
def test_any_table_is_answered_as_by_a_walk(
    tmp_path_factory: pytest.TempPathFactory, records: dict[bytes, bytes], lib: int
) -> None:
    """Keys with a NUL at the end and without, and of bytes of all kinds."""
    path = tmp_path_factory.mktemp("any") / "t"
    store(path, records, lib)
    table, plain = opened(path), opened(path, 0)
    ask_until_indexed(table)
    asked = {key.rstrip(b"\0") for key in records if b"\0" not in key[:-1]} | {b"absent", b""}
    for key, flags in itertools.product(asked, (BOTH, TRY0, TRY1)):
        assert table.lookup(key, flags) == plain.lookup(key, flags), (key, flags)


@each_format
def test_large_values(tmp_path: Path, lib: int) -> None:
    records = {b"k%d" % i: os.urandom(i * 97).replace(b"\0", b".") for i in range(200)}
    store(tmp_path / "t", records, lib)
    table = opened(tmp_path / "t")
    ask_until_indexed(table)
    assert {key: value_of(table, key) for key in records} == records


def test_key_in_both_forms(tmp_path: Path) -> None:
    store(tmp_path / "t", {b"k": b"plain", b"k\0": b"nul\0"} | many(100))
    table = opened(tmp_path / "t")
    ask_until_indexed(table)
    assert value_of(table, b"k") == b"nul"
    assert value_of(table, b"k", TRY0) == b"plain"
    assert value_of(table, b"k", TRY1) == b"nul"


@each_format
def test_commit_of_another_shows_at_once(tmp_path: Path, lib: int) -> None:
    path = tmp_path / "t"
    records = many(1000)
    store(path, records, lib)
    table = opened(path)
    for turn in range(5):
        ask_until_indexed(table)
        changed = {key: b"%d." % turn + value for key, value in list(records.items())[turn::7]}
        store(path, changed | {b"new%d" % turn: b"here"}, lib)
        records |= changed | {b"new%d" % turn: b"here"}
        gone = list(records)[turn]
        delete(path, [gone], lib)
        del records[gone]
        assert not table.index_is_whole
        assert value_of(table, gone) is None
        for key, value in records.items():
            assert value_of(table, key) == value


def test_growing_table_gets_a_larger_one(tmp_path: Path) -> None:
    path = tmp_path / "t"
    store(path, many(300))
    table = opened(path, LIMIT)
    ask_until_indexed(table)
    small = table.index_bytes
    store(path, many(5000))
    ask_until_indexed(table)
    assert table.index_bytes > small
    assert all(value_of(table, key) == value for key, value in many(5000).items())


def test_table_that_changes_before_it_is_worth_while_has_none(tmp_path: Path) -> None:
    path = tmp_path / "t"
    store(path, many(5000))
    table = opened(path)
    for turn in range(50):
        store(path, {b"turn": b"%d" % turn})
        assert value_of(table, b"turn") == b"%d" % turn
    assert table.index_bytes == 0


@pytest.mark.parametrize("limit", [0, 4096, 8 * 5000])
def test_no_index_above_its_limit(tmp_path: Path, limit: int) -> None:
    records = many(5000)
    store(tmp_path / "t", records)
    table = opened(tmp_path / "t", limit)
    for _ in range(2):
        assert all(value_of(table, key) == value for key, value in records.items())
    assert table.index_bytes == 0


def test_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "t"
    store(path, {b"k": b"v"})
    delete(path, [b"k"])
    table = opened(path)
    for _ in range(10):
        assert value_of(table, b"k") is None
    store(path, {b"k": b"v"})
    assert value_of(table, b"k") == b"v"


def test_other_threads_walk(tmp_path: Path) -> None:
    """The index is the loop's; what workers ask does not make one."""
    store(tmp_path / "t", many(1000))
    table = opened(tmp_path / "t")
    for _ in range(3):
        for key, value in many(1000).items():
            assert table.ask(key, BOTH) == (OK, TRY0, value)
    assert table.index_bytes == 0


def test_table_that_others_write_to_all_the_time(tmp_path: Path) -> None:
    """Each value is of one commit, and no older than the last that was complete."""
    path = tmp_path / "t"
    keys = [b"key%d" % i for i in range(500)]
    with writer(path) as env:
        table: LmdbTable | None = None
        for turn in range(60):
            with env.begin(write=True) as txn:
                for key in keys:
                    txn.put(key, b"%d" % turn)
            table = table or opened(path)
            for _ in range(turn % 7):
                for key in keys:
                    assert value_of(table, key) == b"%d" % turn


def test_those_that_are_foreseen_are_found(tmp_path: Path) -> None:
    records = many(2000)
    store(tmp_path / "t", records)
    table = opened(tmp_path / "t")
    keys = [*records, *(key + b"x" for key in records)]
    for ahead in (1, 2, 16, 64):  # before there is an index, and with it
        assert lookup_loop(table, keys, 3, ahead) == 3 * len(records)
    assert table.index_is_whole
