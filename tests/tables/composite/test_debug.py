"""test_debug - debug:type:name answers as the table does, and logs what it is asked"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from contract import BOTH, NOKEY, OK
from fix_postfix import StockPostfix, dialect, release, unavailable
from fix_server import FOLD_FIX, LOCK, NOT_FOUND, Peer, ServerProcess, found, lookup, request, write_cdb

from proxymap.errors import TableRetry
from proxymap.tables.base import Change, Host
from proxymap.tables.opening import open_table

RETRY_REPLY = [(b"status", b"2"), (b"value", b"")]


class Said(Host):
    """A host that notes what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(warn=self.lines.append)
        self.inform = self.lines.append


@pytest.fixture
def host() -> Said:
    return Said()


@pytest.mark.parametrize(
    ("table", "value", "lines"),
    [
        ("static:x", b"x", ['static:x lookup: "k" = "x"']),
        ("inline:{a=1, b=2}", None, ['inline:{a=1, b=2} lookup: "k" = "not_found"']),
        ("static:a b", b"a b", ['static:a b lookup: "k" = "a b"']),
        ("debug:static:y", b"y", ['static:y lookup: "k" = "y"', 'debug:static:y lookup: "k" = "y"']),
    ],
)
def test_lookup_is_answered_and_logged(host: Said, table: str, value: bytes | None, lines: list[str]) -> None:
    assert open_table(f"debug:{table}".encode(), host=host).answer(b"k", 0) == value
    assert host.lines == lines


def test_trouble_is_an_error(host: Said) -> None:
    table = open_table(b"debug:fail:x", host=host)
    with pytest.raises(TableRetry):
        table.answer(b"k", 0)
    assert host.lines == ['fail:x lookup: "k" = "error"']


def test_member_is_logged(host: Said) -> None:
    table = open_table(b"pipemap:{debug:static:a, debug:inline:{a=1}}", host=host)
    assert table.answer(b"k", 0) == b"1"
    assert host.lines == ['static:a lookup: "k" = "a"', 'inline:{a=1} lookup: "a" = "1"']


@pytest.mark.parametrize("name", ["debug:x", "debug:nosuch:x", "debug:cdb:/nonexistent"])
def test_table_that_does_not_open_is_retry(host: Said, name: str) -> None:
    with pytest.raises(TableRetry):
        open_table(name.encode(), host=host).answer(b"k", 0)
    assert "is unavailable" in host.lines[0]


def test_flags_and_try_bits_are_the_tables(tmp_path: Path, host: Said) -> None:
    write_cdb(tmp_path / "t.cdb", {b"k\0": b"v\0", b"n": b"w"})
    name = f"cdb:{tmp_path}/t".encode()
    plain, debug = open_table(name, host=host), open_table(b"debug:" + name, host=host)
    assert debug.flags == plain.flags
    for key in (b"k", b"n", b"none"):
        assert debug.ask(key, BOTH) == plain.ask(key, BOTH)
    assert [debug.ask(key, BOTH)[0] for key in (b"k", b"n", b"none")] == [OK, OK, NOKEY]


def test_changed_file_is_seen(tmp_path: Path) -> None:
    with ServerProcess() as server:
        name = b"debug:" + server.cdb("t", {b"k": b"old"})
        server.approve(name)
        with server.start().connect() as peer:
            assert peer.ask(lookup(name, b"k")) == found(b"old")
            write_cdb(server.dir / "new.cdb", {b"k": b"new"})
            os.rename(server.dir / "new.cdb", server.dir / "t.cdb")
            assert peer.ask(lookup(name, b"k")) == found(b"new")
            server.wait_log('/t lookup: "k" = "new"')


def test_walk_passes_through(tmp_path: Path) -> None:
    with ServerProcess() as server:
        name = b"debug:" + server.cdb("t", {b"k": b"v"})
        server.approve(name)
        with server.start().connect() as peer:
            first = [(b"status", b"0"), (b"key", b"k"), (b"value", b"v")]
            assert peer.ask(request("sequence", name, function=0)) == first
            assert peer.ask(request("sequence", name, function=1))[0] == (b"status", b"1")


def test_updates_are_made_and_logged(tmp_path: Path, host: Said) -> None:
    table = open_table(f"debug:lmdb:{tmp_path}/t".encode(), writes=True, host=host)
    table.write([Change(b"k", b"v", BOTH), Change(b"none", None, BOTH)])
    assert open_table(f"lmdb:{tmp_path}/t".encode(), host=host).answer(b"k", BOTH) == b"v"
    assert host.lines == [
        f'lmdb:{tmp_path}/t update: "k" = "v": success',
        f'lmdb:{tmp_path}/t delete: "none": failed',
    ]


@pytest.mark.skipif(release() < (3, 11), reason="from Postfix 3.11 on")
def test_answers_as_stock() -> None:
    if reason := unavailable():
        pytest.skip(reason)
    tables = [
        *("debug:static:x", "debug:inline:{a=1, b=2}", "debug:fail:x", "debug:debug:static:y"),
        *("unionmap:{debug:static:a, inline:{k=c}}", "pipemap:{debug:static:a, debug:inline:{a=1}}"),
        *("debug:nosuch:x", "debug:cidr:{{1.2.3.0/24 net}}", "debug:unix:passwd.byname"),
    ]
    listed = ", ".join(f"proxy:{table}" for table in tables)

    def replies(peer: Peer, table: str) -> list[object]:
        name, flags = table.encode(), LOCK | FOLD_FIX | 1 << 19
        keys = (b"k", b"A", b"\xc3\x89", b"a\xff", b"1.2.3.4", b"root")
        opened = [peer.ask(request("open", name, flags=flags))]
        if "nosuch" in table:
            opened = [opened[0][:1]]  # stock has other flags for what does not open, which no client obeys
        return [*opened, *(peer.ask(lookup(name, key, flags=flags)) for key in keys)]

    with StockPostfix({"proxy_read_maps": listed}) as stock, ServerProcess() as server:
        server.approve(*tables)
        server.start()
        for table in tables:
            with stock.connect() as theirs, server.connect(dialect()) as ours:
                assert replies(ours, table) == replies(theirs, table), table


def test_reply_is_not_found_and_retry_as_the_table_says() -> None:
    with ServerProcess() as server:
        server.approve(b"debug:inline:{a=1}", b"debug:fail:x")
        with server.start().connect() as peer:
            assert peer.ask(lookup(b"debug:inline:{a=1}", b"b")) == NOT_FOUND
            assert peer.ask(lookup(b"debug:fail:x", b"b")) == RETRY_REPLY
