"""test_cdb - CDB files of other makers and of our own, read and compared record by record"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import cdbx
import pytest
from contract import (
    BOTH,
    MASK32,
    NOKEY,
    OK,
    IndexedContract,
    Records,
    cdb_hash,
    cdb_image,
    found,
    survives_damage,
    until_nul,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from proxymap.tables._table import Surrogate, Table
from proxymap.tables.base import Host, Opening
from proxymap.tables.indexed.cdb import CdbTable, open_table

MASK64 = (1 << 64) - 1
READING = Opening(0, False, Host(), lambda name: Surrogate(name, b"no members"))
LAYOUTS = {"cdb": (4, MASK32), "cdb64, hashes cut": (8, MASK32), "cdb64": (8, MASK64)}

layouts = pytest.mark.parametrize(("width", "mask"), LAYOUTS.values(), ids=LAYOUTS)
needs_postmap = pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")
needs_tinycdb = pytest.mark.skipif(shutil.which("cdb") is None, reason="tinycdb's cdb is not installed")

# Few different bytes, so that prefixes, duplicates and NULs meet often.
small_keys = st.lists(st.sampled_from([b"", b"a", b"b", b"\0", b"\xff", b"ab"]), max_size=4).map(b"".join)
keys = st.one_of(small_keys, st.binary(max_size=40), st.integers(0, 3000).map(lambda n: b"x" * n))
values = st.one_of(st.binary(max_size=30), st.just(b""), st.integers(0, 6000).map(lambda n: b"y" * n))
record_lists = st.lists(st.tuples(keys, values), max_size=60)


def opened(path: Path, image: bytes) -> CdbTable:
    path.write_bytes(image)
    return CdbTable(b"cdb:" + bytes(path), bytes(path))


def agrees(table: Table, records: Records, asked: list[bytes]) -> None:
    """Compare with a dict, where the first of equal keys wins."""
    first: dict[bytes, bytes] = {}
    for key, value in records:
        first.setdefault(key, value)
    for key in [*first, *asked]:
        for flags, forms in ((4, [key]), (8, [key + b"\0"]), (BOTH, [key + b"\0", key])):
            expected = next((until_nul(first[form]) for form in forms if form in first), None)
            assert found(table, key, flags) == expected, (key, flags)
    assert table.sequence() == [(until_nul(key), until_nul(value)) for key, value in records]


class CdbContract(IndexedContract):
    longest_key = 70_000

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.place = tmp_path
        self.count = 0

    def image(self, records: Records) -> bytes:
        raise NotImplementedError

    def make(self, records: Records) -> Table:
        self.count += 1
        return opened(self.place / f"t{self.count}.cdb", self.image(records))


class TestCdb(CdbContract):
    def make(self, records: Records) -> Table:
        self.count += 1
        path = self.place / f"t{self.count}.cdb"
        by_cdbx(path, records)
        return open_table(b"cdb:" + bytes(path)[:-4], bytes(path)[:-4], READING)


class TestCdb64WithCutHashes(CdbContract):
    def image(self, records: Records) -> bytes:
        return cdb_image(records, 8, MASK32)


class TestCdb64(CdbContract):
    def image(self, records: Records) -> bytes:
        return cdb_image(records, 8, MASK64)


def by_cdbx(path: Path, records: Records) -> None:
    maker = cdbx.CDB.make(str(path))
    for key, value in records:
        maker.add(key, value)
    maker.commit().close()


# Against other makers


@settings(max_examples=80, deadline=None)
@given(records=record_lists, asked=st.lists(keys, max_size=10))
def test_agrees_with_cdbx(
    tmp_path_factory: pytest.TempPathFactory, records: Records, asked: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("cdbx") / "t.cdb"
    by_cdbx(path, records)
    agrees(CdbTable(b"cdb:t", bytes(path)), records, asked)


def test_our_writer_makes_what_cdbx_reads(tmp_path: Path) -> None:
    records = [(b"%d" % (i % 300), b"v%d" % i) for i in range(400)]
    path = tmp_path / "t.cdb"
    path.write_bytes(cdb_image(records))
    table = cdbx.CDB(str(path))
    assert list(table.items(all=True)) == records
    assert all(table[key] == value for key, value in records[:300])
    table.close()


@layouts
@settings(max_examples=40, deadline=None)
@given(records=record_lists, asked=st.lists(keys, max_size=10))
def test_every_layout_is_read(
    tmp_path_factory: pytest.TempPathFactory, width: int, mask: int, records: Records, asked: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("layout") / "t.cdb"
    agrees(opened(path, cdb_image(records, width, mask)), records, asked)


@needs_tinycdb
def test_file_of_tinycdb(tmp_path: Path) -> None:
    records = [(b"k%d" % i, b"v%d" % i * (i % 9)) for i in range(2000)]
    records += [(b"k7", b"second"), (b"", b"empty")]
    text = b"".join(b"+%d,%d:%s->%s\n" % (len(key), len(value), key, value) for key, value in records)
    subprocess.run(["cdb", "-c", str(tmp_path / "t.cdb"), "-"], input=text + b"\n", check=True)
    agrees(CdbTable(b"cdb:t", bytes(tmp_path / "t.cdb")), records, [b"k2000"])


@needs_postmap
def test_file_of_postmap(tmp_path: Path) -> None:
    source = tmp_path / "t"
    source.write_text("".join(f"Key{i}@Example.com  value {i}\n" for i in range(2000)))
    subprocess.run(["postmap", "-o", f"cdb:{source}"], check=True)
    table = open_table(b"cdb:t", bytes(source), READING)
    agrees(table, [(b"key%d@example.com" % i, b"value %d" % i) for i in range(2000)], [b"Key1@Example.com"])


# Layout


@layouts
def test_seventy_thousand_slots_of_one_hash(tmp_path: Path, width: int, mask: int) -> None:
    """Keys of one hash lie in one run of slots; the last of them is found, and the run ends."""
    pairs = same_hash_pairs(16)
    colliding = [b"".join(pairs[bit][n >> bit & 1] for bit in range(16)) for n in range(35_000)]
    assert len({cdb_hash(key) for key in colliding[::1000]}) == 1
    table = opened(tmp_path / "t.cdb", fast_image(colliding, width, mask))
    for n in (0, 1, 34_999):
        assert found(table, colliding[n], 4) == b"%d" % n
    absent = b"".join(pairs[bit][35_000 >> bit & 1] for bit in range(16))
    assert found(table, absent, 4) is None


def same_hash_pairs(count: int) -> list[tuple[bytes, bytes]]:
    """Pairs of two bytes each; whichever is taken of each pair, the whole has one hash."""
    pairs, before = [], b""
    while len(pairs) < count:
        seen: dict[int, bytes] = {}
        for text in (bytes([a, b]) for a in range(1, 256) for b in range(1, 256)):
            other = seen.setdefault(cdb_hash(before + text), text)
            if other != text:
                pairs.append((other, text))
                before += text
                break
    return pairs


def fast_image(same_hash: list[bytes], width: int, mask: int) -> bytes:
    """As cdb_image, for keys of one hash: their slots follow each other."""
    pair = struct.Struct("<II" if width == 4 else "<QQ")
    body, slots = bytearray(), []
    h = cdb_hash(same_hash[0]) & mask
    for n, key in enumerate(same_hash):
        slots.append((h, 256 * pair.size + len(body)))
        value = b"%d" % n
        body += pair.pack(len(key), len(value)) + key + value
    size = 2 * len(slots)
    start = (h >> 8) % size
    ring = slots + [(0, 0)] * (size - len(slots))
    ring = ring[-start:] + ring[:-start] if start else ring
    end = 256 * pair.size + len(body)
    header = [(end, 0)] * 256
    header[h % 256] = end, size
    return b"".join(pair.pack(*p) for p in header) + bytes(body) + b"".join(pair.pack(*slot) for slot in ring)


def test_full_hash_table_ends_the_search(tmp_path: Path) -> None:
    """A maker may leave no slot free."""
    h = cdb_hash(b"a")
    body = struct.pack("<II", 1, 1) + b"a1"
    header = [(2048 + len(body), 0)] * 256
    header[h % 256] = 2048 + len(body), 1
    image = b"".join(struct.pack("<II", *pair) for pair in header) + body + struct.pack("<II", h, 2048)
    table = opened(tmp_path / "t.cdb", image)
    assert found(table, b"a", 4) == b"1"
    other = next(k for k in (b"%d" % i for i in range(10_000)) if cdb_hash(k) % 256 == h % 256)
    assert found(table, other, 4) is None


@layouts
def test_width_is_told_by_the_file(tmp_path: Path, width: int, mask: int) -> None:
    rng = random.Random(width)
    for count in (1, 2, 255, 3000):
        records = [(b"key %d" % i, rng.randbytes(rng.randrange(20))) for i in range(count)]
        assert len(opened(tmp_path / f"{count}.cdb", cdb_image(records, width, mask)).sequence()) == count


def test_hash_width_is_told_by_the_first_long_key(tmp_path: Path) -> None:
    short = [(b"%d" % i, b"s") for i in range(100)]
    long = [(b"a long key %d" % i, b"l") for i in range(100)]
    for mask in (MASK32, MASK64):
        table = opened(tmp_path / f"{mask}.cdb", cdb_image(short + long, 8, mask))
        assert all(found(table, key) == value for key, value in short + long)


def test_hash_tables_may_stand_in_any_order(tmp_path: Path) -> None:
    """Nothing says that table 0 comes first; what counts is that they fill the rest of the file."""
    records = [(b"k%d" % i, b"v%d" % i) for i in range(300)]
    image = cdb_image(records)
    pairs = [struct.unpack_from("<II", image, 8 * i) for i in range(256)]
    start = pairs[0][0]
    header, tail = [(0, 0)] * 256, b""
    for i in reversed(range(256)):
        header[i] = start + len(tail), pairs[i][1]
        tail += image[pairs[i][0] : pairs[i][0] + 8 * pairs[i][1]]
    moved = b"".join(struct.pack("<II", *pair) for pair in header) + image[2048:start] + tail
    agrees(opened(tmp_path / "t.cdb", moved), records, [])


@pytest.mark.parametrize(
    "image",
    [
        b"x",
        b"no table\n" * 1000,
        bytes(2047),
        bytes(2048),
        bytes(4096),
        bytes(100_000),
        b"\xff" * 5000,
        cdb_image([(b"a", b"1")]) + b"\0",
        cdb_image([(b"a", b"1")], 8) + bytes(16),
    ],
    ids=["short", "text", "zeros-2047", "zeros-2048", "zeros-4096", "zeros", "ones", "longer", "longer-64"],
)
def test_what_is_no_cdb_is_refused(tmp_path: Path, image: bytes) -> None:
    with pytest.raises(ValueError, match="not a CDB file, or damaged"):
        opened(tmp_path / "t.cdb", image)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    rng = random.Random(4)
    for i in range(200):
        with pytest.raises(ValueError):
            opened(tmp_path / f"{i}.cdb", rng.randbytes(rng.randrange(1, 20_000)))


@layouts
def test_every_truncation_is_refused(tmp_path: Path, width: int, mask: int) -> None:
    """The hash tables stand last and must fill the file: no cut is overlooked."""
    image = cdb_image([(b"k%d" % i, b"v%d" % i) for i in range(12)], width, mask)
    path = tmp_path / "t.cdb"
    path.write_bytes(image)
    for size in range(len(image) - 1, 0, -1):
        os.truncate(path, size)
        with pytest.raises(ValueError):
            CdbTable(b"cdb:t", bytes(path))
    os.truncate(path, 0)
    with pytest.raises(OSError):
        CdbTable(b"cdb:t", bytes(path))


# Changes


def test_rebuilt_table_is_changed_and_keeps_answering(tmp_path: Path) -> None:
    path = tmp_path / "t.cdb"
    table = opened(path, cdb_image([(b"a", b"old")]))
    (tmp_path / "new").write_bytes(cdb_image([(b"a", b"new")]))
    os.rename(tmp_path / "new", path)
    assert table.changed
    assert found(table, b"a") == b"old"
    assert found(CdbTable(b"cdb:t", bytes(path)), b"a") == b"new"


def test_touched_and_lengthened_tables_are_changed(tmp_path: Path) -> None:
    path = tmp_path / "t.cdb"
    table = opened(path, cdb_image([(b"a", b"1")]))
    os.utime(path, ns=(1, 1))
    assert table.changed
    table = CdbTable(b"cdb:t", bytes(path))
    assert not table.changed
    with path.open("ab") as stream:
        stream.write(b"x")
    assert table.changed
    assert table.lookup(b"a")[::2] == (OK, b"1")


def test_damaged_record_is_retry_and_its_neighbours_answer(tmp_path: Path) -> None:
    image = bytearray(cdb_image([(b"good", b"1"), (b"bad", b"2"), (b"fine", b"3")]))
    at = image.index(b"bad2") - 8
    image[at : at + 4] = b"\xff\xff\xff\xff"
    table = opened(tmp_path / "t.cdb", bytes(image))
    assert table.lookup(b"bad")[0] == 2
    assert [found(table, key) for key in (b"good", b"fine")] == [b"1", b"3"]
    assert table.sequence() == [(b"good", b"1")]
    assert table.lookup(b"none")[0] == NOKEY


@pytest.mark.parametrize("layout", ["cdb", "cdb64-cut", "cdb64"])
def test_no_damage_crashes_or_misleads(tmp_path: Path, layout: str) -> None:
    survives_damage(layout, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_file_made_of_two_is_found_out_when_all_of_it_is_looked_at(tmp_path: Path, layout: str) -> None:
    """Both have the same size and the same header, so that their hash tables tile the file."""
    width, mask = LAYOUTS[layout]
    files = [cdb_image([(b"%c%d" % (kind, i), b"v") for i in range(500)], width, mask) for kind in b"ab"]
    path = tmp_path / "t.cdb"
    half = len(files[0]) // 2
    for content, whole in ((files[0], True), (files[1], True), (files[0][:half] + files[1][half:], False)):
        path.write_bytes(content)
        try:
            assert CdbTable(b"cdb:t", os.fsencode(path), True).entries == 500
            assert whole
        except ValueError:
            assert not whole
