"""test_patterns - regexp and pcre tables behind the server: what no client may do with a hostile key"""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest
from fix_server import NOT_FOUND, Peer, ServerProcess, found, lookup, peers

FOLD_MUL = 1 << 15
FAST_LOOKUPS = 20  # some thousands, in fact
RETRY = [(b"status", b"2"), (b"value", b"")]

BACK_REFERENCES = r"/^(a*)(a*)(a*)(a*)(a*)\1\2\3\4\5[bc]$/ x"
CATASTROPHE = r"/^(a+)+[bc]$/ x"
HOSTILE = b"a" * 80  # takes some ten seconds, or more steps than PCRE2's limit allows


def rule_file(server: ServerProcess, maptype: str, *rules: str) -> bytes:
    file = server.dir / f"rules.{maptype}"
    file.write_text("".join(rule + "\n" for rule in rules))
    server.approve(f"{maptype}:{file}")
    return f"{maptype}:{file}".encode()


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess(own={"lookup_time_limit": "1s", "worker_count": "2"}) as server:
        yield server


def others_are_served(peer: Peer, *tables: bytes) -> None:
    for table in tables:
        assert peer.ask(lookup(table, b"fast")) == found(b"served")


def served_meanwhile(peer: Peer, hostile: Peer, *tables: bytes) -> int:
    """How often others are served before the reply to the hostile one comes."""
    count = 0
    while not select.select([hostile.socket], [], [], 0)[0]:
        others_are_served(peer, *tables)
        count += 1
    return count


@pytest.mark.parametrize("maptype", ["pcre", "regexp"])
def test_keys_are_folded_when_the_client_asks(server: ServerProcess, maptype: str) -> None:
    name = rule_file(server, maptype, "/^a$/i lower")
    server.start()
    with server.connect() as peer:
        for flags, reply in ((0, NOT_FOUND), (FOLD_MUL, found(b"lower"))):
            assert peer.ask(lookup(name, b"A", flags=flags)) == reply


def test_hostile_key_for_pcre_skips_the_rule_and_delays_nobody(server: ServerProcess) -> None:
    name = rule_file(server, "pcre", "/^fast$/ served", CATASTROPHE)
    cdb = server.cdb("t", {b"fast": b"served"})
    server.own.update(lookup_time_limit="1h")  # PCRE2's own limit is to end it, however busy the machine
    server.start()
    with server.connect() as hostile, server.connect() as other:
        others_are_served(other, name, cdb)
        hostile.send(lookup(name, HOSTILE))
        assert served_meanwhile(other, hostile, name, cdb) >= FAST_LOOKUPS
        assert hostile.reply() == NOT_FOUND
        others_are_served(other, name, cdb)
    server.wait_log(f"pcre map {name[5:].decode()}, line 2: match limit exceeded")


def test_hostile_keys_for_regexp_are_retry_and_delay_nobody(server: ServerProcess) -> None:
    """Even when all workers of the table are stuck."""
    name = rule_file(server, "regexp", "/^fast$/ served", "if /^a/", BACK_REFERENCES, "endif")
    pcre = rule_file(server, "pcre", "/^fast$/ served", r"/^(a+)+b/ slow")
    cdb = server.cdb("t", {b"fast": b"served"})
    server.start()
    with peers(server, 6) as hostile, server.connect() as other:
        others_are_served(other, pcre, cdb, name)
        for peer in hostile:
            peer.send(lookup(name, HOSTILE))
        assert served_meanwhile(other, hostile[0], pcre, cdb) >= FAST_LOOKUPS
        for peer in hostile:
            assert peer.reply() == RETRY
        assert other.ask(lookup(pcre, b"a" * 20 + b"b")) == found(b"slow")
    server.wait_log(f"{name.decode()} lookup error: no answer within 1 s at line 3")
