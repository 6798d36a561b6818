"""server - a server of Redis as tables share it: who is asked, who is down, and what the log says of that

All tables with the same `uri`, login and limits share it (`server_for`), and it ends with the
last of them. Lookups are made by the tables' workers; one thread, the keeper, learns where the
masters are, and has others find out whether a node that is down is well again.

A node that cannot be connected to is down: what it would be asked is RETRY at once, until it
answers. One whose answer takes too long is asked PING, which decides.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Hashable
from functools import partial
from typing import Any
from weakref import WeakSet, WeakValueDictionary, finalize

from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as TimedOut

from proxymap.base.threads import start_thread
from proxymap.config.maincf import mask_secrets
from proxymap.errors import QuestionRefused, TableRetry
from proxymap.metrics._counters import ANSWERS, LATE, RETRIES, SHED
from proxymap.tables.databases.hosts import Hosts
from proxymap.tables.databases.limits import ServerLimits, server_limits
from proxymap.tables.databases.redispy.nodes import Command, Node
from proxymap.tables.databases.redispy.places import Place
from proxymap.tables.databases.redispy.routes import address_of, route_to
from proxymap.tables.databases.redispy.walks import Walks
from proxymap.tables.databases.reports import Reports, given_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables._table import Table
    from proxymap.tables.base import Host

HOPS = 4  # nodes of a cluster that may be asked for one key, each told by the one before
PROBE_EACH = 0.25  # seconds between two probes of a node that is down, in the first minute
FIND_EACH = 0.25  # seconds between two looks for masters while there is trouble
TRIM_EACH = 10.0  # seconds between two looks at connections that rest
# Codes of errors that show that masters change; redis-py has classes for some, and takes the code away.
UNSETTLED = ("CLUSTERDOWN", "MASTERDOWN", "READONLY", "MOVED")
CODES: list[tuple[type[ResponseError], str]] = [
    (MovedError, "MOVED"), (AskError, "ASK"), (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"), (ReadOnlyError, "READONLY"),
]  # fmt: skip


class Service:
    """What the threads share. See Server, which is what tables have."""

    def __init__(self, place: Place, limits: ServerLimits, timeout: float, host: Host) -> None:
        self.place, self.limits, self.timeout, self.warn = place, limits, timeout, host.warn
        self.tables: WeakSet[Table] = WeakSet()
        self.walks: WeakSet[Walks] = WeakSet()
        self.route = route_to(place, timeout, host.inform)
        self.hosts = Hosts([], 1, min(PROBE_EACH, limits.probe_interval), limits.longest_gap)
        self.reports = Reports("redis", self.hosts, self, self.tables, host.warn, host.inform, place.shown)
        self.answers = self.retries = self.late = self.shed = self.waiting = 0
        self.spent = 0.0  # seconds
        self.ended = False
        self._room = threading.BoundedSemaphore(limits.connection_limit)
        self._found = threading.Event()  # the first look for masters is over
        self._wake = threading.Event()
        self._unsettled = self._told_of_shedding = False
        self._looked = self._trimmed = 0.0
        self._lock = threading.Lock()
        start_thread(f"redis-{place.shown}", self._keep)

    # Asking, by workers

    def ask(self, key: bytes, *command: bytes | str | int) -> Any:
        """What Redis answers to a command about this key. Raises TableRetry."""
        if not self._found.wait(self.timeout):
            raise TableRetry(f"{self.place.shown}: no answer within {self.timeout:g} s")
        if not self._room.acquire(blocking=False) and not self._wait_for_room():
            self._shed()
            raise TableRetry(f"{self.place.shown}: all {self.limits.connection_limit} connections are busy")
        try:
            return self._ask(key, command)
        finally:
            self._room.release()

    def _wait_for_room(self) -> bool:
        with self._lock:
            self.waiting += 1
        room = self._room.acquire(timeout=self.timeout)
        with self._lock:
            self.waiting -= 1
        return room

    def _shed(self) -> None:
        self.shed += 1
        self.reports.row.count(SHED)
        if not self._told_of_shedding:
            self._told_of_shedding = True
            self.reports.shedding(time.monotonic())
            self._wake.set()

    def tell_when_shedding(self) -> None:
        """Have `reports` told of the next lookup that is answered RETRY for want of a connection."""
        self._told_of_shedding = False

    def _ask(self, key: bytes, command: Command) -> Any:
        began = time.monotonic()
        node, commands = self.route.node_for(key), [command]
        if self.route.look_each and began - self._looked > self.route.look_each:
            self._wake.set()
        for _ in range(HOPS):
            if node.host.down_since is not None:
                raise TableRetry(f"redis server {node.host.address.shown} is down: {node.host.reason}")
            try:
                answer = node.ask(*commands)
            except ResponseError as error:
                node, commands = self._redirected(key, node, command, error)
            except (RedisError, OSError, ValueError) as error:
                if node in self.route.nodes:
                    self._went_wrong(node, began, error)
                    raise TableRetry(f"{node.address.shown}: {shown(error)}") from None
                node = self.route.node_for(key)  # it was a master until now
            else:
                self._answered(node, time.monotonic() - began)
                return answer
        raise TableRetry(f"{node.address.shown}: no node says that it has the key")

    def _redirected(
        self, key: bytes, node: Node, command: Command, error: ResponseError
    ) -> tuple[Node, list[Command]]:
        """Who is to be asked what instead."""
        kind, words = code_of(error)
        if kind in UNSETTLED:
            self._unsettled = True
            self._wake.set()
        if kind in ("MOVED", "ASK") and len(words) == 2:
            name, _, port = words[1].rpartition(":")
            try:
                address = address_of(name.encode(), int(port), node)
            except ValueError:
                raise TableRetry(f"{node.address.shown}: {shown(error)}") from None
            other = self.route.moved(key, address, kind == "MOVED")
            self.retries += 1
            self.reports.row.count(RETRIES)
            return other, [command] if kind == "MOVED" else [["ASKING"], command]
        how = QuestionRefused if kind == "WRONGTYPE" else TableRetry
        raise how(f"{node.address.shown}: {shown(error)}") from error

    def _answered(self, node: Node, seconds: float) -> None:
        with self._lock:
            self.answers += 1
            self.reports.row.count(ANSWERS)
            node.answers += 1
            self.spent += seconds
        if node.host.up_since is None or node.host.down_since is not None:  # as a probe said just now
            self._succeeded(node)

    def _went_wrong(self, node: Node, began: float, error: Exception) -> None:
        if isinstance(error, TimedOut):
            self.late += 1
            self.reports.row.count(LATE)
            self._probe(node)
        elif node.host.down_since is None:
            self._failed(node, began, error)

    def _failed(self, node: Node, began: float, error: Exception, outright: bool = False) -> None:
        reason = shown(error)
        if node not in self.route.nodes:  # not a master any more
            return
        with self._lock:
            down = self.hosts.failed(
                node.host, began, time.monotonic(), reason, answers=self.answers, outright=outright
            )
        if down:
            node.leave()
            self.reports.down(node.host, reason)
        self._wake.set()

    def masters(self) -> list[Node]:
        """All nodes that have keys. Raises TableRetry if one of them is down, or none is known."""
        if not self._found.wait(self.timeout) or not self.route.nodes:
            raise TableRetry(self.route.reason or f"{self.place.shown}: no master is known")
        for node in self.route.nodes:
            if node.host.down_since is not None:
                raise TableRetry(f"redis server {node.host.address.shown} is down: {node.host.reason}")
        return self.route.nodes

    # The keeper

    def _keep(self) -> None:
        """Look after everything, until the last table is gone."""
        while not self.ended:
            self._wake.clear()
            try:
                pause = self._tend(time.monotonic())
            except Exception as error:  # such as no memory
                self.warn(f"redis: {type(error).__name__}: {error}")
                pause = 1.0
            self._found.set()
            self._wake.wait(pause)
        for node in self.route.all_nodes:
            node.leave()

    def _tend(self, now: float) -> float:
        """Seconds until there is something to do."""
        pause = self._find(now)
        self.hosts.all = [node.host for node in self.route.nodes]
        for node in self.route.nodes:
            if node.host.down_since is not None and not node.probed:
                if node.host.next_probe <= now:
                    self._probe(node)
                else:
                    pause = min(pause, node.host.next_probe - now)
        if now - self._trimmed >= TRIM_EACH:
            self._trimmed = now
            for walks in list(self.walks):
                walks.trim(self.limits.idle_limit)
            for node in self.route.all_nodes:
                node.trim(self.limits.idle_limit, self.limits.age_limit)
        if any(node.open for node in self.route.all_nodes):
            pause = min(pause, TRIM_EACH)
        self.reports.tend(now)
        if self.reports.due is not None:
            pause = min(pause, self.reports.due - now)
        return max(0.01, pause)

    def _find(self, now: float) -> float:
        """Learn where the masters are, if it is time; seconds until it is again."""
        nodes = self.route.nodes
        down = not nodes or any(node.host.down_since is not None for node in nodes)
        each = FIND_EACH if down or self._unsettled else self.route.look_each
        idle = self._found.is_set() and not self.route.look_each
        if not idle and now - self._looked >= each:
            self._unsettled = False
            with contextlib.suppress(RedisError, OSError):  # the route knows why
                self.route.find()
            self._looked = time.monotonic()
        return FIND_EACH if (down or self._unsettled) and self.route.look_each else 3600.0

    def _probe(self, node: Node) -> None:
        """Have a thread find out whether the node is well."""
        with self._lock:
            if node.probed:
                return
            node.probed = True
        try:
            start_thread("probing redis", partial(self._try, node))
        except (RuntimeError, MemoryError):  # there will be another turn
            node.probed = False

    def _try(self, node: Node) -> None:
        began, answers = time.monotonic(), node.answers
        try:
            with contextlib.suppress(ResponseError):  # the login does not allow even that
                node.ask(["PING"])
        except Exception as error:
            if node.host.down_since is not None or node.answers == answers:  # a question tells more
                self._failed(node, began, error, outright=True)
        else:
            self._succeeded(node)
        node.probed = False
        self._wake.set()

    def _succeeded(self, node: Node) -> None:
        outage = None
        with self._lock:
            if node in self.route.nodes:
                outage = self.hosts.succeeded(node.host, time.monotonic(), self.answers)
        if outage is not None:
            self.reports.up(node.host, outage)

    # For the administrator

    @property
    def asks(self) -> Service:
        """What `reports` asks how many old answers there were; see `given`."""
        return self

    @property
    def given(self) -> tuple[int, int]:
        """(old answers that stood in, answers of RETRY) that clients got, so far."""
        return given_by(self.tables)

    @property
    def figures(self) -> dict[str, Any]:
        nodes = self.route.all_nodes
        return {
            "open": sum(node.open for node in nodes), "opening": 0, "waiting": self.waiting,
            "busy": sum(node.busy for node in nodes), "limit": self.limits.connection_limit,
            "answers": self.answers, "retries": self.retries, "late": self.late, "shed": self.shed,
            "mean_ms": self.spent * 1000 / (self.answers or 1),
        }  # fmt: skip

    def describe(self) -> dict[str, object]:
        now = time.monotonic()
        told = self.reports.describe(now)
        if not self.route.nodes:
            told["hosts"] = [{
                "host": self.place.shown, "state": told["state"], "seconds": None, "failures": 0,
                "last_error": self.route.reason or None,
            }]  # fmt: skip
        return told


class Server:
    """What tables hold of a server: while there is one of these, its keeper lives."""

    def __init__(self, service: Service) -> None:
        self.service = service
        finalize(self, _end, service).atexit = False

    def attach(self, table: Table) -> None:
        self.service.tables.add(table)

    def new_walks(self) -> Walks:
        """For the walks of a table, which end when they rest for as long as a connection may."""
        made = Walks()
        self.service.walks.add(made)
        return made

    @property
    def shown(self) -> str:
        return self.service.place.shown

    def ask(self, key: bytes, *command: bytes | str | int) -> Any:
        """See Service.ask."""
        return self.service.ask(key, *command)

    def value(self, key: bytes, *command: bytes | str | int) -> bytes | None:
        """The same, where the answer is text, or that there is none. TableRetry: it is neither."""
        return self._as_value(self.service.ask(key, *command))

    def members(self, key: bytes, *command: bytes | str | int) -> list[bytes]:
        """The same, where the answer is a list of texts."""
        found = self.service.ask(key, *command)
        if not isinstance(found, list) or None in found:
            raise TableRetry(f"{self.shown}: the answer is no list of texts")
        return [self._as_value(one) or b"" for one in found]

    def _as_value(self, answer: Any) -> bytes | None:
        if answer is None or isinstance(answer, bytes):
            return answer
        raise TableRetry(f"{self.shown}: the answer is {type(answer).__name__}, and no text")

    def masters(self) -> list[Node]:
        """See Service.masters."""
        return self.service.masters()

    def describe(self) -> dict[str, object]:
        """What is known of it, for the administrator; times in seconds."""
        return self.service.describe()

    def give_up_late(self, limit_ms: int) -> list[Table]:
        """Workers ask, and have their own watchdog."""
        return []

    def close(self, until: float) -> None:
        """For the end of the process: there is no goodbye in this protocol."""
        _end(self.service)


def _end(service: Service) -> None:
    service.ended = True
    service._wake.set()


_servers: WeakValueDictionary[Hashable, Server] = WeakValueDictionary()
_lock = threading.Lock()


def server_for(place: Place, timeout: int, host: Host, type_name: bytes) -> Server:
    """server_for - the server at this place, which all who ask for the same share

    timeout: seconds to connect, and for an answer. host, type_name: for the parameters that hold
    for this table. Raises RuntimeError if there can be no thread.
    """
    limits = server_limits(host, type_name)
    seconds = float(min(timeout, limits.time_limit))
    key = place, limits, seconds
    with _lock:
        server = _servers.get(key)
        if server is None:
            server = _servers[key] = Server(Service(place, limits, seconds, host))
        return server


def code_of(error: ResponseError) -> tuple[str, list[str]]:
    """code_of - the code that Redis gave an error, and the words after it"""
    words = str(error).split() or [""]
    for kind, code in CODES:
        if isinstance(error, kind):
            return code, words[1:] if words[0] == code else words
    return words[0], words[1:]


def shown(error: BaseException) -> str:
    """shown - what redis-py says, on one line, without a password"""
    return mask_secrets(" ".join(str(error).split())) or type(error).__name__
