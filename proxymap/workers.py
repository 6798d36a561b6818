"""workers - threads that take a job, run Python for it, and hand the answer back

A table that fails, fails alone: its answer is RETRY or CONFIG, and the worker
goes on to the next job.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable

from proxymap import _fold, tables
from proxymap._jobs import JOB_CLOSE, JOB_LOOKUP, JOB_OPEN, Job, Queue
from proxymap._table import Surrogate, Table
from proxymap.errors import STAT_NOKEY, STAT_OK, STAT_RETRY, ProxymapError
from proxymap.log import Log

UTF8_REQUEST = 1 << 19  # dictionary flag: keys will be folded by Unicode's rules


class Workers:
    """`count` threads between the queues `todo` and `done`.

    cached: maptypes that the cache may stand in front of.
    """

    def __init__(
        self, todo: Queue, done: Queue, log: Log, *, count: int, writes: bool, cached: Iterable[str]
    ) -> None:
        self.todo, self.done, self.log = todo, done, log
        self.writes = writes
        self.cached = frozenset(maptype.encode() for maptype in cached)
        self.threads = [
            threading.Thread(target=self._run, name=f"worker-{i}", daemon=True) for i in range(count)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Finish what is queued, if it does not take too long."""
        self.todo.close()
        until = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while (job := self.todo.take()) is not None:
            if job.kind == JOB_OPEN:
                self._open(job)
            elif job.kind == JOB_CLOSE:
                job.closed()
            elif job.kind == JOB_LOOKUP:
                self._lookup(job)

    def _open(self, job: Job) -> None:
        table: Table = Surrogate(job.name, b"open failed unexpectedly")
        try:
            if job.flags & UTF8_REQUEST:
                _fold.load()
            table = tables.open_table(job.name, job.flags, writes=self.writes)
        except BaseException as error:  # whatever it is: the clients wait, and the thread must live
            self._complain(f"open {os.fsdecode(job.name)}", error)
        table.cached = job.name.partition(b":")[0] in self.cached
        if table.reason is not None:
            self.log.error(table.reason.decode(errors="surrogateescape"))
        job.opened(table)
        self.done.put(job)

    def _lookup(self, job: Job) -> None:
        status, value = STAT_RETRY, b""
        try:
            found = job.table.answers.lookup(job.key)
            if found is None:
                status = STAT_NOKEY
            else:
                value = b"".join([found]).partition(b"\0")[0]  # a NUL would end the reply's value
                status = STAT_OK
        except ProxymapError as error:
            status = error.status
            self.log.warning(f"{os.fsdecode(job.table.type_name)} lookup error: {error}")
        except BaseException as error:
            self._complain(f"{os.fsdecode(job.table.type_name)} lookup error", error)
        job.answered(status, value)
        self.done.put(job)

    def _complain(self, text: str, error: BaseException) -> None:
        with contextlib.suppress(Exception):
            self.log.exception(text, error=error)
