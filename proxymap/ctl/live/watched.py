"""watched - what `top` shows: rates between two looks at the counters, servers, keys that are asked most"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from errno import ENOENT
from typing import Any, NamedTuple

from proxymap.ctl.figures import counted_at, sockets_of
from proxymap.ctl.live.following import Follower
from proxymap.errors import ConfigError
from proxymap.metrics import _counters as c
from proxymap.metrics.files import path_beside
from proxymap.metrics.metrics import SOURCES, STATUSES, named
from proxymap.metrics.reading import Counted, histogram, quantile
from proxymap.server.control import ask_all

KEYS_MAX = 1000  # keys that are counted at a time
LOOKUPS, SECONDS = named(["proxymap_lookups_total", "proxymap_lookup_seconds"])

Row = dict[str, Any]


class HotKeys:
    """Counts keys in bounded memory: a new one takes the place, and the count, of the least frequent.

    Source: Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k Elements (2005).
    """

    def __init__(self) -> None:
        self.total = 0
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, table: str, key: str) -> None:
        """One more lookup."""
        self.total += 1
        one = table, key
        before = self._counts.get(one)
        if before is None and len(self._counts) >= KEYS_MAX:
            least = min(self._counts, key=self._counts.__getitem__)
            before = self._counts.pop(least)
        self._counts[one] = (before or 0) + 1

    def most(self, count: int) -> list[Row]:
        """The most frequent, with their shares of all, and forget half of what was counted."""
        order = sorted(self._counts.items(), key=lambda item: -item[1])
        rows = [
            {"table": table, "key": key, "share": number / self.total}
            for (table, key), number in order[:count]
        ]
        self.total //= 2
        self._counts = {one: number // 2 for one, number in order if number > 1}
        return rows


class Keys:
    """Hot keys of all processes, as long as it lives: a sample of their lookups, followed by a thread.

    trouble: why there are none.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.trouble = ""
        self._hot, self._lock, self._over = HotKeys(), threading.Lock(), False
        self._thread = threading.Thread(target=self._run, args=(arguments,), daemon=True)
        self._thread.start()

    def _run(self, arguments: argparse.Namespace) -> None:
        try:
            with Follower(arguments, lambda text: None, do="trace") as follower:
                for told in follower:
                    if self._over:
                        return
                    if told is not None and "key" in told[1]:
                        with self._lock:
                            self._hot.add(told[1]["table"], told[1]["key"])
        except (OSError, ConfigError, KeyError, TypeError, ValueError) as error:
            self.trouble = getattr(error, "strerror", None) or str(error)

    def most(self, count: int) -> list[Row]:
        with self._lock:
            return self._hot.most(count)

    def end(self) -> None:
        self._over = True


class Servers:
    """What the processes say of their database servers; asked by a thread, since one may hang."""

    def __init__(self, sockets: list[str]) -> None:
        self.latest: list[tuple[int, Row]] = []
        self.processes = 0
        self._asked, self._wanted = threading.Event(), threading.Event()
        self._sockets = sockets
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, patience: float) -> None:
        """Ask anew; wait for the answer, but not for longer than that."""
        self._asked.clear()
        self._wanted.set()
        self._asked.wait(patience)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            latest: list[tuple[int, Row]] = []
            processes = 0
            for path in self._sockets:
                with contextlib.suppress(OSError):
                    for pid, reply in ask_all(path, do="servers"):
                        processes += 1
                        latest += [(pid, server) for server in reply.get("ok", ())]
            self.latest, self.processes = latest, processes
            self._asked.set()


class Look(NamedTuple):
    """What was there at one time."""

    at: float  # by time.monotonic
    counted: list[Counted]
    servers: list[tuple[int, Row]]
    processes: int


class Watched:
    """Looks at services again and again; `frame` has what happened between the latest two looks."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.sockets = sockets_of(arguments)
        self.servers = Servers(self.sockets)
        self.keys = Keys(arguments)
        self.now = self.before = self._look()
        if not self.now.counted and not self.now.processes:
            raise OSError(ENOENT, "no server has counted anything there", path_beside(self.sockets[0]))

    def look(self) -> None:
        self.before, self.now = self.now, self._look()

    def _look(self) -> Look:
        """ConfigError if the counters cannot be read."""
        counted = [found for path in self.sockets if (found := counted_at(path)) is not None]
        self.servers.ask(1.0)
        return Look(time.monotonic(), counted, self.servers.latest, self.servers.processes)

    def frame(self, keys: int) -> Row:
        seconds = max(self.now.at - self.before.at, 1e-3)
        tables = _tables(self.before.counted, self.now.counted, seconds)
        lookups = sum(table["lookups"] for table in tables)
        return {
            "time": round(time.time(), 3), "seconds": round(seconds, 3), "processes": self.now.processes,
            "rate": lookups / seconds, "tables": tables,
            "servers": _servers(self.before.servers, self.now.servers, seconds),
            "keys": self.keys.most(keys), "keys_trouble": self.keys.trouble or None,
        }  # fmt: skip


def _tables(before: list[Counted], now: list[Counted], seconds: float) -> list[Row]:
    """A row for each table, the busiest first."""
    old = {counted.service: counted for counted in before}
    rows = []
    for counted in now:
        for (kind, name), cells in counted.rows.items():
            if kind == c.OF_TABLE:
                cells_before = (
                    old[counted.service].of(kind, name) if counted.service in old else [0] * len(cells)
                )
                grown = [max(b - a, 0) for a, b in zip(cells_before, cells, strict=True)]
                rows.append({"service": counted.service, "table": name, **_table(grown, seconds)})
    return sorted(rows, key=lambda row: (-row["rate"], row["service"], row["table"]))


def _table(grown: list[int], seconds: float) -> Row:
    """What has happened to a table, from what its cells have grown by."""
    by_source = dict.fromkeys(SOURCES, 0)
    errors = 0
    for (result, source), cell in LOOKUPS.cells.items():
        by_source[source] += grown[cell]
        if STATUSES[result] in (STATUSES["retry"], STATUSES["config"]):
            errors += grown[cell]
    total = sum(by_source.values())
    waits = histogram(SECONDS, grown)
    return {
        "rate": total / seconds, "lookups": total, "sources": by_source, "errors": errors,
        "hits": (by_source["cache"] + by_source["stale"]) / total if total else None,
        "p50": quantile(SECONDS, waits.counts, waits.total, 0.5),
        "p99": quantile(SECONDS, waits.counts, waits.total, 0.99),
    }  # fmt: skip


def _servers(before: list[tuple[int, Row]], now: list[tuple[int, Row]], seconds: float) -> list[Row]:
    """A row for each server of each process."""
    old = {(pid, server.get("server")): server for pid, server in before}
    rows = []
    for pid, server in now:
        earlier = old.get((pid, server.get("server")), server)
        rates = {
            name: max(server.get(name, 0) - earlier.get(name, 0), 0) / seconds
            for name in ("answers", "late", "shed")
        }
        kept = {
            name: server.get(name)
            for name in ("server", "state", "open", "limit", "busy", "waiting", "mean_ms")
        }
        rows.append({"process": pid, **kept, **{f"{name}_rate": rate for name, rate in rates.items()}})
    return sorted(rows, key=lambda row: (-row["answers_rate"], str(row["server"]), row["process"]))
