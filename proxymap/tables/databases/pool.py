"""pool - a database server as tables share it: its connections, its hosts, and what the log says of them

A *server* is one list of hosts with one login. All tables with the same share it
(`server_for`), and it ends with the last of them. Its driver (_driver) has one thread,
which never waits; this module has another, which does what the driver asks for,
and one for each connection that is being opened.

No lookup opens a connection itself, and none is the probe of a host that is down.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Protocol
from weakref import WeakSet, WeakValueDictionary, finalize

from proxymap.base.threads import start_thread
from proxymap.config.maincf import ERRORS, TEXT
from proxymap.errors import TableRetry
from proxymap.tables.databases._connection import ENDED_BROKEN, ENDED_LATE, Attempt, Connection
from proxymap.tables.databases._driver import Driver
from proxymap.tables.databases._waiting import (
    NOTE_DROP,
    NOTE_ENDED,
    NOTE_GROW,
    NOTE_LINES,
    NOTE_SHED,
    NOTE_SUSPECT,
)
from proxymap.tables.databases.hosts import ConnectFailed, DatabaseHost, Hosts
from proxymap.tables.databases.limits import ServerLimits
from proxymap.tables.databases.reports import Reports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables._jobs import Job
    from proxymap.tables._table import Table
    from proxymap.tables.base import Host
    from proxymap.tables.databases.addresses import Address

    class Connector(Protocol):
        """What a module of a client library has: connects with one login."""

        def connect(self, address: Address, attempt: Attempt, limit_ms: int) -> Connection: ...


GRACE = 0.5  # seconds beyond server_connect_time_limit after which an attempt is ended from outside
STUCK_MAX = 8  # attempts to connect, or to cancel, that may hang at the same time
FEWER = 30.0  # seconds with fewer connections, after a server said that it has too many
TURN = 60.0  # seconds between two turns without any reason


class _Trial:
    """A connection that is being opened. wanted: the driver asked for it."""

    def __init__(self, host: DatabaseHost, wanted: bool, limit: float) -> None:
        self.host, self.wanted, self.began = host, wanted, time.monotonic()
        self.deadline = self.began + limit
        self.attempt = Attempt(host.number)
        self.result: Connection | Exception | None = None
        self.abandoned = False


class Pool:
    """The connections of one server."""

    def __init__(
        self, maptype: str, addresses: Sequence[Address], login: object, limits: ServerLimits, host: Host
    ) -> None:
        self.maptype, self.limits, self.warn = maptype, limits, host.warn
        self.connector = _connector(maptype, login, limits)
        self.hosts = Hosts(addresses, limits.error_limit, limits.probe_interval, limits.longest_gap)
        self.tables: WeakSet[Table] = WeakSet()
        self.driver = Driver()
        self.driver.configure(
            limit=limits.connection_limit, time_limit=limits.time_limit, idle_limit=limits.idle_limit,
            age_limit=limits.age_limit, suspect_after=limits.connect_time_limit,
            retry_budget=limits.retry_budget,
        )  # fmt: skip
        self.reports = Reports(maptype, self.hosts, self.driver, self.tables, host.warn, host.inform)
        self.driver.count_in(self.reports.row)
        self.refusing = False
        self._trials: set[_Trial] = set()
        self._finished: deque[_Trial] = deque()
        self._cancelled: set[Connection] = set()
        self._fewer_until: float | None = None
        name = f"{maptype}-{addresses[0].shown}"
        threading.Thread(target=self.driver.run, name=name, daemon=True).start()
        self.thread = threading.Thread(target=self._keep, name=f"{name} pool", daemon=True)
        self.thread.start()

    def describe(self) -> dict[str, object]:
        """See Server.describe."""
        return self.reports.describe(time.monotonic())

    # The pool's thread

    def _keep(self) -> None:
        """Do what the driver asks for, until it has ended."""
        while True:
            note = self.driver.notes.take(self._pause())
            if note is None and self.driver.notes.closed:
                break
            try:
                if note is not None:
                    self._heed(note)
                self._tend(time.monotonic())
            except Exception as error:  # such as no memory; the next note may have more luck
                self.warn(f"{self.maptype}: {type(error).__name__}: {error}")
        for trial in self._trials:
            trial.attempt.abort()

    def _pause(self) -> float:
        """Seconds until there is something to do without a note."""
        now = time.monotonic()
        times = [now + TURN]
        times += [trial.deadline + GRACE for trial in self._trials if not trial.abandoned]
        times += [
            host.next_probe for host in self.hosts.all
            if host.down_since is not None and not self._is_tried(host)
        ]  # fmt: skip
        times += [due for due in (self._fewer_until, self.reports.due) if due is not None]
        return max(0.01, min(times) - now)

    def _heed(self, note: Job) -> None:
        if note.kind == NOTE_GROW:
            self._open(wanted=True)
        elif note.kind == NOTE_ENDED:
            connection, why = self.driver.ended(note)
            host = self.hosts.all[connection.host]
            if why == ENDED_BROKEN and connection.fresh:
                self._failed(host, connection.born, connection.reason)
            elif why == ENDED_BROKEN or (why == ENDED_LATE and not connection.waited):
                self._failed(host, connection.asked, connection.reason, row=False)
            self._close(connection, cancels=why == ENDED_LATE)
        elif note.kind == NOTE_LINES:
            for line in self.driver.take_lines():
                self.warn(line.decode(TEXT, ERRORS))
        elif note.kind == NOTE_SUSPECT:
            host = self.hosts.all[self.driver.suspected(note)]
            if host.down_since is None and not self._is_tried(host):
                self._try(host, wanted=False)
        elif note.kind == NOTE_SHED:
            self.reports.shedding(time.monotonic())
        elif note.kind == NOTE_DROP:
            note.closed()

    def _close(self, connection: Connection, cancels: bool) -> None:
        """cancels: the server is to know, which may take long."""
        if cancels and len(self._cancelled) < STUCK_MAX:
            self._cancelled.add(connection)
            with contextlib.suppress(RuntimeError, MemoryError):  # the system allows no more threads
                start_thread("cancelling", partial(self._cancel, connection))
                return
            self._cancelled.discard(connection)
        connection.close(politely=not connection.suspended)

    def _cancel(self, connection: Connection) -> None:
        """What a thread of its own does."""
        connection.cancel()
        connection.close(politely=False)
        self._cancelled.discard(connection)

    def _tend(self, now: float) -> None:
        """See to attempts that are over, or take too long, and to hosts that are down."""
        while self._finished:
            trial = self._finished.popleft()
            self._trials.discard(trial)
            self._tried(trial)
        for trial in list(self._trials):
            if now > trial.deadline + GRACE and not trial.abandoned:
                trial.attempt.abort()
                trial.abandoned = True
                self._did_not_connect(trial, TimeoutError())
        self.reports.tend(now)
        for host in self.hosts.due(now):
            if not self._is_tried(host):
                self._try(host, wanted=False)
        if self._fewer_until is not None and now >= self._fewer_until:
            self._fewer_until = None
            self.driver.limit = self.limits.connection_limit

    # Connecting

    def _open(self, wanted: bool) -> None:
        """Connect to the host that is next, or see that all are down."""
        host = self.hosts.choose()
        if host is not None:
            self._try(host, wanted)
            return
        if wanted:
            self.driver.not_opened()
        if not self.refusing:
            self.refusing = True
            self.driver.refuse(True)

    def _is_tried(self, host: DatabaseHost) -> bool:
        return any(trial.host is host and not trial.abandoned for trial in self._trials)

    def _try(self, host: DatabaseHost, wanted: bool) -> None:
        trial = _Trial(host, wanted, self.limits.connect_time_limit)
        try:
            if sum(each.abandoned for each in self._trials) >= STUCK_MAX:
                raise TimeoutError
            start_thread("connecting", partial(self._connect, trial))
        except (RuntimeError, MemoryError, TimeoutError) as error:  # the system allows no more threads
            self._did_not_connect(trial, error)
        else:
            self._trials.add(trial)

    def _connect(self, trial: _Trial) -> None:
        """What a thread of its own does."""
        limit_ms = int(self.limits.connect_time_limit * 1000)
        try:
            trial.result = self.connector.connect(trial.host.address, trial.attempt, limit_ms)
            question = None if trial.wanted else getattr(self.connector, "cheapest", None)
            if question is not None and not trial.result.run(question, limit_ms):
                raise ConnectFailed(trial.result.reason)
        except Exception as error:
            trial.result = error
        self._finished.append(trial)
        self.driver.nudge()

    def _tried(self, trial: _Trial) -> None:
        result = trial.result
        if isinstance(result, Connection):
            if trial.abandoned or not self._has_room(trial):
                result.close()
            else:
                self.driver.add(result, trial.wanted)
            self._connected(trial.host)
        elif not trial.abandoned:
            assert result is not None
            self._did_not_connect(trial, result)

    def _has_room(self, trial: _Trial) -> bool:
        """The driver knows of those that it wanted; a probe may be one too many."""
        figures = self.driver.figures
        return trial.wanted or figures["open"] + figures["opening"] < figures["limit"]

    def _connected(self, host: DatabaseHost) -> None:
        outage = self.hosts.succeeded(host, time.monotonic(), self.driver.answers_of(host.number))
        if outage is not None:
            self.reports.up(host, outage)
        if self.refusing:
            self.refusing = False
            self.driver.refuse(False)

    def _did_not_connect(self, trial: _Trial, error: Exception) -> None:
        """Try elsewhere, or again, if the driver wanted the connection."""
        if isinstance(error, ConnectFailed) and error.too_many and self.driver.figures["open"]:
            self._use_fewer(trial, str(error))
            return
        late = isinstance(error, TimeoutError)
        reason = f"no connection within {self.limits.connect_time_limit:g}s" if late else str(error)
        reason = _masked(" ".join(reason.split()), trial.host.address)
        self._failed(trial.host, trial.began, reason, outright=late or trial.host.down_since is not None)
        if trial.wanted or (not self.refusing and self.hosts.choose() is None):
            self._open(trial.wanted)

    def _use_fewer(self, trial: _Trial, reason: str) -> None:
        """The server has too many connections: be content with those that we have, for a while."""
        if trial.wanted:
            self.driver.not_opened()
        if self._fewer_until is None:
            shown = trial.host.address.shown
            self.warn(f"{self.maptype} server {shown} allows no more connections: {reason}")
        self._fewer_until = time.monotonic() + FEWER
        self.driver.limit = max(1, self.driver.figures["open"])

    def _failed(
        self, host: DatabaseHost, began: float, reason: str, *, outright: bool = False, row: bool = True
    ) -> None:
        answers = self.driver.answers_of(host.number)
        if self.hosts.failed(
            host, began, time.monotonic(), reason, answers=answers, outright=outright, row=row
        ):
            self.reports.down(host, reason)
            self.driver.leave(host.number)


class Server:
    """What tables hold of a server: while there is one of these, its threads live."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        finalize(self, pool.driver.stop).atexit = False

    def attach(self, table: Table) -> None:
        """Have the driver answer what the loop asks of the table."""
        self.pool.tables.add(table)
        self.pool.driver.attach(table)
        table.crews = (self,)

    def ask(
        self, table: Table, key: bytes, explain: bool = False
    ) -> tuple[int, bytes, dict[str, object] | None]:
        """Look key up: (status, value, what `explain` tells). Raises TableRetry with the reason."""
        try:
            return self.pool.driver.ask(table, key, explain)
        except TableRetry as error:
            hosts = self.pool.hosts
            if hosts.choose() is not None:
                raise
            reasons = "; ".join(f"{host.address.shown}: {host.reason}" for host in hosts.all)
            raise TableRetry(f"{error}: {reasons}") from None

    def describe(self) -> dict[str, object]:
        """What is known of it, for the administrator; times in seconds, each host with its state."""
        return self.pool.describe()

    def give_up_late(self, limit_ms: int) -> list[Table]:
        """Answer RETRY to all lookups older than that, whatever the driver does; the tables asked."""
        return self.pool.driver.give_up_late(limit_ms)

    def close(self, until: float) -> None:
        """Say goodbye on all connections, until then by time.monotonic; for the end of the process."""
        self.pool.driver.stop()
        self.pool.thread.join(max(0.0, until - time.monotonic()))


_servers: WeakValueDictionary[Hashable, Server] = WeakValueDictionary()
_lock = threading.Lock()


def server_for(
    maptype: str, addresses: Sequence[Address], login: Hashable, limits: ServerLimits, host: Host
) -> Server:
    """server_for - the server with these hosts, login and limits, which all who ask for the same share

    host: where the log is. Raises ImportError without the library.
    """
    key = maptype, tuple(addresses), login, limits
    with _lock:
        server = _servers.get(key)
        if server is None:
            server = _servers[key] = Server(Pool(maptype, addresses, login, limits, host))
        return server


def _masked(text: str, address: Address) -> str:
    """What a library says, without the password that its URI has."""
    if address.kind == "uri":
        for pair in re.findall(r"://[^:@/]*:([^@]*)@|[?&]password=([^&]*)", address.host):
            for secret in filter(None, pair):
                text = text.replace(secret, "***")
    return text


def _connector(maptype: str, login: object, limits: ServerLimits) -> Connector:
    if maptype == "mysql":
        from proxymap.tables.databases._mariadb import MariaDB

        return MariaDB(login, limits.time_limit)
    if maptype == "ldap":
        from proxymap.tables.databases.openldap._login import OpenLDAP

        return OpenLDAP(login)
    from proxymap.tables.databases._pq import PostgreSQL

    return PostgreSQL(login)
