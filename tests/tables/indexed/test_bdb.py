"""test_bdb - hash and btree: the contract, locks, freshness, walks, damage; beside Postfix's own servers"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from contract import BOTH, NOKEY, OK, RETRY, TRY0, TRY1, IndexedContract, Records, in_child, until_nul
from fix_bdb import write_endless
from fix_postfix import StockPostfix, complaints, dialect, release, unavailable
from fix_server import DIALECTS, LOCK, ServerProcess, lookup, request, wait_until
from oracle import Attributes, encode

from proxymap.errors import TableRetry
from proxymap.tables.base import Change, Host
from proxymap.tables.indexed import verifier
from proxymap.tables.opening import open_table

db = pytest.importorskip("berkeleydb").db

CONFIG = 5
KINDS = {"hash": db.DB_HASH, "btree": db.DB_BTREE}
OLD = 1_000_000_000  # a time of change long ago
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
VECTORS = Path(__file__).parents[2] / "vectors"
EXCHANGES = {"proxymap": 88, "proxywrite": 66}  # recorded with hash and btree, in each dialect

both_types = pytest.mark.parametrize("maptype", KINDS)
needs_postmap = pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")
needs_postfix = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


class Asked:
    """A table asked as a worker asks it, with the methods that the contract uses."""

    def __init__(self, maptype: str, path: Path, **how: Any) -> None:
        self.table = open_table(f"{maptype}:{path}".encode(), **how)
        self.flags, self.reason, self.changed = self.table.flags, self.table.reason, self.table.changed

    def lookup(self, key: bytes, flags: int = BOTH) -> tuple[int, int, bytes]:
        return self.table.ask(key, flags)

    def value(self, key: bytes) -> bytes | None:
        status, _, value = self.lookup(key)
        return value if status == OK else None

    def step(self, cursor: int, first: bool = False) -> tuple[bytes, bytes] | None:
        record: tuple[bytes, bytes] | None = self.table.answers.sequence(cursor, first)
        return record

    def sequence(self) -> Records:
        record, records = self.step(1, first=True), []
        while record is not None:
            records.append(record)
            record = self.step(1)
        return records

    def write(self, *changes: tuple[bytes, bytes | None], flags: int = BOTH) -> list[tuple[int, int]]:
        made = [Change(key, value, flags) for key, value in changes]
        self.table.write(made)
        return [(change.status, change.flags) for change in made]


@contextmanager
def raw(maptype: str, path: Path) -> Iterator[Any]:
    """The file as libdb has it, made if it is missing, for a writer who is not us."""
    handle = db.DB()
    handle.open(f"{path}.db", dbtype=KINDS[maptype], flags=db.DB_CREATE)
    try:
        yield handle
    finally:
        handle.close()


def fill(maptype: str, path: Path, records: Records) -> None:
    with raw(maptype, path) as handle:
        for key, value in records:
            handle.put(key, value)


def stored(maptype: str, path: Path) -> dict[bytes, bytes]:
    """What is on disk, in the order of the file."""
    shutil.copy(f"{path}.db", f"{path}-copy.db")
    with raw(maptype, Path(f"{path}-copy")) as handle:
        return dict(handle.items())


class BerkeleyContract(IndexedContract):
    maptype = ""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.made = 0

    def make(self, records: Records) -> Any:
        self.made += 1
        path = self.folder / str(self.made)
        fill(self.maptype, path, records)
        return Asked(self.maptype, path)

    def order(self, records: Records) -> Records:
        path = self.folder / "order"
        fill(self.maptype, path, records)
        return list(stored(self.maptype, path).items())


class TestHash(BerkeleyContract):
    maptype = "hash"

    def test_lookups_leave_no_trace(self) -> None:
        table = self.make([(b"a", b"1"), (b"b\0", b"2")])
        before = table.sequence()
        assert table.lookup(b"b") == (OK, TRY1, b"2")
        assert table.lookup(b"c") == (NOKEY, BOTH, b"")
        assert table.sequence() == before


class TestBtree(BerkeleyContract):
    maptype = "btree"

    def order(self, records: Records) -> Records:
        return sorted(records)


@pytest.fixture(params=KINDS)
def maptype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Updates


def test_missing_file_is_made_for_updates_only(maptype: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    assert Asked(maptype, path).reason == f"open database {path}.db: No such file or directory".encode()
    table = Asked(maptype, path, writes=True)
    assert table.reason is None
    assert stat.S_IMODE(os.stat(f"{path}.db").st_mode) == 0o600
    assert os.listdir(tmp_path) == ["t.db"]
    assert table.sequence() == []
    assert Asked(maptype, path).lookup(b"a") == (NOKEY, BOTH, b"")


def test_file_that_cannot_be_made_is_a_surrogate(maptype: str, tmp_path: Path) -> None:
    table = Asked(maptype, tmp_path / "none" / "t", writes=True)
    assert table.reason == f"open database {tmp_path}/none/t.db: No such file or directory".encode()


def test_update_replaces_and_is_on_disk_when_it_returns(maptype: str, tmp_path: Path) -> None:
    table = Asked(maptype, tmp_path / "t", writes=True)
    for value in (b"1", b"", b"3" * 300_000, b"4"):
        assert table.write((b"a", value)) == [(OK, TRY1)]
        assert stored(maptype, tmp_path / "t") == {b"a\0": value + b"\0"}
        assert table.lookup(b"a") == (OK, TRY1, value)


def test_update_without_nul_where_that_is_decided(maptype: str, tmp_path: Path) -> None:
    table = Asked(maptype, tmp_path / "t", writes=True)
    assert table.write((b"a", b"1"), flags=TRY0) == [(OK, TRY0)]
    assert table.write((b"b", b"2"), flags=TRY1 | 64) == [(OK, TRY1 | 64)]
    assert stored(maptype, tmp_path / "t") == {b"a": b"1", b"b\0": b"2\0"}


def test_update_with_neither_way_to_store_is_refused(maptype: str, tmp_path: Path) -> None:
    table = Asked(maptype, tmp_path / "t", writes=True)
    assert table.write((b"a", b"1"), (b"a", None), flags=0) == [(CONFIG, 0), (NOKEY, 0)]
    assert stored(maptype, tmp_path / "t") == {}


def test_delete_tries_both_ways_and_the_first_that_is_there_goes(maptype: str, tmp_path: Path) -> None:
    fill(maptype, tmp_path / "t", [(b"a\0", b"1"), (b"a", b"2")])
    table = Asked(maptype, tmp_path / "t", writes=True)
    assert table.write((b"a", None)) == [(OK, TRY1)]
    assert table.write((b"a", None)) == [(OK, TRY0)]
    assert table.write((b"a", None)) == [(NOKEY, BOTH)]


CALLS = 300  # more than a batch of changes has


def write_and_end(maptype: str, path: Path, records: Records, calls: int) -> int:
    """Have another process make the changes and be killed at that call that writes or syncs; its status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    table = Asked(maptype, path, writes=True)
    left = iter(range(calls))

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **keywords: Any) -> Any:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return instead

    for name in ("pwrite", "fdatasync", "ftruncate", "utime"):
        setattr(os, name, counted(getattr(os, name)))
    table.write(*records)
    os._exit(0)


def test_end_at_any_write_leaves_all_changes_or_none(maptype: str, tmp_path: Path) -> None:
    old = {b"k%d" % i: b"old" * 50 for i in range(200)}
    new = {b"k%d" % i: b"new" * 90 for i in range(100, 300)}
    path, seen = tmp_path / "t", set()
    Asked(maptype, path, writes=True).write(*old.items())
    shutil.copy(f"{path}.db", tmp_path / "kept")
    for calls in range(CALLS):
        shutil.copy(tmp_path / "kept", f"{path}.db")
        if write_and_end(maptype, path, list(new.items()), calls) == 0:
            break
        assert Asked(maptype, path, writes=True).reason is None
        found = {key[:-1]: value[:-1] for key, value in stored(maptype, path).items()}
        assert found in (old, old | new), calls
        seen.add(found == old)
    assert seen == {False, True}
    assert 10 < calls < CALLS - 1


def test_file_that_libdb_had_begun_when_it_was_killed_is_in_nobodys_way(maptype: str, tmp_path: Path) -> None:
    (tmp_path / "__db.t.db").write_bytes(b"begun")
    table = Asked(maptype, tmp_path / "t", writes=True)
    assert table.reason is None
    assert table.write((b"k", b"v")) == [(OK, TRY1)]
    assert sorted(path.name for path in tmp_path.glob("t.db*")) == ["t.db", "t.db.journal"]


def test_file_that_was_rebuilt_after_a_broken_update_stays_as_it_is(maptype: str, tmp_path: Path) -> None:
    path, told = tmp_path / "t", list[str]()
    records = [(b"k%d" % i, b"old") for i in range(500)]
    assert write_and_end(maptype, path, records, 6) == signal.SIGKILL
    Path(f"{path}.db").unlink()
    other = {b"x%d\0" % i: b"built\0" for i in range(700)}
    fill(maptype, path, list(other.items()))
    assert Asked(maptype, path, writes=True, host=Host(warn=told.append)).reason is None
    assert stored(maptype, path) == other
    assert told == [f"{path}.db: an update was broken off, and the file was written to by others since"]


def test_file_that_libdb_makes_shorter_stays_sound(maptype: str, tmp_path: Path) -> None:
    table = Asked(maptype, tmp_path / "t", writes=True)
    for i in range(100):
        table.write((b"k", b"long" * 5000 if i % 2 else b"short"), (b"k%d" % i, b"x" * 3000 * (i % 3)))
        db.DB().verify(f"{tmp_path}/t.db")


def test_foreign_folder_is_refused_for_updates(maptype: str, tmp_path: Path) -> None:
    fill(maptype, tmp_path / "t", [(b"k", b"v")])
    tmp_path.chmod(0o777)
    reason = Asked(maptype, tmp_path / "t", writes=True).reason
    assert reason is not None
    assert b"others may write to the folder" in reason
    assert Asked(maptype, tmp_path / "t").value(b"k") == b"v"


def test_all_changes_of_a_write_share_one_sync(
    maptype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, synced = Asked(maptype, tmp_path / "t", writes=True), list[int]()
    monkeypatch.setattr(os, "fdatasync", synced.append)
    table.write(*((b"k%d" % i, b"v") for i in range(100)))
    assert len(synced) == 2  # journal and file
    table.write((b"k1", b"v"), (b"none", None))
    assert len(synced) == 2  # nothing changed


def test_many_changes_are_made_in_order(maptype: str, tmp_path: Path) -> None:
    table = Asked(maptype, tmp_path / "t", writes=True)
    changes: list[tuple[bytes, bytes | None]] = [(b"k%d" % i, b"v" * (i % 3000)) for i in range(1000)]
    done = table.write(*changes, (b"k1", None), (b"k1", b"again"), (b"k2", None), (b"k2", None))
    assert done == [(OK, TRY1)] * 1003 + [(NOKEY, BOTH)]
    assert table.value(b"k1") == b"again"
    assert len(stored(maptype, tmp_path / "t")) == 999


# Freshness


def test_change_by_others_is_seen_by_the_next_lookup(maptype: str, tmp_path: Path) -> None:
    """Even within one tick of the file system's clock, and though the size stays."""
    path = tmp_path / "t"
    fill(maptype, path, [(b"a", b"%03d" % 999)])
    table, writer = Asked(maptype, path), Asked(maptype, path, writes=True)
    for i in range(300):
        fill(maptype, path, [(b"a", b"%03d" % i)])
        assert table.value(b"a") == writer.value(b"a") == b"%03d" % i


def test_file_that_rests_is_not_opened_anew(
    maptype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t"
    fill(maptype, path, [(b"a", b"1")])
    os.utime(f"{path}.db", (OLD, OLD))
    table = Asked(maptype, path)
    handle = table.table.answers._handle
    for _ in range(3):
        assert table.value(b"a") == b"1"
        assert table.sequence() == [(b"a", b"1")]
    assert table.table.answers._handle is handle


def test_file_replaced_by_rename_is_seen(maptype: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    fill(maptype, path, [(b"a", b"1")])
    table, writer = Asked(maptype, path), Asked(maptype, path, writes=True)
    for i in range(5):
        fill(maptype, tmp_path / "new", [(b"a", b"new%d" % i)])
        os.rename(tmp_path / "new.db", f"{path}.db")
        assert table.value(b"a") == writer.value(b"a") == b"new%d" % i


def test_file_without_a_name_still_answers(maptype: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    fill(maptype, path, [(b"a", b"1")])
    table, writer = Asked(maptype, path), Asked(maptype, path, writes=True)
    os.unlink(f"{path}.db")
    assert table.value(b"a") == b"1"
    assert table.sequence() == [(b"a", b"1")]
    assert writer.write((b"b", b"2")) == [(OK, TRY1)]  # into a new file
    assert table.value(b"a") is None
    assert table.value(b"b") == b"2"


# Locks


def waits_for_lock(path: Path) -> bool:
    """Does somebody in this process wait for an flock of the file?"""
    inode = f":{os.stat(path).st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return any("-> FLOCK" in line and inode in line for line in lines)


def holds_up(path: Path, how: int, task: Callable[[], object], meanwhile: Callable[[], object]) -> None:
    """`task` waits while the file is locked; `meanwhile` is done before it goes on."""
    file = os.open(path, os.O_RDWR)
    thread = threading.Thread(target=task)
    try:
        fcntl.flock(file, how)
        thread.start()
        wait_until(lambda: waits_for_lock(path), "a lock request")
        meanwhile()
    finally:
        os.close(file)
        thread.join()


def test_lookup_and_sequence_wait_for_a_writer_and_see_what_it_wrote(maptype: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    fill(maptype, path, [(b"a", b"old")])
    table = Asked(maptype, path)
    seen: list[object] = []
    for new, task in (
        (b"1", lambda: seen.append(table.value(b"a"))),
        (b"2", lambda: seen.append(table.step(1, first=True))),
    ):
        holds_up(Path(f"{path}.db"), fcntl.LOCK_EX, task, lambda new=new: fill(maptype, path, [(b"a", new)]))
    assert seen == [b"1", (b"a", b"2")]


def test_update_waits_for_readers_who_do_not_wait_for_each_other(maptype: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    fill(maptype, path, [(b"a", b"old")])
    reader, writer = Asked(maptype, path), Asked(maptype, path, writes=True)
    seen: list[object] = []
    holds_up(
        Path(f"{path}.db"),
        fcntl.LOCK_SH,
        lambda: writer.write((b"a", b"new")),
        lambda: seen.append(reader.value(b"a")),
    )
    assert seen == [b"old"]
    assert reader.value(b"a") == b"new"


def test_open_does_not_wait_for_a_rebuild(maptype: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    fill(maptype, path, [(b"a", b"1")])
    with open(f"{path}.db") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        table = Asked(maptype, path)
        assert table.reason is None
    assert table.value(b"a") == b"1"


def test_no_lock_is_left(maptype: str, tmp_path: Path) -> None:
    table = Asked(maptype, tmp_path / "t", writes=True)
    with open(tmp_path / "t.db") as file:
        for use in (
            lambda: table.value(b"a"),
            lambda: table.write((b"a", b"1")),
            lambda: table.step(1, first=True),
            lambda: Asked(maptype, tmp_path / "t", writes=True),
        ):
            use()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)


# Walks


@pytest.fixture
def walked(maptype: str, tmp_path: Path) -> Asked:
    table = Asked(maptype, tmp_path / "t", writes=True)
    table.write(*((b"k%02d" % i, b"v%d" % i) for i in range(40)))
    return table


def test_each_walk_has_its_place(walked: Asked) -> None:
    records = walked.sequence()
    assert walked.step(7, first=True) == records[0]
    assert walked.step(8, first=True) == records[0]
    assert [walked.step(7) for _ in range(3)] == records[1:4]
    assert walked.step(8) == records[1]
    assert walked.step(7, first=True) == records[0]


def test_next_without_first_and_after_the_end_is_the_end(walked: Asked) -> None:
    assert walked.step(5) is None
    walked.sequence()
    assert walked.step(1) is None
    assert walked.step(1) is None


def test_walk_goes_on_when_its_records_are_deleted(walked: Asked) -> None:
    """Under the cursor, before it, and the one that comes next."""
    records = walked.sequence()
    assert walked.step(1, first=True) == records[0]
    walked.write((records[0][0], None))
    assert walked.step(1) == records[1]
    assert walked.step(1) == records[2]
    walked.write((records[1][0], None), (records[2][0], None), (records[3][0], None), (records[4][0], None))
    assert walked.step(1) == records[5]
    walked.write(*((key, None) for key, _ in records[5:]))
    assert walked.step(1) is None


def test_walk_meets_what_is_added_in_place_of_a_deleted_record(tmp_path: Path) -> None:
    """Of a btree, whose walks go by order: as of the stock server."""
    table = Asked("btree", tmp_path / "t", writes=True)
    table.write((b"a", b"1"), (b"c", b"3"))
    assert table.step(1, first=True) == (b"a", b"1")
    table.write((b"a", None), (b"b", b"2"))
    assert table.step(1) == (b"b", b"2")
    table.write((b"b", None), (b"b", b"again"))
    assert table.step(1) == (b"c", b"3")


def test_cleanup_that_deletes_as_it_walks_sees_every_record(walked: Asked) -> None:
    records = walked.sequence()
    seen = []
    record = walked.step(1, first=True)
    while record is not None:
        seen.append(record)
        walked.write((record[0], None))
        record = walked.step(1)
    assert seen == records
    assert walked.sequence() == []


def test_walk_goes_on_when_another_process_changed_the_file(
    walked: Asked, maptype: str, tmp_path: Path
) -> None:
    records = walked.sequence()
    assert walked.step(1, first=True) == records[0]
    with raw(maptype, tmp_path / "t") as handle:
        handle.put(records[1][0] + b"\0", b"changed\0")
        handle.delete(records[2][0] + b"\0")
    assert walked.step(1) == (records[1][0], b"changed")
    assert walked.step(1) == records[3]


def test_walk_whose_record_another_process_deleted(walked: Asked, maptype: str, tmp_path: Path) -> None:
    """A btree has an order to go on by, a hash has not."""
    records = walked.sequence()
    walked.step(1, first=True)
    with raw(maptype, tmp_path / "t") as handle:
        handle.delete(records[0][0] + b"\0")
    assert walked.step(1) == (records[1] if maptype == "btree" else None)


def test_walks_are_bounded_and_the_longest_at_rest_ends(walked: Asked) -> None:
    records = walked.sequence()
    for cursor in range(100, 164):
        walked.step(cursor, first=True)
    assert walked.step(100) == records[1]
    walked.step(200, first=True)
    assert walked.step(101) is None
    assert walked.step(100) == records[2]


# What is wrong with the file


@both_types
def test_file_of_the_other_type_is_invalid(maptype: str, tmp_path: Path) -> None:
    other = "hash" if maptype == "btree" else "btree"
    fill(other, tmp_path / "t", [(b"a", b"1")])
    for writes in (False, True):
        table = Asked(maptype, tmp_path / "t", writes=writes)
        assert table.reason == f"open database {tmp_path}/t.db: Invalid argument".encode()


@both_types
@pytest.mark.parametrize("content", [b"", b"a 1\n", bytes(5000), b"x" * 100_000])
def test_file_of_something_else_is_invalid(maptype: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.db").write_bytes(content)
    for writes in (False, True):
        table = Asked(maptype, tmp_path / "t", writes=writes)
        assert table.reason == f"open database {tmp_path}/t.db: Invalid argument".encode()
    assert (tmp_path / "t.db").read_bytes() == content


@both_types
def test_what_is_no_file_is_a_surrogate(maptype: str, tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    os.mkfifo(tmp_path / "pipe.db")
    for name in ("folder", "pipe"):
        assert Asked(maptype, tmp_path / name).reason is not None
        assert Asked(maptype, tmp_path / name, writes=True).reason is not None


def damaged(data: bytes, how: random.Random) -> bytes:
    """Cut, or with bytes, page headers or whole pages spoilt."""
    spoilt = bytearray(data)
    kind = how.randrange(5)
    page = how.randrange(len(data) // 4096) * 4096
    if kind == 0:
        return data[: how.randrange(len(data))]
    elif kind == 1:
        for _ in range(how.randrange(1, 20)):
            spoilt[how.randrange(len(data))] = how.randrange(256)
    elif kind == 2:
        for _ in range(how.randrange(1, 8)):
            spoilt[page + how.randrange(72)] = how.choice([0, 1, 255, how.randrange(256)])
    elif kind == 3:
        spoilt[page : page + 4096] = bytes(4096)
    else:
        spoilt[page : page + 512] = how.randbytes(512)
    return bytes(spoilt)


def test_damaged_files_end_neither_the_process_nor_a_walk(maptype: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    fill(maptype, path, [(b"k%d\0" % i, b"v" * (9000 if i % 50 == 0 else i % 100)) for i in range(1000)])
    data = Path(f"{path}.db").read_bytes()

    def experiment() -> None:
        how, unusable = random.Random(1), 0
        for case in range(100):
            Path(f"{path}{case}.db").write_bytes(damaged(data, how))
            table = Asked(maptype, Path(f"{path}{case}"), writes=case % 3 == 0)
            if table.reason is not None:
                unusable += 1
                continue
            try:
                for i in range(0, 1000, 9):
                    table.lookup(b"k%d" % i)
                assert len(table.sequence()) < 2000
                if case % 3 == 0:
                    table.write(*((b"k%d" % i, None if i % 2 else b"new") for i in range(0, 1000, 9)))
            except TableRetry:
                unusable += 1
        assert 30 < unusable < 90

    assert in_child(experiment, seconds=300) == 0


def test_file_with_which_libdb_comes_to_no_end_is_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libdb's verify goes round for ever, and held the GIL meanwhile."""
    monkeypatch.setattr(verifier, "SECONDS", 1)
    write_endless(tmp_path / "t.db")
    reason = open_table(b"btree:%b/t" % bytes(tmp_path)).reason
    assert reason is not None
    assert b"comes to no end" in reason


@pytest.fixture
def unverified(maptype: str, tmp_path: Path) -> bytes:
    """The name of a sound table; there is no verifier yet."""
    fill(maptype, tmp_path / "t", [(b"a", b"1")])
    verifier.dismiss()
    return f"{maptype}:{tmp_path}/t".encode()


def test_file_is_not_verified_here_when_no_process_can_be_had(
    unverified: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be a thread for ever, if libdb came to no end with the file."""
    for error in (OSError(errno.EAGAIN, "no"), PermissionError(errno.EACCES, "no")):
        monkeypatch.setattr(verifier, "spawn", Mock(side_effect=error))
        assert b"no process can be had" in (open_table(unverified).reason or b"")
    monkeypatch.undo()
    assert open_table(unverified).reason is None


def test_verifier_that_cannot_load_libdb_is_an_error(
    unverified: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import berkeleydb

    folder = os.path.dirname(os.path.dirname(os.path.realpath(berkeleydb.__file__)))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if os.path.realpath(path) != folder])
    assert b"does not start" in (open_table(unverified).reason or b"")


def test_verifier_leaves_when_nothing_comes_and_another_is_started(
    unverified: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "spawn", lambda peer: in_fork(lambda: verifier.serve(peer, idle=1.0)))
    assert open_table(unverified).reason is None
    first = verifier._verifier
    assert first is not None
    assert first.peer.recv(1) == b""
    assert open_table(unverified).reason is None
    assert verifier._verifier is not first


def test_verifier_that_comes_back_to_the_server_is_waited_for(unverified: bytes) -> None:
    """As to process 1 of a container."""

    def experiment() -> None:
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
        assert open_table(unverified).reason is None
        first = verifier._verifier
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        verifier.dismiss()
        with pytest.raises(ChildProcessError):
            os.waitpid(first.pid, 0)

    assert in_child(experiment) == 0


def in_fork(do: Callable[[], object]) -> int:
    pid = os.fork()
    if not pid:
        do()
    return pid


def test_table_spoilt_while_open_is_retry_until_it_is_good_again(maptype: str, tmp_path: Path) -> None:
    path = Path(f"{tmp_path}/t.db")
    fill(maptype, tmp_path / "t", [(b"k%d" % i, b"1") for i in range(1000)])
    good = path.read_bytes()
    table, writer = Asked(maptype, tmp_path / "t"), Asked(maptype, tmp_path / "t", writes=True)
    for bad in (b"", b"rubbish" * 1000, good[:10_000]):
        path.write_bytes(bad)
        for use in (
            lambda: table.value(b"k1"),
            lambda: writer.value(b"k1"),
            lambda: writer.write((b"k1", b"2")),
        ):
            with pytest.raises(TableRetry, match=str(path)):
                use()
        path.write_bytes(good)
        assert table.value(b"k1") == writer.value(b"k1") == b"1"


# Settings and words for the administrator


def test_page_cache_is_as_large_as_main_cf_says(tmp_path: Path) -> None:
    fill("btree", tmp_path / "t", [(b"a", b"1")])
    sizes = []
    for text in ("", "1048576"):
        table = Asked("btree", tmp_path / "t", host=Host(parameter=lambda name, text=text: text))
        sizes.append(table.table.answers._handle.get_cachesize()[1])
        del table
    assert 131072 <= sizes[0] < 262144
    assert sizes[1] >= 1048576


def test_page_cache_size_that_is_no_number_is_a_surrogate(tmp_path: Path) -> None:
    table = Asked("hash", tmp_path / "t", host=Host(parameter=lambda name: f"{name}?"))
    assert b"bad numerical" in (table.reason or b"")


def test_explain_names_the_file_and_the_kind_of_key(maptype: str, tmp_path: Path) -> None:
    fill(maptype, tmp_path / "t", [(b"a\0", b"1"), (b"b", b"2")])
    table = Asked(maptype, tmp_path / "t").table
    assert table.explain(b"a") == [f"{tmp_path}/t.db: the key with a trailing NUL"]
    assert table.explain(b"b") == [f"{tmp_path}/t.db: the key without a trailing NUL"]
    assert "no such key" in table.explain(b"c")[0]


# Beside Postfix's tools and servers


def postmap(*arguments: str, text: bytes | None = None) -> bytes:
    done = subprocess.run(["postmap", *arguments], input=text, capture_output=True, timeout=60, check=False)
    assert not complaints(done.stderr), done.stderr
    return done.stdout


@needs_postmap
def test_after_each_postmap_the_next_answer_is_the_new_one(maptype: str, tmp_path: Path) -> None:
    source, name = tmp_path / "t", f"{maptype}:{tmp_path}/t"
    source.write_text("a 0\n")
    postmap(name)
    table = Asked(maptype, source)
    for i in range(20):
        source.write_text("".join(f"{key} {i}\n" for key in ["a", *range(i * 100)]))
        postmap(name)  # truncates, and writes in place
        assert table.value(b"a") == b"%d" % i
        postmap("-i", name, text=b"b %d\n" % i)
        assert table.value(b"b") == b"%d" % i
        postmap("-r", "-i", name, text=b"a again%d\n" % i)
        assert table.value(b"a") == b"again%d" % i
        postmap("-d", "a", name)
        assert table.value(b"a") is None


@needs_postmap
def test_lookups_and_sequence_are_postmaps(maptype: str, tmp_path: Path) -> None:
    name = f"{maptype}:{tmp_path}/t"
    lines = [f"key{i} value {i} {'x' * (i % 700)}" for i in range(3000)]
    (tmp_path / "t").write_text("".join(f"{line}\n" for line in lines))
    postmap(name)
    table = Asked(maptype, tmp_path / "t")
    listed = [tuple(line.split(b"\t", 1)) for line in postmap("-s", name).splitlines()]
    assert table.sequence() == listed
    asked = [f"key{i}".encode() for i in range(0, 6000, 7)]
    answers = postmap("-q", "-", name, text=b"\n".join(asked) + b"\n").splitlines()
    ours = [key + b"\t" + value for key in asked if (value := table.value(key)) is not None]
    assert ours == answers


@needs_postmap
def test_postmap_reads_what_we_write(maptype: str, tmp_path: Path) -> None:
    table = Asked(maptype, tmp_path / "t", writes=True)
    table.write(*((b"k%d" % i, b"v%d" % i) for i in range(500)), (b"k7", None))
    name = f"{maptype}:{tmp_path}/t"
    listed = [tuple(line.split(b"\t", 1)) for line in postmap("-s", name).splitlines()]
    assert listed == table.sequence()
    assert len(listed) == 499


def to_bytes(pairs: list[list[str]], directory: str) -> Attributes:
    return [
        (name.encode(), value.replace("@DIR@", directory).encode(errors="surrogateescape"))
        for name, value in pairs
    ]


@needs_postmap
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("service", EXCHANGES)
def test_recorded_conversation(service: str, dialect: str) -> None:
    """In order and on one server, since the flags in a reply depend on what came before."""
    count = 0
    with ServerProcess() as server:
        for maptype in KINDS:
            source = shutil.copy(VECTORS / "tables" / "virtual", server.dir / f"v{maptype}")
            subprocess.run(["postmap", f"{maptype}:{source}"], capture_output=True, check=True)
            server.approve(*(f"{maptype}:{server.dir}/{name}" for name in (f"v{maptype}", f"rw_{maptype}")))
            server.approve(f"{maptype}:{server.dir}/missing")
        server.start("-n", service)
        with server.connect() as peer:
            for line in (VECTORS / f"{dialect}.jsonl").read_text().splitlines():
                exchange = json.loads(line)
                asked = to_bytes(exchange["request"], str(server.dir))
                if exchange["service"] != service or not dict(asked)[b"table"].startswith(
                    (b"hash:", b"btree:")
                ):
                    continue
                count += 1
                answer = peer.ask(encode(asked))
                if exchange["reply"] is None:  # the real server died
                    assert dict(answer)[b"status"] in (b"1", b"5"), asked
                else:
                    assert answer == to_bytes(exchange["reply"], str(server.dir)), asked
    assert count == EXCHANGES[service]


class Pair:
    """The same requests to Postfix's proxywrite and to ours, each on a table of its own; the same replies."""

    def __init__(self, maptype: str, stock: StockPostfix, ours: ServerProcess) -> None:
        names = (f"{maptype}:{stock.data_dir}/t", f"{maptype}:{ours.dir}/t")
        stock.set(proxy_write_maps=f"proxy:{names[0]}")
        ours.approve(names[1])
        self.tables = [name.encode() for name in names]
        stock.start()
        ours.start("-n", "proxywrite")
        self.peers = [stock.connect("proxywrite"), ours.connect(dialect())]

    def ask(self, kind: str, **fields: bytes | int) -> Attributes:
        if release() >= (3, 11) and kind != "open":
            fields["flags"] = LOCK | TRY0 | TRY1  # without one of them the server ends
        replies = [
            peer.ask(request(kind, table, **fields))
            for peer, table in zip(self.peers, self.tables, strict=True)
        ]
        assert replies[0] == replies[1], (kind, fields)
        return replies[1]


@pytest.fixture
def pair(maptype: str) -> Iterator[Pair]:
    stock = StockPostfix()
    with ServerProcess() as ours:
        try:
            pair = Pair(maptype, stock, ours)
            yield pair
            for peer in pair.peers:
                peer.close()
        finally:
            stock.remove()


@needs_postfix
@pytest.mark.parametrize("seed", range(3))
def test_random_requests_get_what_stock_proxywrite_answers(pair: Pair, maptype: str, seed: int) -> None:
    """NEXT only in a walk, since the stock server aborts; no new key in a walk through a hash, since its
    order may change then."""
    how = random.Random(seed)
    keys = [b"key%d" % i for i in range(40)] + [b"", b"x" * 3000]
    present: set[bytes] = set()
    walks = False
    pair.ask("open")
    for _ in range(1500):
        kind = how.choices(["lookup", "update", "delete", "sequence"], [2, 2, 1, 4])[0]
        key = how.choice(keys)
        if kind == "sequence":
            first = not walks or how.random() < 0.03
            reply = pair.ask("sequence", function=0 if first else 1)
            walks = reply[0] == (b"status", b"0")
        elif kind == "update":
            if maptype == "hash" and key not in present:
                walks = False
            present.add(key)
            pair.ask("update", key=key, value=b"v%d" % how.randrange(100) * how.choice([0, 1, 1, 500]))
        elif kind == "delete":
            present.discard(key)
            pair.ask("delete", key=key)
        else:
            pair.ask("lookup", key=key)


def test_rebuild_holds_up_its_own_table_alone(maptype: str) -> None:
    """Its lookups are RETRY after lookup_time_limit; others go on."""
    with ServerProcess(own={"lookup_time_limit": "1"}) as server:
        fast = server.cdb("fast", {b"k": b"v"})
        path = server.dir / "t"
        fill(maptype, path, [(b"a", b"1")])
        Path(f"{path}.db").chmod(0o644)
        table = f"{maptype}:{path}".encode()
        server.approve(table)
        server.start()
        with server.connect() as waits, server.connect() as goes_on:
            assert waits.ask(lookup(table, b"a"))[1] == (b"value", b"1")
            with open(f"{path}.db") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                waits.send(lookup(table, b"a"))
                for _ in range(100):
                    assert goes_on.ask(lookup(fast, b"k"))[1] == (b"value", b"v")
                assert waits.reply()[0] == (b"status", b"%d" % RETRY)
            assert waits.ask(lookup(table, b"a"))[1] == (b"value", b"1")


def test_until_nul_is_what_a_walk_gives(maptype: str, tmp_path: Path) -> None:
    records = [(b"a\0", b"1\0"), (b"b", b"2\0rest")]
    fill(maptype, tmp_path / "t", records)
    assert sorted(Asked(maptype, tmp_path / "t").sequence()) == [
        (until_nul(key), until_nul(value)) for key, value in records
    ]
