"""test_patterns - regexp and pcre tables behind the server: what no client may do with a hostile key"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_server import NOT_FOUND, Peer, ServerProcess, found, lookup

FOLD_MUL = 1 << 15
FAST_LOOKUPS = 200
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
    for _ in range(FAST_LOOKUPS):
        for table in tables:
            assert peer.ask(lookup(table, b"fast")) == found(b"served")


def is_unanswered(peer: Peer) -> bool:
    peer.socket.setblocking(False)
    try:
        return not peer.socket.recv(1, 2)  # MSG_PEEK
    except BlockingIOError:
        return True
    finally:
        peer.socket.settimeout(30)


@pytest.mark.parametrize("maptype", ["pcre", "regexp"])
def test_keys_are_folded_when_the_client_asks(server: ServerProcess, maptype: str) -> None:
    name = rule_file(server, maptype, "/^a$/i lower")
    server.start()
    with server.connect() as peer:
        for flags, reply in ((0, NOT_FOUND), (FOLD_MUL, found(b"lower"))):
            assert peer.ask(lookup(name, b"A", flags=flags)) == reply


def test_hostile_key_for_pcre_is_retry_and_delays_nobody(server: ServerProcess) -> None:
    name = rule_file(server, "pcre", "/^fast$/ served", CATASTROPHE)
    cdb = server.cdb("t", {b"fast": b"served"})
    server.start()
    with server.connect() as hostile, server.connect() as other:
        others_are_served(other, name, cdb)
        for _ in range(3):
            hostile.send(lookup(name, HOSTILE))
            other.send(lookup(name, b"fast"))
            assert other.reply() == found(b"served")
            assert hostile.reply() == RETRY
        others_are_served(other, name, cdb)
    server.wait_log(
        f"{name.decode()} lookup error: pcre map {name[5:].decode()}, line 2: matching takes too long"
    )


def test_hostile_keys_for_regexp_are_retry_and_delay_nobody(server: ServerProcess) -> None:
    """Even when all workers of the table are stuck; other rules of it are still tried on the loop."""
    name = rule_file(server, "regexp", "/^fast$/ served", "if /^a/", BACK_REFERENCES, "endif")
    pcre = rule_file(server, "pcre", "/^fast$/ served", r"/^(a+)+b/ slow")
    cdb = server.cdb("t", {b"fast": b"served"})
    server.start()
    hostile = [server.connect() for _ in range(6)]
    with server.connect() as other:
        others_are_served(other, pcre, cdb)
        for peer in hostile:
            peer.send(lookup(name, HOSTILE))
        others_are_served(other, pcre, cdb)
        assert any(is_unanswered(peer) for peer in hostile)
        for peer in hostile:
            assert peer.reply() == RETRY
        others_are_served(other, pcre, cdb)
        assert other.ask(lookup(pcre, b"a" * 20 + b"b")) == found(b"slow")
    for peer in hostile:
        peer.close()
    server.wait_log(f"{name.decode()} lookup error: no answer within 1 s")
