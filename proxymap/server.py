"""server - the shell around the loop: starts workers and logger, stops them again

The only file that knows all the parts; it does not know which life (master.py,
standalone.py) it lives. One thread runs the loop, without the GIL; the worker
threads run what needs Python; one thread writes the log.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from proxymap._jobs import Queue
from proxymap._loop import END_WOKEN, Loop
from proxymap.approval import approve
from proxymap.log import Log
from proxymap.maincf import MainCf
from proxymap.settings import Settings
from proxymap.tables.base import Host
from proxymap.workers import Workers

STOP_WAIT = 0.2  # seconds for each thread to finish what it has at the end
LOG_LINES_MAX = 1000  # waiting for the logger; more are lost and counted


class Server:
    """Serves the listening sockets `listeners` (descriptors) until its life is over.

    writes: the service is proxywrite, and approves by proxy_write_maps. life: what the
    loop of a child of master(8) has to know: status_fd, generation, max_idle, max_use.
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
        **life: int,
    ) -> None:
        self.settings, self.log = settings, log
        self.done = Queue(wakes_loop=True)
        self.lines = Queue(limit=LOG_LINES_MAX)
        self.wake_fd, self.signal_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.drain_limit = float(settings.drain_time_limit)
        self.stopping = False
        approved = approve(settings, main_cf, writes, log.warning)
        parameter = "proxy_write_maps" if writes else "proxy_read_maps"
        for type_name in sorted(approved):
            log.debug(f"allowlisting {os.fsdecode(type_name)} from {parameter}")
        cached = () if writes else settings.cache_maptypes  # what is written to changes too often
        self.workers = Workers(
            self.done, log,
            Host(settings.smtputf8_enable, log.warning, main_cf.get, settings.lmdb_replace_damaged),
            count=settings.worker_count, time_limit=settings.lookup_time_limit, writes=writes, cached=cached,
        )  # fmt: skip
        self.logger = threading.Thread(target=log.run, args=(self.lines,), name="logger", daemon=True)
        self.loop = Loop(
            listeners, self.workers.todo, self.workers.asks, self.done, self.lines, self.wake_fd,
            approved=approved, writes=writes, utf8_layer=settings.smtputf8_enable, greeting=settings.greets,
            cache_size=settings.cache_size if cached else 0,
            request_size_limit=settings.request_size_limit, buffer_size_limit=settings.buffer_size_limit,
            ipc_timeout=settings.ipc_timeout, **life,
        )  # fmt: skip

    def run(self) -> None:
        """Serve. Returns when the loop's life is over, or `stop` was called; what was pending is answered."""
        self.log.queue = self.lines
        self.logger.start()
        self.workers.start()
        try:
            while self.loop.run() == END_WOKEN and not self.stopping:
                self._take_wake()
            left = self.loop.drain(self.drain_limit)
            if left:
                self.log.warning(f"{left} clients were still waiting for a table after {self.drain_limit} s")
        finally:
            self.workers.stop(STOP_WAIT)
            self.log.queue = None
            self.lines.close()
            self.logger.join(STOP_WAIT)

    def stop(self) -> None:
        """Have `run` come to its end. May be called by a signal handler or another thread."""
        self.stopping = True
        with contextlib.suppress(BlockingIOError):  # full of wake-ups already
            os.write(self.signal_fd, b"\0")

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

    def _take_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)
