"""workers - thread pools and their watchdog: what needs Python is done here, and the answer handed back

Tables are opened and closed by the openers; each slow table has a crew of its
own, so that one which hangs holds up nobody else. A table that fails, fails
alone: its answer is RETRY or CONFIG, and the worker goes on to the next job.
A lookup that takes longer than lookup_time_limit is answered RETRY.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping

from proxymap.base._heap import give_back
from proxymap.base._watch import Watch
from proxymap.base.threads import Bell, Lock, start_thread
from proxymap.errors import STAT_NOKEY, STAT_OK, STAT_RETRY, ProxymapError, QuestionRefused, ServerDown
from proxymap.server import _lent
from proxymap.server.log import Log
from proxymap.server.threads.crew import PAUSE, Crew, given_up
from proxymap.server.threads.openers import Openers
from proxymap.tables._jobs import JOB_LOOKUP, Job, Queue, attach
from proxymap.tables._table import SLOW_WRITE, Table
from proxymap.tables.base import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHANGES_AT_A_TIME = 1000  # updates that are committed together, at most
PATIENCE_NS = 100_000  # the longest wait for more changes to commit with the first
LOOK = 0.5  # seconds between two looks at what takes long
REST = 30.0  # the same while nothing does
REST_OF_SERVERS = 1.0  # the same with database servers, whose drivers look themselves


class Workers:
    """Thread pools and their watchdog. `done` is where answers go; writes: tables are opened for updates."""

    def __init__(self, done: Queue, log: Log, writes: bool) -> None:
        self.done, self.log = done, log
        self.watch = Watch()
        self.stopping = False
        self._busy = Bell()
        self._lock = Lock()
        self._openers = Openers(done, log, writes, self._equip, self._busy.ring)
        self._askers = Crew("asker", 1, self._ask)
        self._crews: weakref.WeakSet[Crew] = weakref.WeakSet([*self._openers.crews, self._askers])
        self._unequipped: weakref.WeakSet[Table] = weakref.WeakSet()
        self._servers: weakref.WeakSet[Any] = weakref.WeakSet()  # of databases (databases/pool)
        self.todo, self.renewals = (crew.queue for crew in self._openers.crews)
        self.asks = self._askers.queue

    def configure(
        self, host: Host, *, count: int, time_limit: int, open_time_limit: int, value_limit: int,
        cached: Iterable[str],
        keeps: Callable[[bytes], Mapping[str, int]] = lambda type_name: {},
        slow: Callable[[bytes], float] = lambda type_name: 0,
    ) -> None:  # fmt: skip
        """Obey these settings for what comes from now on.

        count: threads for each slow table. time_limit: seconds for a lookup. value_limit: bytes of a
        value; a longer one is not copied, and its answer is RETRY. cached: maptypes that the cache may
        stand in front of. keeps: a table's name -> how long its answers are kept (Table.keep_for).
        slow: the same -> seconds after which a lookup is logged; 0: never.
        """
        host.watch = self.watch
        self.count, self.limit_ms, self.value_limit = count, time_limit * 1000, value_limit
        self._askers.limit = count
        self._openers.configure(
            host, keep=count, limit_ms=open_time_limit * 1000,
            cached=frozenset(maptype.encode() for maptype in cached), keeps=keeps, slow=slow,
        )  # fmt: skip

    def start(self) -> None:
        for crew in self._all_crews():
            crew.start()
        start_thread("the watchdog of the workers", self._watch_over)

    def stop(self, seconds: float) -> None:
        self.stopping = True
        self._busy.ring()
        until = time.monotonic() + seconds
        for crew in self._all_crews():
            crew.stop(until)
        for server in self.servers():
            server.close(until)

    def _all_crews(self) -> list[Crew]:
        with self._lock:  # others add to them
            return list(self._crews)

    def servers(self) -> list[Any]:
        """Of databases (databases/pool): those whose tables are open."""
        with self._lock:
            return list(self._servers)

    def _watch_over(self) -> None:
        """Answer RETRY to what takes too long, and give memory back; idle while nothing runs."""
        given_back = time.monotonic()
        while not self.stopping:
            try:
                self._busy.wait(REST_OF_SERVERS if self._servers else REST)
                time.sleep(LOOK)
                if self._expire():
                    self._busy.ring()
                if time.monotonic() > given_back + REST:
                    give_back()
                    given_back = time.monotonic()
            except BaseException as error:  # whatever it is: nothing has a time limit without this thread
                self._busy.ring()
                self._complain(None, "watchdog of the workers", error)

    def _expire(self) -> bool:
        """Is anything still under way?"""
        busy = self._openers.expire()
        with self._lock:
            unequipped = list(self._unequipped)
        for table in unequipped:
            self._equip(table)
            busy = busy or bool(self._unequipped)
        for crew in self._all_crews():
            crew.help()
            if crew.name != "asker":
                continue
            busy = busy or bool(crew.running or crew.queue.held)
            for job in crew.late(self.limit_ms):
                if crew.claim(job):
                    self._give_up(job)
            for job in crew.take_waiting(self.limit_ms):
                self._give_up(job)
        for server in self.servers():  # a driver that does not hang was quicker
            for table in server.give_up_late(self.limit_ms + round(LOOK * 1000)):
                self._tell_late(table)
        return busy

    def _give_up(self, job: Job) -> None:
        try:
            self._tell_late(job.table)
        except MemoryError:
            pass
        finally:
            self.done.put(given_up(job))

    def _tell_late(self, table: Table) -> None:
        trouble = f"no answer within {self.limit_ms // 1000} s {table.under_way}".rstrip()
        self.log.warning(f"{os.fsdecode(table.type_name)} lookup error: {trouble}")

    # Slow tables

    def _equip(self, table: Table) -> None:
        """Give a table that needs them crews of its own, which end with it; as soon as there can be threads.

        Until then its lookups are made by the askers that all tables share, and changes are RETRY.
        """
        server = getattr(table, "server", None)
        if server is not None:
            with self._lock:
                self._servers.add(server)
            self._busy.ring()  # the watchdog is to know
        if table.crews is not None or not table.slow:
            return
        queues: list[Queue] = []
        asks = changes = None
        try:
            if table.slow & ~SLOW_WRITE:
                asks = self._start_crew(queues, "asker", table.at_a_time or self.count, self._ask)
            if table.slow & SLOW_WRITE:
                changes = self._start_crew(queues, "writer", 1, self._change)
            for queue in queues:
                weakref.finalize(table, queue.close).atexit = False
            with self._lock:
                self._unequipped.discard(table)
                if table.crews is None:
                    attach(table, asks, changes, self)
                    queues = []
                    table.equipped()
        except (RuntimeError, MemoryError):
            with self._lock:
                self._unequipped.add(table)
            self._busy.ring()
        finally:  # the others are not needed: something failed, or another instance of it was quicker
            for queue in queues:
                queue.close()

    def _start_crew(
        self, queues: list[Queue], name: str, limit: int, work: Callable[[Crew, Job], None]
    ) -> Queue:
        """Its queue, which is also added to these: whoever closes it ends the crew, also where this fails."""
        crew = Crew(name, limit, work)
        queues.append(crew.queue)
        with self._lock:
            self._crews.add(crew)
        crew.start()
        return crew.queue

    # Asking

    def _ask(self, crew: Crew, job: Job) -> None:
        """Whatever fails, where memory is short even what is done about that: the job is answered, once."""
        table = job.table  # from here on it stays, even if the watchdog answers the job and the loop drops it
        watched = claimed = False  # may the watchdog answer it?
        try:
            crew.running[job] = job.since_ms
            watched = True
            self._busy.ring()
            answer = self._answer(table, job)
            claimed = crew.claim(job)
            if claimed:
                job.answered(*answer)
        except BaseException as error:
            claimed = claimed or not watched or crew.claim(job)
            if claimed:
                job.status = STAT_RETRY
            self._complain(table, "lookup error", error)
        finally:
            if claimed:
                self.done.put(job)

    def _answer(self, table: Table, job: Job) -> tuple[int, int, bytes, bytes, bool]:
        """(status, flags, key, value, is it RETRY since the question itself was refused?)"""
        status, flags, key, value, of_key = STAT_RETRY, job.flags, b"", b"", False
        try:
            if job.kind == JOB_LOOKUP:
                status, flags, value = table.ask(job.key, job.flags)
            elif (record := table.answers.sequence(job.cursor, job.first)) is None:
                status = STAT_NOKEY
            else:
                status, (key, value) = STAT_OK, record
        except ProxymapError as error:
            status, of_key = error.status, isinstance(error, QuestionRefused)
            with contextlib.suppress(MemoryError):
                table.trouble = str(error)
                if not isinstance(error, ServerDown):
                    self.log.warning(f"{os.fsdecode(table.type_name)} lookup error: {error}")
        if len(value) > self.value_limit:
            status, value = self._too_long(table), b""
        return status, flags, key, value, of_key

    def _too_long(self, table: Table) -> int:
        table.trouble = "a value over value_size_limit; answering RETRY"
        self.log.warning(f"table {os.fsdecode(table.type_name)} has {table.trouble}")
        return STAT_RETRY

    # Changing

    def _change(self, crew: Crew, job: Job) -> None:
        """Make all changes that wait, together; each is answered when all of them are on disk.

        A client that had an answer a moment ago is likely to be back in less than a commit takes.
        """
        jobs = self._with_others(crew, job)
        table = job.table
        try:
            took = _lent.make(table, jobs, crew.queue)
            crew.patience_ns = min(took // 4, PATIENCE_NS)
        except ProxymapError as error:
            self._fail(jobs, error.status)
            with contextlib.suppress(MemoryError):
                table.trouble = str(error)
                self.log.warning(f"{os.fsdecode(table.type_name)} update error: {error}")
        except BaseException as error:
            self._fail(jobs, STAT_RETRY)
            self._complain(table, "update error", error)
        finally:  # whatever has failed: the clients wait, and nobody watches over changes
            crew.expected = len(jobs) + crew.queue.held
            self.done.put_all(jobs)

    def _with_others(self, crew: Crew, job: Job) -> list[Job]:
        """The job and those that come now. Nobody else answers it: wait for memory, if need be."""
        while True:
            try:
                crew.queue.wait_for(crew.expected - 1, crew.patience_ns)
                return crew.queue.take_all(CHANGES_AT_A_TIME, job)
            except MemoryError:
                time.sleep(PAUSE)

    def _fail(self, jobs: list[Job], status: int) -> None:
        for job in jobs:
            job.status = status

    def _complain(self, table: Table | None, what: str, error: BaseException) -> None:
        try:
            name = "" if table is None else f"{os.fsdecode(table.type_name)} "
            self.log.exception(f"{name}{what}", error=error)
        except Exception:  # no memory to say it
            pass
