"""bench_micro - the parts, each by itself: pyperf

usage: bench_micro.py [pyperf's options; --fast --output FILE]

In C, where the loop runs them: a request parsed, a reply built, the cache, the
approval of a table, the query of a template. From Python, beside what a Python programmer would take:
cdb and lmdb beside cdbx and py-lmdb on the same files, rules beside re.
Times are for one request, one key.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from functools import cache, partial
from itertools import islice
from typing import Any

import pyperf
import servers

from proxymap.server import _doors
from proxymap.server._doors import Reader
from proxymap.tables.base import Host
from proxymap.tables.opening import open_table
from proxymap.tables.template import IN_QUERY, compile_text

ENTRIES = int(os.environ.get("PROXYMAP_MICRO_ENTRIES", 1_000_000))  # fewer for a test
KEYS = 1000  # asked in a loop
VALUE = b"box4711@store42.example.net"
RULES = (1, 100)
NETWORKS = (100, 10_000)
INDEX_SIZE = 256 << 20  # lmdb_index_size, as it is if not set

REQUESTS = {
    "3.6": (("request", "lookup"), ("table", "cdb:/etc/postfix/virtual"), ("flags", "64"),
            ("key", "user5@example.com")),
    "3.11": (("request", "lookup"), ("table", "cdb:/etc/postfix/virtual"), ("instance_flags", "540736"),
             ("flags", "1851484"), ("key", "user5@example.com")),
}  # fmt: skip

Look = Callable[[bytes], Any]


def main() -> None:
    runner = pyperf.Runner()
    if not runner.parse_args().worker:
        servers.make_tables([ENTRIES])
    codec(runner)
    result_cache(runner)
    approval(runner)
    templates(runner)
    indexed_tables(runner)
    rules(runner)


def in_c(runner: pyperf.Runner, name: str, loop: Callable[[int], object], count: int = 1) -> None:
    """loop(n): n times over `count` keys."""

    def timed(loops: int) -> float:
        start = pyperf.perf_counter()
        loop(loops)
        return pyperf.perf_counter() - start

    runner.bench_time_func(name, timed, inner_loops=count)


def from_python(runner: pyperf.Runner, name: str, ready: Callable[[], tuple[Look, list[bytes]]]) -> None:
    """ready(): what to call, and with which keys; done once, in the process that measures."""

    def timed(loops: int) -> float:
        look, keys = ready()
        rounds = range(loops)
        start = pyperf.perf_counter()
        for _ in rounds:
            for key in keys:
                look(key)
        return pyperf.perf_counter() - start

    runner.bench_time_func(name, timed, inner_loops=KEYS)


def codec(runner: pyperf.Runner) -> None:
    for dialect, attributes in REQUESTS.items():
        data = "".join(f"{name}\0{value}\0" for name, value in attributes).encode() + b"\0"
        in_c(runner, f"parse {dialect}", lambda loops, data=data: _doors.parse_loop(data, loops))
        in_c(
            runner,
            f"build {dialect}",
            lambda loops, dialect=dialect: _doors.reply_loop(dialect, VALUE, loops),
        )


def result_cache(runner: pyperf.Runner) -> None:
    @cache
    def filled() -> tuple[_doors.Cache, list[bytes], list[bytes]]:
        """As full as it gets: the keys stored last are there, those after them are not."""
        results = _doors.Cache(16 << 20, 1)
        keys = [b"%duser@example.com" % i for i in range(200_000)]
        results.store_loop(keys, VALUE, 1)
        return results, keys[-KEYS:], [b"%dabsent@example.com" % i for i in range(KEYS)]

    in_c(runner, "cache hit", lambda loops: filled()[0].find_loop(filled()[1], loops), KEYS)
    in_c(runner, "cache miss", lambda loops: filled()[0].find_loop(filled()[2], loops), KEYS)
    # More keys than there is room for: each one that comes evicts one that is asked for later.
    many = 100_000

    @cache
    def small() -> tuple[_doors.Cache, list[bytes]]:
        return _doors.Cache(1 << 20, 1), [b"%duser@example.com" % i for i in range(many)]

    in_c(runner, "cache insert, evict", lambda loops: small()[0].store_loop(small()[1], VALUE, loops), many)


def approval(runner: pyperf.Runner) -> None:
    approved = [b"cdb:/etc/postfix/table%d" % i for i in range(30)]
    asked = [*approved[:5], b"cdb:/etc/secrets"]
    in_c(runner, "approval", lambda loops: _doors.approval_loop(approved, asked, loops), len(asked))


def templates(runner: pyperf.Runner) -> None:
    """The query of a virtual alias table, beside Python's own formatting."""
    text = "SELECT goto FROM alias WHERE address = '%s' AND domain = '%d' AND active = 1"
    program = compile_text(text, IN_QUERY)
    keys = [b"user%d@store%d.example.com" % (i, i % 50) for i in range(KEYS)]

    def formatted(key: bytes) -> bytes:
        quoted = key.replace(b"'", b"''")
        return b"SELECT goto FROM alias WHERE address = '%b' AND domain = '%b' AND active = 1" % (
            quoted, quoted.rpartition(b"@")[2],
        )  # fmt: skip

    in_c(runner, "template, C", lambda loops: _doors.fill_loop(program, keys, loops), KEYS)
    from_python(runner, "template, Python", lambda: (formatted, keys))


@cache
def some_keys(kind: str) -> list[bytes]:
    """From all over the table."""
    with servers.keys(kind, ENTRIES).open("rb") as lines:
        return [line.rstrip(b"\n") for line in islice(lines, KEYS)]


def indexed_tables(runner: pyperf.Runner) -> None:
    for maptype, label, theirs in (("cdb", "cdbx", cdbx_get), ("lmdb", "py-lmdb", py_lmdb_get)):
        for kind in ("found", "absent"):

            def in_loops(loops: int, maptype: str = maptype, kind: str = kind) -> int:
                return reader(maptype).get_loop(some_keys(kind), loops)

            def get(maptype: str = maptype, kind: str = kind) -> tuple[Look, list[bytes]]:
                return reader(maptype).get, some_keys(kind)

            in_c(runner, f"{maptype} {kind}, C", in_loops, KEYS)
            from_python(runner, f"{maptype} {kind}, proxymap", get)
            from_python(runner, f"{maptype} {kind}, {label}", partial(theirs, kind))
            if maptype == "lmdb":
                from_python(runner, f"lmdb {kind}, py-lmdb, a transaction each", partial(py_lmdb_anew, kind))


@cache
def reader(maptype: str) -> Reader:
    """One of a table as the server has it: asked so much that an lmdb has its index."""
    table = open_table(servers.table(maptype, ENTRIES).encode(), host=Host(index_size=INDEX_SIZE))
    opened = Reader(table)
    if opened.get(some_keys("found")[0]) is None:
        raise SystemExit(f"{maptype}: a key is not found")
    for _ in range(ENTRIES // KEYS):
        if getattr(table, "index_is_whole", True):
            return opened
        opened.get_loop(some_keys("found"), 1)
    raise SystemExit(f"{maptype}: there is no index after {ENTRIES} lookups")


@cache
def cdbx_get(kind: str) -> tuple[Look, list[bytes]]:
    import cdbx

    return cdbx.CDB(f"{servers.TABLES}/t{ENTRIES}.cdb").get, some_keys(kind)


@cache
def py_lmdb_get(kind: str) -> tuple[Look, list[bytes]]:
    """At its fastest: one transaction for all lookups, which sees no new content."""
    return py_lmdb().begin().get, [key + b"\0" for key in some_keys(kind)]


@cache
def py_lmdb_anew(kind: str) -> tuple[Look, list[bytes]]:
    """As current as ours."""
    begin = py_lmdb().begin

    def get(key: bytes) -> bytes | None:
        with begin() as transaction:
            return transaction.get(key)

    return get, [key + b"\0" for key in some_keys(kind)]


@cache
def py_lmdb() -> Any:
    import lmdb

    return lmdb.open(f"{servers.TABLES}/t{ENTRIES}.lmdb", subdir=False, readonly=True, lock=False)


def rules(runner: pyperf.Runner) -> None:
    for count in NETWORKS:
        from_python(runner, f"cidr, {count:,} rules, proxymap", partial(cidr, count))
    for count in RULES:
        for maptype in ("regexp", "pcre"):
            if open_table(f"{maptype}:{{{{/x/ y}}}}".encode()).reason is None:  # the host may have no PCRE2
                from_python(runner, f"{maptype}, {count} rules, proxymap", partial(patterns, maptype, count))
        from_python(runner, f"re, {count} rules, Python", partial(search, count))


@cache
def cidr(count: int) -> tuple[Look, list[bytes]]:
    """Half of the addresses are in one of the networks."""
    rng = random.Random(1)
    networks = [rng.randrange(1 << 23) for _ in range(count)]

    def dotted(number: int) -> str:
        return ".".join(str(byte) for byte in number.to_bytes(4, "big"))

    rules = [f"{{{dotted(network << 8)}/24 REJECT}}" for network in networks]
    keys = [dotted((rng.choice(networks) << 8 | 7) | rng.randrange(2) << 31).encode() for _ in range(KEYS)]
    return Reader(open_table(b"cidr:{" + ", ".join(rules).encode() + b"}")).get, keys


def pattern(number: int) -> str:
    return rf"^user{number}\.[a-z]+@(example|invalid)\.(com|net)$"


def addresses(count: int) -> list[bytes]:
    """Half of them match one of the patterns."""
    rng = random.Random(1)
    return [b"user%d.name@example.com" % rng.randrange(2 * count) for _ in range(KEYS)]


@cache
def patterns(maptype: str, count: int) -> tuple[Look, list[bytes]]:
    inner = ", ".join(f"{{/{pattern(number)}/ REJECT}}" for number in range(count))
    return Reader(open_table(f"{maptype}:{{{inner}}}".encode())).get, addresses(count)


@cache
def search(count: int) -> tuple[Look, list[bytes]]:
    compiled = [re.compile(pattern(number).encode(), re.IGNORECASE) for number in range(count)]

    def first(key: bytes) -> bytes | None:
        for one in compiled:
            if one.search(key):
                return b"REJECT"
        return None

    return first, addresses(count)


if __name__ == "__main__":
    main()
