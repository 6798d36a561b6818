"""test_memcache_server - memcache tables through the daemon: who waits, changes, Postfix's own clients"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_memcached import Memcached, unavailable, write_cf
from fix_scripted import NeverConnects, Scripted
from fix_server import MULTI_WRITER, OPEN_LOCK, ServerProcess, found, give, lookup, request

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

RETRY = [(b"status", b"2"), (b"value", b"")]
OTHERS = 50
REAL = 590272  # the flags of each request of verify(8) but the first


@contextlib.contextmanager
def misbehaving(manner: str, folder: Path, **parameters: object) -> Iterator[bytes]:
    """The name of a table whose memcached does that."""
    path = folder / "bad.cf"
    if manner in ("refuse", "unknown"):
        where = {"refuse": "inet:127.0.0.1:1", "unknown": "inet:nosuch.invalid:1"}[manner]
        yield write_cf(path, memcache=where, **parameters)
    elif manner == "hang":
        with NeverConnects() as nowhere:
            yield write_cf(path, memcache=f"inet:127.0.0.1:{nowhere.port}", **parameters)
    else:
        with Scripted("memcache", {b"k": b"v" * 300}) as server:
            server.manner = manner  # type: ignore[assignment]
            yield write_cf(path, memcache=server.endpoint, **parameters)


@pytest.mark.parametrize(
    ("manner", "waits"),
    [
        ("silent", True), ("drip", True), ("hang", True), ("refuse", False), ("unknown", False),
        ("close", False), ("reset", False), ("half", False), ("error", False), ("garbage", False),
    ],
)  # fmt: skip
def test_nobody_waits_but_who_asked(manner: str, waits: bool) -> None:
    with ServerProcess() as server, Memcached() as memcached, misbehaving(manner, server.dir) as bad:
        good = memcached.table(server.dir / "good.cf")
        memcached.put(b"k", b"1")
        server.approve(bad, good)
        server.start()
        with server.connect() as victim, server.connect() as other:
            assert other.ask(lookup(good, b"k")) == found(b"1")
            began = time.monotonic()
            victim.send(lookup(bad, b"k"))
            for _ in range(OTHERS):
                assert other.ask(lookup(good, b"k")) == found(b"1")
            if waits:
                assert not victim.answered()
            assert victim.reply() == RETRY
            assert time.monotonic() - began < 30


@pytest.mark.parametrize("manner", ["silent", "error", "refuse"])
def test_backup_answers_for_a_memcached_that_does_not(manner: str) -> None:
    """Stock takes 10 s where it is silent: 5 for the get, 5 for the set."""
    with ServerProcess() as server:
        backup = server.cdb("b", {b"k": b"from backup"})
        with misbehaving(manner, server.dir, backup=backup.decode()) as bad:
            server.approve(bad)
            server.start()
            with server.connect() as peer:
                assert peer.ask(lookup(bad, b"k")) == found(b"from backup")
                assert peer.ask(lookup(bad, b"no")) == [(b"status", b"1"), (b"value", b"")]


@pytest.fixture
def proxywrite() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        (server.dir / "data").mkdir(mode=0o700)
        give(server.dir / "data")
        yield server


def test_changes_are_for_proxywrite_alone(proxywrite: ServerProcess) -> None:
    with Memcached() as memcached:
        table = memcached.table(proxywrite.dir / "t.cf")
        proxywrite.approve(table)
        proxywrite.start()
        with proxywrite.connect() as peer:
            assert peer.ask(request("update", table, key=b"k", value=b"v")) == [(b"status", b"4")]
            assert peer.ask(request("delete", table, key=b"k")) == [(b"status", b"4")]


@pytest.mark.parametrize("maptype", ["lmdb", "btree"])
def test_flags_of_real_clients_and_updates_that_replace(proxywrite: ServerProcess, maptype: str) -> None:
    """3.7's server dies of the second update, and each of its successors of the repeated request."""
    with Memcached() as memcached:
        table = memcached.table(proxywrite.dir / "t.cf", backup=f"{maptype}:{proxywrite.dir}/data/b")
        proxywrite.approve(table)
        proxywrite.start("-n", "proxywrite")
        with proxywrite.connect() as peer:
            opening = peer.ask(request("open", table, flags=OPEN_LOCK))
            assert opening[0] == (b"status", b"0")
            assert int(opening[1][1]) & MULTI_WRITER
            for n in range(100):
                value = b"v%d" % n
                assert peer.ask(request("update", table, flags=REAL, key=b"k", value=value)) == [
                    (b"status", b"0")
                ]
                assert peer.ask(lookup(table, b"k", flags=REAL)) == found(value)
            assert peer.ask(request("delete", table, flags=REAL, key=b"k")) == [(b"status", b"0")]
            assert peer.ask(lookup(table, b"k", flags=REAL)) == [(b"status", b"1"), (b"value", b"")]


def test_silent_memcached_delays_an_update_but_no_other_client(proxywrite: ServerProcess) -> None:
    with Memcached() as memcached:
        table = memcached.table(proxywrite.dir / "t.cf", backup=f"lmdb:{proxywrite.dir}/data/b")
        other_table = f"lmdb:{proxywrite.dir}/data/other".encode()
        proxywrite.approve(table, other_table)
        proxywrite.start("-n", "proxywrite")
        with proxywrite.connect() as victim, proxywrite.connect() as other:
            update = request("update", table, key=b"k", value=b"v")
            assert victim.ask(update) == [(b"status", b"0")]
            memcached.pause()
            victim.send(update)
            for _ in range(OTHERS):
                assert other.ask(request("update", other_table, key=b"k", value=b"v")) == [(b"status", b"0")]
            assert victim.reply() == [(b"status", b"0")]  # the backup has it
            memcached.resume()


def test_two_slow_servers_do_not_delay_each_other() -> None:
    with (
        ServerProcess(own={"server_connection_limit": "2"}) as server,
        Scripted("memcache", {b"k": b"v"}) as slow,
        Scripted("memcache", {b"k": b"v"}) as slower,
    ):
        slow.delay, slower.delay = 0.1, 3
        tables = [
            write_cf(server.dir / f"{n}.cf", memcache=each.endpoint, timeout=60)
            for n, each in enumerate((slow, slower))
        ]
        server.approve(*tables)
        server.start()
        stuck = [server.connect() for _ in range(4)]
        for peer in stuck:
            peer.send(lookup(tables[1], b"k"))
        with server.connect() as peer:
            for _ in range(10):
                assert peer.ask(lookup(tables[0], b"k")) == found(b"v")
        assert not any(peer.answered() for peer in stuck)
