"""crew - threads that take jobs from one queue; one more joins when all are busy

Nobody waits for a thread but the first (base/threads). A thread counts itself when it
has come; one that never comes is missed by `help`, which starts another. To count takes no
memory, not even that of a `with`: of a thread that is counted wrong none takes the place.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Iterator

from proxymap.base.threads import Lock, start_thread
from proxymap.tables._jobs import JOB_CLOSE, Job, Queue, clock_ms

PAUSE = 0.05  # seconds to wait when there is no memory to go on
IDLE = 5.0  # seconds without a job, after which a thread that is one too many leaves


def given_up(job: Job) -> Job:
    """An answer of RETRY in place of the job's own. Nobody else gives one: wait for memory, if need be."""
    while True:
        try:
            return job.given_up()
        except MemoryError:
            time.sleep(PAUSE)


class Crew:
    """Up to `limit` threads that take jobs from `queue`; those that are idle leave, but for `keep`.

    Of a writer: so many changes are `expected` to come together, worth a wait of `patience_ns`.
    """

    expected, patience_ns = 1, 0

    def __init__(
        self, name: str, limit: int, work: Callable[[Crew, Job], None], keep: int | None = None
    ) -> None:
        self.name, self.limit, self.work = name, limit, work
        self.keep = limit if keep is None else keep
        self.queue = Queue(eager=name == "writer")
        self.running: dict[Job, int] = {}  # what others may claim, with its since_ms
        self.here = 0  # threads
        self._idle = 0
        self._leaving = 0  # of the idle
        self._state = Lock()

    def start(self) -> None:
        """The first thread; RuntimeError if it cannot be had."""
        start_thread(self.name, self._run)

    def help(self) -> None:
        """Start one more thread if jobs wait and no thread is free."""
        if self.queue.held and not self._idle and self.here < self.limit:
            self._start_more()

    def _start_more(self) -> None:
        try:
            _thread.start_new_thread(self._run, ())
        except (RuntimeError, MemoryError):  # those that are there go on
            pass

    def _run(self) -> None:
        self._state.acquire()
        try:
            if self.here >= self.limit:
                return
            self.here += 1
            self._idle += 1
        finally:
            self._state.release()
        leaving = False
        try:
            while not leaving and self._take_one():
                leaving = self._is_one_too_many()
        finally:
            self._state.acquire()
            try:
                self.here -= 1
                self._idle -= 1
                self._leaving -= leaving
                self._state.notify_all()
            finally:
                self._state.release()

    def _is_one_too_many(self) -> bool:
        self._state.acquire()
        try:
            if self._idle - self._leaving <= self.keep:
                return False
            self._leaving += 1
            return True
        finally:
            self._state.release()

    def _take_one(self) -> bool:
        """Wait for a job, or for a while, and do it; False if there will be none."""
        try:
            job = self.queue.take() if self.keep >= self.limit else self.queue.take(IDLE)
        except MemoryError:
            time.sleep(PAUSE)
            return True
        if job is None:
            return not self.queue.closed
        self._state.acquire()
        self._idle -= 1
        alone = not self._idle and self.here < self.limit
        self._state.release()
        if alone:
            self._start_more()
        try:
            self.work(self, job)
        except BaseException:  # memory is so short that nobody can be told
            pass
        finally:
            del job
            self._state.acquire()
            self._idle += 1
            self._state.release()
        return True

    def claim(self, job: Job) -> bool:
        """May the caller answer this job? True for the first caller; all others must not look at it."""
        return self.running.pop(job, None) is not None

    def late(self, limit_ms: int) -> list[Job]:
        """The jobs that threads are at, and that came longer ago than that; who claims one, answers it."""
        now = clock_ms()
        return [job for job, since in list(self.running.items()) if now - since >= limit_ms]

    def take_waiting(self, limit_ms: int) -> Iterator[Job]:
        """The same of those that no thread has taken: the caller answers each before the next is taken."""
        kept: list[Job] = []
        try:
            while (job := self.queue.take_old(limit_ms)) is not None:
                if job.kind == JOB_CLOSE:  # nobody waits for it
                    kept.append(job)
                else:
                    yield job
        finally:
            for job in kept:
                self.queue.put(job)

    def stop(self, until: float) -> None:
        """Finish what is queued, if that does not take too long."""
        self.queue.close()
        with self._state:
            self._state.wait_for(lambda: not self.here, max(0.0, until - time.monotonic()))
