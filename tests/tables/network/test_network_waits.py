"""test_network_waits - whatever a server of a network table does, nobody waits but who asked it

Each way to misbehave that costs the stock proxymap a pause, in which it serves nobody
else. A client asks the table of such a server; another asks one of a good server
meanwhile, on the same daemon, and has its answers first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
from fix_scripted import NeverConnects, Scripted
from fix_server import ServerProcess, lookup

RETRY = [(b"status", b"2"), (b"value", b"")]
GOOD = {"socketmap": b"OK 1", "tcp": b"200 1"}
OTHERS = 50  # questions that are answered meanwhile
# Seconds that stock serves nobody; network-tables.md 1.
STOCK = {"socketmap": 100, "tcp": 9}

SILENT = ["silent", "drip", "hang"]
AT_ONCE = ["refuse", "unknown", "close", "reset", "half", "error", "garbage"]


@contextlib.contextmanager
def misbehaving(maptype: str, manner: str) -> Iterator[bytes]:
    """The name of a table whose server does that."""
    names = {"socketmap": "socketmap:inet:{}:map", "tcp": "tcp:{}"}
    if manner in ("refuse", "unknown"):
        yield names[maptype].format({"refuse": "127.0.0.1:1", "unknown": "nosuch.invalid:1"}[manner]).encode()
    elif manner == "hang":
        with NeverConnects() as nowhere:
            yield names[maptype].format(f"127.0.0.1:{nowhere.port}").encode()
    else:
        with Scripted(maptype, {b"k": GOOD[maptype] + b"x" * 300}) as server:
            server.manner = manner  # type: ignore[assignment]
            yield server.table()


@pytest.mark.parametrize("maptype", ["socketmap", "tcp"])
@pytest.mark.parametrize("manner", SILENT + AT_ONCE)
def test_nobody_waits_but_who_asked(maptype: str, manner: str) -> None:
    own = {"lookup_time_limit": "2s", "server_connect_time_limit": "2s"}
    with (
        misbehaving(maptype, manner) as bad,
        Scripted(maptype, {b"k": GOOD[maptype]}) as good,
        ServerProcess(own=own) as server,
    ):
        server.approve(bad, good.table())
        server.start()
        with server.connect() as victim, server.connect() as other:
            assert other.ask(lookup(good.table(), b"k")) == [(b"status", b"0"), (b"value", b"1")]
            began = time.monotonic()
            victim.send(lookup(bad, b"k"))
            for _ in range(OTHERS):
                assert other.ask(lookup(good.table(), b"k")) == [(b"status", b"0"), (b"value", b"1")]
            if manner in SILENT:
                assert not victim.answered()
            assert victim.reply() == RETRY
            if manner in AT_ONCE:  # no pause of a second, ten times
                assert time.monotonic() - began < STOCK["tcp"] / 2
            else:
                assert time.monotonic() - began < 30  # the deadline, not stock's 100 or 1010


def test_two_slow_servers_do_not_delay_each_other() -> None:
    """With as many clients as there are connections to one of them."""
    with (
        Scripted("socketmap", {b"k": b"OK 1"}) as slow,
        Scripted("socketmap", {b"k": b"OK 1"}) as slower,
        ServerProcess(own={"lookup_time_limit": "30s", "server_connection_limit": "2"}) as server,
    ):
        slow.delay, slower.delay = 0.1, 3
        server.approve(slow.table(), slower.table())
        server.start()
        stuck = [server.connect() for _ in range(4)]
        for peer in stuck:
            peer.send(lookup(slower.table(), b"k"))
        with server.connect() as peer:
            for _ in range(10):
                assert peer.ask(lookup(slow.table(), b"k")) == [(b"status", b"0"), (b"value", b"1")]
        assert not any(peer.answered() for peer in stuck)


@pytest.mark.parametrize("maptype", ["socketmap", "tcp"])
@pytest.mark.parametrize(("own", "asked"), [({}, 3), ({"{}_cache_ttl": "1h"}, 1)])
def test_answers_are_kept_where_that_is_wanted_only(maptype: str, own: dict[str, str], asked: int) -> None:
    """The server may count."""
    parameters = {name.format(maptype): value for name, value in own.items()}
    with Scripted(maptype, {b"k": GOOD[maptype]}) as good, ServerProcess(own=parameters) as server:
        server.approve(good.table())
        server.start()
        with server.connect() as peer:
            for _ in range(3):
                assert peer.ask(lookup(good.table(), b"k")) == [(b"status", b"0"), (b"value", b"1")]
        assert len(good.questions) == asked
