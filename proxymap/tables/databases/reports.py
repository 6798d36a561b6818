"""reports - what the log and the administrator are told of a database server

One line when a host goes down, one when it is back, one a minute while lookups are
shed. The rest is for `proxymapctl servers`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection

from proxymap.metrics._counters import OF_SERVER, Figures
from proxymap.tables.databases.hosts import DatabaseHost, Hosts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from proxymap.tables._table import Table

    class Asked(Protocol):
        """What asks the server, such as a Driver. asks: a queue, for its `given`."""

        @property
        def asks(self) -> Any: ...
        @property
        def figures(self) -> dict[str, Any]: ...
        def tell_when_shedding(self) -> None: ...


FIRST = 1.0  # seconds from the first lookup that is shed to the line in the log
NEXT = 60.0  # the same to the line after that


class Reports:
    """Of one server. tables: those that share it."""

    def __init__(
        self, maptype: str, hosts: Hosts, driver: Asked, tables: Collection[Table],
        warn: Callable[[str], None], inform: Callable[[str], None], name: str = "",
    ) -> None:  # fmt: skip
        """name: of the server; else it is that of its hosts."""
        self.maptype, self.hosts, self.driver, self.tables = maptype, hosts, driver, tables
        self.warn, self.inform = warn, inform
        self.name = f"{maptype} {name or self._shown()}"
        self.row = hosts.row = Figures(OF_SERVER, os.fsencode(self.name))  # what all processes count of it
        self.due: float | None = None  # when to look again whether lookups are shed
        self._since = time.monotonic()
        self._shed = 0  # so many were when the log was last told
        self._given: tuple[int, int] | None = None  # old answers and deferred ones when the server went down

    def down(self, host: DatabaseHost, reason: str) -> None:
        """The host is down from now on."""
        count = len(self.tables)
        tables = f"{count} table" if count == 1 else f"{count} tables"
        memory = ""
        if self.hosts.choose() is None:
            self._given = self._given or self.driver.asks.given
            oldest = max((table.stale_ttl for table in list(self.tables)), default=0)
            memory = f", answering from memory up to {shown_time(oldest)} old" if oldest else ""
        self.warn(f"{self.maptype} server {host.address.shown} is down: {reason}; used by {tables}{memory}")

    def up(self, host: DatabaseHost, seconds: float) -> None:
        """The host was down for so long, and is up."""
        line = f"{self.maptype} server {host.address.shown} is up again after {seconds:.0f}s"
        if self._given is not None:
            old, deferred = (
                now - then for now, then in zip(self.driver.asks.given, self._given, strict=True)
            )
            line += f"; {old} lookups from memory, {deferred} deferred"
            self._given = None
        self.inform(line)

    def shedding(self, now: float) -> None:
        """Lookups are shed, the first one just now."""
        self.due = now + FIRST

    def tend(self, now: float) -> None:
        """Say how many were shed; no more once there are none."""
        if self.due is None or now < self.due:
            return
        figures = self.driver.figures
        if figures["shed"] == self._shed:
            self.due = None
            self.driver.tell_when_shedding()
            return
        count = figures["shed"] - self._shed
        self.warn(
            f"{self.maptype} server {self._shown()} is too slow for what it is asked: {count} lookups"
            f" were deferred at once, since they would have come too late; {figures['waiting']} wait,"
            f" {figures['mean_ms']:.0f} ms each, {figures['limit']} connections"
        )
        self._shed = figures["shed"]
        self.due = now + NEXT

    def describe(self, now: float) -> dict[str, object]:
        """What is known of it, for the administrator; times in seconds."""
        return {
            "server": self.name, "state": self.hosts.state,
            "hosts": [host.describe(now) for host in self.hosts.all],
            "tables": sorted(os.fsdecode(table.type_name) for table in list(self.tables)),
            "seconds": now - self._since, **self.driver.figures,
        }  # fmt: skip

    def _shown(self) -> str:
        return ", ".join(host.address.shown for host in self.hosts.all)


def queues_of(tables: Collection[Table]) -> list[Any]:
    """queues_of - what the tables' crews take questions from"""
    crews = [table.crews for table in list(tables)]
    return [crew[1] for crew in crews if isinstance(crew, tuple) and crew[1] is not None]


def given_by(tables: Collection[Table]) -> tuple[int, int]:
    """given_by - how many old answers the tables' crews gave clients, and how many answers of RETRY"""
    counts = [queue.given for queue in queues_of(tables)]
    return sum(old for old, _ in counts), sum(deferred for _, deferred in counts)


def shown_time(seconds: float) -> str:
    """shown_time - as one would write it in proxymap.cf"""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds:.0f}s"
