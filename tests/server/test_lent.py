"""test_lent - a client that changes something alone, does other things meanwhile, and is joined by others

The server's writer keeps such a client's connection for a while (_lent). What is
asked without pause comes while it has it; where these tests do not get so far, for
the machine was busy, they are as true.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from fix_server import DIALECTS, GREETING, Peer, ServerProcess, lookup, request, wait_until
from oracle import Attributes

OK, NOKEY, RETRY, BAD, DENY = range(5)
WARM = 200  # changes after which the writer looks for the next one
EVER = 30.0


class Writing(ServerProcess):
    """A proxywrite server with the approved tables `table` and `other`."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.other = (f"lmdb:{self.dir}/{name}".encode() for name in ("w", "o"))
        self.approve(self.table, self.other)

    def warm(self) -> Peer:
        """A client that has asked without pause."""
        peer = self.connect()
        for i in range(WARM):
            assert status(peer.ask(update(self.table, b"warm", b"%d" % i))) == OK
        return peer


@pytest.fixture
def server() -> Iterator[Writing]:
    with Writing() as server:
        yield server.start("-n", "proxywrite")


def update(table: bytes, key: bytes, value: bytes, dialect: str = "3.6", **fields: int) -> bytes:
    return request("update", table, dialect, key=key, value=value, **{"flags": 12, **fields})


def delete(table: bytes, key: bytes, dialect: str = "3.6") -> bytes:
    return request("delete", table, dialect, key=key, flags=12)


def status(reply: Attributes) -> int:
    return int(dict(reply)[b"status"])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_follows_a_change_is_answered_in_order(server: Writing, dialect: str) -> None:
    """Each thing that may come instead of a change of the same table."""
    table, other = server.table, server.other
    bad = b"request\0update\0table\0" + table + b"\0flags\0many\0\0"
    following: list[tuple[bytes, int]] = [
        (update(table, b"k", b"1", dialect), OK),
        (delete(table, b"k", dialect), OK),
        (delete(table, b"k", dialect), NOKEY),
        (lookup(table, b"k", dialect, flags=12), NOKEY),
        (update(other, b"k", b"2", dialect), OK),
        (lookup(other, b"k", dialect, flags=12), OK),
        (update(b"proxy:proxy:" + table, b"k", b"3", dialect), OK),
        (lookup(table, b"k", dialect, flags=12), OK),
        (update(table, b"LONG", b"v" * 50_000, dialect), OK),
        (request("open", table, dialect, flags=12), OK),
        (request("sequence", table, dialect, flags=12, function=0), OK),
        (update(b"lmdb:/not/approved", b"k", b"v", dialect), DENY),
        (update(b"no colon", b"k", b"v", dialect), BAD),
        (b"request\0nonsense\0\0", BAD),
        (bad, BAD),
    ]
    with server.warm() as peer:
        for _ in range(5):
            for data, expected in following:
                peer.ask(update(table, b"before", b"v", dialect))
                assert status(peer.ask(data)) == expected, data
                assert status(peer.ask(update(table, b"after", b"v", dialect))) == OK


def test_change_that_comes_in_two_pieces_at_any_place(server: Writing) -> None:
    with server.warm() as peer:
        for cut in range(1, len(update(server.table, b"k", b"%4d"))):
            data = update(server.table, b"k", b"%4d" % cut)
            peer.ask(update(server.table, b"before", b"v"))
            peer.send(data[:cut])
            peer.send(data[cut:] + lookup(server.table, b"k", flags=12))
            assert status(peer.reply()) == OK
            assert dict(peer.reply())[b"value"] == b"%4d" % cut


def test_keys_are_folded_and_checked_as_ever(server: Writing) -> None:
    table, fold, utf8 = server.other, 1 << 14, 1 << 19
    server.warm().close()
    with server.connect() as peer:
        for key, stored in [(b"UPPER", b"upper"), ("ÄÖ".encode(), "äö".encode())]:
            for i in range(5):
                reply = peer.ask(update(table, key, b"%d" % i, flags=12 | fold | utf8))
                assert status(reply) == OK
                assert dict(peer.ask(lookup(table, stored, flags=12 | utf8)))[b"value"] == b"%d" % i
        for _ in range(5):  # as Postfix's: it is said to be done, and is not
            assert status(peer.ask(update(table, b"\xff", b"v", flags=12 | utf8))) == OK
            assert status(peer.ask(update(table, b"value", b"\xff", flags=12 | utf8))) == OK
            assert status(peer.ask(update(table, b"good", b"v", flags=12 | utf8))) == OK
        assert status(peer.ask(lookup(table, b"value", flags=12 | utf8))) == NOKEY
        assert status(peer.ask(lookup(table, b"good", flags=12 | utf8))) == OK
    server.wait_log("non-UTF-8 key")
    server.wait_log("non-UTF-8 value")


def test_what_was_received_needs_no_buffer(server: Writing) -> None:
    """All buffers are full of what others have begun to send, and will not end."""
    server.stop()
    server.own["buffer_size_limit"] = "1048576"
    server.start("-n", "proxywrite")
    data = update(server.table, b"k", b"v")
    with server.warm() as peer, contextlib.ExitStack() as others:
        for _ in range(30):
            other = others.enter_context(server.connect())
            other.send(data[:-4] + b"x" * 60_000)
        peer.ask(lookup(server.table, b"k", flags=12))
        for i in range(500):
            assert status(peer.ask(update(server.table, b"k", b"%d" % i))) == OK
            if i % 2:
                assert dict(peer.ask(lookup(server.table, b"k", flags=12)))[b"value"] == b"%d" % i


def descriptors(server: Writing) -> int:
    return len(os.listdir(f"/proc/{server.pid}/fd"))


@pytest.mark.parametrize("end", ["close", "close with a change under way", "end after a change", "half"])
def test_clients_that_go_leave_nothing_behind(server: Writing, end: str) -> None:
    server.warm().close()
    before = descriptors(server)
    data = update(server.table, b"k", b"v")
    for _ in range(100):
        with server.connect() as peer:
            for _ in range(3):
                peer.ask(data)
            if end == "close with a change under way":
                peer.send(data)
            elif end == "half":
                peer.send(data[:30])
            elif end == "end after a change":
                peer.send(data)
                peer.socket.shutdown(socket.SHUT_WR)
                assert peer.rest() == b"status\x000\0\0"
    wait_until(lambda: descriptors(server) <= before, "the descriptors of the clients that left")
    with server.connect() as peer:
        assert status(peer.ask(data)) == OK


def hammer(peer: Peer, table: bytes, done: list[int], stop: threading.Event) -> None:
    """Change without pause until told to stop, or hung up on; `done` gets each status."""
    i = 0
    with contextlib.suppress(AssertionError, OSError):
        while not stop.is_set():
            done.append(status(peer.ask(update(table, b"k", b"%d" % i))))
            i += 1


@contextlib.contextmanager
def hammering(server: Writing) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """What a client gets that changes without pause, and what ends it."""
    done: list[int] = []
    stop = threading.Event()
    peer = server.warm()
    thread = threading.Thread(target=hammer, args=(peer, server.table, done, stop))

    def end() -> None:
        stop.set()
        thread.join(EVER)
        assert not thread.is_alive()
        peer.close()

    thread.start()
    try:
        yield done, end
    finally:
        end()


def test_others_have_their_turn(server: Writing) -> None:
    """Before many changes of the one that does not pause, be it a change, a lookup, or to be greeted."""
    with hammering(server) as (done, _):
        for i in range(30):
            before = len(done)
            with Peer(server.path, greeted=False) as peer:
                ours = b"%d" % i
                peer.send(update(server.table, b"other", ours) + lookup(server.table, b"other", flags=12))
                assert peer.read_exactly(len(GREETING)) == GREETING
                assert status(peer.reply()) == OK
                assert dict(peer.reply())[b"value"] == ours
            assert len(done) - before < 1000
            wait_until(lambda: len(done) > before, "another change")  # noqa: B023
        assert set(done) == {OK}


def test_a_table_that_is_approved_no_more_is_denied(server: Writing) -> None:
    with hammering(server) as (done, _):
        server.approved.remove(server.table.decode())
        server.write_config()
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: DENY in done, "the denial")
        server.approve(server.table)
        server.write_config()
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: done[-1] == OK, "the approval")


def test_at_the_end_whatever_was_answered_is_there(server: Writing) -> None:
    with hammering(server) as (done, end):
        assert server.stop() == 0
        end()
        assert done
        assert set(done) == {OK}
    server.start("-n", "proxywrite")
    with server.connect() as peer:
        value = dict(peer.ask(lookup(server.table, b"k", flags=12)))[b"value"]
        assert int(value) - (len(done) - 1) in (0, 1)  # one more may have been done, and not answered
