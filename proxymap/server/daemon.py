"""daemon - all around the loop: starts workers and logger, answers control, stops them again

The only file that knows all the parts; it does not know which life (master.py,
standalone.py) it lives. One thread runs the loop, without the GIL; the worker
threads run what needs Python; one thread writes the log.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from proxymap.base.files import NO_FILE
from proxymap.config.approval import FilesInValues, approve
from proxymap.config.maincf import MainCf
from proxymap.config.settings import Settings
from proxymap.errors import ConfigError
from proxymap.metrics._counters import OF_SERVICE, RELOADS, STARTS, Figures
from proxymap.metrics.files import count_in, path_beside
from proxymap.server._loop import END_WOKEN, Loop
from proxymap.server.control import Control, Refused
from proxymap.server.log import Log
from proxymap.server.sockets import are_private
from proxymap.server.threads.workers import Workers
from proxymap.tables._jobs import Queue
from proxymap.tables._table import Table
from proxymap.tables.base import Host
from proxymap.tables.opening import distrust

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from proxymap.server.control import Command
    from proxymap.server.sandbox.entering import Sandbox
    from proxymap.server.tracing.streams import Stream

    T = TypeVar("T")

LOOK = 1.0  # seconds between two looks whether the loop still takes calls
STOP_WAIT = 0.2  # seconds for each thread to finish what it has at the end
LOG_LINES_MAX = 1000  # waiting for the logger; more are lost and counted


class Daemon:
    """Serves the listening sockets `listeners` (descriptors) until its life is over.

    writes: the service is proxywrite, and approves by proxy_write_maps. control: the path
    that its control socket's and its counters' begin with; None: there are none. service: its name
    among the metrics. life: what the loop of a
    child of master(8) has to know: status_fd, generation, max_idle, max_use.
    signal_fd is for signal.set_wakeup_fd: a byte there has the loop return, so that
    Python's signal handlers get to run.
    """

    def __init__(
        self,
        settings: Settings,
        main_cf: MainCf,
        log: Log,
        listeners: list[int],
        *,
        writes: bool,
        control: str | None = None,
        service: str = "",
        **life: int,
    ) -> None:
        self.log, self.writes = log, writes
        self.beside, self.service = control, service or ("proxywrite" if writes else "proxymap")
        self.done, self.lines = Queue(wakes_loop=True), Queue(limit=LOG_LINES_MAX)
        self.wake_fd, self.signal_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.drain_limit = float(settings.drain_time_limit)
        self.private = are_private(listeners)
        self.stopping = False
        self.logger = threading.Thread(target=log.run, args=(self.lines,), name="logger", daemon=True)
        self.workers = Workers(self.done, log, writes)
        self.config = Table(b"configuration")
        self.loop = Loop(
            listeners, self.workers.todo, self.workers.renewals, self.workers.asks, self.done, self.lines,
            self.workers.watch, self.wake_fd, config=self.config, writes=writes,
            **self._obey(settings, main_cf), **life,
        )  # fmt: skip
        self._watch_configuration(settings)
        commands: dict[str, Command] = {
            "tables": self._tables, "servers": self._servers, "known": self._known, "flush": self._flush,
            "reload": self._reload, "trace": self._trace, "figures": self._figures,
            "sandbox": lambda request: self.sandbox.shown if self.sandbox else "none",
        }  # fmt: skip
        self.control = Control(control, commands, log) if control else None
        self.load: Callable[[], tuple[Settings, MainCf]] | None = None  # how to read the configuration anew
        self.sandbox: Sandbox | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._reloading = threading.Lock()
        self._over = False  # the loop takes no more calls

    def settle(self) -> None:
        """Have the counters and the control socket, which lie beside the socket that is served."""
        if self.beside:
            count_in(path_beside(self.beside), self.service, self.log.warning)
        if self.control:
            self.control.listen()

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve. Returns when the loop's life is over, or `stop` was called; what was pending is answered.

        Call `settle` before. ready: called when everything is there but the loop's first turn.
        """
        self.figures = Figures(OF_SERVICE, b"")
        self.figures.count(STARTS)
        self.log.queue = self.lines
        self.logger.start()
        self.workers.start()
        if self.control:
            self.control.start()
        try:
            ready()
            while self.loop.run() == END_WOKEN and not self.stopping:
                self._take_wake()
            self._over = True
            if self.control:
                self.control.stop()  # the loop makes no more calls for it
            left = self.loop.drain(self.drain_limit)
            if left:
                self.log.warning(f"{left} clients were still waiting for a table after {self.drain_limit} s")
        finally:
            self._over = True
            if self.control:
                self.control.stop()
            self.workers.stop(STOP_WAIT)
            self.log.queue = None
            self.lines.close()
            self.logger.join(STOP_WAIT)

    def stop(self) -> None:
        """Have `run` come to its end. May be called by a signal handler or another thread."""
        self.stopping = True
        self._wake()

    def reload(self) -> None:
        """Obey main.cf and proxymap.cf as they are now; connections stay. Any thread but the loop's.

        Raises ConfigError, or Refused where that is master's business; then nothing changes.
        """
        if self.load is None:
            raise Refused('master(8) runs this server: use "postfix reload"')
        with self._reloading:
            try:
                settings, main_cf = self.load()
            except ConfigError as error:
                self.log.error(f"{error}; going on with the previous configuration")
                raise
            self.drain_limit = float(settings.drain_time_limit)
            limits = self._obey(settings, main_cf)
            self.between_turns(lambda: self._configure_loop(settings, limits))
        self.figures.count(RELOADS)
        self.log.info("configuration read anew")

    def _configure_loop(self, settings: Settings, limits: dict[str, Any]) -> None:
        self.loop.configure(**limits)
        self.loop.flush()
        self._watch_configuration(settings)
        self._open_anew(None)

    def _open_anew(self, name: bytes | None) -> None:
        """Have all tables, or those called so, opened by name again, whatever their files look like."""
        with contextlib.suppress(ValueError):  # then nothing is open
            distrust(name if name is None else self._redirect(name))
        self.loop.open_anew(name)

    def between_turns(self, call: Callable[[], T]) -> T:
        """Have the loop's thread make the call while it serves nobody; any thread but that one.

        Raises Refused when the loop has come to its end.
        """
        made = threading.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def report() -> None:
            try:
                results.append(call())
            except BaseException as error:
                errors.append(error)
            made.set()

        self._calls.append(report)
        self._wake()
        while not made.wait(LOOK):
            if self._over:
                raise Refused("the server is ending")
        if errors:
            raise errors[0]
        return results[0]

    def _obey(self, settings: Settings, main_cf: MainCf) -> dict[str, Any]:
        """Give the workers what they need of the configuration; returns what the loop needs."""
        approved = self.approved = approve(settings, main_cf, self.writes, self.log.warning)
        parameter = "proxy_write_maps" if self.writes else "proxy_read_maps"
        for type_name in sorted(approved):
            self.log.debug(f"allowlisting {os.fsdecode(type_name)} from {parameter}")
        cached = () if self.writes else settings.cache_maptypes  # what is written to changes too often
        host = Host(
            settings.smtputf8_enable, self.log.warning, main_cf.get, settings.lmdb_replace_damaged,
            settings.lmdb_index_size,
        )  # fmt: skip
        host.files_refused = FilesInValues(settings, main_cf, self.private).refusal
        host.inform, host.any_bytes = self.log.info, settings.takes_any_bytes
        host.outside = lambda type_name: self.sandbox.outside(type_name, main_cf.get) if self.sandbox else ""
        if settings.non_bdb_migration_level != "disable":
            from proxymap.tables.migration import redirection

            host.redirect = redirection(settings, host)
        self._redirect = host.redirect
        host.server_limits = lambda type_name: {
            **settings.tables.group("server_", type_name), "time_limit": settings.lookup_time_limit,
            "retry_budget": settings.tables.of(type_name)["retry_budget_percent"],
        }  # fmt: skip
        self.workers.configure(
            host, count=settings.worker_count, time_limit=settings.lookup_time_limit,
            open_time_limit=settings.open_time_limit, value_limit=settings.value_size_limit, cached=cached,
            keeps=lambda type_name: {} if self.writes else settings.tables.group("cache_", type_name),
            slow=lambda type_name: settings.tables.of(type_name)["slow_lookup_log_limit"],
        )  # fmt: skip
        return {
            "approved": approved, "utf8_layer": settings.smtputf8_enable, "greeting": settings.greets,
            "cache_size": 0 if self.writes else settings.cache_size,
            "cache_negative_share": settings.cache_negative_share,
            "request_size_limit": settings.request_size_limit,
            "buffer_size_limit": settings.buffer_size_limit, "ipc_timeout": settings.ipc_timeout,
            "value_size_limit": settings.value_size_limit, "waiting_limit": settings.waiting_limit,
        }  # fmt: skip

    def _watch_configuration(self, settings: Settings) -> None:
        """Have changes of main.cf and proxymap.cf told. The loop reads what this sets: not while it runs."""
        directory = os.fsencode(settings.config_directory)
        paths = [os.path.join(directory, name) for name in (b"main.cf", b"proxymap.cf")]
        self.config.loaded_from([(path, NO_FILE) for path in paths])
        self.config.watch(self.workers.watch)
        self.config.refuse(self.config.stamps())  # only later changes count

    # What control asks for

    def _tables(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        return self.between_turns(self.loop.tables)

    def _figures(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.between_turns(self.loop.counters)

    def _servers(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        return [server.describe() for server in self.workers.servers()]

    def _known(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """What the cache has of some keys."""
        try:
            name, keys = os.fsencode(request["table"]), [os.fsencode(key) for key in request["keys"]]
        except (KeyError, TypeError, UnicodeError):
            raise Refused('expected "table": a name, "keys": a list of keys') from None
        return self.between_turns(lambda: [one for key in keys for one in self.loop.known(name, key)])

    def _flush(self, request: dict[str, Any]) -> dict[str, int]:
        """How many tables there are of that name, or in all, and how many of their answers are forgotten."""
        keys: list[bytes | None]
        try:
            name = os.fsencode(request["table"]) if "table" in request else None
            keys = [os.fsencode(key) for key in request.get("keys", [])] or [None]
        except (TypeError, UnicodeError):
            raise Refused('expected "table": a name, "keys": a list of keys') from None
        negative = request.get("negative") is True

        def flush() -> dict[str, int]:
            if keys == [None] and not negative:
                self._open_anew(name)
            hit = [self.loop.flush(name, key, negative) for key in keys]
            return {"tables": max(tables for tables, _ in hit), "answers": sum(count for _, count in hit)}

        return self.between_turns(flush)

    def _reload(self, request: dict[str, Any]) -> None:
        try:
            self.reload()
        except ConfigError as error:
            raise Refused(f"{error}; the previous configuration stays in force") from None

    def _trace(self, request: dict[str, Any]) -> Stream:
        """Lookups as they are answered, to who asks, until they are no longer read."""
        from proxymap.server.tracing.requests import Watching

        try:
            return Watching(self.loop, self.between_turns, lambda: self._over).trace(request)
        except ValueError as error:
            raise Refused(str(error)) from None

    def start_watchdog(self, seconds: float) -> None:
        """End the process if the loop makes no turn for so long while it has something to do."""
        threading.Thread(target=self._watch, args=(seconds,), name="watchdog", daemon=True).start()

    def _watch(self, seconds: float) -> None:
        turns, since = -1, 0.0
        while True:
            time.sleep(seconds / 3)
            now, waiting = self.loop.progress
            if waiting or now != turns:
                turns, since = now, time.monotonic()
            elif time.monotonic() - since >= seconds:
                self.log.fatal("watchdog timeout")
                self.lines.close()
                self.logger.join(STOP_WAIT)
                os._exit(1)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full of wake-ups already
            os.write(self.signal_fd, b"\0")

    def _take_wake(self) -> None:
        with contextlib.suppress(OSError):  # nothing to read, or it is read in the next turn
            os.read(self.wake_fd, 4096)
        while self._calls:
            self._calls.popleft()()
