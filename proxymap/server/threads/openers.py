"""openers - threads that open and close tables; one that hangs holds up nobody else

There is always a free thread for the next table, since each may hang: on a dead
file server, on a FIFO, in a library. Where no more threads can be had, for want of
memory, there still is one for the new content of tables that open at once. A table that is not open after
open_time_limit is answered RETRY, and so is each later request, at once, while
that thread is still at it. What it opens in the end is kept for the next request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from proxymap.base import _fold
from proxymap.base.threads import Lock
from proxymap.server.launch import Installation
from proxymap.server.log import Log
from proxymap.server.threads.crew import Crew, given_up
from proxymap.tables._jobs import JOB_CLOSE, JOB_LOOK, JOB_OPEN, Job, Queue
from proxymap.tables._table import SLOW_LOOKUP, Surrogate, Table
from proxymap.tables.base import Host
from proxymap.tables.flags import UTF8_REQUEST
from proxymap.tables.opening import KEPT, Key, key_of, open_table, shared_table

OPENERS_MAX = 4096  # as many as there are instances: each may hang


class Openers:
    """done: where answers go. equip: gives a table that was opened what it needs to be asked.

    busy: called when something begins that may take too long.
    """

    def __init__(
        self,
        done: Queue,
        log: Log,
        writes: bool,
        equip: Callable[[Table], None],
        busy: Callable[[], None],
    ) -> None:
        self.done, self.log, self.writes, self.equip, self.busy = done, log, writes, equip, busy
        self.crews = tuple(Crew(name, OPENERS_MAX, self._do, keep=1) for name in ("opener", "renewer"))
        self.host, self.limit_ms = Host(), 0
        self.cached: frozenset[bytes] = frozenset()
        self.keeps: Callable[[bytes], Mapping[str, int]] = lambda type_name: {}
        self.slow: Callable[[bytes], float] = lambda type_name: 0
        self._installation = Installation(log)
        self._lock = Lock()
        self._hanging: dict[Job, Key] = {}  # given up, but its thread is still at it
        self._ailing: set[bytes] = set()  # could not be opened when that was tried last, or not anew
        self._kept: dict[Key, Table] = {}  # opened too late; for the next request

    def configure(
        self, host: Host, *, keep: int, limit_ms: int, cached: frozenset[bytes],
        keeps: Callable[[bytes], Mapping[str, int]], slow: Callable[[bytes], float],
    ) -> None:  # fmt: skip
        self.host, self.limit_ms, self.cached, self.keeps, self.slow = host, limit_ms, cached, keeps, slow
        self.crews[0].keep = keep

    def _do(self, crew: Crew, job: Job) -> None:
        if job.kind == JOB_CLOSE:
            job.closed()
            return
        table: Table | None = None  # so it stays without memory
        try:
            crew.running[job] = job.since_ms
            self.busy()
            table = Surrogate(job.name, b"open failed unexpectedly")
            table = self._look(job) if job.kind == JOB_LOOK else self._open(job)
        except BaseException as error:  # whatever it is: the clients wait
            self._complain(job, error)
        self._lock.acquire()  # not by a `with`, which takes memory: the job would count as hanging for ever
        try:
            key = self._hanging.pop(job, None)
            claimed = crew.claim(job) or key is None
        finally:
            self._lock.release()
        if claimed:
            self._answer(job, table)
        elif key is not None and table is not None and job.kind == JOB_OPEN:
            self._keep(key, table)

    def _answer(self, job: Job, table: Table | None) -> None:
        try:
            if table is not None:
                self._tell(job.name, table)
        except MemoryError:
            pass
        finally:
            if table is not None and (job.kind != JOB_LOOK or table is not job.table):
                job.opened(table)
            self.done.put(job)

    def _complain(self, job: Job, error: BaseException) -> None:
        try:
            self.log.exception(f"open {os.fsdecode(job.name)}", error=error)
        except Exception:  # no memory to say it
            pass

    def _tell(self, name: bytes, table: Table) -> None:
        """Log why a table could not be opened, and once that this is over."""
        if table.reason is not None:
            self.log.error(table.reason.decode(errors="surrogateescape"))
        if table.reason is not None or table.trouble.endswith(KEPT):
            self._ailing.add(name)
        elif name in self._ailing:
            self._ailing.discard(name)
            self.log.info(f"{os.fsdecode(name)} is well again")

    def _look(self, job: Job) -> Table:
        """See what has become of the table's files; the table itself, or what says why nobody knows."""
        if self._hangs(job):
            return Surrogate(job.name, b"%b: a look at its files still hangs" % job.name)
        table: Table = job.table
        job.status = table.changed
        return table

    def _hangs(self, job: Job) -> bool:
        return key_of(job.name, job.flags, self.writes) in list(self._hanging.values())

    def _open(self, job: Job) -> Table:
        key = key_of(job.name, job.flags, self.writes)
        if self._hangs(job):
            return Surrogate(job.name, b"%b: the attempt to open it still hangs" % job.name)
        if job.flags & UTF8_REQUEST:
            _fold.load()
        self._installation.look()
        table = open_table(job.name, job.flags, writes=self.writes, host=self.host, settle=job.settle)
        self._kept.pop(key, None)
        self.equip(table)
        if job.name.partition(b":")[0] in self.cached:  # rules are, which have workers, too
            table.cached = True
        elif table.slow & SLOW_LOOKUP:
            table.keep_for(**self.keeps(table.type_name))
        table.log_slow(self.slow(table.type_name))
        return table

    def _keep(self, key: Key, table: Table) -> None:
        """Have it found by the next request for it; the loop looks at once."""
        if table.reason is None:
            self._kept[key] = table
            self.log.info(f"{os.fsdecode(table.type_name)} is open at last")
        if self.host.watch is not None:
            self.host.watch.take()

    def expire(self) -> bool:
        """Answer RETRY for what takes too long; is anything under way?"""
        busy = False
        for crew in self.crews:
            for job in crew.late(self.limit_ms):
                with self._lock:  # so nobody else claims it
                    if job not in crew.running:
                        continue
                    self._hanging[job] = key_of(job.name, job.flags, self.writes)
                    crew.claim(job)  # last: without memory it is as it was
                self._give_up(job)
            for job in crew.take_waiting(self.limit_ms):
                self._give_up(job)
            busy = busy or bool(crew.running or crew.queue.held)
        return busy

    def _give_up(self, job: Job) -> None:
        answer = given_up(job)
        try:
            what = "not looked at" if job.kind == JOB_LOOK else "not open"
            text = f"{os.fsdecode(job.name)}: {what} within {self.limit_ms // 1000} s"
            self.log.warning(text)
            old = shared_table(key_of(job.name, job.flags, self.writes))
            if old is not None:
                old.trouble = f"{text}; going on with the previous content"
            answer.opened(Surrogate(job.name, os.fsencode(text)))
        except MemoryError:  # then the loop is told just that
            pass
        finally:
            self.done.put(answer)
