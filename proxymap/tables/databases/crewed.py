"""crewed - a database server that workers ask, as tables share it: is it up, and what the log says of it

Where the client library can only be waited for (mongodb; ldap that follows referrals) a table's
crew asks, each thread one question at a time. A server that is down is not asked: RETRY at once,
until a probe in the background succeeds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any
from weakref import WeakSet, WeakValueDictionary, proxy

from proxymap.base.threads import start_thread
from proxymap.errors import ServerDown, TableRetry
from proxymap.metrics._counters import ANSWERS, LATE
from proxymap.tables.databases.hosts import ConnectFailed, DatabaseHost, Hosts
from proxymap.tables.databases.limits import ServerLimits
from proxymap.tables.databases.reports import Reports, given_by, queues_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables._table import Table
    from proxymap.tables.base import Host
    from proxymap.tables.databases.addresses import Address

NEWEST = 0.1  # part of the mean that the latest answer has


class CrewedServer:
    """What tables hold of it."""

    def __init__(self, maptype: str, addresses: Sequence[Address], limits: ServerLimits, host: Host) -> None:
        self.limits = limits
        self.hosts = Hosts(addresses, limits.error_limit, limits.probe_interval, limits.longest_gap)
        self.tables: WeakSet[Table] = WeakSet()
        self.reports = Reports(maptype, self.hosts, proxy(self), self.tables, host.warn, host.inform)
        self.shown = ", ".join(address.shown for address in addresses)
        self._lock = threading.Lock()
        self._answers = [0] * len(addresses)  # of each host
        self._probed: set[int] = set()  # hosts that a thread looks after
        self._late = 0
        self._under_way: dict[object, tuple[DatabaseHost, float]] = {}  # questions, and when they began
        self._mean = 0.0  # seconds that a question takes

    def probe(self, address: Address) -> None:
        """Try whether the host can be used, within connect_time_limit; raises what keeps us from it."""
        raise NotImplementedError

    def connections(self) -> int | None:
        """How many are open; None: not known."""
        return None

    def attach(self, table: Table) -> None:
        """The table's crew will ask."""
        self.tables.add(table)

    @contextlib.contextmanager
    def asking(self) -> Iterator[DatabaseHost]:
        """A question to the host that is given; ConnectFailed and TimeoutError within count against it.

        Raises ServerDown at once if all hosts are down, TableRetry for what counts.
        """
        question, began = object(), time.monotonic()
        host = self._begin(question, began)
        try:
            yield host
        except (ConnectFailed, TimeoutError) as error:
            reason = " ".join(str(error).split()) or f"no answer within {time.monotonic() - began:.0f}s"
            self._failed(host, began, reason, late=isinstance(error, TimeoutError))
            raise TableRetry(
                reason if host.address.shown in reason else f"{host.address.shown}: {reason}"
            ) from None
        else:
            self._answered(host, began)
        finally:
            with self._lock:
                del self._under_way[question]

    def _begin(self, question: object, began: float) -> DatabaseHost:
        with self._lock:
            host = self.hosts.choose()
            if host is not None:
                self._under_way[question] = host, began
                return host
        reasons = "; ".join(f"{host.address.shown}: {host.reason}" for host in self.hosts.all)
        raise ServerDown(f"its server is down: {reasons}")

    def _answered(self, host: DatabaseHost, began: float) -> None:
        now = time.monotonic()
        with self._lock:
            self._answers[host.number] += 1
            self.reports.row.count(ANSWERS)
            self._mean += (now - began - self._mean) * (NEWEST if self._mean else 1)
            if host.down_since is None and (host.up_since is None or host.failures):
                self.hosts.succeeded(host, now, self._answers[host.number])

    def _failed(self, host: DatabaseHost, began: float, reason: str, late: bool) -> None:
        """late: it may be slow, or silent: a probe tells."""
        with self._lock:
            self._late += late
            self.reports.row.count(LATE, late)
            down = self._count_failure(host, began, reason)
        if down or late:
            self._have_probed(host)

    def _have_probed(self, host: DatabaseHost) -> None:
        """Have a thread look after the host, unless one does."""
        with self._lock:
            if host.number in self._probed or not self.tables:
                return
            self._probed.add(host.number)
        try:
            start_thread("probing", lambda: self._look_after(host))
        except (RuntimeError, MemoryError):  # `give_up_late` tries again
            self._probed.discard(host.number)

    def _count_failure(self, host: DatabaseHost, began: float, reason: str, outright: bool = False) -> bool:
        """With the lock: is the host down from now on?"""
        answers = self._answers[host.number]
        down = self.hosts.failed(host, began, time.monotonic(), reason, answers=answers, outright=outright)
        if down:
            self.reports.down(host, reason)
        return down

    # A thread of its own, while a host is down or suspected

    def _look_after(self, host: DatabaseHost) -> None:
        """Probe the host until it is up, or nobody wants it any more."""
        try:
            while self.tables:
                if host.down_since is not None:
                    time.sleep(max(0.01, host.next_probe - time.monotonic()))
                if self._is_up(host):
                    break
        finally:
            self._probed.discard(host.number)

    def _is_up(self, host: DatabaseHost) -> bool:
        began, answers = time.monotonic(), self._answers[host.number]
        try:
            self.probe(host.address)
        except Exception as error:  # whatever it is, it cannot be used
            with self._lock:
                if host.down_since is None and self._answers[host.number] > answers:
                    return True  # a question tells more, and was answered meanwhile
                self._count_failure(host, began, str(error) or "no answer", outright=True)
            return False
        with self._lock:
            outage = self.hosts.succeeded(host, time.monotonic(), self._answers[host.number])
        if outage is not None:
            self.reports.up(host, outage)
        return True

    # For the administrator, and the end

    def describe(self) -> dict[str, object]:
        """See pool.Server.describe."""
        return self.reports.describe(time.monotonic())

    @property
    def figures(self) -> dict[str, Any]:
        """As _driver.Driver has them; None: not known."""
        return {
            "open": self.connections(), "opening": 0, "busy": len(self._under_way),
            "waiting": sum(queue.held for queue in queues_of(self.tables)), "limit": None,
            "answers": sum(self._answers), "retries": 0, "late": self._late, "shed": 0,
            "mean_ms": self._mean * 1000,
        }  # fmt: skip

    @property
    def asks(self) -> CrewedServer:
        """What `reports` asks for `given`."""
        return self

    @property
    def given(self) -> tuple[int, int]:
        """How many answers clients were given from memory, and how many were deferred."""
        return given_by(self.tables)

    def tell_when_shedding(self) -> None:
        """It sheds none: what waits too long is for the crews' watchdog."""

    def give_up_late(self, limit_ms: int) -> list[Table]:
        """Have a host probed that has a question for long, or is down and has lost its thread.

        Nothing is answered here, but by the crews' watchdog.
        """
        since = time.monotonic() - self.limits.connect_time_limit
        with self._lock:
            doubtful = [host for host, began in self._under_way.values() if began < since]
            doubtful += [host for host in self.hosts.all if host.down_since is not None]
        for host in doubtful:
            self._have_probed(host)
        return []

    def close(self, until: float) -> None:
        """For the end of the process."""


_servers: WeakValueDictionary[Hashable, CrewedServer] = WeakValueDictionary()
_lock = threading.Lock()


def crewed_server(key: Hashable, make: Callable[[], CrewedServer]) -> CrewedServer:
    """crewed_server - the server of this key, which all who ask for the same share; made if there is none"""
    with _lock:
        server = _servers.get(key)
        if server is None:
            server = _servers[key] = make()
        return server
