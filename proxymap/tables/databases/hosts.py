"""hosts - the hosts that a database server consists of: which is next, and which are down

A host is down after `error_limit` failures in a row, when most of what it is asked
fails (a proxy may let us log in before a server that is dead), or when it stays
silent. It is not used then, until a probe in the background succeeds. Probes come at once, then each
`probe_interval` in the first minute, then at gaps that double up to `longest_gap`.
A host that is back has to prove itself: until then one failure is enough.

Source: mysql_table(5), pgsql_table(5), `hosts`: UNIX sockets come first, then
names, then URIs, in random order each.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from proxymap.metrics._counters import ERROR_DOWN, ERROR_FAILED, ERRORS, PROBES, Figures

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables.databases.addresses import Address

ORDER = {"unix": 0, "inet": 1, "uri": 2, "url": 2}
MANY_PROBES = 60.0  # seconds of an outage with a probe each probe_interval
JITTER = 0.2  # part of a gap
RECENT = 10.0  # seconds of which the failures are compared with the answers,
RECENT_LEAST = 20  # if there are so many of both
PROOF = 10  # answers, or seconds, that a host has to prove itself
FIRST_GAP = 0.1  # seconds from a failure to the first probe


class ConnectFailed(Exception):
    """No connection could be made. too_many: the server has as many as it wants."""

    def __init__(self, reason: str, *, too_many: bool = False) -> None:
        super().__init__(reason)
        self.too_many = too_many


class DatabaseHost:
    """One host. Times are those of time.monotonic.

    number: its place in the list. failures: in a row, the latest at failed_at. up_since: None
    before the first connection. down_since: None while it is up. next_probe: when to try
    whether it is up again. reason: of the latest failure. recent: when it failed of late, and
    how many answers it had given by then. proven: at so many answers, or at that time, it has
    proven itself.
    """

    def __init__(self, number: int, address: Address) -> None:
        self.number, self.address = number, address
        self.failures = 0
        self.up_since: float | None = None
        self.down_since: float | None = None
        self.failed_at = 0.0
        self.next_probe = 0.0
        self.gap = 0.0
        self.reason = ""
        self.draw()
        self.recent: deque[tuple[float, int]] = deque()
        self.proven = 0, 0.0

    def mostly_fails(self, now: float, answers: int) -> bool:
        """Count a failure; are there more of them than answers?"""
        self.recent.append((now, answers))
        while now - self.recent[0][0] > RECENT:
            self.recent.popleft()
        failures = len(self.recent)
        asked = failures + answers - self.recent[0][1]
        return asked >= RECENT_LEAST and failures * 2 > asked

    def is_proven(self, now: float, answers: int) -> bool:
        return answers >= self.proven[0] or now >= self.proven[1]

    def draw(self) -> None:
        """Draw lots with others of its kind; those of ldap are taken in order."""
        self.luck = self.number if self.address.kind == "url" else random.random()

    @property
    def state(self) -> str:
        """up, down, or unknown before the first connection."""
        if self.down_since is not None:
            return "down"
        return "unknown" if self.up_since is None else "up"

    def describe(self, now: float) -> dict[str, object]:
        """For the administrator: since when it is in its state, in seconds, and the latest failure."""
        since = self.up_since if self.down_since is None else self.down_since
        return {
            "host": self.address.shown, "state": self.state,
            "seconds": None if since is None else round(now - since), "failures": self.failures,
            "last_error": self.reason or None,
        }  # fmt: skip


class Hosts:
    """The hosts of one server."""

    def __init__(
        self, addresses: Sequence[Address], error_limit: int, probe_interval: float, longest_gap: float
    ) -> None:
        self.all = [DatabaseHost(number, address) for number, address in enumerate(addresses)]
        self.error_limit, self.interval, self.longest_gap = error_limit, probe_interval, longest_gap
        self.row: Figures | None = None  # where failures are counted

    def choose(self) -> DatabaseHost | None:
        """The host for the next connection; None if all are down."""
        up = [host for host in self.all if host.down_since is None]
        return min(up, key=lambda h: (h.failures, ORDER[h.address.kind], h.luck)) if up else None

    @property
    def state(self) -> str:
        """Of all together: up, down, or unknown before the first connection."""
        if self.choose() is None:
            return "down"
        return "up" if any(host.state == "up" for host in self.all) else "unknown"

    def failed(
        self, host: DatabaseHost, began: float, now: float, reason: str,
        *, answers: int = 0, outright: bool = False, row: bool = True,
    ) -> bool:  # fmt: skip
        """Count a failure of what began then; is the host down from now on?

        answers: that the host has given so far. outright: this one is enough. row: it counts among
        those in a row. What had begun when another failed is part of the same trouble, and is not counted.
        """
        if began <= host.failed_at and not outright:
            return False
        host.failed_at = now
        self._count(ERRORS + ERROR_FAILED)
        if host.down_since is not None:
            self._count(PROBES)
        host.failures += row
        host.reason = reason
        mostly = host.mostly_fails(now, answers)
        gap: float = 0.0
        if host.down_since is not None:
            late = now - host.down_since > MANY_PROBES
            host.gap = min(host.gap * 2, self.longest_gap) if late else self.interval
        elif not host.is_proven(now, answers):
            host.down_since = now
            host.gap = min(max(host.gap, self.interval) * 2, self.longest_gap)
        elif outright or mostly or host.failures >= self.error_limit:
            host.down_since = now
            host.gap = self.interval
            gap = FIRST_GAP  # it may have cut its connections, and be up
        else:
            return False
        host.next_probe = now + (gap or host.gap) * random.uniform(1 - JITTER, 1 + JITTER)
        if host.down_since == now:
            self._count(ERRORS + ERROR_DOWN)
        return host.down_since == now

    def _count(self, cell: int) -> None:
        if self.row is not None:
            self.row.count(cell)

    def succeeded(self, host: DatabaseHost, now: float, answers: int = 0) -> float | None:
        """A connection was made; how long was the host down? None: it was up."""
        down_since = host.down_since
        if host.up_since is None or down_since is not None:
            host.up_since = now
        if down_since is not None:
            self._count(PROBES)
            host.proven = answers + PROOF, now + PROOF
            host.recent.clear()
        host.failures = 0
        host.down_since = None
        host.draw()
        return None if down_since is None else now - down_since

    def due(self, now: float) -> list[DatabaseHost]:
        """Those that should be probed."""
        return [host for host in self.all if host.down_since is not None and host.next_probe <= now]
