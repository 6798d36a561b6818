"""test_lmdb_writer - updates of LMDB files: what is on disk afterwards, beside postmap, and on bad days"""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
from contract import BOTH, NOKEY, OK, RETRY, TRY0, TRY1, found, lmdb_image
from fix_server import can_lock

from proxymap import errors
from proxymap.base._lockfile import LockFile
from proxymap.base._watch import Watch
from proxymap.tables._table import CHANGED_NOT, CHANGED_REPLACED, CHANGED_SPOILED, SLOW_WRITE, Table
from proxymap.tables.base import Change, Host
from proxymap.tables.indexed import lmdb_writer
from proxymap.tables.indexed.lmdb import damage_in
from proxymap.tables.opening import open_table

CONFIG = 5
LIMIT = 30.0
FORMATS = {"0.9": 0, "1.0": 1}  # py-lmdb's lib_version
VERSION_AT = {0: (16, 1), 1: (24, 3)}  # where in the file, and which

needs_postmap = pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")
each_format = pytest.mark.parametrize("lib", FORMATS.values(), ids=FORMATS)


class Place:
    """A folder with one table, and what was warned of."""

    def __init__(self, folder: Path) -> None:
        self.name = folder / "t"
        self.file = folder / "t.lmdb"
        self.type_name = b"lmdb:" + bytes(self.name)
        self.warnings: list[str] = []
        self.parameters: dict[str, str] = {}
        self.host = Host(warn=self.warnings.append, parameter=lambda name: self.parameters.get(name, ""))

    def open(self) -> Table:
        table = open_table(self.type_name, writes=True, host=self.host)
        assert table.reason is None, table.reason
        return table

    def reason(self) -> str:
        reason = open_table(self.type_name, writes=True, host=self.host).reason
        assert reason is not None
        return reason.decode()

    def postmap(self, *arguments: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = ["postmap", *arguments, self.type_name.decode()]
        return subprocess.run(command, input=text, capture_output=True, timeout=LIMIT, check=False)

    def content(self) -> dict[bytes, bytes]:
        return content(self.file)

    def aside(self) -> list[Path]:
        return sorted(self.file.parent.glob("t.lmdb.corrupt-*"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def content(file: Path) -> dict[bytes, bytes]:
    """What a process of its own reads: py-lmdb opens a file once in a process."""
    script = (
        "import lmdb, sys; env = lmdb.open(sys.argv[1], subdir=False, lock=False, readonly=True)\n"
        "with env.begin() as txn: print({bytes(k): bytes(v) for k, v in txn.cursor()})"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, check=True)
    read: dict[bytes, bytes] = eval(done.stdout)
    return read


def fill(file: Path, records: dict[bytes, bytes], lib: int = 0) -> None:
    with (
        lmdb.open(str(file), subdir=False, lock=False, map_size=1 << 28, lib_version=lib) as env,
        env.begin(write=True) as txn,
    ):
        for key, value in records.items():
            txn.put(key, value)


def many(count: int) -> dict[bytes, bytes]:
    return {b"key%d\0" % i: b"value%d\0" % i for i in range(count)}


def update(table: Table, key: bytes, value: bytes | None, flags: int = BOTH) -> tuple[int, int]:
    """One change (None: delete); returns its status and its flags."""
    change = Change(key, value, flags)
    table.write([change])
    return change.status, change.flags


# What is stored


def test_new_table_is_created_for_its_owner_alone_in_the_format_of_every_postfix(place: Place) -> None:
    table = place.open()
    assert place.file.stat().st_mode & 0o777 == 0o600
    assert found(table, b"key") is None
    assert update(table, b"key", b"value")[0] == OK
    assert found(table, b"key") == b"value"
    assert version(place.file, 0)


@each_format
def test_old_table_keeps_its_format_and_content(place: Place, lib: int) -> None:
    fill(place.file, many(1000), lib)
    table = place.open()
    update(table, b"new", b"v")
    assert version(place.file, lib)
    assert place.content() == many(1000) | {b"new\0": b"v\0"}


def version(file: Path, lib: int) -> bool:
    at, number = VERSION_AT[lib]
    return struct.unpack_from("<II", file.read_bytes(), at) == (0xBEEFC0DE, number)


def test_table_open_for_updates_has_them_made_by_a_worker(place: Place) -> None:
    assert place.open().slow == SLOW_WRITE
    assert open_table(place.type_name).slow == 0


@pytest.mark.parametrize(
    ("flags", "stored", "after"), [(BOTH, b"k\0", TRY1), (TRY1, b"k\0", TRY1), (TRY0, b"k", TRY0)]
)
def test_try_bits_decide_on_the_nul_of_an_update(place: Place, flags: int, stored: bytes, after: int) -> None:
    assert update(place.open(), b"k", b"v", flags) == (OK, after)
    assert place.content() == {stored: b"v" + stored[1:]}


@pytest.mark.parametrize(
    ("flags", "gone", "after"), [(BOTH, b"k\0", TRY1), (TRY1, b"k\0", TRY1), (TRY0, b"k", TRY0)]
)
def test_delete_tries_the_nul_first_and_a_hit_decides(
    place: Place, flags: int, gone: bytes, after: int
) -> None:
    records = {b"k\0": b"1\0", b"k": b"2"}
    fill(place.file, records)
    assert update(place.open(), b"k", None, flags) == (OK, after)
    assert place.content() == {key: value for key, value in records.items() if key != gone}


def test_delete_of_an_absent_key_is_nokey_and_decides_nothing(place: Place) -> None:
    assert update(place.open(), b"k", None) == (NOKEY, BOTH)
    assert update(place.open(), b"", None) == (NOKEY, BOTH)


def test_update_replaces(place: Place) -> None:
    table = place.open()
    for value in (b"1", b"22" * 9000, b""):
        assert update(table, b"k", value)[0] == OK
        assert found(table, b"k") == value


@pytest.mark.parametrize("flags", [BOTH, TRY1, TRY0])
def test_longest_key(place: Place, flags: int) -> None:
    longest = b"k" * (511 if flags == TRY0 else 510)
    assert update(place.open(), longest, b"v", flags)[0] == OK


@pytest.mark.parametrize(("key", "flags"), [(b"k" * 511, BOTH), (b"k" * 512, TRY0), (b"", TRY0), (b"k", 0)])
def test_intended_difference_a_key_that_kills_the_stock_server_is_config(
    place: Place, key: bytes, flags: int
) -> None:
    table = place.open()
    changes = [Change(b"before", b"1", BOTH), Change(key, b"v", flags), Change(b"after", b"2", BOTH)]
    table.write(changes)
    assert [change.status for change in changes] == [OK, CONFIG, OK]
    assert changes[1].flags == flags
    assert place.content() == {b"before\0": b"1\0", b"after\0": b"2\0"}


def test_keys_that_are_too_long_are_told_of_once(place: Place) -> None:
    table = place.open()
    for _ in range(3):
        update(table, b"k" * 600, b"v")
    assert place.warnings == [f"{place.file}: a key of 601 bytes cannot be stored in this format"]


def test_changes_made_together_keep_their_order(place: Place) -> None:
    table = place.open()
    changes = [
        *(Change(b"k", b"%d" % i, BOTH) for i in range(100)),
        Change(b"gone", b"x", BOTH),
        Change(b"gone", None, BOTH),
        Change(b"gone", None, BOTH),
    ]
    table.write(changes)
    assert [change.status for change in changes] == [OK] * 102 + [NOKEY]
    assert place.content() == {b"k\0": b"99\0"}


def test_changes_made_together_are_one_transaction(place: Place) -> None:
    table = place.open()
    before = table.generation
    table.write([Change(b"%d" % i, b"v", BOTH) for i in range(500)])
    assert table.generation == before + 1


def test_updates_wake_nobody_who_watches_the_file(place: Place) -> None:
    """An event for each page would have the loop look at all tables; what it has mapped is new anyway."""
    table, watch = place.open(), Watch()
    update(table, b"first", b"v")
    table.watch(watch)
    for key in many(100):
        update(table, key, b"v")
    assert not watch.take()


@each_format
def test_full_map_grows(place: Place, lib: int) -> None:
    place.parameters["lmdb_map_size"] = "65536"
    fill(place.file, {b"k\0": b"v\0"}, lib)
    table = place.open()
    for i in range(40):
        assert update(table, b"key%d" % i, b"v" * 50_000)[0] == OK
    assert found(table, b"key39") == b"v" * 50_000
    assert place.file.stat().st_size > 40 * 50_000


def test_map_grown_by_another_process_is_followed(place: Place) -> None:
    place.parameters["lmdb_map_size"] = "65536"
    table = place.open()
    update(table, b"k", b"v")
    subprocess.run(
        [
            *(sys.executable, "-c"),
            "import lmdb, sys; env = lmdb.open(sys.argv[1], subdir=False, lock=False, map_size=1 << 28)\n"
            "with env.begin(write=True) as txn:\n"
            "    for i in range(2000): txn.put(b'other%d' % i, b'x' * 1000)",
            str(place.file),
        ],
        check=True,
    )
    assert update(table, b"k2", b"v2")[0] == OK
    assert found(table, b"k2") == b"v2"
    assert len(place.content()) == 2002


# The lock


@contextmanager
def locked(file: Path, kind: int) -> Iterator[Callable[[], object]]:
    """Postfix's lock, held by another process until what this yields is called."""
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, int(sys.argv[2]))\n"
        "print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(file), str(kind)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.terminate
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT)


@contextmanager
def in_background(call: Callable[[], Any]) -> Iterator[threading.Event]:
    """call() on a thread; the event is set when it has come back."""
    back = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)
        back.set()

    thread = threading.Thread(target=run)
    thread.start()
    yield back
    thread.join(LIMIT)
    assert back.is_set()
    assert not failed, failed


def waits_for_a_lock(pid: int) -> bool:
    """Does a thread of this process wait in fcntl?"""
    for task in Path(f"/proc/{pid}/task").iterdir():
        number = (task / "syscall").read_text().split()
        if number[0] == "72" and int(number[2], 16) == fcntl.F_OFD_SETLKW:
            return True
    return False


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="knows the number of fcntl on x86_64 only")
@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH], ids=["writing", "reading"])
def test_update_waits_for_postfix_lock_and_lookups_do_not(place: Place, kind: int) -> None:
    table = place.open()
    update(table, b"k", b"1")
    with locked(place.file, kind) as release, in_background(lambda: update(table, b"k", b"2")) as back:
        deadline = time.monotonic() + LIMIT
        while not waits_for_a_lock(os.getpid()):
            assert time.monotonic() < deadline
        assert found(table, b"k") == b"1"
        assert not back.is_set()
        release()
    assert found(table, b"k") == b"2"


@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH], ids=["writing", "reading"])
def test_table_opens_while_another_process_has_the_lock(place: Place, kind: int) -> None:
    fill(place.file, many(10))
    with locked(place.file, kind):
        assert found(place.open(), b"key7") == b"value7"


def test_lock_outlives_other_descriptors_of_the_file(place: Place) -> None:
    """A plain fcntl lock would go with any of them."""
    place.open()
    file = LockFile(str(place.file), os.open(place.file, os.O_RDWR))
    assert file.lock()
    os.close(os.open(place.file, os.O_RDONLY))
    assert not damage_in(str(place.file))  # opens and closes it too
    assert not can_lock(place.file)
    file.close()
    assert can_lock(place.file)


def test_no_lock_is_left_behind(place: Place) -> None:
    faults: list[OSError] = []
    with trouble_in_transaction(lambda: raise_first(faults)):
        table = place.open()
        assert can_lock(place.file)
        update(table, b"k", b"v")
        assert can_lock(place.file)
        faults.append(OSError(5, "Input/output error"))
        with pytest.raises(errors.TableRetry):
            update(table, b"k", b"v")
    assert can_lock(place.file)


def raise_first(faults: list[OSError]) -> None:
    if faults:
        raise faults.pop(0)


class Between:
    """Between the writer and LMDB: an environment or transaction whose put has trouble first."""

    def __init__(self, behind: Any, trouble: Callable[[], None]) -> None:
        self.behind, self.trouble = behind, trouble

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)

    def begin(self, **keywords: Any) -> Between:
        return Between(self.behind.begin(**keywords), self.trouble)

    def __enter__(self) -> Between:
        self.behind.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self.behind.__exit__(*error)

    def put(self, key: bytes, value: bytes) -> Any:
        self.trouble()
        return self.behind.put(key, value)


@contextmanager
def trouble_in_transaction(trouble: Callable[[], None]) -> Iterator[None]:
    """For tables that are opened meanwhile."""
    original = lmdb.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lmdb, "open", lambda *where, **how: Between(original(*where, **how), trouble))
        yield


# Beside postmap


@needs_postmap
def test_postmap_before_between_and_after_updates(place: Place) -> None:
    place.name.write_bytes(b"built 1\n")
    assert place.postmap().returncode == 0
    table = place.open()
    update(table, b"ours", b"2")
    assert place.postmap("-i", text=b"theirs 3\n").returncode == 0
    assert found(table, b"theirs") == b"3"
    assert update(table, b"again", b"4")[0] == OK
    assert place.postmap("-d", "ours").returncode == 0
    assert found(table, b"ours") is None
    assert update(table, b"last", b"5")[0] == OK
    assert place.postmap("-s").stdout == b"again\t4\nbuilt\t1\nlast\t5\ntheirs\t3\n"
    assert place.postmap().returncode == 0  # a rebuild, in place
    assert found(table, b"last") is None
    assert update(table, b"after", b"6")[0] == OK
    assert place.postmap("-s").stdout == b"after\t6\nbuilt\t1\n"


@needs_postmap
@pytest.mark.parametrize("rebuilds", [False, True])
def test_postmap_at_work_beside_updates_at_full_speed(place: Place, rebuilds: bool) -> None:
    """What takes the lock loses nothing.

    A rebuild takes it too late: its transaction has begun before. Stock's own
    writers suffer from that as we do, so here all that counts is that we go on.
    """
    place.name.write_bytes(b"".join(b"built%d %d\n" % (i, i) for i in range(2000)))
    assert place.postmap().returncode == 0
    table = place.open()
    stop = threading.Event()
    failed: list[str] = []

    def others() -> None:
        for i in range(12):
            for arguments in (["-q", "built7"], ["-d", f"k{i}"], ["-s"], *([[]] if rebuilds else [])):
                done = place.postmap(*arguments)
                if not rebuilds and (done.returncode not in (0, 1) or done.stderr):
                    failed.append(f"{arguments}: {done!r}")
        stop.set()

    count = 0
    with in_background(others):
        while not stop.is_set():
            assert update(table, b"k%d" % (count % 50), b"%d" % count)[0] == OK
            count += 1
    assert not failed
    update(table, b"end", b"1")
    assert damage_in(str(place.file)) is None
    records = dict(line.split(b"\t") for line in place.postmap("-s").stdout.splitlines())
    assert records[b"end"] == b"1"
    if not rebuilds:
        assert not place.aside()
        assert {key: value for key, value in records.items() if key.startswith(b"built")} == {
            b"built%d" % i: b"%d" % i for i in range(2000)
        }


@needs_postmap
@pytest.mark.parametrize("seed", range(3))
def test_random_changes_leave_what_postmap_leaves(place: Place, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    table = place.open()
    expected: dict[bytes, bytes] = {}
    for _ in range(60):
        changes = []
        for _ in range(rng.choice([1, 2, 30])):
            key = b"k%d" % rng.randrange(300) + b"x" * rng.choice([0, 200])
            value = None if rng.random() < 0.4 else b"v" * rng.choice([1, 100, 3000, 20000])
            changes.append(Change(key, value, BOTH))
            status = OK if value is not None or key in expected else NOKEY
            changes[-1].expected = status  # type: ignore[attr-defined]
            expected.pop(key, None)
            if value is not None:
                expected[key] = value
        table.write(changes)
        assert all(change.status == change.expected for change in changes)  # type: ignore[attr-defined]
    assert damage_in(str(place.file)) is None
    records = dict(line.split(b"\t") for line in place.postmap("-s").stdout.splitlines())
    assert records == expected


# Another file at that path


@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_update_goes_to_the_file_that_the_path_names(place: Place, tmp_path: Path, how: str) -> None:
    table = place.open()
    update(table, b"old", b"1")
    if how == "unlinked":
        place.file.unlink()
        rest: dict[bytes, bytes] = {}
    else:
        rest = many(10)
        fill(tmp_path / "other", rest)
        (tmp_path / "other").rename(place.file)
    assert update(table, b"new", b"2")[0] == OK
    assert place.content() == rest | {b"new\0": b"2\0"}
    assert table.changed == CHANGED_REPLACED
    new = place.open()
    assert found(new, b"new") == b"2"
    assert found(new, b"old") is None
    assert new.changed == CHANGED_NOT


def test_file_that_was_emptied_becomes_a_new_table(place: Place) -> None:
    table = place.open()
    table.write([Change(key, value, TRY0) for key, value in many(500).items()])
    os.truncate(place.file, 0)
    assert update(table, b"new", b"2")[0] == OK
    assert place.content() == {b"new\0": b"2\0"}
    assert not place.aside()


def test_two_tables_of_one_file_share_its_writer(place: Place, tmp_path: Path) -> None:
    """py-lmdb does not open a file twice, and the process has only one lock to lose."""
    one = place.open()
    link = tmp_path / "link"
    link.with_suffix(".lmdb").symlink_to(place.file)
    two = open_table(b"lmdb:" + bytes(link), writes=True, host=place.host)
    assert two.reason is None
    assert two is not one
    update(one, b"1", b"one")
    update(two, b"2", b"two")
    assert (found(one, b"2"), found(two, b"1")) == (b"two", b"one")


# Damage


def spoil_text(file: Path) -> None:
    file.write_bytes(b"not a table\n" * 1000)


def spoil_meta(file: Path) -> None:
    with file.open("r+b") as f:
        f.seek(4096)
        f.write(bytes(4096))


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def spoil_leaves(file: Path) -> None:
    """All pages behind the meta pages: their number stays, nothing else makes sense."""
    with file.open("r+b") as f:
        for page in range(2, file.stat().st_size // 4096):
            f.seek(page * 4096 + 10)
            f.write(b"\xff" * 4000)


SPOILERS = {"text": spoil_text, "meta page": spoil_meta, "half": cut_in_half, "leaves": spoil_leaves}
each_spoiler = pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)


@each_spoiler
@each_format
def test_damaged_table_is_set_aside_when_it_is_opened(
    place: Place, lib: int, spoil: Callable[[Path], None]
) -> None:
    fill(place.file, many(2000), lib)
    spoil(place.file)
    damaged = place.file.read_bytes()
    table = place.open()
    (aside,) = place.aside()
    assert re.fullmatch(r"t\.lmdb\.corrupt-\d{8}T\d{6}", aside.name)
    assert aside.read_bytes() == damaged
    (warning,) = place.warnings
    assert f"set aside as {aside}" in warning
    assert update(table, b"k", b"v")[0] == OK
    assert place.content() == {b"k\0": b"v\0"}


def test_table_cut_while_open_is_set_aside_by_the_next_update(place: Place) -> None:
    fill(place.file, many(2000))
    table = place.open()
    update(table, b"k", b"v")
    cut_in_half(place.file)
    assert update(table, b"k", b"v2")[0] == OK
    assert place.content() == {b"k\0": b"v2\0"}
    assert table.changed
    assert found(place.open(), b"k") == b"v2"
    assert len(place.aside()) == len(place.warnings) == 1


def test_damage_that_a_lookup_meets_has_the_table_opened_anew(place: Place) -> None:
    fill(place.file, many(2000))
    table = place.open()
    spoil_leaves(place.file)
    assert table.lookup(b"key7")[0] == RETRY
    assert table.changed == CHANGED_SPOILED
    new = place.open()
    assert new is not table
    assert found(new, b"key7") is None
    assert update(table, b"by the old one", b"1")[0] == OK
    assert update(new, b"by the new one", b"2")[0] == OK
    assert set(place.content()) == {b"by the old one\0", b"by the new one\0"}
    assert len(place.aside()) == 1


def test_damage_that_lmdb_meets_is_mended_at_once(place: Place) -> None:
    calls: list[int] = []

    def trouble() -> None:
        calls.append(1)
        if len(calls) == 2:
            spoil_leaves(place.file)
            raise lmdb.CorruptedError("mdb_put: MDB_CORRUPTED: Located page was wrong type")

    with trouble_in_transaction(trouble):
        table = place.open()
        update(table, b"k", b"v")
        assert update(table, b"k2", b"v2")[0] == OK
    assert place.content() == {b"k2\0": b"v2\0"}
    assert len(place.aside()) == 1


def test_damage_done_by_another_writer_is_found_before_lmdb_meets_it(place: Place) -> None:
    """As when postmap began its transaction before it had the lock."""
    table = place.open()
    table.write([Change(key, value, TRY0) for key, value in many(2000).items()])
    script = (
        "import lmdb, sys; env = lmdb.open(sys.argv[1], subdir=False, lock=False)\n"
        "with env.begin(write=True) as txn: txn.put(b'theirs', b'1')"
    )
    subprocess.run([sys.executable, "-c", script, str(place.file)], check=True)
    assert update(table, b"ours", b"2")[0] == OK  # it was in order
    assert not place.aside()
    subprocess.run([sys.executable, "-c", script, str(place.file)], check=True)
    spoil_leaves(place.file)
    assert update(table, b"ours", b"3")[0] == OK
    assert place.content() == {b"ours\0": b"3\0"}
    assert len(place.aside()) == 1


def test_damage_that_only_lmdb_finds_counts_the_second_time(place: Place) -> None:
    fill(place.file, many(100))
    inode = place.file.stat().st_ino

    def trouble() -> None:
        if place.file.stat().st_ino == inode:
            raise lmdb.CorruptedError("mdb_del: MDB_CORRUPTED: Located page was wrong type")

    with trouble_in_transaction(trouble):
        table = place.open()
        assert update(table, b"k", b"v")[0] == OK
    assert place.content() == {b"k\0": b"v\0"}
    (warning,) = place.warnings
    assert "MDB_CORRUPTED" in warning
    assert content(place.aside()[0]) == many(100)


def test_two_damaged_files_of_one_second_are_both_kept(place: Place) -> None:
    for _ in range(3):
        spoil_text(place.file)
        place.open()
    assert len(place.aside()) == 3


def test_damaged_table_is_left_alone_if_the_administrator_wants_that(place: Place) -> None:
    place.host.replace_damaged = False
    spoil_text(place.file)
    assert "set lmdb_replace_damaged = yes" in place.reason()
    assert not place.aside()
    table_text = place.file.read_bytes()
    assert table_text == b"not a table\n" * 1000


def test_sound_file_that_is_not_ours_is_left_alone(place: Place) -> None:
    """Named databases; and a format of the future."""
    with lmdb.open(str(place.file), subdir=False, lock=False, max_dbs=2) as env:
        env.open_db(b"named", dupsort=True)
        env.open_db(None, dupsort=False)
    place.open()  # named databases are records of a kind that the check does not know
    image = bytearray(lmdb_image([(b"k\0", b"v\0")]))
    struct.pack_into("<I", image, 20, 999)
    place.file.write_bytes(image)
    before = len(place.aside())
    assert "that Postfix does not write" in place.reason()
    assert len(place.aside()) == before


def test_unreadable_disk_is_no_damage(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that cannot be read looks like zeros in a map; reading the file tells."""
    fill(place.file, many(2000))

    def damage(path: str) -> str:
        monkeypatch.setattr("io.open", fail)
        return "zeros"

    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise OSError(5, "Input/output error", str(place.file))

    with pytest.raises(OSError, match="Input/output error"):
        lmdb_writer.writer_for(str(place.file), place.host, damage)
    assert not place.aside()


@pytest.mark.parametrize("seed", range(40))
def test_no_damage_ends_the_process(place: Place, seed: int) -> None:
    """Bytes changed at random: what the check lets pass, LMDB can be let at."""
    rng = random.Random(seed)
    fill(place.file, many(300) | {b"big\0": b"v" * 20_000})
    image = bytearray(place.file.read_bytes())
    for _ in range(rng.choice([1, 1, 3, 40])):
        image[rng.randrange(len(image))] = rng.choice([0, 1, 255, rng.randrange(256)])
    place.file.write_bytes(image)
    script = (
        "import sys\nfrom proxymap.tables.base import Change\n"
        "from proxymap.tables.opening import open_table\n"
        "table = open_table(sys.argv[1].encode(), writes=True)\n"
        "for i in range(0, 300, 3): table.write([Change(b'key%d' % i, b'x' * i, 12),"
        " Change(b'key%d' % (i + 1), None, 12)])"
    )
    command = [sys.executable, "-c", script, place.type_name.decode()]
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        command, capture_output=True, check=False, timeout=LIMIT, env={**os.environ, "PYTHONPATH": root}
    )
    assert (done.returncode, done.stderr) == (0, b"")


# The check


@each_format
def test_check_finds_nothing_in_what_lmdb_writes(tmp_path: Path, lib: int) -> None:
    rng = random.Random(lib)
    file = tmp_path / "f"
    with lmdb.open(str(file), subdir=False, lock=False, map_size=1 << 28, lib_version=lib, sync=False) as env:
        for _ in range(200):
            with env.begin(write=True) as txn:
                for _ in range(rng.choice([1, 5, 100])):
                    key = b"k%d" % rng.choice([rng.randrange(2000), rng.randrange(9)]) + b"y" * rng.choice(
                        [0, 3, 400]
                    )
                    if rng.random() < 0.45:
                        txn.delete(key)
                    else:
                        txn.put(key, b"v" * rng.choice([0, 1, 7, 100, 3000, 9000, 40000]))
            assert damage_in(str(file)) is None


def test_check_finds_a_page_that_is_both_free_and_in_use(tmp_path: Path) -> None:
    """LMDB would write over a page of the tree."""
    file = tmp_path / "f"
    fill(file, many(2000))
    with lmdb.open(str(file), subdir=False, lock=False) as env, env.begin(write=True) as txn:
        txn.put(b"key5\0", b"x")  # frees pages
    assert damage_in(str(file)) is None
    image = bytearray(file.read_bytes())
    metas = [struct.unpack_from("<QQ", image, page * 4096 + 16 + 120) for page in (0, 1)]
    newest = max((0, 1), key=lambda page: metas[page][1])
    (free_root,) = struct.unpack_from("<Q", image, newest * 4096 + 16 + 24 + 40)
    (main_root,) = struct.unpack_from("<Q", image, newest * 4096 + 16 + 24 + 48 + 40)
    (node,) = struct.unpack_from("<H", image, free_root * 4096 + 16)
    struct.pack_into("<Q", image, free_root * 4096 + node + 8 + 8 + 8, main_root)
    file.write_bytes(image)
    assert damage_in(str(file)) is not None


# Where updates are refused


def test_folder_that_others_may_write_to_is_refused(place: Place) -> None:
    place.parameters["data_directory"] = "/var/lib/mail"
    for mode in (0o777, 0o1777):
        place.file.parent.chmod(mode)
        reason = place.reason()
        assert f"others may write to the folder {place.file.parent}" in reason
        assert "keep tables that Postfix writes in data_directory (/var/lib/mail)" in reason
        assert not place.file.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folder_of_somebody_else_is_refused(place: Place) -> None:
    os.chown(place.file.parent, 65534, -1)
    assert "belongs to nobody, not to root" in place.reason()


def test_missing_folder_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path / "absent")
    assert "No such file or directory" in place.reason()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_what_is_no_file_is_left_alone(place: Place, make: Callable[[Path], None]) -> None:
    make(place.file)
    assert re.search("not a regular file|Is a directory", place.reason())
    assert not place.aside()
