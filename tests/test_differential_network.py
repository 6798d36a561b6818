"""test_differential_network - tables of the network types as the stock proxymap answers them

Both ask the same server, whose answer to a key is drawn from the key. Differences
that are intended have a test each, by name.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest
from fix_pair import Pair
from fix_postfix import unavailable
from fix_scripted import Scripted
from fix_server import FOLD_FIX, LOCK, lookup, request

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=unavailable() or "")

QUESTIONS = int(os.environ.get("PROXYMAP_QUESTIONS", "2000"))
FOLD_MUL, UTF8 = 1 << 15, 1 << 19
FLAGS = [LOCK, 0, FOLD_FIX, FOLD_MUL, UTF8, UTF8 | FOLD_MUL, UTF8 | FOLD_FIX | LOCK]
LETTERS = [b"a", b"B", b" ", b"%", b"@", b".", b"\n", b"\r", b"\t", b"\x7f", b"\xc3\xa9", b"\xff", b"+", b","]
RETRY = [(b"status", b"2"), (b"value", b"")]


def draw_text(dice: random.Random, most: int) -> bytes:
    return b"".join(dice.choices(LETTERS, k=dice.randrange(most)))


def draw_socketmap(dice: random.Random) -> tuple[bytes, bytes | None]:
    """A payload; and an answer that is none, in its place."""
    word = dice.choice([b"OK ", b"OK ", b"OK ", b"NOTFOUND", b"NOTFOUND ", b"TEMP ", b"PERM ", b"TIMEOUT x",
                        b"ok ", b"OK\t", b"", b" ", b"FOO"])  # fmt: skip
    payload = word + draw_text(dice, 6) if word.endswith(b" ") else word
    payload += b"\0more" if dice.random() < 0.05 else b""
    if payload == b"OK":
        payload += b" "
    raw = dice.choice([b"0%d:%b,", b"%d:%b;", b" %d:%b,", b"-%d:%b,", b"%d %b,", b"%d:%b", b"1%d:%b,"])
    return payload, raw % (len(payload), payload) if dice.random() < 0.1 else None


def draw_tcp(dice: random.Random) -> tuple[bytes, bytes | None]:
    code = dice.choice([b"200", b"200", b"200", b"500", b"400", b"299", b"550", b"100", b"000", b"600", b"20",
                        b"2000", b"x"])  # fmt: skip
    text = draw_text(dice, 6).replace(b"\n", b"")
    quoted = text.replace(b"%", b"%25")
    text = dice.choice([quoted, text, text + b"%00x", text + b"\0x", b"%4a%4A", b"%zz", text + b"%1"])
    return code + dice.choice([b" ", b" ", b"\t", b"\r", b"x", b""]) + text, None


DRAW = {"socketmap": draw_socketmap, "tcp": draw_tcp}


class Drawn(Scripted):
    """Answers what is drawn from the key, or what `records` and `raw` have."""

    def _reply(self, connection: object, key: bytes, answer: bytes) -> bool:
        if key not in self.records and key not in self.raw:
            payload, raw = DRAW[self.maptype](random.Random(key))
            self.records[key] = payload
            if raw is not None:
                self.raw[key] = raw
        return super()._reply(connection, key, self._framed(self.records[key]))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["socketmap", "tcp"])
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Pair, Drawn]]:
    with Drawn(request.param, {}) as server, Pair(request.param) as pair:
        pair.start([server.table()])
        yield pair, server


def test_same_answers(both: tuple[Pair, Drawn]) -> None:
    pair, server = both
    dice = random.Random(server.maptype)
    name = server.table()
    for _ in range(QUESTIONS):
        key, flags = draw_text(dice, 8), dice.choice(FLAGS)
        stock, ours = pair.ask(lookup(name, key, flags=flags))
        assert stock == ours, (key, flags, server.records.get(key), server.raw.get(key))


@pytest.mark.parametrize("kind", ["open", "update", "delete"])
def test_same_answers_to_other_requests(both: tuple[Pair, Drawn], kind: str) -> None:
    pair, server = both
    stock, ours = pair.ask(request(kind, server.table(), key=b"k") if kind != "open" else
                           request(kind, server.table()))  # fmt: skip
    assert stock == ours


def test_same_limit_of_an_answer(both: tuple[Pair, Drawn]) -> None:
    pair, server = both
    if server.maptype == "tcp":
        answers = [b"200 " + b"x" * 4091]
    else:
        answers = [b"OK " + b"x" * 99997, b"OK " + b"x" * 99998]
    for n, payload in enumerate(answers):
        server.records[b"long%d" % n] = payload
        stock, ours = pair.ask(lookup(server.table(), b"long%d" % n))
        assert stock == ours


@pytest.mark.parametrize("maptype", ["socketmap", "tcp"])
def test_same_answers_over_ipv6(maptype: str) -> None:
    with Drawn(maptype, {}, host="::1") as server, Pair(maptype) as pair:
        pair.stock.set(inet_protocols="all")
        pair.start([server.table()])
        for n in range(100):
            stock, ours = pair.ask(lookup(server.table(), b"k%d" % n))
            assert stock == ours
        assert server.questions


def test_intended_difference_tcp_waits_nine_seconds_for_a_server_that_closes() -> None:
    with Drawn("tcp", {}) as server, Pair("tcp") as pair:
        pair.start([server.table()])
        server.manner = "close"
        began = time.monotonic()
        assert pair.peers[0].ask(lookup(server.table(), b"k")) == RETRY
        stock = time.monotonic() - began
        began = time.monotonic()
        assert pair.peers[1].ask(lookup(server.table(), b"k")) == RETRY
        assert time.monotonic() - began < stock / 2


def test_intended_difference_ok_bare() -> None:
    """Postfix up to 3.8.19, 3.10.8 and 3.11.5: "OK" alone is "not found"."""
    with Drawn("socketmap", {b"k": b"OK"}) as server, Pair("socketmap") as pair:
        pair.start([server.table()])
        stock, ours = pair.ask(lookup(server.table(), b"k"))
        assert ours == [(b"status", b"0"), (b"value", b"")]
        assert stock in (ours, [(b"status", b"1"), (b"value", b"")])


def test_intended_difference_query_too_large() -> None:
    """Before 3.12 there is no limit."""
    with Drawn("socketmap", {b"x" * 10000: b"OK 1"}) as server, Pair("socketmap") as pair:
        pair.start([server.table()])
        stock, ours = pair.ask(lookup(server.table(), b"x" * 10000))
        assert ours == [(b"status", b"1"), (b"value", b"")]
        assert stock in (ours, [(b"status", b"0"), (b"value", b"1")])
