"""fix_gate - a server in this process, with a table type that tests hold back: slow:t, slow:u ...

    def test_x(gate: Gate) -> None:
        with gated_server(gate, cache_ttl="1m") as server, server.connect() as peer:
            ...

`gate` is a fixture of conftest.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakValueDictionary

import pytest
from fix_server import LIMIT, Peer, found, lookup, write_cdb, write_parameters

from proxymap.config.settings import load
from proxymap.errors import QuestionRefused, TableConfig, TableRetry
from proxymap.server import standalone
from proxymap.server.daemon import Daemon
from proxymap.server.log import Log
from proxymap.tables import opening
from proxymap.tables.base import Change, Opening, SlowTable
from proxymap.tables.types import TABLE_TYPES, TableType

OK, NOKEY, RETRY, BAD, DENY, CONFIG = range(6)
WORKERS = 3
FAST_LOOKUPS = 200


class Gate:
    """What the slow tables of one test do, and have done."""

    time_limit = 10  # seconds: lookup_time_limit

    def __init__(self) -> None:
        self.opens = threading.Event()  # cleared: opening "slow:opens" waits
        self.answers = threading.Event()  # cleared: the lookup of "wait..." waits
        self.opens.set()
        self.writes = threading.Event()  # cleared: writing waits
        self.writes.set()
        self.asked: list[bytes] = []
        self.written: list[list[tuple[bytes, bytes | None]]] = []
        self.opened: list[bytes] = []

    def open_table(self, type_name: bytes, mapname: bytes, opening: Opening) -> SlowTable:
        self.opened.append(type_name)
        if mapname == b"opens":
            assert self.opens.wait(LIMIT)
        elif mapname == b"unforeseen":
            raise ZeroDivisionError("unforeseen")
        elif mapname == b"config":
            raise TableConfig("config says nonsense")
        return GatedTable(self)

    def look_up(self, key: bytes) -> bytes | None:
        self.asked.append(key)
        what = key.partition(b" ")[0]
        if what == b"wait":
            assert self.answers.wait(LIMIT)
        elif what == b"retry":
            raise TableRetry("server is down")
        elif what == b"refuse":
            raise QuestionRefused("no such column")
        elif what == b"config":
            raise TableConfig("no such column")
        elif what == b"bug":
            raise KeyError("oops")
        elif what == b"text":
            return "not bytes"  # type: ignore[return-value]
        elif what == b"number":
            return 5  # type: ignore[return-value]
        elif what == b"nul":
            return b"before\0after"
        elif what == b"large":
            return b"x" * 1_000_000
        elif what == b"no":
            return None
        return b"value of " + key


class GatedTable(SlowTable):
    """Its keys say what happens."""

    has_sequence = has_updates = True

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.walks: dict[int, int] = {}

    def sequence(self, cursor: int, first: bool) -> tuple[bytes, bytes] | None:
        step = self.walks[cursor] = 0 if first else self.walks.get(cursor, -1) + 1
        return (b"k%d" % step, b"v%d" % step) if step < 3 else None

    def write(self, changes: list[Change]) -> None:
        self.gate.written.append([(change.key, change.value) for change in changes])
        assert self.gate.writes.wait(LIMIT)
        for change in changes:
            if change.key == b"full":
                raise OSError(28, "No space left on device")
            change.status = NOKEY if change.key == b"absent" else OK

    def lookup(self, key: bytes) -> bytes | None:
        return self.gate.look_up(key)


class InProcess:
    """A Daemon on a thread, with cdb:DIR/t and slow:t."""

    def __init__(self, folder: Path, gate: Gate, writes: bool = False, **own: str) -> None:
        self.gate = gate
        self.folder = folder
        self.lines: list[str] = []
        self.path = str(folder / "s")
        self.cdbs = [f"cdb:{folder}/t{i}".encode() for i in range(4)]
        for i in range(4):
            write_cdb(folder / f"t{i}.cdb", {b"k%d" % i: b"v%d" % i for i in range(FAST_LOOKUPS)})
        self.union = f"unionmap:{{cdb:{folder}/t0,cdb:{folder}/later}}".encode()
        names = [
            self.union.decode(),
            *(name.decode() for name in self.cdbs),
            "slow:t",
            "slow:u",
            "slow:opens",
            "slow:unforeseen",
            "slow:config",
        ]
        write_parameters(
            folder / "main.cf",
            {
                "compatibility_level": "3.6",
                "proxy_read_maps": " ".join("proxy:" + name for name in names),
                "proxy_write_maps": " ".join("proxy:" + name for name in names),
            },
        )
        write_parameters(
            folder / "proxymap.cf",
            {"worker_count": str(WORKERS), "lookup_time_limit": f"{gate.time_limit}s", **own},
        )
        settings, main_cf = load(str(folder))
        self.sockets = standalone.own_socket(f"unix:{self.path}")
        listeners = self.sockets.__enter__()
        log = Log([lambda level, line: self.lines.append(line)])
        fds = [sock.fileno() for sock in listeners.sockets]
        self.server = Daemon(settings, main_cf, log, fds, writes=writes)
        listeners.publish()
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    def connect(self) -> Peer:
        return Peer(self.path)

    def stop(self) -> None:
        self.gate.opens.set()
        self.gate.answers.set()
        self.gate.writes.set()
        self.server.stop()
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()
        for crew in self.server.workers._all_crews():  # who would open tables of the next test
            crew.stop(time.monotonic() + LIMIT)
            assert not crew.here
        self.sockets.__exit__(None, None, None)

    def fast_lookups_are_served(self, table: int = 0) -> None:
        with self.connect() as peer:
            for i in range(FAST_LOOKUPS):
                assert peer.ask(lookup(self.cdbs[table], b"k%d" % i)) == found(b"v%d" % i)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    module = types.ModuleType("proxymap.tables.gated")
    module.open_table = gate.open_table  # type: ignore[attr-defined]
    monkeypatch.setattr(opening, "_open", WeakValueDictionary())  # another test's tables have another gate
    monkeypatch.setitem(sys.modules, "proxymap.tables.gated", module)
    monkeypatch.setitem(TABLE_TYPES, "slow", TableType("gated", writable=True))
    return gate


@contextlib.contextmanager
def gated_server(gate: Gate, writes: bool = False, **own: str) -> Iterator[InProcess]:
    """A server with these parameters in proxymap.cf."""
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp") as folder:
        server = InProcess(Path(folder), gate, writes, **own)
        try:
            yield server
        finally:
            server.stop()
