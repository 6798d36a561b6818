"""server - the shell around the loop: starts workers and logger, stops them again

The only file that knows all the parts; it does not know which life (master.py,
standalone.py) it lives. One thread runs the loop, without the GIL; the worker
threads run what needs Python; one thread writes the log.
"""

from __future__ import annotations

import contextlib
import os
import threading

from proxymap._jobs import Queue
from proxymap._loop import Loop
from proxymap.approval import approve
from proxymap.log import Log
from proxymap.maincf import MainCf
from proxymap.settings import Settings
from proxymap.workers import Workers

LOG_LINES_MAX = 1000  # waiting for the logger; more are lost and counted


class Server:
    """Serves the listening sockets `listeners` (descriptors) until `stop` was asked for.

    writes: the service is proxywrite, and approves by proxy_write_maps. signal_fd is
    for signal.set_wakeup_fd: a byte there has the loop return, so that Python's
    signal handlers get to run.
    """

    def __init__(
        self, settings: Settings, main_cf: MainCf, log: Log, listeners: list[int], *, writes: bool
    ) -> None:
        self.settings, self.log = settings, log
        self.todo, self.done = Queue(), Queue(wakes_loop=True)
        self.lines = Queue(limit=LOG_LINES_MAX)
        self.wake_fd, self.signal_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.stopping = False
        approved = approve(settings, main_cf, writes, log.warning)
        parameter = "proxy_write_maps" if writes else "proxy_read_maps"
        for type_name in sorted(approved):
            log.debug(f"allowlisting {os.fsdecode(type_name)} from {parameter}")
        self.workers = Workers(
            self.todo,
            self.done,
            log,
            count=settings.worker_count,
            writes=writes,
            cached=settings.cache_maptypes,
        )
        self.logger = threading.Thread(target=log.run, args=(self.lines,), name="logger", daemon=True)
        self.loop = Loop(
            listeners, self.todo, self.done, self.lines, self.wake_fd,
            approved=approved, writes=writes, utf8_layer=settings.smtputf8_enable, greeting=settings.greets,
            cache_size=settings.cache_size if settings.cache_maptypes else 0,
            request_size_limit=settings.request_size_limit, buffer_size_limit=settings.buffer_size_limit,
            ipc_timeout=settings.ipc_timeout,
        )  # fmt: skip

    def run(self) -> None:
        """Serve. Returns when `stop` was called and what was pending is answered."""
        self.workers.start()
        self.logger.start()
        try:
            while not self.stopping:
                self.loop.run()
                self._take_wake()
            left = self.loop.drain(self.settings.drain_time_limit)
            if left:
                self.log.warning(
                    f"{left} clients were still waiting for a table when drain_time_limit was over"
                )
        finally:
            self.workers.stop(1)
            self.lines.close()
            self.logger.join(1)

    def stop(self) -> None:
        """Have `run` come to its end. May be called by a signal handler or another thread."""
        self.stopping = True
        with contextlib.suppress(BlockingIOError):  # full of wake-ups already
            os.write(self.signal_fd, b"\0")

    def _take_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)
