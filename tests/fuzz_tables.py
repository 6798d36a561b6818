"""fuzz_tables - damaged CDB and LMDB files by the thousand, for `make fuzz` and, in small, for the tests

    python tests/fuzz_tables.py [--layout NAME] [--count N] [--seconds S] [--seed N] [--note FILE]

Each case damages a good file, before it is opened or while it is mapped, and
asks for every key, for keys that are absent, and for the sequence. What must
hold, whatever the damage:

- The process lives, and each case ends within seconds (SIGALRM kills it).
- A status is OK, NOKEY or RETRY.
- A key that was never stored is never found. Keys are random bytes: no damage
  of a few bytes turns one key into another that is asked for.
- A stored key is answered with a value that was committed for this key. It may
  be another only if the damage lies in the record itself: its lengths, key or
  value, or the reference to it, as found in the file. Nothing but a checksum,
  which the formats lack, could tell such a value.
- Damage within values changes nothing else: each key is still found.
- The sequence ends.

NOKEY for a stored key cannot be told from truth in general: a flipped bit in a
key, in a CDB slot's hash or in an LMDB separator makes a valid file of other
content. Where it can be told, the tests of the types say so.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

sys.path.insert(0, str(Path(__file__).parent / "tables"))

import lmdb
from contract import MASK32, NOKEY, OK, RETRY, cdb_image, lmdb_image

from proxymap.tables._table import Table
from proxymap.tables.indexed.cdb import CdbTable
from proxymap.tables.indexed.lmdb import LmdbTable

CASE_LIMIT = 30  # seconds; a case takes well under a millisecond
Span: TypeAlias = tuple[int, int]
Committed: TypeAlias = dict[bytes, set[bytes]]


class Wrong(Exception):
    """An answer that nothing explains."""


# Good files


def value_of(key: bytes, generation: int, size: int) -> bytes:
    """Bytes without NUL that name key and generation by their first 16, and do not contain the key."""
    name = hashlib.sha256(b"%d " % generation + key).hexdigest()[:16].encode()
    return (name * (size // 16 + 1))[: max(size, 16)]


def some_keys(rng: random.Random, count: int, longest: int) -> list[bytes]:
    return [bytes(rng.randrange(1, 256) for _ in range(rng.randrange(10, longest))) for _ in range(count)]


def cdb_file(rng: random.Random, width: int, mask: int) -> tuple[bytes, Committed]:
    records = [(key, value_of(key, 0, rng.choice((16, 40, 300)))) for key in some_keys(rng, 40, 30)]
    return cdb_image(records, width, mask), {key: {value} for key, value in records}


def lmdb_file(rng: random.Random, version: int, page_size: int) -> tuple[bytes, Committed]:
    records = [(key, value_of(key, 0, 16 + i % 30)) for i, key in enumerate(some_keys(rng, 60, 24))]
    records += [(key, value_of(key, 0, page_size + 5)) for key in some_keys(rng, 3, 24)]
    return lmdb_image(records, version, page_size), {key: {value} for key, value in records}


def lmdb_history(rng: random.Random, lib: int) -> tuple[bytes, Committed]:
    """Of several commits: the file is full of old pages, with values that were true once."""
    keys = some_keys(rng, 120, 40)
    committed: Committed = {key: set() for key in keys}
    with tempfile.TemporaryDirectory() as place:
        path = f"{place}/t.lmdb"
        with lmdb.open(path, subdir=False, lock=False, sync=False, map_size=1 << 24, lib_version=lib) as env:
            for generation in range(4):
                with env.begin(write=True) as txn:
                    for key in keys if generation == 0 else rng.sample(keys, 20):
                        size = rng.choice((16, 60, 2500 if generation == 1 else 90))
                        value = value_of(key, generation, size)
                        txn.put(key, value)
                        committed[key].add(value)
        return Path(path).read_bytes(), committed


def indexed_lmdb(type_name: bytes, path: bytes) -> LmdbTable:
    """With room for an index, which is there after some questions."""
    return LmdbTable(type_name, path, 1 << 20)


LAYOUTS: dict[str, tuple[type[Table], Callable[[random.Random], tuple[bytes, Committed]]]] = {
    "cdb": (CdbTable, lambda rng: cdb_file(rng, 4, MASK32)),
    "cdb64-cut": (CdbTable, lambda rng: cdb_file(rng, 8, MASK32)),
    "cdb64": (CdbTable, lambda rng: cdb_file(rng, 8, (1 << 64) - 1)),
    "lmdb-0.9": (indexed_lmdb, lambda rng: lmdb_file(rng, 1, 512)),
    "lmdb-1.0": (indexed_lmdb, lambda rng: lmdb_file(rng, 3, rng.choice((256, 512, 1024)))),
    "lmdb-0.9-history": (indexed_lmdb, lambda rng: lmdb_history(rng, 0)),
    "lmdb-1.0-history": (indexed_lmdb, lambda rng: lmdb_history(rng, 1)),
}


# Damage: each changes data and returns what it touched


def flip_bits(rng: random.Random, data: bytearray) -> list[Span]:
    spans = []
    for _ in range(rng.randrange(1, 9)):
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        spans.append((at, at + 1))
    return spans


def write_bytes(rng: random.Random, data: bytearray) -> list[Span]:
    at, size = rng.randrange(len(data)), rng.randrange(1, 9)
    data[at : at + size] = rng.randbytes(len(data[at : at + size]))
    return [(at, at + size)]


def write_numbers(rng: random.Random, data: bytearray) -> list[Span]:
    """Numbers that arithmetic on offsets may stumble over, where numbers stand: at even places."""
    spans = []
    for _ in range(rng.randrange(1, 4)):
        width = rng.choice((2, 4, 8))
        # Headers, meta pages and page heads more often than the rest.
        near = rng.choice((0, 256, 512, 1024, 4096, 8192))
        at = near + rng.randrange(160) if rng.random() < 0.5 else rng.randrange(len(data))
        at = at % len(data) // 2 * 2
        top = 1 << 8 * width
        number = rng.choice(
            (
                0,
                1,
                2,
                7,
                8,
                15,
                16,
                24,
                top - 1,
                top - 8,
                top - 16,
                top // 2,
                len(data),
                len(data) - 1,
                len(data) - 8,
                rng.randrange(len(data)),
                top - rng.randrange(100),
            )
        )
        data[at : at + width] = (number % top).to_bytes(width, "little")[: len(data) - at]
        spans.append((at, at + width))
    return spans


def block(rng: random.Random, data: bytearray) -> Span:
    size = rng.choice((16, 64, 256, 512, 1024, 4096))
    at = rng.randrange(len(data) // size) * size if len(data) >= size else 0
    return at, min(at + size, len(data))


def zero_block(rng: random.Random, data: bytearray) -> list[Span]:
    start, end = block(rng, data)
    data[start:end] = bytes(end - start)
    return [(start, end)]


def swap_blocks(rng: random.Random, data: bytearray) -> list[Span]:
    start, end = block(rng, data)
    size = end - start
    other = rng.randrange(len(data) // size) * size if len(data) >= size else 0
    data[start:end], data[other : other + size] = data[other : other + size], data[start:end]
    return [(start, end), (other, other + size)]


def copy_block(rng: random.Random, data: bytearray) -> list[Span]:
    start, end = block(rng, data)
    source = rng.randrange(len(data) - (end - start) + 1)
    data[start:end] = data[source : source + end - start]
    return [(start, end)]


def cut(rng: random.Random, data: bytearray) -> list[Span]:
    size = len(data)
    del data[rng.randrange(size) :]
    return [(len(data), size)]


DAMAGES = (
    flip_bits,
    flip_bits,
    write_bytes,
    write_numbers,
    write_numbers,
    zero_block,
    swap_blocks,
    copy_block,
    cut,
)


# Cases


def places(image: bytes, text: bytes) -> Iterator[int]:
    at = image.find(text)
    while at >= 0:
        yield at
        at = image.find(text, at + 1)


def own_spans(image: bytes, key: bytes, values: set[bytes]) -> list[Span]:
    """Where records of this key lie: lengths, key, value or the reference to it, pages of large values."""
    spans = [(at - 16, at + len(key) + 26) for at in places(image, key)]
    for value in values:
        spans += [(at - 24, at + len(value)) for at in places(image, value)]
    return spans


def meets(one: list[Span], other: list[Span]) -> bool:
    return any(start < end2 and start2 < end for start, end in one for start2, end2 in other)


class Case:
    """A good file, to be damaged again and again."""

    def __init__(self, layout: str, rng: random.Random, path: Path) -> None:
        self.kind, make = LAYOUTS[layout]
        self.image, self.committed = make(rng)
        self.absent = [*some_keys(rng, 20, 30), b"\xff" * 600]
        self.own = {key: own_spans(self.image, key, values) for key, values in self.committed.items()}
        self.path = path
        self.path.write_bytes(self.image)
        self.ask(self.open(), [])

    def open(self) -> Table:
        return self.kind(b"fuzz:t", bytes(self.path))  # type: ignore[call-arg]

    def run(self, rng: random.Random) -> None:
        if rng.random() < 0.15:
            self.damage_values(rng)
            return
        data = bytearray(self.image)
        spans = []
        for _ in range(rng.choice((1, 1, 1, 2))):
            spans += rng.choice(DAMAGES)(rng, data)
            if not data:
                break
        if rng.random() < 0.3:
            self.path.write_bytes(self.image)
            table = self.open()
            if rng.random() < 0.5:
                self.ask(table, [])
            if len(data) < len(self.image):
                os.truncate(self.path, len(data))
            with self.path.open("r+b") as stream:
                stream.write(data)
            self.ask(table, spans)
        self.path.write_bytes(data)
        try:
            table = self.open()
        except (OSError, ValueError):
            return
        self.ask(table, spans)

    def damage_values(self, rng: random.Random) -> None:
        """Overwrite bytes of values only, and nothing else may change."""
        data = bytearray(self.image)
        hit = rng.sample(sorted(self.committed), 5)
        for key in hit:
            for value in self.committed[key]:
                for at in places(self.image, value):
                    data[at + rng.randrange(len(value))] ^= 0x80
        self.path.write_bytes(data)
        table = self.open()
        for key, values in self.committed.items():
            status, _, value = table.lookup(key)
            if status != OK or (value in values) != (key not in hit):
                raise Wrong(f"key {key!r} after damage to the values of others: {status} {value!r}")
        if len(table.sequence()) != len(self.committed):
            raise Wrong("records are missing from the sequence after damage to values")

    def ask(self, table: Table, spans: list[Span]) -> None:
        for key, values in self.committed.items():
            status, _, value = table.lookup(key)
            if status not in (OK, NOKEY, RETRY):
                raise Wrong(f"status {status}")
            if status == OK and value not in values and not meets(spans, self.own[key]):
                raise Wrong(f"key {key!r}: {value!r}, which was never its value")
            if status != OK and not spans:
                raise Wrong(f"key {key!r} of an undamaged table: {status}")
        for key in self.absent:
            if table.lookup(key)[0] not in (NOKEY, RETRY):
                raise Wrong(f"key {key!r} was never stored: {table.lookup(key)}")
        for key in (b"", b"a"):  # damage can make such a key
            if table.lookup(key)[0] not in (OK, NOKEY, RETRY):
                raise Wrong("status of a short key")
        table.sequence()


def fuzz(layout: str, seed: int, count: int, end: float, note: int | None, path: Path) -> int:
    """Run cases until there were `count` or the time is up; returns how many."""
    case = None
    for number in range(count):
        if note is not None:
            os.pwrite(note, b"%s, seed %d, case %d\n" % (layout.encode(), seed, number), 0)
        signal.alarm(CASE_LIMIT)
        if case is None or number % 500 == 0:
            case = Case(layout, random.Random(f"{layout} {seed} {number // 500}"), path)
        try:
            case.run(random.Random(f"{layout} {seed} {number}"))
        except Wrong as wrong:
            sys.exit(f"{layout}, seed {seed}, case {number}: {wrong}")
        if time.monotonic() > end:
            return number + 1
    return count


def main() -> None:
    options = argparse.ArgumentParser(description="Damage CDB and LMDB files and ask for their records.")
    options.add_argument("--layout", choices=LAYOUTS, help="default: each in turn")
    options.add_argument("--count", type=int, default=20_000, help="cases of each layout")
    options.add_argument("--seconds", type=float, default=1e9, help="at most so long for each layout")
    options.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options.add_argument("--note", help="file that says which case is under way")
    given = options.parse_args()
    note = os.open(given.note, os.O_WRONLY | os.O_CREAT, 0o644) if given.note else None
    with tempfile.TemporaryDirectory() as place:
        for layout in [given.layout] if given.layout else LAYOUTS:
            started = time.monotonic()
            end = started + given.seconds
            count = fuzz(layout, given.seed, given.count, end, note, Path(place) / "t")
            seconds = time.monotonic() - started
            print(f"{layout}: {count} cases, seed {given.seed}, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
