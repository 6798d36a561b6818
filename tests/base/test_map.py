"""test_map - mapped files that are cut, overwritten, replaced or removed under an open table

Each experiment runs in a child process: what it is about is that the process
lives. Where only part of a page is cut off, the kernel shows zeros and raises
no signal: then an answer may be wrong until the table has notice of the change,
so the cuts here are at page borders or fall on what the readers can check.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from contract import MASK32, NOKEY, OK, RETRY, cdb_image, found, in_child, lmdb_image

from proxymap.tables._table import Table
from proxymap.tables.indexed.cdb import CdbTable
from proxymap.tables.indexed.lmdb import LmdbTable

PAGE = resource.getpagesize()
RECORDS = [(b"key %05d" % i, b"value %d " % i * (i % 40)) for i in range(3000)]
MAKERS: dict[str, tuple[type[Table], Callable[[], bytes]]] = {
    "cdb": (CdbTable, lambda: cdb_image(RECORDS)),
    "cdb64": (CdbTable, lambda: cdb_image(RECORDS, 8, MASK32)),
    "lmdb-0.9": (LmdbTable, lambda: lmdb_image(RECORDS, 1)),
    "lmdb-1.0": (LmdbTable, lambda: lmdb_image(RECORDS, 3)),
}

each_kind = pytest.mark.parametrize("kind", MAKERS)


class File:
    """A good table file with an open table on it."""

    def __init__(self, kind: str, place: Path) -> None:
        self.type, make = MAKERS[kind]
        self.path = place / "t"
        self.image = make()
        self.path.write_bytes(self.image)
        self.table = self.open()

    def open(self) -> Table:
        return self.type(b"t:t", bytes(self.path))  # type: ignore[call-arg]

    def overwrite(self, content: bytes, at: int = 0) -> None:
        fd = os.open(self.path, os.O_WRONLY)
        os.pwrite(fd, content, at)
        os.close(fd)


def statuses(table: Table) -> set[int]:
    """Of all records. What is found must be right."""
    seen = set()
    for key, value in RECORDS:
        status, _, got = table.lookup(key)
        assert status in (OK, NOKEY, RETRY)
        assert status != OK or got == value, key
        seen.add(status)
    return seen


@each_kind
@pytest.mark.parametrize("touched", [False, True], ids=["unread", "read"])
def test_file_cut_to_nothing(tmp_path: Path, kind: str, touched: bool) -> None:
    def experiment() -> None:
        file = File(kind, tmp_path)
        if touched:
            assert statuses(file.table) == {OK}
        os.truncate(file.path, 0)
        assert statuses(file.table) == {RETRY}
        assert file.table.lookup(b"none")[0] == RETRY
        assert file.table.changed
        assert file.table.sequence() == []

    assert in_child(experiment) == 0


@each_kind
def test_file_cut_at_each_page(tmp_path: Path, kind: str) -> None:
    """As soon as a lookup has met the hole, nothing is answered any more; until then answers are right."""

    def experiment() -> None:
        for size in range(0, len(MAKERS[kind][1]()), 8 * PAGE):
            file = File(kind, tmp_path)
            os.truncate(file.path, size)
            assert statuses(file.table) <= {OK, RETRY}
            assert file.table.lookup(RECORDS[-1][0])[0] == RETRY
            assert file.table.changed
            os.unlink(file.path)

    assert in_child(experiment) == 0


@each_kind
def test_sequence_into_the_hole(tmp_path: Path, kind: str) -> None:
    """The record that is cut in two is no record."""

    def experiment() -> None:
        for size in range(PAGE, len(MAKERS[kind][1]()), 3 * PAGE):
            file = File(kind, tmp_path)
            os.truncate(file.path, size)
            records = file.table.sequence()
            assert records == RECORDS[: len(records)]
            os.unlink(file.path)

    assert in_child(experiment) == 0


def test_value_cut_in_two_is_no_value(tmp_path: Path) -> None:
    def experiment() -> None:
        image = cdb_image([(b"first", b"1"), (b"long", b"v" * 10 * PAGE), (b"last", b"2")])
        path = tmp_path / "t.cdb"
        for ask in (lambda t: t.lookup(b"long")[0] == RETRY, lambda t: t.sequence() == [(b"first", b"1")]):
            path.write_bytes(image)
            table = CdbTable(b"cdb:t", bytes(path))
            os.truncate(path, 4 * PAGE)
            assert ask(table)
            assert table.changed
            path.unlink()

    assert in_child(experiment) == 0


@each_kind
def test_damage_outlasts_a_file_that_grows_back(tmp_path: Path, kind: str) -> None:
    """Pages that were filled with zeros stay so: only a table opened anew can be trusted."""

    def experiment() -> None:
        file = File(kind, tmp_path)
        os.truncate(file.path, 0)
        assert file.table.lookup(RECORDS[0][0])[0] == RETRY
        file.overwrite(file.image)
        assert statuses(file.table) == {RETRY}
        assert file.table.changed
        again = file.open()
        assert statuses(again) == {OK}
        assert not again.changed
        assert statuses(file.table) == {RETRY}

    assert in_child(experiment) == 0


@each_kind
def test_file_rewritten_in_place_between_two_lookups(tmp_path: Path, kind: str) -> None:
    """What `cp new old` does. Nobody met the hole, and the content is the same."""

    def experiment() -> None:
        file = File(kind, tmp_path)
        assert statuses(file.table) == {OK}
        os.truncate(file.path, 0)
        file.overwrite(file.image)
        assert statuses(file.table) == {OK}
        if kind.startswith("cdb"):
            assert file.table.changed

    assert in_child(experiment) == 0


@each_kind
def test_zeros_written_over_the_file(tmp_path: Path, kind: str) -> None:
    def experiment() -> None:
        file = File(kind, tmp_path)
        file.overwrite(bytes(len(file.image)))
        seen = statuses(file.table)
        if kind.startswith("lmdb"):
            assert seen == {RETRY}
        else:  # a CDB has no mark that could be missing; its change of time tells
            assert seen <= {NOKEY, RETRY}
            assert file.table.changed
        with pytest.raises(ValueError):
            file.open()

    assert in_child(experiment) == 0


@each_kind
def test_noise_written_over_the_file(tmp_path: Path, kind: str) -> None:
    def experiment() -> None:
        rng = random.Random(9)
        for _ in range(20):
            file = File(kind, tmp_path)
            at = rng.randrange(len(file.image))
            file.overwrite(rng.randbytes(len(file.image) - at), at)
            for key, _value in RECORDS:
                assert file.table.lookup(key)[0] in (OK, NOKEY, RETRY)
            file.table.sequence()
            os.unlink(file.path)

    assert in_child(experiment) == 0


@each_kind
def test_replaced_and_unlinked_files_go_on(tmp_path: Path, kind: str) -> None:
    def experiment() -> None:
        file = File(kind, tmp_path)
        (tmp_path / "new").write_bytes(file.image)
        os.rename(tmp_path / "new", file.path)
        assert file.table.changed
        assert statuses(file.table) == {OK}
        other = file.open()
        assert not other.changed
        os.unlink(file.path)
        assert other.changed
        assert statuses(other) == {OK}
        assert len(other.sequence()) == len(RECORDS)

    assert in_child(experiment) == 0


@each_kind
def test_damage_to_one_table_is_not_damage_to_another(tmp_path: Path, kind: str) -> None:
    def experiment() -> None:
        places = [tmp_path / str(n) for n in range(5)]
        for place in places:
            place.mkdir()
        files = [File(kind, place) for place in places]
        os.truncate(files[2].path, 0)
        assert statuses(files[2].table) == {RETRY}
        for n in (0, 1, 3, 4):
            assert statuses(files[n].table) == {OK}
            assert not files[n].table.changed
        # The region of a closed table is used again, without its mark.
        (tmp_path / "more").mkdir()
        files[2].table = None  # type: ignore[assignment]
        more = File(kind, tmp_path / "more")
        assert statuses(more.table) == {OK}
        assert not more.table.changed

    assert in_child(experiment) == 0


@each_kind
def test_two_tables_on_one_file_both_notice(tmp_path: Path, kind: str) -> None:
    def experiment() -> None:
        file = File(kind, tmp_path)
        other = file.open()
        os.truncate(file.path, 0)
        assert statuses(file.table) == statuses(other) == {RETRY}

    assert in_child(experiment) == 0


@each_kind
def test_file_cut_and_restored_beside_lookups(tmp_path: Path, kind: str) -> None:
    """Another thread cuts and restores the file all the while; a table that has changed is opened anew."""

    def experiment() -> None:
        file = File(kind, tmp_path)
        done = threading.Event()

        def spoil() -> None:
            while not done.is_set():
                os.truncate(file.path, 0)
                file.overwrite(file.image)

        thread = threading.Thread(target=spoil)
        thread.start()
        table: Table | None = file.table
        for n in range(20_000):
            if table is not None:
                status = table.lookup(RECORDS[n % 3000][0])[0]
                assert status in (OK, NOKEY, RETRY)
            if table is None or table.changed:
                try:
                    table = file.open()
                except (OSError, ValueError):
                    table = None
        done.set()
        thread.join()
        assert statuses(file.open()) == {OK}

    assert in_child(experiment) == 0


def test_lmdb_that_shrinks_and_grows_beyond_its_room(tmp_path: Path) -> None:
    """The map is made anew when the file outgrows it; the old damage is gone with the old map."""

    def experiment() -> None:
        path = tmp_path / "t.lmdb"

        def fill(count: int) -> None:
            with lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 28, sync=False) as env:
                for i in range(count):
                    with env.begin(write=True) as txn:
                        txn.put(b"%d" % i, b"x" * 1_000_000)

        fill(2)
        table = LmdbTable(b"lmdb:t", bytes(path))
        os.truncate(path, 0)
        assert table.lookup(b"1")[0] == RETRY
        fill(40)
        assert table.lookup(b"39")[0] in (OK, RETRY)
        fresh = LmdbTable(b"lmdb:t", bytes(path))
        assert all(found(fresh, b"%d" % i) == b"x" * 1_000_000 for i in range(40))

    assert in_child(experiment) == 0


def test_sigbus_of_others_ends_the_process_as_ever(tmp_path: Path) -> None:
    def experiment() -> None:
        file = File("cdb", tmp_path)
        (tmp_path / "other").write_bytes(b"x" * 2 * PAGE)
        with (tmp_path / "other").open("r+b") as stream:
            other = mmap.mmap(stream.fileno(), 2 * PAGE)
        os.truncate(tmp_path / "other", 0)
        assert found(file.table, RECORDS[1][0]) == RECORDS[1][1]
        ctypes.string_at(ctypes.addressof(ctypes.c_char.from_buffer(other)), 1)

    assert in_child(experiment) == signal.SIGBUS


def test_sigbus_by_kill_ends_the_process(tmp_path: Path) -> None:
    def experiment() -> None:
        File("cdb", tmp_path)
        os.kill(os.getpid(), signal.SIGBUS)

    assert in_child(experiment) == signal.SIGBUS
