"""test_stuck - tables that hang hold up nobody: a dead directory, a locked database"""

from __future__ import annotations

import select
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_server import Peer, ServerProcess, environment, found, lookup, peers, wait_until
from oracle import reply

RETRY = 2
STUCK = 6  # more than there are workers
LOOKUPS = 2000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """With a user directory in which looking for "slow" takes ten seconds."""
    library = tmp_path / "slow_users.so"
    source = Path(__file__).with_name("slow_users.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    with ServerProcess(own={"lookup_time_limit": "2s"}) as server:
        server.library = library  # type: ignore[attr-defined]
        yield server


def start(server: ServerProcess) -> None:
    server.start(env=environment(LD_PRELOAD=str(server.library)))  # type: ignore[attr-defined]


def cdb_is_served(server: ServerProcess, table: bytes, peer: Peer, stuck: list[Peer]) -> None:
    """On an old connection and on new ones; none of those that are stuck has an answer by then."""
    for i in range(LOOKUPS):
        assert peer.ask(lookup(table, b"k%d" % i)) == found(b"v%d" % i)
    for i in range(20):
        with server.connect() as new:
            assert new.ask(lookup(table, b"k%d" % i)) == found(b"v%d" % i)
    assert not select.select([one.socket for one in stuck], [], [], 0)[0]


def test_dead_directory_holds_up_nobody_and_is_retry(server: ServerProcess) -> None:
    table = server.cdb("t", {b"k%d" % i: b"v%d" % i for i in range(LOOKUPS)})
    later = server.cdb("later", {b"k": b"v"})
    server.approve("unix:passwd.byname")
    start(server)
    with server.connect() as peer, peers(server, STUCK) as stuck:
        assert peer.ask(lookup(b"unix:passwd.byname", b"root"))[0] == (b"status", b"0")
        for one in stuck:
            one.send(lookup(b"unix:passwd.byname", b"slow"))
        cdb_is_served(server, table, peer, stuck)
        assert peer.ask(lookup(later, b"k")) == found(b"v")  # a table that is opened only now
        for one in stuck:
            assert one.reply() == reply("lookup", "3.6", RETRY)
        cdb_is_served(server, table, peer, stuck)


def test_locked_database_is_retry_and_answers_when_it_is_free(server: ServerProcess) -> None:
    table = server.cdb("t", {b"k%d" % i: b"v%d" % i for i in range(LOOKUPS)})
    database = sqlite3.connect(server.dir / "db", isolation_level=None)
    database.execute("CREATE TABLE t (k, v)")
    database.execute("INSERT INTO t VALUES ('a', 'b')")
    (server.dir / "db.cf").write_text(f"dbpath = {server.dir}/db\nquery = SELECT v FROM t WHERE k = '%s'\n")
    name = f"sqlite:{server.dir}/db.cf".encode()
    server.approve(name)
    start(server)
    with server.connect() as peer, peers(server, STUCK) as stuck:
        assert peer.ask(lookup(name, b"a")) == found(b"b")
        database.execute("BEGIN EXCLUSIVE")
        for one in stuck:
            one.send(lookup(name, b"a"))
        assert peer.ask(lookup(table, b"k1")) == found(b"v1")
        for one in stuck:
            assert one.reply() == reply("lookup", "3.6", RETRY)
        database.execute("ROLLBACK")
        wait_until(lambda: peer.ask(lookup(name, b"a")) == found(b"b"), "the database")
    database.close()
