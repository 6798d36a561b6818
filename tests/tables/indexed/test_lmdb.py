"""test_lmdb - LMDB files of both data formats against py-lmdb, also while it writes"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
from contract import (
    BOTH,
    MULTI_WRITER,
    NOKEY,
    OK,
    RETRY,
    TRY0,
    TRY1,
    IndexedContract,
    Records,
    found,
    in_child,
    lmdb_image,
    survives_damage,
    until_nul,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from proxymap.tables._table import Surrogate, Table
from proxymap.tables.base import Host, Opening
from proxymap.tables.indexed.lmdb import LmdbTable, open_table

FORMATS = {"0.9": 0, "1.0": 1}  # py-lmdb's lib_version
VERSIONS = {"0.9": 1, "1.0": 3}  # in the file
LONGEST_KEY = {0: 511, 1: 1978}
READING = Opening(0, False, Host(index_size=1 << 24), lambda name: Surrogate(name, b"no members"))
ROOM = 1 << 30  # map size for writers; address space only

each_format = pytest.mark.parametrize("lib", FORMATS.values(), ids=FORMATS)
needs_postmap = pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")


@contextmanager
def writer(path: Path, lib: int, **options: Any) -> Iterator[Any]:
    """py-lmdb's environment, opened as Postfix does; without syncing, for speed."""
    options |= {"subdir": False, "lock": False, "map_size": ROOM, "sync": False, "lib_version": lib}
    env = lmdb.open(str(path), **options)
    try:
        yield env
    finally:
        env.close()


def opened(path: Path) -> LmdbTable:
    return LmdbTable(b"lmdb:" + bytes(path), bytes(path))


def image_table(path: Path, image: bytes) -> LmdbTable:
    path.write_bytes(image)
    return opened(path)


def agrees(table: Table, path: Path, lib: int, asked: list[bytes]) -> None:
    """Compare with py-lmdb: every record in cursor order, and lookups of keys that may be absent."""
    with writer(path, lib, readonly=True) as env, env.begin() as txn:
        records = list(txn.cursor())
    held = dict(records)
    for key in [*held, *asked]:
        for flags, forms in ((TRY0, [key]), (TRY1, [key + b"\0"]), (BOTH, [key + b"\0", key])):
            expected = next((until_nul(held[form]) for form in forms if form in held), None)
            assert found(table, key, flags) == expected, (key, flags)
    assert table.sequence() == [(until_nul(key), until_nul(value)) for key, value in records]


class LmdbContract(IndexedContract):
    flags = IndexedContract.flags | MULTI_WRITER
    empty_key = False
    lib = 0

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.place = tmp_path
        self.count = 0

    def make(self, records: Records) -> Table:
        self.count += 1
        file = self.place / f"t{self.count}"
        with writer(file.with_suffix(".lmdb"), self.lib) as env, env.begin(write=True) as txn:
            for key, value in records:
                txn.put(key, value)
        return open_table(b"lmdb:" + bytes(file), bytes(file), READING)

    def order(self, records: Records) -> Records:
        return sorted(dict(records).items())


class TestLmdb09(LmdbContract):
    lib = 0


class TestLmdb10(LmdbContract):
    lib = 1
    longest_key = 1978


class TestLmdb10WithSmallPages(LmdbContract):
    longest_key = 506

    def make(self, records: Records) -> Table:
        self.count += 1
        return image_table(self.place / f"t{self.count}.lmdb", lmdb_image(records, 3, 2048))


# Against py-lmdb

few_bytes = st.sampled_from([b"a", b"b", b"\0", b"\xff", b"ab"])
small_keys = st.lists(few_bytes, min_size=1, max_size=4).map(b"".join)
keys = st.one_of(small_keys, st.binary(min_size=1, max_size=40), st.integers(1, 511).map(lambda n: b"x" * n))
values = st.one_of(st.binary(max_size=30), st.integers(0, 9000).map(lambda n: b"y" * n))
changes_of_one = st.lists(st.tuples(keys, st.one_of(values, st.none())), max_size=25)
commits = st.lists(changes_of_one, min_size=1, max_size=6)


@each_format
@settings(max_examples=50, deadline=None)
@given(history=commits, asked=st.lists(keys, max_size=10))
def test_agrees_with_py_lmdb(
    tmp_path_factory: pytest.TempPathFactory, lib: int, history: list[Any], asked: list[bytes]
) -> None:
    """After each of some commits of puts and deletes; the reader is open all the time."""
    path = tmp_path_factory.mktemp("lmdb") / "t.lmdb"
    table = None
    for changes in history:
        with writer(path, lib) as env, env.begin(write=True) as txn:
            for key, value in changes:
                if value is None:
                    txn.delete(key)
                else:
                    txn.put(key, value)
        table = table or opened(path)
        agrees(table, path, lib, asked)


@each_format
def test_many_commits_and_deletes(tmp_path: Path, lib: int) -> None:
    rng = random.Random(lib)
    path = tmp_path / "t.lmdb"
    with writer(path, lib):
        pass
    table = opened(path)
    names = [rng.randbytes(rng.randrange(1, 60)) for _ in range(3000)]
    for turn in range(30):
        with writer(path, lib) as env, env.begin(write=True) as txn:
            for name in rng.sample(names, 400):
                if rng.random() < (0.3 if turn < 15 else 0.7):
                    txn.delete(name)
                else:
                    txn.put(name, rng.randbytes(rng.choice((0, 3, 50, 500, 2040, 5000))))
        if turn % 5 == 4:
            agrees(table, path, lib, names)
    with writer(path, lib) as env, env.begin(write=True) as txn:
        for name in names:
            txn.delete(name)
    agrees(table, path, lib, names)
    assert table.sequence() == []


@each_format
def test_deep_tree_of_long_keys(tmp_path: Path, lib: int) -> None:
    rng = random.Random(5)
    path = tmp_path / "t.lmdb"
    length = LONGEST_KEY[lib]
    with writer(path, lib) as env:
        with env.begin(write=True) as txn:
            for _ in range(4000 if lib == 0 else 300):
                name = rng.randbytes(3).hex().encode()
                txn.put(name + b"p" * (length - 6), name[::-1])
        assert env.stat()["depth"] >= 5
    agrees(opened(path), path, lib, [b"", b"0", b"\xff", b"8", b"8" * length, b"8" * (length + 1)])


@each_format
def test_big_values(tmp_path: Path, lib: int) -> None:
    """At and around every size where a value moves to pages of its own or takes one page more."""
    header = 16 if lib == 0 else 24
    edges = [2000, 2024, 2026, 2034, 2038, 2040] + [n * 4096 - header for n in (1, 2, 3, 64, 300)]
    sizes = sorted({size + d for size in edges for d in (-2, -1, 0, 1, 2)})
    path = tmp_path / "t.lmdb"
    with writer(path, lib) as env, env.begin(write=True) as txn:
        for size in sizes:
            txn.put(b"%08d" % size, bytes(1 + (i * 7 + size) % 255 for i in range(size)))
    agrees(opened(path), path, lib, [])


@each_format
def test_dropped_and_rebuilt(tmp_path: Path, lib: int) -> None:
    path = tmp_path / "t.lmdb"
    with writer(path, lib):
        pass
    table = opened(path)
    assert table.sequence() == []
    for turn in range(6):
        with writer(path, lib) as env, env.begin(write=True) as txn:
            txn.drop(env.open_db(None, txn=txn), delete=False)
            for i in range(turn * 300):
                txn.put(b"k%d" % i, b"v%d.%d" % (turn, i))
        agrees(table, path, lib, [b"k0", b"k2000"])


@each_format
def test_reader_sees_the_file_grow(tmp_path: Path, lib: int) -> None:
    """From 8 kB over the address space that was set aside (16 MB) to 40 MB, record by record."""
    path = tmp_path / "t.lmdb"
    with writer(path, lib) as env:
        with env.begin(write=True) as txn:
            txn.put(b"first", b"1")
        table = opened(path)
        assert path.stat().st_size < 20_000
        for i in range(80):
            value = b"%02d." % i * 170_000
            with env.begin(write=True) as txn:
                txn.put(b"%d" % i, value[:500_000])
            assert found(table, b"%d" % i) == value[:500_000]
            assert found(table, b"first") == b"1"
    assert path.stat().st_size > 40_000_000
    assert len(table.sequence()) == 81
    assert not table.changed


@each_format
def test_every_commit_is_another_generation(tmp_path: Path, lib: int) -> None:
    path = tmp_path / "t.lmdb"
    with writer(path, lib) as env:
        table = opened(path)
        seen = {table.generation}
        for i in range(20):
            with env.begin(write=True) as txn:
                txn.put(b"a", b"%d" % i)
            assert found(table, b"a") == b"%d" % i
            seen.add(table.generation)
        assert len(seen) == 21
        assert table.generation == table.generation
        with env.begin(write=True) as txn:
            txn.put(b"a", b"aborted")
            txn.abort()
        assert table.generation in seen
        assert found(table, b"a") == b"19"


@needs_postmap
def test_file_of_postmap(tmp_path: Path) -> None:
    source = tmp_path / "t"
    table = None
    for turn in range(3):
        source.write_text("".join(f"Key{i}@Example.com  value {i}.{turn}\n" for i in range(2000)))
        subprocess.run(["postmap", "-o", f"lmdb:{source}"], check=True)
        table = table or open_table(b"lmdb:t", bytes(source), READING)
        assert all(found(table, b"key%d@example.com" % i) == b"value %d.%d" % (i, turn) for i in range(2000))
        assert len(table.sequence()) == 2000
    assert table is not None
    assert not table.changed  # it is rebuilt in place


# Pages of other sizes

SIZES = [("0.9", 512), ("0.9", 4096), ("0.9", 32768)] + [("1.0", 1 << n) for n in range(8, 17)]


def page_records(rng: random.Random, page_size: int, count: int) -> dict[bytes, bytes]:
    longest = min(500, page_size // 2 - 100 if page_size > 256 else 30)
    sizes = (0, 1, 10, page_size // 4, page_size // 2, page_size, 3 * page_size + 7)
    return {
        rng.randbytes(rng.randrange(1, longest)): rng.randbytes(rng.choice(sizes) if i % 10 == 0 else i % 9)
        for i in range(count)
    }


@pytest.mark.parametrize(("form", "page_size"), SIZES, ids=[f"{form}-{size}" for form, size in SIZES])
def test_pages_of_any_size(tmp_path: Path, form: str, page_size: int) -> None:
    """Our own small writer makes them; py-lmdb reads them too, so both cannot be wrong in one way."""
    rng = random.Random(page_size)
    records = page_records(rng, page_size, 1500)
    path = tmp_path / "t.lmdb"
    table = image_table(path, lmdb_image(records.items(), VERSIONS[form], page_size))
    agrees(table, path, FORMATS[form], [rng.randbytes(5) for _ in range(200)])
    for i in range(12):  # py-lmdb goes on with that file
        with writer(path, FORMATS[form]) as env, env.begin(write=True) as txn:
            txn.put(b"more%d" % i, b"m" * i * 100)
    agrees(table, path, FORMATS[form], [b"more12"])


# What is refused


@each_format
def test_duplicate_databases_are_refused(tmp_path: Path, lib: int) -> None:
    for flags in (4, 4 | 0x10, 2, 8):
        path = tmp_path / f"{flags}.lmdb"
        image = lmdb_image([(b"a", b"1")], 1 if lib == 0 else 3, main_flags=flags)
        with pytest.raises(ValueError, match="Postfix does not write"):
            image_table(path, image)


@each_format
def test_named_databases_are_never_values(tmp_path: Path, lib: int) -> None:
    path = tmp_path / "t.lmdb"
    with writer(path, lib, max_dbs=4) as env:
        for name in (b"one", b"two"):
            env.open_db(name)
        with env.begin(write=True) as txn:
            txn.put(b"key", b"value", db=env.open_db(b"one", txn=txn))
    table = opened(path)
    assert table.lookup(b"one") == (RETRY, BOTH, b"")
    assert table.lookup(b"key")[0] in (NOKEY, RETRY)
    assert table.sequence() == []


def test_encrypted_file_is_refused(tmp_path: Path) -> None:
    image = bytearray(lmdb_image([(b"a", b"1")], 3))
    for page in (0, 4096):
        image[page + 24 + 24 + 5] |= 0x20  # ENCRYPT in the environment's flags
    with pytest.raises(ValueError, match="encrypted"):
        image_table(tmp_path / "t.lmdb", bytes(image))


@pytest.mark.parametrize("version", [0, 2, 4, 999])
@each_format
def test_other_versions_are_refused(tmp_path: Path, lib: int, version: int) -> None:
    header = 16 if lib == 0 else 24
    image = bytearray(lmdb_image([(b"a", b"1")], 1 if lib == 0 else 3))
    for page in (0, 4096):
        image[page + header + 4 : page + header + 8] = struct.pack("<I", version)
    with pytest.raises(ValueError):
        image_table(tmp_path / "t.lmdb", bytes(image))


@pytest.mark.parametrize("page_size", [0, 1, 255, 4095, 4097, 128, 1 << 17, 1 << 31])
@each_format
def test_odd_page_sizes_are_refused(tmp_path: Path, lib: int, page_size: int) -> None:
    header = 16 if lib == 0 else 24
    image = bytearray(lmdb_image([(b"a", b"1")], 1 if lib == 0 else 3))
    image[header + 24 : header + 28] = struct.pack("<I", page_size)
    with pytest.raises(ValueError):
        image_table(tmp_path / "t.lmdb", bytes(image))


def test_garbage_is_refused(tmp_path: Path) -> None:
    rng = random.Random(6)
    path = tmp_path / "t.lmdb"
    for image in (b"x", bytes(159), bytes(4096), bytes(100_000), b"\xff" * 9000, b"text\n" * 3000):
        with pytest.raises(ValueError):
            image_table(path, image)
    for _ in range(200):
        with pytest.raises(ValueError):
            image_table(path, rng.randbytes(rng.randrange(1, 20_000)))


@each_format
@pytest.mark.parametrize("number", [0, 1])
def test_loss_of_one_meta_page_is_no_way_back(tmp_path: Path, lib: int, number: int) -> None:
    """The other meta page may be the older one: its content is history, not an answer."""
    path = tmp_path / "t.lmdb"
    with writer(path, lib) as env:
        for i in range(4):
            with env.begin(write=True) as txn:
                txn.put(b"a", b"%d" % i)
    table = opened(path)
    with path.open("r+b") as stream:
        stream.seek(4096 * number)
        stream.write(bytes(4096))
    assert table.lookup(b"a")[0] == RETRY
    with pytest.raises(ValueError):
        opened(path)


# Damage that only order can tell


@each_format
def test_sequence_ends_where_order_lies(tmp_path: Path, lib: int) -> None:
    """A leaf whose order lies leads back to what has been visited; nobody may be sent round for ever."""
    version, header = (1, 16) if lib == 0 else (3, 24)
    image = bytearray(lmdb_image([(b"k%03d" % i, b"v" * 40) for i in range(300)], version))
    leaf = next(n for n in range(2, len(image) // 4096) if image[n * 4096 + header - 6] == 2) * 4096
    for i in range(2, 60, 6):  # neighbours change places
        slots = struct.unpack_from("<HH", image, leaf + header + 2 * i)
        struct.pack_into("<HH", image, leaf + header + 2 * i, *reversed(slots))
    table = image_table(tmp_path / "t.lmdb", bytes(image))

    def visit() -> None:
        keys = [key for key, _ in table.sequence()]
        assert keys == sorted(set(keys))
        assert 0 < len(keys) < 60

    assert in_child(visit, 10) == 0


@each_format
@pytest.mark.parametrize("first", [1, 60])
def test_file_cut_while_it_is_open_is_right_or_retry(tmp_path: Path, lib: int, first: int) -> None:
    """Whatever is zero behind the cut: a value's end, a key's, or the number of the last transaction."""
    records = {b"key%03d\0" % i: b"%d\0" % i * (1 + i % 5) for i in range(first)}
    path = tmp_path / "t.lmdb"
    with writer(path, lib) as env, env.begin(write=True) as txn:
        for key, value in records.items():
            txn.put(key, value)
    whole = path.read_bytes()
    wrong = []
    for size in {*range(0, len(whole), 37), *range(len(whole) - 40, len(whole)), *range(8192 - 200, 8192, 3)}:
        path.write_bytes(whole)
        table = opened(path)
        for key in list(records)[:1]:
            assert table.lookup(key[:-1])[0] == OK
        os.truncate(path, size)
        for key, value in records.items():
            status, _, answer = table.lookup(key[:-1])
            if status != RETRY and (status, answer) != (OK, value.partition(b"\0")[0]):
                wrong.append((size, key, status, answer))
    assert not wrong


@each_format
def test_every_truncation_is_right_or_retry(tmp_path: Path, lib: int) -> None:
    """A record is there with its value, or the table is unavailable: never "no such key"."""
    page_size = 512 if lib == 0 else 256
    records = [(b"k%02d" % i, b"v%d" % i * (i % 7)) for i in range(60)] + [(b"big", b"b" * 1500)]
    image = lmdb_image(records, 1 if lib == 0 else 3, page_size)
    path = tmp_path / "t.lmdb"
    path.write_bytes(image)
    assert len(image) // page_size > 8
    for size in range(len(image) - 1, -1, -1):
        os.truncate(path, size)
        try:
            table = opened(path)
        except (OSError, ValueError):
            assert size < 2 * page_size
            continue
        assert size >= 2 * page_size
        lost = 0
        for key, value in records:
            status, _, got = table.lookup(key)
            assert (status, got) in ((OK, value), (RETRY, b"")), (size, key)
            lost += status == RETRY
        assert lost or size >= len(image) // page_size * page_size
        assert table.lookup(b"none")[0] in (NOKEY, RETRY)
        table.sequence()


@pytest.mark.parametrize("layout", ["lmdb-0.9", "lmdb-1.0", "lmdb-0.9-history", "lmdb-1.0-history"])
def test_no_damage_crashes_or_misleads(tmp_path: Path, layout: str) -> None:
    survives_damage(layout, tmp_path)


# While a writer commits

WRITER = """
import lmdb, mmap, struct, sys, zlib
path, lib, pattern, keys = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
counter = open(path + ".shared", "r+b")
shared = mmap.mmap(counter.fileno(), 8)
env = lmdb.open(path, subdir=False, lock=False, map_size=1 << 30, sync=False, lib_version=lib)
main = env.open_db(None)


def value(key, generation):
    if pattern == "large":
        return b"%08x" % generation * (20_000 + 40 * (generation % 1000))
    text = b"%d %s " % (generation, key) + b"." * (generation * 31 % 400)
    return text + b"%08x" % zlib.crc32(text)


def name(i):
    return b"key%d" % i + b"-" * (200 if pattern == "deep" else 3)


generation = 0
while True:
    generation += 1
    with env.begin(write=True) as txn:
        if pattern in ("single", "deep"):
            # Key 0 in every commit, and one other.
            chosen = (0, generation * 7919 % (keys - 1) + 1) if generation > 1 else range(keys)
        elif pattern == "rebuild":
            txn.drop(main, delete=False)
            chosen = range(keys)
        elif pattern == "forms":
            chosen = range(keys)
        else:
            chosen = range(keys)
        for i in chosen:
            key = name(i)
            if pattern == "forms":
                # The key changes between its forms, with a NUL and without: it is never absent.
                txn.delete(key + b"\\0" * (generation % 2))
                key += b"\\0" * ((generation + 1) % 2)
            txn.put(key, value(name(i), generation))
    shared[:] = struct.pack("<Q", generation)
"""


def finished_by(shared: mmap.mmap) -> int:
    """The number of the writer's last finished commit."""
    return int.from_bytes(shared[:8], "little")


@contextmanager
def committing(path: Path, lib: int, pattern: str, keys: int) -> Iterator[mmap.mmap]:
    """A process that commits without pause; yields the number of its last finished commit, shared."""
    counter = Path(f"{path}.shared")
    counter.write_bytes(bytes(8))
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(lib), pattern, str(keys)])
    try:
        with counter.open("r+b") as stream, mmap.mmap(stream.fileno(), 8) as shared:
            limit = time.monotonic() + 60
            while not finished_by(shared):
                assert process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.01)
            yield shared
            assert process.poll() is None, "the writer died"
    finally:
        process.kill()
        process.wait()


def generation_of(key: bytes, value: bytes) -> int:
    """Which commit wrote the value; fails if it is a mixture."""
    number, name, _ = value.split(b" ")
    assert name == key
    assert int(value[-8:], 16) == zlib.crc32(value[:-8])
    return int(number)


# Keys in the table, and lookups: for each format well over 300,000.
PATTERNS = {
    "single": (2000, 200_000),
    "deep": (300, 100_000),
    "batch": (200, 100_000),
    "rebuild": (500, 100_000),
    "forms": (20, 100_000),
}


@each_format
@pytest.mark.parametrize("pattern", PATTERNS)
def test_reads_beside_a_writer_are_whole_and_fresh(tmp_path: Path, lib: int, pattern: str) -> None:
    """Each value is one that was committed: by the last commit to end before the lookup, or a later one."""
    path = tmp_path / "t.lmdb"
    keys, lookups = PATTERNS[pattern]
    names = [b"key%d" % i + b"-" * (200 if pattern == "deep" else 3) for i in range(keys)]
    latest = [0] * keys
    with committing(path, lib, pattern, keys) as shared:
        table = opened(path)
        first = finished_by(shared)
        rng = random.Random(7)
        for n in range(lookups):
            i = 0 if n % 2 == 0 else rng.randrange(keys)
            finished = finished_by(shared)
            status, _, value = table.lookup(names[i])
            assert status == OK, (status, n)
            generation = generation_of(names[i], value)
            if i == 0 or pattern not in ("single", "deep"):
                assert generation >= finished
            assert generation >= latest[i]
            latest[i] = generation
            if n % 16 == 0:
                assert table.lookup(b"none")[0] == NOKEY
        assert finished_by(shared) > first + 20, "the writer hardly wrote"


@each_format
def test_sequence_beside_a_writer_misses_nothing(tmp_path: Path, lib: int) -> None:
    keys = 500
    names = [b"key%d---" % i for i in range(keys)]
    with committing(tmp_path / "t.lmdb", lib, "rebuild", keys) as shared:
        table = opened(tmp_path / "t.lmdb")
        for _ in range(20):
            finished = finished_by(shared)
            records = table.sequence()
            assert [key for key, _ in records] == sorted(names)
            generations = [generation_of(key, value) for key, value in records]
            assert generations == sorted(generations)
            assert generations[0] >= finished


READER = """
import os, struct, sys, time
from proxymap.tables.indexed.lmdb import LmdbTable
path = sys.argv[1].encode()
table = LmdbTable(b"lmdb:t", path)
shared = open(path + b".shared", "rb", 0)
end = time.monotonic() + float(sys.argv[2])
lookups = retries = 0
latest = 0
print("ready", flush=True)
while time.monotonic() < end:
    shared.seek(0)
    finished = struct.unpack("<Q", shared.read(8))[0]
    status, _, value = table.lookup(b"key1---", 4)
    lookups += 1
    if status != 0:
        sys.exit(f"status {status}")
    if value != value[:8] * (len(value) // 8):
        sys.exit("a mixture")
    generation = int(value[:8], 16)
    sized = 20_000 + 40 * (generation % 1000)
    if generation < finished or generation < latest or len(value) != 8 * sized:
        sys.exit(f"generation {generation} of {len(value)} bytes after {finished}, {latest}")
    latest = generation
print(lookups)
"""


@each_format
def test_reader_stopped_in_the_midst_of_a_walk(tmp_path: Path, lib: int) -> None:
    """Large values, so that most stops fall into the copying of one while its pages are used again."""
    path = tmp_path / "t.lmdb"
    rng = random.Random(8)
    with committing(path, lib, "large", 3) as shared:
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(path), "3"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"ready\n"
            stops = 0
            while reader.poll() is None:
                reader.send_signal(signal.SIGSTOP)
                before = finished_by(shared)
                while finished_by(shared) < before + 4:
                    time.sleep(0.0005)
                reader.send_signal(signal.SIGCONT)
                stops += 1
                time.sleep(rng.random() * 0.004)
            out, err = reader.communicate()
        finally:
            reader.kill()
            reader.wait()
    assert (reader.returncode, err) == (0, b"")
    assert int(out) > 20
    assert stops > 20
