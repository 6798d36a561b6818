"""test_tracing - lookups that are followed as they are answered, and slow ones in the log"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

import pytest
from fix_gate import DENY, NOKEY, OK, RETRY, Gate, InProcess, gated_server
from fix_server import DIALECTS, TRY0, TRY1, found, lookup, wait_until
from oracle import reply

from proxymap.metrics._counters import (
    FROM_CACHE,
    FROM_JOINED,
    FROM_SERVER,
    FROM_SHED,
    FROM_STALE,
    FROM_TABLE,
)
from proxymap.server.control import Refused
from proxymap.server.tracing._trace import FROM_NOBODY, Tracer
from proxymap.server.tracing.requests import Watching

RING = 1024
SLOW = b"slow:t"


@pytest.fixture
def server(gate: Gate) -> Iterator[InProcess]:
    with gated_server(gate, cache_ttl="1h", cache_maptypes="cdb") as server:
        yield server


def follow(server: InProcess, tracer: Tracer) -> Tracer:
    assert server.server.between_turns(lambda: server.server.loop.trace(tracer))
    return tracer


def seen(tracer: Tracer) -> list[tuple[int, int, bytes, bytes]]:
    return [event[3:7] for event in tracer.take(RING)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_answers_of_a_table_and_of_the_cache(server: InProcess, dialect: str) -> None:
    tracer = follow(server, Tracer())
    table = server.cdbs[1]
    with server.connect() as peer:
        for key in (b"absent", b"k1", b"k1", b"k1"):
            peer.ask(lookup(table, key, dialect, flags=TRY0 | TRY1))
    events = seen(tracer)
    assert len(events) == 4
    assert events[:2] == [(NOKEY, FROM_TABLE, table, b"absent"), (OK, FROM_TABLE, table, b"k1")]
    assert events[3] == (OK, FROM_CACHE, table, b"k1")


def test_time_client_and_what_it_took(server: InProcess, gate: Gate) -> None:
    tracer = follow(server, Tracer())
    with server.connect() as peer:
        peer.ask(lookup(server.cdbs[0], b"k1"))
        peer.send(lookup(SLOW, b"wait"))
        wait_until(lambda: gate.asked, "the question")
        gate.answers.wait(0.3)
        gate.answers.set()
        peer.reply()
    fast, slow = tracer.take(RING)
    assert fast[2] == slow[2] == os.getpid()
    assert fast[0] <= slow[0] < fast[0] + 600
    assert fast[1] < slow[1]
    assert 0.25 < slow[1] < 600


def test_answers_of_a_server_and_those_who_joined(server: InProcess, gate: Gate) -> None:
    tracer = follow(server, Tracer(table=SLOW))
    peers = [server.connect() for _ in range(3)]
    for peer in peers:
        peer.send(lookup(SLOW, b"wait"))
    wait_until(lambda: tables(server)["joined"] == 2, "all have joined")
    gate.answers.set()
    for peer in peers:
        assert peer.reply() == found(b"value of wait")
        peer.close()
    with server.connect() as peer:
        peer.ask(lookup(SLOW, b"wait"))
        peer.ask(lookup(SLOW, b"retry"))
    sources = [source for _, source, *_ in seen(tracer)]
    assert sorted(sources[:3]) == [FROM_SERVER, FROM_JOINED, FROM_JOINED]
    assert sources[3:] == [FROM_CACHE, FROM_SERVER]


def test_old_answers(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated_server(gate, cache_ttl="1s", cache_stale_ttl="1h") as server, server.connect() as peer:
        tracer = follow(server, Tracer(table=SLOW))
        assert peer.ask(lookup(SLOW, b"a")) == found(b"value of a")
        before = gate.look_up
        monkeypatch.setattr(gate, "look_up", lambda key: before(b"retry"))

        def is_stale() -> bool:
            assert peer.ask(lookup(SLOW, b"a")) == found(b"value of a")
            return seen(tracer)[-1] == (OK, FROM_STALE, SLOW, b"a")

        wait_until(is_stale, "the end of its life", pause=0.1)


def test_too_many_that_wait_are_shed(gate: Gate) -> None:
    with gated_server(gate, waiting_limit="2") as server, server.connect() as last:
        tracer = follow(server, Tracer(status=RETRY))
        assert last.ask(lookup(SLOW, b"a")) == found(b"value of a")
        waiting = [server.connect() for _ in range(2)]
        for peer in waiting:
            peer.send(lookup(SLOW, b"wait"))
        wait_until(lambda: len(gate.asked) == 3, "the questions")
        assert last.ask(lookup(SLOW, b"b")) == reply("lookup", "3.6", RETRY)
        gate.answers.set()
        for peer in waiting:
            peer.reply()
            peer.close()
        assert seen(tracer) == [(RETRY, FROM_SHED, SLOW, b"b")]


def test_table_that_is_not_approved(server: InProcess) -> None:
    tracer = follow(server, Tracer())
    with server.connect() as peer:
        peer.ask(lookup(b"proxy:cdb:/no/such", b"k"))
    assert seen(tracer) == [(DENY, FROM_NOBODY, b"cdb:/no/such", b"k")]


def test_time_that_a_table_takes_to_open_counts(server: InProcess, gate: Gate) -> None:
    gate.opens.clear()
    tracer = follow(server, Tracer())
    with server.connect() as peer:
        peer.send(lookup(b"slow:opens", b"a"))
        wait_until(lambda: b"slow:opens" in gate.opened, "the attempt")
        gate.opens.wait(0.3)
        gate.opens.set()
        peer.reply()
        peer.ask(lookup(b"slow:opens", b"a"))
    first, second = tracer.take(RING)
    assert second[1] < first[1]
    assert first[1] > 0.25


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        ({"key": b"K1"}, [b"k1"]),
        ({"key": b"k"}, []),
        ({"status": NOKEY}, [b"absent"]),
        ({"slow": 3600.0}, []),
        ({"table": b"cdb:/other"}, []),
        ({}, [b"k1", b"absent"]),
    ],
)
def test_filter(server: InProcess, wanted: dict[str, int], keys: list[bytes]) -> None:
    tracer = follow(server, Tracer(**wanted))
    with server.connect() as peer:
        for key in (b"k1", b"absent"):
            peer.ask(lookup(server.cdbs[1], key))
    assert [key for *_, key in seen(tracer)] == keys
    assert tracer.left_out == 0


def test_what_comes_too_fast_is_counted(server: InProcess) -> None:
    limited, unread = follow(server, Tracer(rate=10)), follow(server, Tracer(rate=10**6))
    with server.connect() as peer:
        peer.send(lookup(server.cdbs[0], b"k1") * (RING + 100))
        for _ in range(RING + 100):
            peer.reply()
    assert len(unread.take(10**6)) == RING
    assert unread.left_out == 100
    written = len(limited.take(10**6))
    assert 10 <= written <= RING  # ten in each second that it took
    assert limited.left_out == RING + 100 - written


def test_long_keys_are_cut(server: InProcess) -> None:
    tracer = follow(server, Tracer(key=b"k" * 5000))
    with server.connect() as peer:
        peer.ask(lookup(server.cdbs[0], b"k" * 5000))
    (event,) = tracer.take(RING)
    assert event[6:] == (b"k" * 256, True)


def test_only_so_many_at_a_time(server: InProcess) -> None:
    loop, between_turns = server.server.loop, server.server.between_turns
    tracers = [follow(server, Tracer()) for _ in range(4)]
    refused = Tracer()
    assert not between_turns(lambda: loop.trace(refused))
    with pytest.raises(ValueError, match="not in list"):
        between_turns(lambda: loop.untrace(refused))
    between_turns(lambda: loop.untrace(tracers[0]))
    with server.connect() as peer:
        peer.ask(lookup(server.cdbs[0], b"k1"))
    assert [len(seen(tracer)) for tracer in tracers] == [0, 1, 1, 1]
    follow(server, Tracer())


# Slow lookups in the log


def slow_lines(server: InProcess) -> list[str]:
    return [line for line in server.lines if line.startswith("slow lookup")]


def test_slow_lookup_is_logged(gate: Gate) -> None:
    with gated_server(gate, slow_lookup_log_limit="200ms") as server, server.connect() as peer:
        assert peer.ask(lookup(SLOW, b"a")) == found(b"value of a")
        peer.send(lookup(SLOW, b"wait for it"))
        wait_until(lambda: len(gate.asked) == 2, "the question")
        gate.answers.wait(0.25)
        gate.answers.set()
        peer.reply()
        wait_until(lambda: slow_lines(server), "the line")
        (line,) = slow_lines(server)
        assert re.fullmatch(r"slow lookup in slow:t: \d+\.\d{3} s, status OK, source server", line)


@pytest.mark.parametrize("cache_ttl", ["0s", "1h"])
def test_limit_of_one_table(gate: Gate, cache_ttl: str) -> None:
    options = "{ slow:t, slow_lookup_log_limit = 1ms }"
    with (
        gated_server(gate, table_options=options, cache_ttl=cache_ttl) as server,
        server.connect() as one,
        server.connect() as two,
    ):
        one.send(lookup(b"slow:u", b"wait"))
        two.send(lookup(SLOW, b"wait"))
        wait_until(lambda: len(gate.asked) == 2, "the questions")
        gate.answers.wait(0.1)
        gate.answers.set()
        one.reply()
        two.reply()
        wait_until(lambda: slow_lines(server), "the line")
        server.fast_lookups_are_served()
        assert ["slow:t" in line for line in slow_lines(server)] == [True]


def test_slow_lookups_are_not_logged_by_default(server: InProcess, gate: Gate) -> None:
    with server.connect() as peer:
        peer.send(lookup(SLOW, b"wait"))
        wait_until(lambda: gate.asked, "the question")
        gate.answers.wait(0.2)
        gate.answers.set()
        peer.reply()
    server.fast_lookups_are_served()
    assert not slow_lines(server)


def test_lines_of_slow_lookups_are_bounded_and_the_others_counted(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, in_a_second = 300, 25
    before = gate.look_up
    monkeypatch.setattr(gate, "look_up", lambda key: time.sleep(0.002) or before(key))
    with gated_server(gate, slow_lookup_log_limit="1ms") as server, server.connect() as peer:
        peer.ask(lookup(SLOW, b"first"))
        began = time.monotonic()
        peer.send(b"".join(lookup(SLOW, b"%d" % i) for i in range(count)))
        for _ in range(count):
            peer.reply()
        seconds = int(time.monotonic() - began) + 2
        time.sleep(1.1)
        peer.ask(lookup(SLOW, b"last"))
        wait_until(lambda: "more before" in slow_lines(server)[-1], "the last line")
        lines = slow_lines(server)
        assert len(lines) <= 2 + in_a_second * seconds
        more = [int(number) for line in lines for number in re.findall(r"(\d+) more before", line)]
        assert count - in_a_second * seconds <= sum(more) < count


def tables(server: InProcess) -> dict[str, int]:
    known = server.server.between_turns(server.server.loop.tables)
    return next(one for one in known if one["table"] == "slow:t")


def test_end_of_a_trace_at_the_end_of_the_loop_is_no_trouble(server: InProcess) -> None:
    daemon = server.server

    def refuse(call: object) -> None:
        raise Refused("the server is ending")

    watching = Watching(daemon.loop, daemon.between_turns, lambda: False)
    stream = watching.trace({})
    watching.between_turns = refuse  # type: ignore[assignment]
    stream.end()
