"""workers - threads that take a job, run Python for it, and hand the answer back

One crew of threads opens and closes tables; each slow table has a crew of its
own, so that one which hangs holds up nobody else. A table that fails, fails
alone: its answer is RETRY or CONFIG, and the worker goes on to the next job.
A lookup that takes longer than lookup_time_limit is answered RETRY.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable

from proxymap.base import _fold
from proxymap.base._watch import Watch
from proxymap.errors import STAT_NOKEY, STAT_OK, STAT_RETRY, ProxymapError
from proxymap.server import _lent
from proxymap.server.log import Log
from proxymap.tables._jobs import (
    JOB_CLOSE,
    JOB_LOOKUP,
    JOB_OPEN,
    Job,
    Queue,
    attach,
    clock_ms,
)  # fmt: skip
from proxymap.tables._table import SLOW_WRITE, Surrogate, Table
from proxymap.tables.base import Host
from proxymap.tables.flags import UTF8_REQUEST
from proxymap.tables.opening import open_table

CHANGES_AT_A_TIME = 1000  # updates that are committed together, at most
PATIENCE_NS = 100_000  # the longest wait for more changes to commit with the first
MINDING = 0.5  # seconds between two looks at what takes long


class Crew:
    """Up to `limit` threads that take jobs from `queue`; one more joins when all are busy.

    Of a writer: so many changes are `expected` to come together, worth a wait of `patience_ns`.
    """

    expected, patience_ns = 1, 0

    def __init__(self, name: str, limit: int, work: Callable[[Crew, Job], None]) -> None:
        self.name, self.limit, self.work = name, limit, work
        self.queue = Queue(eager=name == "writer")
        self.running: dict[Job, int] = {}  # of askers: what others may claim, with its since_ms
        self.threads: list[threading.Thread] = []
        self._idle = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self.name}-{len(self.threads)}", daemon=True)
        self.threads.append(thread)
        self._idle += 1
        try:
            thread.start()
        except RuntimeError:  # the system allows no more
            self.threads.remove(thread)
            self._idle -= 1
            raise

    def _run(self) -> None:
        while (job := self.queue.take()) is not None:
            with self._lock:
                self._idle -= 1
                if not self._idle and len(self.threads) < self.limit:
                    with contextlib.suppress(RuntimeError):
                        self.start()
            self.work(self, job)
            del job
            with self._lock:
                self._idle += 1

    def claim(self, job: Job) -> bool:
        """May the caller answer this job? True for the first who asks; all others must not look at it."""
        return self.running.pop(job, None) is not None

    def take_late(self, limit_ms: int) -> list[Job]:
        """The jobs that came longer ago than that, running or not; the caller answers them."""
        now = clock_ms()
        running = list(self.running.items())
        late = [job for job, since in running if now - since >= limit_ms and self.claim(job)]
        while (job := self.queue.take_old(limit_ms)) is not None:
            late.append(job)
        return late

    def stop(self, until: float) -> None:
        """Finish what is queued, if that does not take too long."""
        self.queue.close()
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))


class Workers:
    """The crews, and who minds them. `done` is where answers go; writes: tables are opened for updates."""

    def __init__(self, done: Queue, log: Log, writes: bool) -> None:
        self.done, self.log, self.writes = done, log, writes
        self.watch = Watch()
        self.stopping = False
        self._busy = threading.Event()
        self._lock = threading.Lock()
        self._openers = Crew("opener", 1, self._open_or_close)
        self._askers = Crew("asker", 1, self._ask)
        self._crews: weakref.WeakSet[Crew] = weakref.WeakSet([self._openers, self._askers])
        self.todo, self.asks = self._openers.queue, self._askers.queue

    def configure(self, host: Host, *, count: int, time_limit: int, cached: Iterable[str]) -> None:
        """Obey these settings for what comes from now on.

        count: threads for each slow table. time_limit: seconds for a lookup. cached: maptypes
        that the cache may stand in front of.
        """
        host.watch = self.watch
        self.host, self.count, self.limit_ms = host, count, time_limit * 1000
        self.cached = frozenset(maptype.encode() for maptype in cached)
        self._openers.limit = self._askers.limit = count

    def start(self) -> None:
        self._openers.start()
        self._askers.start()
        threading.Thread(target=self._mind, name="minder", daemon=True).start()

    def stop(self, seconds: float) -> None:
        self.stopping = True
        self._busy.set()
        until = time.monotonic() + seconds
        for crew in self._all_crews():
            crew.stop(until)

    def _all_crews(self) -> list[Crew]:
        with self._lock:  # others add to them
            return list(self._crews)

    def _mind(self) -> None:
        """Answer RETRY to what takes too long; idle while nothing runs."""
        while self._busy.wait() and not self.stopping:
            time.sleep(MINDING)
            self._busy.clear()
            for crew in self._all_crews():
                if crew.name != "asker":
                    continue
                if crew.running or crew.queue.held:
                    self._busy.set()
                for job in crew.take_late(self.limit_ms):
                    self._give_up(job)

    def _give_up(self, job: Job) -> None:
        table = job.table
        trouble = f"no answer within {self.limit_ms // 1000} s {table.under_way}".rstrip()
        self.log.warning(f"{os.fsdecode(table.type_name)} lookup error: {trouble}")
        self.done.put(job.given_up())

    # Opening and closing

    def _open_or_close(self, crew: Crew, job: Job) -> None:
        if job.kind == JOB_OPEN:
            self._open(job)
        elif job.kind == JOB_CLOSE:
            job.closed()

    def _open(self, job: Job) -> None:
        table: Table = Surrogate(job.name, b"open failed unexpectedly")
        try:
            if job.flags & UTF8_REQUEST:
                _fold.load()
            table = open_table(job.name, job.flags, writes=self.writes, host=self.host, settle=job.settle)
            self._man(table)
        except BaseException as error:  # whatever it is: the clients wait, and the thread must live
            self._complain(f"open {os.fsdecode(job.name)}", error)
        table.cached = job.name.partition(b":")[0] in self.cached
        if table.reason is not None:
            self.log.error(table.reason.decode(errors="surrogateescape"))
        job.opened(table)
        self.done.put(job)

    def _man(self, table: Table) -> None:
        """Give a table that needs them crews of its own; they end with it."""
        with self._lock:
            if table.crews is not None or not table.slow:
                return
            asks = changes = None
            if table.slow & ~SLOW_WRITE:
                asks = self._crew_for(table, "asker", table.at_a_time or self.count, self._ask)
            if table.slow & SLOW_WRITE:
                changes = self._crew_for(table, "writer", 1, self._change)
            attach(table, asks, changes, self)

    def _crew_for(self, table: Table, name: str, limit: int, work: Callable[[Crew, Job], None]) -> Queue:
        crew = Crew(name, limit, work)
        crew.start()
        self._crews.add(crew)
        weakref.finalize(table, crew.queue.close).atexit = False
        return crew.queue

    # Asking

    def _ask(self, crew: Crew, job: Job) -> None:
        table = job.table  # from here on it stays, even if the minder answers the job and the loop drops it
        crew.running[job] = job.since_ms
        self._busy.set()
        status, flags, key, value = STAT_RETRY, job.flags, b"", b""
        try:
            if job.kind == JOB_LOOKUP:
                status, flags, value = table.ask(job.key, job.flags)
            elif (record := table.answers.sequence(job.cursor, job.first)) is None:
                status = STAT_NOKEY
            else:
                status, (key, value) = STAT_OK, record
        except ProxymapError as error:
            status = error.status
            table.trouble = str(error)
            self.log.warning(f"{os.fsdecode(table.type_name)} lookup error: {error}")
        except BaseException as error:
            self._complain(f"{os.fsdecode(table.type_name)} lookup error", error)
        if crew.claim(job):
            job.answered(status, flags, key, value)
            self.done.put(job)

    # Changing

    def _change(self, crew: Crew, job: Job) -> None:
        """Make all changes that wait, together; each is answered when all of them are on disk.

        Who had an answer a moment ago is likely to be back in less than a commit takes.
        """
        crew.queue.wait_for(crew.expected - 1, crew.patience_ns)
        jobs = [job, *crew.queue.take_all(CHANGES_AT_A_TIME - 1)]
        table = job.table
        try:
            took = _lent.make(table, jobs, crew.queue)
            crew.patience_ns = min(took // 4, PATIENCE_NS)
        except ProxymapError as error:
            self._fail(jobs, error.status)
            table.trouble = str(error)
            self.log.warning(f"{os.fsdecode(table.type_name)} update error: {error}")
        except BaseException as error:
            self._fail(jobs, STAT_RETRY)
            self._complain(f"{os.fsdecode(table.type_name)} update error", error)
        crew.expected = len(jobs) + crew.queue.held
        self.done.put_all(jobs)

    def _fail(self, jobs: list[Job], status: int) -> None:
        for job in jobs:
            job.status = status

    def _complain(self, text: str, error: BaseException) -> None:
        with contextlib.suppress(Exception):
            self.log.exception(text, error=error)
