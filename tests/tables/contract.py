"""contract - what every table that answers on the loop must hold, and makers of files to hold it against

A test class of a table type inherits Contract, or that of its kind, and says how to make a table:

    class TestCdb(IndexedContract):
        def make(self, records): ...

Here too: small, slow writers of CDB and LMDB files, so that the readers can be
shown layouts that no library at hand makes (cdb64, LMDB pages of any size).
They are checked against the libraries where these can read the result.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from proxymap.tables._table import Table

OK, NOKEY, RETRY = 0, 1, 2
TRY0, TRY1 = 4, 8  # dictionary flags: keys without trailing NUL, keys with it
BOTH = TRY0 | TRY1
FIXED, MULTI_WRITER = 1 << 4, 1 << 18

Records = list[tuple[bytes, bytes]]


def until_nul(text: bytes) -> bytes:
    return text.partition(b"\0")[0]


def found(table: Table, key: bytes, flags: int = BOTH) -> bytes | None:
    """The value, or None for NOKEY; anything else is an error."""
    status, _, value = table.lookup(key, flags)
    assert status in (OK, NOKEY), (key, status)
    return value if status == OK else None


# Files

MASK32 = 0xFFFFFFFF


def cdb_hash(key: bytes) -> int:
    """Without the cut to 32 bits."""
    h = 5381
    for byte in key:
        h = ((h << 5) + h ^ byte) & (1 << 64) - 1
    return h


def cdb_image(records: Iterable[tuple[bytes, bytes]], width: int = 4, mask: int = MASK32) -> bytes:
    """A CDB file with numbers of `width` bytes: 4, or 8 for cdb64. `mask` cuts the hashes."""
    pair = struct.Struct("<II" if width == 4 else "<QQ")
    body = bytearray()
    hashed: list[list[tuple[int, int]]] = [[] for _ in range(256)]
    for key, value in records:
        h = cdb_hash(key) & mask
        hashed[h % 256].append((h, 256 * pair.size + len(body)))
        body += pair.pack(len(key), len(value)) + key + value
    header = bytearray()
    for entries in hashed:
        size = 2 * len(entries)
        slots = [(0, 0)] * size
        for h, position in entries:
            at = (h >> 8) % size
            while slots[at][1]:
                at = (at + 1) % size
            slots[at] = h, position
        header += pair.pack(256 * pair.size + len(body), size)
        body += b"".join(pair.pack(*slot) for slot in slots)
    return bytes(header + body)


NO_PAGE = (1 << 64) - 1


def lmdb_image(
    records: Iterable[tuple[bytes, bytes]], version: int = 1, page_size: int = 4096, main_flags: int = 0
) -> bytes:
    """An LMDB file (version 1: format 0.9; 3: format 1.0) with pages of any size, as of its first commit."""
    header, base = (16, 0) if version == 1 else (24, 24)
    align = version == 3
    txnid = 1
    pages: dict[int, bytes] = {}
    counts = {1: 0, 2: 0, 4: 0}

    def head(number: int, kind: int, tail: bytes) -> bytes:
        counts[kind] += 1
        written_by = struct.pack("<Q", txnid) if version == 3 else b""
        return struct.pack("<Q", number) + written_by + struct.pack("<HH", 0, kind) + tail

    def even(text: bytes) -> bytes:
        return text + b"\0" * (len(text) & 1)

    def tree_page(kind: int, nodes: list[bytes]) -> int:
        number = 2 + len(pages)
        upper = page_size - base
        offsets, body = [], b""
        for node in nodes:
            upper -= len(node)
            offsets.append(upper)
            body = node + body
        lower = header - base + 2 * len(nodes)
        assert lower <= upper
        front = head(number, kind, struct.pack(f"<HH{len(nodes)}H", lower, upper, *offsets))
        pages[number] = front.ljust(page_size - len(body), b"\0") + body
        return number

    def overflow(value: bytes) -> bytes:
        number = 2 + len(pages)
        count = (header - 1 + len(value)) // page_size + 1
        whole = (head(number, 4, struct.pack("<I", count)) + value).ljust(count * page_size, b"\0")
        for i in range(count):
            pages[number + i] = whole[i * page_size : (i + 1) * page_size]
        counts[4] += count - 1
        return struct.pack("<Q", number) if version == 1 else struct.pack("<QQQ", number, txnid, count)

    def leaf_node(key: bytes, value: bytes) -> bytes:
        node_max = ((page_size - header) // 2 & -2) - 2
        padded = even(key) if align else key
        flags, held = 0, value
        if 8 + len(even(key)) + len(value) > node_max:
            flags, held = 1, overflow(value)
        assert 8 + len(padded) + len(held) <= node_max, "the key is too long for such pages"
        node_head = struct.pack("<HHHH", len(value) & 0xFFFF, len(value) >> 16, flags, len(key))
        return even(node_head + padded + held)

    def branch_node(key: bytes, child: int) -> bytes:
        return even(struct.pack("<HHHH", child & 0xFFFF, child >> 16 & 0xFFFF, child >> 32, len(key)) + key)

    def level(kind: int, nodes: list[tuple[bytes, bytes]]) -> list[tuple[bytes, int]]:
        """Pages full of nodes; what is left over for the last one is at least two nodes on a branch."""
        groups: list[list[tuple[bytes, bytes]]] = [[]]
        room = page_size - header
        for key, node in nodes:
            if room < len(node) + 2:
                groups.append([])
                room = page_size - header
            room -= len(node) + 2
            groups[-1].append((key, node))
        if kind == 1 and len(groups) > 1 and len(groups[-1]) == 1:
            groups[-1].insert(0, groups[-2].pop())
        done = []
        for group in groups:
            if kind == 1:  # the first key of a branch is not stored
                group[0] = group[0][0], group[0][1][:6] + b"\0\0"
            done.append((group[0][0], tree_page(kind, [node for _, node in group])))
        return done

    root, depth = NO_PAGE, 0
    latest = dict(records)
    if latest:
        above = level(2, [(key, leaf_node(key, latest[key])) for key in sorted(latest)])
        depth = 1
        while len(above) > 1:
            above = level(1, [(key, branch_node(key, child)) for key, child in above])
            depth += 1
        root = above[0][1]
    last = 1 + len(pages)

    def meta(number: int) -> bytes:
        empty = (0, 0, 0, 0, 0, NO_PAGE)
        main = (depth, counts[1], counts[2], counts[4], len(latest), root) if number else empty
        record = struct.pack("<IIQQ", 0xBEEFC0DE, version, 0, (last + 1) * page_size)
        record += struct.pack("<IHHQQQQQ", page_size, 0x4008, *empty)
        record += struct.pack("<IHHQQQQQ", 0, main_flags, *main)
        record += struct.pack("<QQ", last if number else 1, number)
        front = struct.pack("<Q", number) + bytes(header - 16) + struct.pack("<HHHH", 0, 8, 0, 0)
        return (front + record).ljust(page_size, b"\0")

    return meta(0) + meta(1) + b"".join(pages[n] for n in sorted(pages))


# The contracts


class Contract:
    """What a client may rely on, whatever the type of the table."""

    flags = FIXED
    longest_key = 511
    empty_key = True

    def make(self, records: Records) -> Table:
        """An open table with these records, in this order."""
        raise NotImplementedError

    def order(self, records: Records) -> Records:
        """The order of a sequence."""
        return records

    def test_open_table_shows_its_bits_and_no_reason(self) -> None:
        table = self.make([(b"a", b"1")])
        assert table.flags == self.flags
        assert table.reason is None
        assert not table.changed

    def test_stored_key_is_found(self) -> None:
        table = self.make([(b"k%d" % i, b"v%d" % i) for i in range(500)])
        for i in range(500):
            assert table.lookup(b"k%d" % i)[::2] == (OK, b"v%d" % i)

    def test_absent_key_is_nokey_and_decides_nothing(self) -> None:
        table = self.make([(b"k%d" % i, b"v") for i in range(50)])
        for key in (b"k", b"k50", b"K1", b"k1 ", b"k1\0\0", b"\xff", b"a" * 1000):
            assert table.lookup(key) == (NOKEY, BOTH, b"")

    def test_empty_table_has_no_key(self) -> None:
        table = self.make([])
        assert table.lookup(b"a") == (NOKEY, BOTH, b"")
        assert table.lookup(b"") == (NOKEY, BOTH, b"")
        assert table.sequence() == []

    def test_empty_value_is_found(self) -> None:
        assert self.make([(b"a", b"")]).lookup(b"a")[::2] == (OK, b"")

    def test_empty_key(self) -> None:
        if self.empty_key:
            assert self.make([(b"", b"1"), (b"a", b"2")]).lookup(b"")[::2] == (OK, b"1")

    def test_other_flags_pass_untouched(self) -> None:
        table = self.make([(b"a", b"1")])
        for others in (0, 540736):
            assert table.lookup(b"a", others | TRY0)[1] == others | TRY0
            assert table.lookup(b"b", others | BOTH)[1] == others | BOTH

    def test_keys_of_any_bytes_and_lengths(self) -> None:
        keys = [bytes([b]) for b in range(1, 256)]
        keys += [b"x" * n + b"y" for n in range(1, 500, 7)] + [b"z" * self.longest_key]
        table = self.make([(key, b"v%d" % i) for i, key in enumerate(keys)])
        for i, key in enumerate(keys):
            assert found(table, key) == b"v%d" % i
        assert found(table, b"z" * (self.longest_key + 1)) is None
        assert found(table, b"z" * 100_000) is None

    @pytest.mark.parametrize("size", [1, 255, 256, 4095, 4096, 4097, 300_000])
    def test_values_of_any_length(self, size: int) -> None:
        value = bytes(1 + i % 255 for i in range(size))
        table = self.make([(b"before", b"1"), (b"key", value), (b"later", b"2")])
        assert found(table, b"key") == value
        assert found(table, b"later") == b"2"

    def test_sequence_gives_every_record_once(self) -> None:
        records = [(b"k%03d" % (i * 7 % 500), b"v%d" % i) for i in range(500)]
        records += [(b"p%03d" % i, b"w" * (i * 60)) for i in range(100)]
        assert self.make(records).sequence() == self.order(records)

    def test_lookups_leave_no_trace(self) -> None:
        table = self.make([(b"a", b"1"), (b"b", b"2")])
        for _ in range(3):
            assert table.lookup(b"b")[::2] == (OK, b"2")
            assert table.lookup(b"a")[::2] == (OK, b"1")
            assert table.lookup(b"c") == (NOKEY, BOTH, b"")
            assert sorted(table.sequence()) == [(b"a", b"1"), (b"b", b"2")]

    def test_threads_read_side_by_side(self) -> None:
        records = [(b"k%d" % i, b"v%d" % i * (i % 50 * 20)) for i in range(300)]
        table = self.make(records)
        wrong: list[bytes] = []

        def read(step: int) -> None:
            for i in range(3000):
                key, value = records[i * step % 300]
                if found(table, key) != value:
                    wrong.append(key)

        threads = [threading.Thread(target=read, args=(step,)) for step in (1, 7, 11, 13)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_many_tables_come_and_go(self) -> None:
        """The regions that the SIGBUS handler knows are used again."""
        for i in range(200):
            kept = [self.make([(b"n", b"%d" % n)]) for n in range(i % 7)]
            assert [found(table, b"n") for table in kept] == [b"%d" % n for n in range(i % 7)]


class IndexedContract(Contract):
    """What holds for indexed files, whose keys and values may have a trailing NUL, or any."""

    flags = FIXED | BOTH

    def test_empty_value_with_its_nul_is_found(self) -> None:
        assert self.make([(b"b\0", b"\0")]).lookup(b"b")[::2] == (OK, b"")

    def test_hit_without_nul_clears_try1(self) -> None:
        assert self.make([(b"a", b"1")]).lookup(b"a") == (OK, TRY0, b"1")

    def test_hit_with_nul_clears_try0(self) -> None:
        assert self.make([(b"a\0", b"1\0")]).lookup(b"a") == (OK, TRY1, b"1")

    def test_key_with_nul_comes_first(self) -> None:
        table = self.make([(b"a", b"without"), (b"a\0", b"with")])
        assert table.lookup(b"a") == (OK, TRY1, b"with")

    def test_only_the_given_try_bits_are_tried(self) -> None:
        table = self.make([(b"a", b"without"), (b"a\0", b"with"), (b"b", b"1"), (b"c\0", b"2")])
        assert table.lookup(b"a", TRY0) == (OK, TRY0, b"without")
        assert table.lookup(b"a", TRY1) == (OK, TRY1, b"with")
        assert table.lookup(b"b", TRY1) == (NOKEY, TRY1, b"")
        assert table.lookup(b"c", TRY0) == (NOKEY, TRY0, b"")
        assert table.lookup(b"a", 0) == (NOKEY, 0, b"")

    def test_value_ends_at_its_first_nul(self) -> None:
        table = self.make([(b"a", b"one\0two"), (b"b", b"\0x"), (b"c", b"three\0")])
        assert [found(table, key) for key in (b"a", b"b", b"c")] == [b"one", b"", b"three"]

    def test_nul_within_a_key_is_a_byte_like_others(self) -> None:
        table = self.make([(b"a\0b", b"1"), (b"a", b"2")])
        assert found(table, b"a\0b") == b"1"
        assert found(table, b"a") == b"2"
        assert found(table, b"a\0") is None

    def test_empty_key_with_its_nul(self) -> None:
        assert self.make([(b"\0", b"with")]).lookup(b"") == (OK, TRY1, b"with")

    def test_sequence_cuts_at_nul(self) -> None:
        records = [(b"k%03d\0" % (i * 7 % 500), b"v%d\0" % i) for i in range(500)]
        expected = [(until_nul(key), until_nul(value)) for key, value in self.order(records)]
        assert self.make(records).sequence() == expected

    def test_lookups_of_both_kinds_leave_no_trace(self) -> None:
        table = self.make([(b"a", b"1"), (b"b\0", b"2")])
        for _ in range(3):
            assert table.lookup(b"b") == (OK, TRY1, b"2")
            assert table.lookup(b"a") == (OK, TRY0, b"1")
            assert table.lookup(b"c") == (NOKEY, BOTH, b"")
            assert sorted(table.sequence()) == [(b"a", b"1"), (b"b", b"2")]


# Experiments that may end a process

FUZZ = Path(__file__).parents[1] / "fuzz_tables.py"


def survives_damage(layout: str, place: Path, count: int = 1700) -> None:
    """Have fuzz_tables damage so many files, in a process of its own; fails with the case that did it."""
    note = place / "note"
    command = [sys.executable, str(FUZZ), "--layout", layout, "--seed", "1", "--count", str(count)]
    done = subprocess.run([*command, "--note", str(note)], capture_output=True, text=True, timeout=120)
    under_way = note.read_text() if note.exists() else "at the start"
    assert done.returncode == 0, f"{done.stderr}status {done.returncode} at {under_way}"
    assert f"{count} cases" in done.stdout


def in_child(experiment: Callable[[], object], seconds: int = 30) -> int:
    """Run it in a child process with limits; 0, or the signal that ended it. What it raises, we raise."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read_end)
            signal.alarm(seconds)
            if "asan" not in os.environ.get("LD_PRELOAD", ""):  # which takes terabytes of address space
                resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            experiment()
            code = 0
        except BaseException:
            os.write(write_end, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(code)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        trouble = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    assert not trouble, trouble
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
