"""test_sharing - answers of slow tables: asked for once, kept for a time, old ones in an outage"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_gate import NOKEY, RETRY, WORKERS, Gate, InProcess, gated_server
from fix_server import DIALECTS, LIMIT, Peer, found, lookup, wait_until
from oracle import reply

from proxymap.tables._jobs import clock_ms

CLIENTS = 50


def slow(key: bytes, dialect: str = "3.6") -> bytes:
    return lookup(b"slow:t", key, dialect)


def value_of(key: bytes) -> list[tuple[bytes, bytes]]:
    return found(b"value of " + key)


RETRIED = reply("lookup", "3.6", RETRY)
ABSENT = reply("lookup", "3.6", NOKEY)


@pytest.fixture
def server(gate: Gate) -> Iterator[InProcess]:
    with gated_server(gate, cache_ttl="1h") as server:
        yield server


@pytest.mark.parametrize("dialect", DIALECTS)
def test_value_is_asked_for_once(server: InProcess, gate: Gate, dialect: str) -> None:
    with server.connect() as peer, server.connect() as other:
        first = peer.ask(slow(b"a", dialect))
        assert first == peer.ask(slow(b"a", dialect)) == other.ask(slow(b"a", dialect))
        assert dict(first)[b"value"] == b"value of a"
    assert gate.asked == [b"a"]


def test_no_is_asked_for_each_time(server: InProcess, gate: Gate) -> None:
    with server.connect() as peer:
        assert [peer.ask(slow(b"no")) for _ in range(3)] == [ABSENT] * 3
    assert gate.asked == [b"no"] * 3


def test_no_is_kept_where_that_is_wanted(gate: Gate) -> None:
    with gated_server(gate, cache_negative_ttl="1h") as server, server.connect() as peer:
        assert [peer.ask(slow(b"no")) for _ in range(3)] == [ABSENT] * 3
        assert [peer.ask(slow(b"a")) for _ in range(2)] == [value_of(b"a")] * 2
    assert gate.asked == [b"no", b"a", b"a"]


def test_nothing_is_kept_by_default(gate: Gate) -> None:
    with gated_server(gate) as server, server.connect() as peer:
        assert [peer.ask(slow(b"a")) for _ in range(2)] == [value_of(b"a")] * 2
    assert gate.asked == [b"a"] * 2


def test_clients_that_ask_at_once_share_one_question(server: InProcess, gate: Gate) -> None:
    peers = [server.connect() for _ in range(CLIENTS)]
    for peer in peers:
        peer.send(slow(b"wait"))
    wait_until(lambda: tables(server)["joined"] == CLIENTS - 1, "all have joined")
    assert gate.asked == [b"wait"]
    gate.answers.set()
    for peer in peers:
        assert peer.reply() == value_of(b"wait")
        peer.close()
    assert gate.asked == [b"wait"]


def test_question_goes_on_when_the_first_who_asked_leaves(server: InProcess, gate: Gate) -> None:
    first, second = server.connect(), server.connect()
    first.send(slow(b"wait"))
    wait_until(lambda: gate.asked, "the question")
    second.send(slow(b"wait"))
    wait_until(lambda: tables(server)["joined"] == 1, "the second has joined")
    first.close()
    server.fast_lookups_are_served()
    gate.answers.set()
    assert second.reply() == value_of(b"wait")
    second.close()
    assert gate.asked == [b"wait"]


def test_all_get_the_failure_and_none_of_it_is_kept(server: InProcess, gate: Gate) -> None:
    with server.connect() as peer:
        assert [peer.ask(slow(b"retry")) for _ in range(2)] == [RETRIED] * 2
    assert gate.asked == [b"retry"] * 2


def test_refusal_of_a_worker_is_kept_for_its_time(gate: Gate) -> None:
    with gated_server(gate, cache_ttl="1h", cache_error_ttl="1h") as server, server.connect() as peer:
        assert [peer.ask(slow(key)) for key in (b"refuse", b"retry") * 3] == [RETRIED] * 6
    assert gate.asked == [b"refuse", *[b"retry"] * 3]


def test_pipelined_requests_keep_their_order(server: InProcess, gate: Gate) -> None:
    keys = [b"a", b"no", b"a", b"b", b"retry", b"a"]
    wanted = {b"no": ABSENT, b"retry": RETRIED}
    with server.connect() as peer:
        peer.send(b"".join(map(slow, keys)))
        for key in keys:
            assert peer.reply() == wanted.get(key, value_of(key))
    assert gate.asked == [b"a", b"no", b"b", b"retry"]


def test_pipelined_request_joins_none_that_is_answered(server: InProcess, gate: Gate) -> None:
    """Those behind each other on one connection are asked one by one, from the cache then."""
    with server.connect() as one, server.connect() as other:
        one.send(slow(b"wait") * 3)
        wait_until(lambda: gate.asked, "the question")
        other.send(slow(b"wait") * 3)
        gate.answers.set()
        for peer in (one, other):
            assert [peer.reply() for _ in range(3)] == [value_of(b"wait")] * 3
    assert gate.asked == [b"wait"]


# An outage


class Outage:
    """A table whose server can be down: `gate` fails every lookup then."""

    def __init__(self, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        self.down = self.empty = False
        self.hangs = False
        lookup_of = gate.look_up

        def look_up(key: bytes) -> bytes | None:
            if self.down:
                gate.asked.append(key)
                key = b"retry"
            elif self.empty:
                key = b"no"
            elif self.hangs:
                key = b"wait"
            return lookup_of(key)

        monkeypatch.setattr(gate, "look_up", look_up)


@pytest.fixture
def outage(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(gate, monkeypatch)


def expire(server: InProcess) -> None:
    """Let a life of one second end."""
    moment = clock_ms()
    wait_until(lambda: clock_ms() > moment + 1000, "the end of a life")


def test_old_value_stands_in_during_an_outage(gate: Gate, outage: Outage) -> None:
    with gated_server(gate, cache_ttl="1s") as server, server.connect() as peer:
        assert peer.ask(slow(b"a")) == value_of(b"a")
        outage.down = True
        expire(server)
        asked = len(gate.asked)
        assert [peer.ask(slow(b"a")) for _ in range(5)] == [value_of(b"a")] * 5
        assert len(gate.asked) - asked <= 4  # it was asked once, which failed; then the key had a rest
        assert peer.ask(slow(b"b")) == RETRIED  # unknown is not "no"
        assert tables(server)["stale"] == 5


def test_old_no_never_stands_in(gate: Gate, outage: Outage) -> None:
    with gated_server(gate, cache_negative_ttl="1s") as server, server.connect() as peer:
        assert peer.ask(slow(b"no")) == ABSENT
        outage.down = True
        expire(server)
        assert peer.ask(slow(b"no")) == RETRIED


def test_old_no_stands_in_where_that_is_wanted(gate: Gate, outage: Outage) -> None:
    own = {"cache_negative_ttl": "1s", "cache_stale_negative_ttl": "1h"}
    with gated_server(gate, **own) as server, server.connect() as peer:
        assert peer.ask(slow(b"no")) == ABSENT
        outage.down = True
        expire(server)
        assert peer.ask(slow(b"no")) == ABSENT


def test_value_past_its_second_life_is_gone(gate: Gate, outage: Outage) -> None:
    with gated_server(gate, cache_ttl="1s", cache_stale_ttl="0s") as server, server.connect() as peer:
        assert peer.ask(slow(b"a")) == value_of(b"a")
        outage.down = True
        expire(server)
        assert peer.ask(slow(b"a")) == RETRIED


def test_key_that_was_deleted_is_gone_at_the_end_of_its_life(gate: Gate, outage: Outage) -> None:
    with gated_server(gate, cache_ttl="1s") as server, server.connect() as peer:
        assert peer.ask(slow(b"a")) == value_of(b"a")
        outage.empty = True
        expire(server)
        assert peer.ask(slow(b"a")) == ABSENT
        outage.down, outage.empty = True, False
        assert peer.ask(slow(b"a")) == RETRIED  # the old value is known to be untrue


def test_client_that_has_waited_takes_the_old_value_and_the_answer_is_kept(
    gate: Gate, outage: Outage
) -> None:
    own = {"cache_ttl": "1s", "cache_stale_wait": "1s"}
    with gated_server(gate, **own) as server, server.connect() as peer, server.connect() as patient:
        assert peer.ask(slow(b"a")) == value_of(b"a")
        outage.hangs = True
        expire(server)
        peer.send(slow(b"a"))
        assert peer.reply() == value_of(b"a")  # while the server still hangs
        assert tables(server)["stale"] == 1
        patient.send(slow(b"b"))  # nothing old is known: it waits
        gate.answers.set()
        assert patient.reply() == value_of(b"wait")
        outage.hangs = False
        wait_until(lambda: peer.ask(slow(b"a")) == value_of(b"wait"), "what was asked meanwhile")


# Forgetting


def test_flush_of_a_key_has_it_asked_anew(server: InProcess, gate: Gate) -> None:
    with server.connect() as peer:
        for key in (b"a", b"b"):
            assert peer.ask(slow(key)) == value_of(key)
        server.server.between_turns(lambda: server.server.loop.flush(b"slow:t", b"a"))
        for key in (b"a", b"b"):
            assert peer.ask(slow(key)) == value_of(key)
    assert gate.asked == [b"a", b"b", b"a"]


@pytest.mark.parametrize("key", [b"wait", None])
def test_answer_to_a_question_older_than_a_flush_is_not_kept(
    server: InProcess, gate: Gate, key: bytes | None
) -> None:
    with server.connect() as peer, server.connect() as later:
        peer.send(slow(b"wait"))
        wait_until(lambda: gate.asked, "the question")
        server.server.between_turns(lambda: server.server.loop.flush(b"slow:t", key))
        later.send(slow(b"wait"))  # which does not join it
        wait_until(lambda: len(gate.asked) == 2, "the second question")
        gate.answers.set()
        assert peer.reply() == later.reply() == value_of(b"wait")
        assert later.ask(slow(b"wait")) == value_of(b"wait")
    assert gate.asked == [b"wait"] * 2


def tables(server: InProcess, name: str = "slow:t") -> dict[str, int]:
    known = server.server.between_turns(server.server.loop.tables)
    return next(table for table in known if table["table"] == name)


def test_server_stops_while_clients_wait(gate: Gate) -> None:
    with gated_server(gate, cache_ttl="1h", drain_time_limit="0s") as server:
        peers: list[Peer] = [server.connect() for _ in range(WORKERS)]
        for peer in peers:
            peer.send(slow(b"wait"))
        wait_until(lambda: tables(server)["joined"] == WORKERS - 1, "all wait")
        server.server.stop()
        server.thread.join(LIMIT)
        assert not server.thread.is_alive()
        assert gate.asked == [b"wait"]
        for peer in peers:
            peer.close()
