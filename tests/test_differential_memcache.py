"""test_differential_memcache - memcache tables as the stock proxymap and proxywrite answer them

Each has its own table over the same memcached, with keys of its own (key_format).
Differences that are intended have a test each, by name.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator

import fix_memcached
import pytest
from fix_memcached import Memcached, write_cf
from fix_pair import Pair
from fix_postfix import release, unavailable
from fix_scripted import Scripted
from fix_server import FOLD_FIX, LOCK, lookup, request, write_cdb
from oracle import Attributes

WHY = unavailable() or fix_memcached.unavailable()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

QUESTIONS = int(os.environ.get("PROXYMAP_QUESTIONS", "2000"))
UTF8 = 1 << 19
FLAGS = [LOCK, 0, FOLD_FIX, 1 << 15, UTF8, UTF8 | FOLD_FIX | LOCK]
LETTERS = [b"a", b"B", b"@", b".", b"x", b"%", b"\xc3\xa9", b"\xff", b" ", b"\t", b"\n", b"1"]
VALUES = [b"", b"v", b"two words", b"\xc3\xa9", b"\xff", b"a\r\nEND\r\n", b"x" * 5000, b" x "]
RETRY = [(b"status", b"2"), (b"value", b"")]
SIDES = "so"  # stock's and ours


class Both:
    """Both servers, and a pair of tables for each set of parameters."""

    def __init__(self, memcached: Memcached, service: str = "proxymap") -> None:
        self.memcached, self.pair = memcached, Pair("memcache", service)
        self.tables: dict[str, list[bytes]] = {}

    def add(self, name: str, key_format: str = "%s", **parameters: object) -> None:
        folder = self.pair.stock.dir
        self.tables[name] = [
            self.memcached.table(
                folder / f"{name}{side}.cf", key_format=f"{name}{side}-{key_format}", **parameters
            )
            for side in SIDES
        ]

    def start(self) -> None:
        self.pair.start([table for tables in self.tables.values() for table in tables])

    def ask(self, kind: str, name: str, **fields: bytes | int) -> tuple[Attributes, Attributes]:
        stock, ours = (
            peer.ask(request(kind, table, **fields))
            for peer, table in zip(self.pair.peers, self.tables[name], strict=True)
        )
        return stock, ours

    def put(self, name: str, key: bytes, value: bytes) -> None:
        for side in SIDES:
            self.memcached.put(f"{name}{side}-".encode() + key, value)


@contextlib.contextmanager
def both_of(service: str = "proxymap") -> Iterator[Both]:
    with Memcached() as memcached:
        both = Both(memcached, service)
        with both.pair:
            yield both


def draw_key(dice: random.Random) -> bytes:
    return b"".join(dice.choices(LETTERS, weights=[9] * 9 + [1] * 3, k=dice.randrange(6)))


def is_stored(key: bytes) -> bool:
    return key != b"" and not set(key) & set(b" \t\n")


def test_same_answers() -> None:
    dice = random.Random(1)
    with both_of() as both:
        write_cdb(both.pair.stock.dir / "backup.cdb", [(b"a", b"of backup"), (b"1.x", b"two"), (b"x", b"")])
        both.add("plain")
        both.add("parts", "%u+%d")
        both.add("labels", "%2.%1-%U")
        both.add("domain", domain="a.x, B, .a")
        both.add("backed", backup=f"cdb:{both.pair.stock.dir}/backup")
        both.start()
        for key in filter(is_stored, {draw_key(dice) for _ in range(100)}):
            for name in both.tables:
                both.put(name, key, dice.choice(VALUES))
            both.put("parts", key.replace(b"@", b"+"), dice.choice(VALUES))
        for _ in range(QUESTIONS):
            name, key, flags = dice.choice(list(both.tables)), draw_key(dice), dice.choice(FLAGS)
            stock, ours = both.ask("lookup", name, key=key, flags=flags)
            assert stock == ours, (name, key, flags)


def test_same_answers_to_changes() -> None:
    dice = random.Random(2)
    with both_of("proxywrite") as both:
        both.add("plain")
        both.add("parts", "%u+%d")
        both.start()
        for _ in range(QUESTIONS):
            kind = dice.choice(["update", "update", "delete", "lookup", "lookup"])
            fields: dict[str, bytes | int] = {"key": draw_key(dice), "flags": dice.choice(FLAGS)}
            if kind == "update":
                fields["value"] = dice.choice(VALUES)
            name = dice.choice(list(both.tables))
            stock, ours = both.ask(kind, name, **fields)
            assert stock == ours, (kind, name, fields)


def test_same_answers_over_ipv6() -> None:
    with both_of() as both, Scripted("memcache", {b"k": b"v"}, host="::1") as server:
        both.pair.stock.set(inet_protocols="all")
        both.tables["plain"] = [
            write_cf(both.pair.stock.dir / f"six{side}.cf", memcache=server.endpoint) for side in SIDES
        ]
        both.start()
        for key in (b"k", b"no"):
            stock, ours = both.ask("lookup", "plain", key=key)
            assert stock == ours


@pytest.mark.parametrize("flags", [LOCK, UTF8 | LOCK])
def test_same_answers_with_a_backup(flags: int) -> None:
    """Each key is changed once: stock does not live through more. Memcached loses some keys meanwhile."""
    dice = random.Random(3)
    with both_of("proxywrite") as both:
        both.add("backed", backup="lmdb:rw/backup")  # each has its own
        both.start()
        for key in {draw_key(dice) + b"%d" % n for n in range(200)}:
            stock, ours = both.ask("update", "backed", key=key, value=dice.choice(VALUES), flags=flags)
            assert stock == ours, key
            if dice.random() < 0.5:
                for side in SIDES:
                    both.memcached.ask(f"delete backed{side}-".encode() + key)
            for _ in range(2):
                stock, ours = both.ask("lookup", "backed", key=key, flags=flags)
                assert stock == ours, key
            if dice.random() < 0.2:
                stock, ours = both.ask("delete", "backed", key=key, flags=flags)
                assert stock == ours, key


@pytest.mark.parametrize("service", ["proxymap", "proxywrite"])
@pytest.mark.parametrize("kind", ["open", "sequence", "update", "delete"])
def test_same_answers_to_other_requests(service: str, kind: str) -> None:
    with both_of(service) as both:
        both.add("plain")
        both.start()
        fields = {"open": {}, "sequence": {"function": 0}}.get(kind, {"key": b"k"})
        stock, ours = both.ask(kind, "plain", **fields)
        assert stock == ours


# What is different, and meant to be


def test_intended_difference_an_error_costs_no_second() -> None:
    with both_of() as both:
        both.add("plain")
        both.start()
        times = []
        for peer, table in zip(both.pair.peers, both.tables["plain"], strict=True):
            began = time.monotonic()
            assert peer.ask(lookup(table, b"x" * 250)) == RETRY
            times.append(time.monotonic() - began)
        assert times[0] > 0.9
        assert times[1] < times[0] / 2


@pytest.mark.skipif(release() >= (3, 12), reason="they agree")
def test_intended_difference_control_key() -> None:
    with both_of() as both:
        both.add("plain")
        both.start()
        both.put("plain", b"a\x01", b"v")
        stock, ours = both.ask("lookup", "plain", key=b"a\x01")
        assert stock == [(b"status", b"0"), (b"value", b"v")]
        assert ours == [(b"status", b"1"), (b"value", b"")]


def test_intended_difference_wrong_key() -> None:
    """A value of another key is answered by stock."""
    with both_of() as both, Scripted("memcache", {}) as server:
        server.raw[b"k"] = b"VALUE another 0 1\r\nv\r\nEND\r\n"
        both.tables["plain"] = [
            write_cf(both.pair.stock.dir / f"wrong{side}.cf", memcache=server.endpoint) for side in SIDES
        ]
        both.start()
        stock, ours = both.ask("lookup", "plain", key=b"k")
        assert stock == [(b"status", b"0"), (b"value", b"v")]
        assert ours == RETRY


def test_intended_difference_stale() -> None:
    """A value that is too long is not stored; stock goes on with the old one."""
    with both_of("proxywrite") as both:
        both.add("plain")
        both.start()
        both.put("plain", b"k", b"old")
        stock, ours = both.ask("update", "plain", key=b"k", value=b"x" * 10241)
        assert stock == ours == [(b"status", b"1")]
        stock, ours = both.ask("lookup", "plain", key=b"k")
        assert stock == [(b"status", b"0"), (b"value", b"old")]
        assert ours == [(b"status", b"1"), (b"value", b"")]
