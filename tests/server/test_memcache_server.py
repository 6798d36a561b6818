"""test_memcache_server - backups and changes of memcache tables through the daemon: who waits, what is kept

That nobody waits for a lookup but who asked is in test_network_waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_memcached import Memcached, unavailable, write_cf
from fix_scripted import Scripted
from fix_server import (
    FOLD_FIX,
    LOCK,
    MULTI_WRITER,
    NOT_FOUND,
    OPEN_LOCK,
    ServerProcess,
    found,
    give,
    lookup,
    request,
    wait_until,
)

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

DONE, RETRY = [(b"status", b"0")], [(b"status", b"2")]
OTHERS = 50
STUCK = 4  # clients of one table, which has two workers
REAL = 590272  # the flags of each request of verify(8) but the first
VALUES = [b"", b"v", b"\xff\xfe", b"\xc3\xa9", b"a\r\nEND\r\n", b" x ", b"x" * 20_000]


def silent_with_backup(server: Scripted, folder: Path, backup: bytes) -> bytes:
    server.manner = "silent"
    return write_cf(folder / "silent.cf", memcache=server.endpoint, backup=backup.decode(), timeout=2)


def test_backup_of_a_silent_memcached_delays_nobody_else() -> None:
    """Stock takes 10 s, in which it serves nobody: 5 for the get, 5 for the set."""
    with ServerProcess(own={"worker_count": "2"}) as server, Scripted("memcache", {}) as scripted:
        backup = server.cdb("b", {b"k": b"from backup"})
        table = silent_with_backup(scripted, server.dir, backup)
        server.approve(table)
        server.start()
        victims = [server.connect() for _ in range(STUCK)]
        with server.connect() as other:
            assert other.ask(lookup(backup, b"k")) == found(b"from backup")
            for victim in victims:
                victim.send(lookup(table, b"k"))
            for _ in range(OTHERS):
                assert other.ask(lookup(backup, b"k")) == found(b"from backup")
            assert not any(victim.answered() for victim in victims)
            assert [victim.reply() for victim in victims] == [found(b"from backup")] * STUCK


@pytest.mark.parametrize("manner", ["error", "refuse"])
def test_backup_answers_for_a_memcached_that_does_not(manner: str) -> None:
    with ServerProcess() as server, Scripted("memcache", {}) as scripted:
        backup = server.cdb("b", {b"k": b"from backup"})
        scripted.manner = "error"
        where = scripted.endpoint if manner == "error" else "inet:127.0.0.1:1"
        table = write_cf(server.dir / "t.cf", memcache=where, backup=backup.decode())
        server.approve(table)
        server.start()
        with server.connect() as peer:
            assert peer.ask(lookup(table, b"k")) == found(b"from backup")
            assert peer.ask(lookup(table, b"no")) == NOT_FOUND


@pytest.fixture
def proxywrite() -> Iterator[ServerProcess]:
    with ServerProcess(own={"worker_count": "2"}) as server:
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
                assert peer.ask(request("update", table, flags=REAL, key=b"k", value=value)) == DONE
                assert peer.ask(lookup(table, b"k", flags=REAL)) == found(value)
            assert peer.ask(request("delete", table, flags=REAL, key=b"k")) == DONE
            assert peer.ask(lookup(table, b"k", flags=REAL)) == NOT_FOUND


@pytest.mark.parametrize("maptype", ["lmdb", "btree"])
def test_backup_has_folded_keys_and_any_value(proxywrite: ServerProcess, maptype: str) -> None:
    """What memcached had, and what the backup has when memcached has lost it, is the same, byte for byte."""
    with Memcached() as memcached:
        name = f"{maptype}:{proxywrite.dir}/data/b".encode()
        table = memcached.table(proxywrite.dir / "t.cf", backup=name.decode())
        proxywrite.approve(table, name)
        proxywrite.start("-n", "proxywrite")
        flags = LOCK | FOLD_FIX
        with proxywrite.connect() as peer:
            for value in VALUES:
                assert peer.ask(request("update", table, flags=flags, key=b"KeY", value=value)) == DONE
                assert peer.ask(lookup(table, b"kEy", flags=flags)) == found(value)
                assert peer.ask(lookup(name, b"key", flags=LOCK)) == found(value)
                assert peer.ask(lookup(name, b"KeY", flags=LOCK)) == NOT_FOUND
                memcached.ask(b"delete key")
                for _ in range(2):  # from the backup; then from memcached, unless it is too long for that
                    assert peer.ask(lookup(table, b"KEY", flags=flags)) == found(value)
            assert peer.ask(request("delete", table, flags=flags, key=b"KEY")) == DONE
            assert peer.ask(lookup(name, b"key", flags=LOCK)) == NOT_FOUND


def test_lookup_after_a_change_does_not_join_one_from_before(proxywrite: ServerProcess) -> None:
    with Scripted("memcache", {b"k": b"old"}) as scripted:
        table = write_cf(proxywrite.dir / "t.cf", memcache=scripted.endpoint, timeout=60)
        proxywrite.approve(table)
        proxywrite.start("-n", "proxywrite")
        scripted.held = [b"get"]
        with proxywrite.connect() as before, proxywrite.connect() as writer, proxywrite.connect() as after:
            before.send(lookup(table, b"k"))
            wait_until(lambda: scripted.waiting == 1, "the first question")
            assert writer.ask(request("update", table, key=b"k", value=b"new")) == DONE
            after.send(lookup(table, b"k"))
            wait_until(lambda: scripted.waiting == 2, "a question of its own")
            scripted.go.set()
            assert after.reply() == found(b"new")


@pytest.mark.parametrize("kind", ["update", "delete"])
@pytest.mark.parametrize("backed", [True, False])
def test_silent_memcached_delays_changes_of_no_other_table(
    proxywrite: ServerProcess, kind: str, backed: bool
) -> None:
    with Memcached() as memcached, Scripted("memcache", {b"k": b"old"}) as scripted:
        backup = {"backup": f"lmdb:{proxywrite.dir}/data/b"} if backed else {}
        slow = write_cf(proxywrite.dir / "slow.cf", memcache=scripted.endpoint, timeout=2, **backup)
        other_backup = f"lmdb:{proxywrite.dir}/data/other"
        quick = memcached.table(proxywrite.dir / "quick.cf", backup=other_backup)
        proxywrite.approve(slow, quick, other_backup)
        proxywrite.start("-n", "proxywrite")
        victims = [proxywrite.connect() for _ in range(STUCK)]
        with proxywrite.connect() as other:
            for n, victim in enumerate(victims):
                assert victim.ask(request("update", slow, key=b"k%d" % n, value=b"v")) == DONE
            scripted.held = [b"set", b"delete"]
            for n, victim in enumerate(victims):
                victim.send(request(kind, slow, key=b"k%d" % n, value=b"v"))
            wait_until(lambda: scripted.waiting, "a change under way")
            for _ in range(OTHERS):
                assert other.ask(request("update", quick, key=b"k", value=b"v")) == DONE
                assert other.ask(request("delete", quick, key=b"k")) == DONE
                assert other.ask(request("update", other_backup.encode(), key=b"x", value=b"v")) == DONE
            assert not any(victim.answered() for victim in victims)
            assert [victim.reply() for victim in victims] == [DONE if backed else RETRY] * STUCK
