"""chasing - a directory whose tables follow referrals (chase_referrals): their workers ask, not a driver

Each has a connection of its own, and more to the servers that referrals name (_chase).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from weakref import proxy

from proxymap.config.maincf import ERRORS, TEXT
from proxymap.errors import TableRetry
from proxymap.tables.databases._connection import Attempt, Connection
from proxymap.tables.databases.crewed import CrewedServer
from proxymap.tables.databases.hosts import ConnectFailed, DatabaseHost
from proxymap.tables.databases.limits import ServerLimits
from proxymap.tables.databases.openldap._chase import Chaser
from proxymap.tables.databases.openldap._entries import Form
from proxymap.tables.databases.openldap._login import OpenLDAP
from proxymap.tables.databases.openldap.urls import referral

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables._table import Table
    from proxymap.tables.base import Host
    from proxymap.tables.databases.addresses import Address
    from proxymap.tables.databases.openldap.login import LdapLogin

GRACE = 0.5  # seconds beyond its time after which an attempt to connect is ended from outside
SHUNNED = 10.0  # seconds without another attempt to a server that a referral names


class _Kept:
    """A chaser that nobody uses now. used: when its latest question was over."""

    def __init__(self, host: DatabaseHost, chaser: Chaser) -> None:
        self.host, self.chaser, self.used = host, chaser, time.monotonic()


class ChasingServer(CrewedServer):
    """One list of hosts with one login."""

    def __init__(
        self, addresses: Sequence[Address], login: LdapLogin, limits: ServerLimits, host: Host
    ) -> None:
        super().__init__("ldap", addresses, limits, host)
        self.warn, self.login = host.warn, login
        self.nobody = login._replace(bind="simple", bind_dn="", bind_pw="", start_tls=False)
        self._idle: list[_Kept] = []
        self._attempts: dict[Attempt, float] = {}  # to connect, and when each is to be over
        self._shunned: dict[Address, tuple[float, str]] = {}  # until when, and why
        self._state = threading.Lock()

    def probe(self, address: Address) -> None:
        self._connect(address, self.login, self.limits.connect_time_limit).close()

    def connections(self) -> int:
        with self._state:
            return len(self._idle) + len(self._under_way)

    def search(self, form: Form, text: bytes) -> list[bytes]:
        """The values that base, NUL and filter find. Raises TableRetry, QuestionRefused.

        A connection that was used before may have been closed meanwhile: then it is asked once more.
        """
        until = time.monotonic() + self.limits.time_limit
        with self.asking() as host:
            kept = self._take(host)
            if kept is not None:
                try:
                    return self._ask(host, kept, form, text, until)
                except ConnectFailed:
                    pass
            seconds = min(self.limits.connect_time_limit, max(0.0, until - time.monotonic()))
            main = self._connect(host.address, self.login, seconds)
            reach = partial(ChasingServer._reach, proxy(self))  # it ends with its last table
            return self._ask(host, Chaser(main, referral, reach), form, text, until)

    def _ask(self, host: DatabaseHost, chaser: Chaser, form: Form, text: bytes, until: float) -> list[bytes]:
        good = False
        try:
            found = chaser.search(form, text, max(0, int((until - time.monotonic()) * 1000)))
            good = True
            return found
        except TableRetry:
            good = True
            raise
        finally:
            for line in chaser.take_lines():
                self.warn(line.decode(TEXT, ERRORS))
            if good:
                with self._state:
                    self._idle.append(_Kept(host, chaser))
            else:
                chaser.close()

    def _take(self, host: DatabaseHost) -> Chaser | None:
        """The one that was used last; None: there is none."""
        self._end_old()
        with self._state:
            for kept in reversed(self._idle):
                if kept.host is host:
                    self._idle.remove(kept)
                    return kept.chaser
        return None

    def _end_old(self) -> None:
        now = time.monotonic()
        limits = self.limits
        with self._state:
            old = [
                kept for kept in self._idle
                if now - kept.used > limits.idle_limit or now - kept.chaser.born > limits.age_limit
            ]  # fmt: skip
            self._idle = [kept for kept in self._idle if kept not in old]
        for kept in old:
            kept.chaser.close()

    def _connect(self, address: Address, login: LdapLogin, seconds: float) -> Connection:
        """A connection for one thread, logged in. Raises ConnectFailed, TimeoutError."""
        attempt = Attempt(0)
        with self._state:
            self._attempts[attempt] = time.monotonic() + seconds + GRACE
        try:
            return OpenLDAP(login).connect(address, attempt, int(seconds * 1000))
        finally:
            with self._state:
                del self._attempts[attempt]

    def _reach(self, address: Address, limit_ms: int) -> Connection:
        """For referrals: a connection without login, as stock makes it.

        A server that was given little time, since the lookup had little left, is not shunned for that.
        """
        until, why = self._shunned.get(address, (0.0, ""))
        if time.monotonic() < until:
            raise ConnectFailed(why)
        seconds = min(limit_ms / 1000, self.limits.connect_time_limit)
        try:
            return self._connect(address, self.nobody, seconds)
        except (ConnectFailed, TimeoutError) as error:
            if isinstance(error, ConnectFailed) or seconds >= self.limits.connect_time_limit / 2:
                self._shun(address, str(error) or "no answer in time")
            raise

    def _shun(self, address: Address, why: str) -> None:
        now = time.monotonic()
        with self._state:
            left = {other: shunned for other, shunned in self._shunned.items() if shunned[0] > now}
            self._shunned = left | {address: (now + SHUNNED, why)}

    def give_up_late(self, limit_ms: int) -> list[Table]:
        now = time.monotonic()
        with self._state:
            late = [attempt for attempt, until in self._attempts.items() if now > until]
        for attempt in late:
            attempt.abort()
        self._end_old()
        return super().give_up_late(limit_ms)

    def close(self, until: float) -> None:
        with self._state:
            idle, self._idle = self._idle, []
        for kept in idle:
            kept.chaser.close()
