"""test_network_waits - whatever a server of a network table does, nobody waits but who asked it

Each way to misbehave that costs the stock proxymap a pause, in which it serves nobody
else. A client asks the table of such a server; another asks one of a good server
meanwhile, on the same daemon, and has its answers first. What a backup and changes of
memcache do to that is in test_memcache_server.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_memcached import write_cf
from fix_scripted import NeverConnects, Scripted
from fix_server import ServerProcess, found, lookup, wait_until

RETRY = [(b"status", b"2"), (b"value", b"")]
TYPES = ["socketmap", "tcp", "memcache"]
GOOD = {"socketmap": b"OK 1", "tcp": b"200 1", "memcache": b"1"}
OTHERS = 50  # questions that are answered meanwhile
STUCK = 4  # clients of a server that has two connections
PAUSE = 9  # seconds that stock's tcp serves nobody; network-tables.md 1
OWN = {"lookup_time_limit": "2s", "server_connect_time_limit": "2s"}

SILENT = ["silent", "drip", "hang"]
AT_ONCE = ["refuse", "unknown", "absent", "close", "reset", "half", "error", "garbage"]
NOWHERE = {"refuse": "inet:127.0.0.1:1", "unknown": "inet:nosuch.invalid:1", "absent": "unix:/nosuch/socket"}


def table_at(maptype: str, where: str, folder: Path, timeout: int = 2) -> bytes:
    """where: as socketmap and memcache say it. timeout: memcache's own."""
    if maptype == "memcache":
        number = len(list(folder.glob("*.cf")))
        return write_cf(folder / f"{number}.cf", memcache=where, timeout=timeout)
    if maptype == "tcp":
        return b"tcp:" + where.removeprefix("inet:").encode()
    return f"socketmap:{where}:map".encode()


@contextlib.contextmanager
def misbehaving(maptype: str, manner: str) -> Iterator[str]:
    """Where a server does that."""
    if manner in NOWHERE:
        yield NOWHERE[manner]
    elif manner == "hang":
        with NeverConnects() as nowhere:
            yield f"inet:127.0.0.1:{nowhere.port}"
    else:
        with Scripted(maptype, {b"k": GOOD[maptype] + b"x" * 300}) as server:
            server.manner = manner  # type: ignore[assignment]
            yield server.endpoint


@pytest.mark.parametrize("maptype", TYPES)
@pytest.mark.parametrize("manner", SILENT + AT_ONCE)
def test_nobody_waits_but_who_asked(maptype: str, manner: str) -> None:
    if (maptype, manner) == ("tcp", "absent"):
        pytest.skip("tcp has no such address")
    with (
        misbehaving(maptype, manner) as where,
        Scripted(maptype, {b"k": GOOD[maptype]}) as good_server,
        ServerProcess(own=OWN) as server,
    ):
        bad, good = (table_at(maptype, at, server.dir) for at in (where, good_server.endpoint))
        server.approve(bad, good)
        server.start()
        with server.connect() as victim, server.connect() as other:
            assert other.ask(lookup(good, b"k")) == found(b"1")
            began = time.monotonic()
            victim.send(lookup(bad, b"k"))
            for _ in range(OTHERS):
                assert other.ask(lookup(good, b"k")) == found(b"1")
            if manner in SILENT:
                assert not victim.answered()
            assert victim.reply() == RETRY
            if manner in AT_ONCE:  # no pause of a second, ten times
                assert time.monotonic() - began < PAUSE / 2
            else:
                assert time.monotonic() - began < 30  # the deadline, not stock's 100 or 1010


@pytest.mark.parametrize("maptype", TYPES)
def test_connection_that_was_closed_while_idle_costs_nobody_anything(maptype: str) -> None:
    """Stock's tcp says RETRY to itself, and sleeps for a second."""
    with Scripted(maptype, {b"k": GOOD[maptype]}) as scripted, ServerProcess() as server:
        table = table_at(maptype, scripted.endpoint, server.dir)
        server.approve(table)
        server.start()
        with server.connect() as peer, server.connect() as other:
            for connections in range(1, 4):
                peer.send(lookup(table, b"k"))
                other.send(lookup(table, b"k"))
                assert peer.reply() == other.reply() == found(b"1")
                assert scripted.connections >= connections
                scripted.hang_up()


@pytest.mark.parametrize("maptype", TYPES)
def test_two_slow_servers_do_not_delay_each_other(maptype: str) -> None:
    """Each has more clients than connections; one answers in the end, the other one only afterwards."""
    with contextlib.ExitStack() as stack:
        own = {"server_connection_limit": "2", "lookup_time_limit": "60s"}
        server = stack.enter_context(ServerProcess(own=own))
        slow = [stack.enter_context(Scripted(maptype, {b"k": GOOD[maptype]})) for _ in range(2)]
        tables = [table_at(maptype, each.endpoint, server.dir, timeout=60) for each in slow]
        for each in slow:
            each.held = [b"get"]
        server.approve(*tables)
        server.start()
        clients = [[server.connect() for _ in range(STUCK)] for _ in slow]
        for peers, table in zip(clients, tables, strict=True):
            for peer in peers:
                peer.send(lookup(table, b"k"))
        wait_until(lambda: all(each.waiting == 2 for each in slow), "two questions to each")
        slow[1].go.set()
        assert [peer.reply() for peer in clients[1]] == [found(b"1")] * STUCK
        assert slow[0].waiting == 2
        assert not any(peer.answered() for peer in clients[0])
        slow[0].go.set()
        assert [peer.reply() for peer in clients[0]] == [found(b"1")] * STUCK


@pytest.mark.parametrize("maptype", TYPES)
@pytest.mark.parametrize(("own", "asked"), [({}, 3), ({"{}_cache_ttl": "1h"}, 1)])
def test_answers_are_kept_where_that_is_wanted_only(maptype: str, own: dict[str, str], asked: int) -> None:
    """The server may count."""
    parameters = {name.format(maptype): value for name, value in own.items()}
    with Scripted(maptype, {b"k": GOOD[maptype]}) as good, ServerProcess(own=parameters) as server:
        table = table_at(maptype, good.endpoint, server.dir)
        server.approve(table)
        server.start()
        with server.connect() as peer:
            for _ in range(3):
                assert peer.ask(lookup(table, b"k")) == found(b"1")
        assert len(good.questions) == asked
