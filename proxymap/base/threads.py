"""threads - starts a thread without waiting for ever; locks it, and wakes it, where memory is short

threading.Thread.start does that if the new thread dies before it has run a line, as
happens when memory is short.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
from collections.abc import Callable

ARRIVAL = 2.0  # seconds in which a thread has to come


class Lock(threading.Condition):
    """A lock, and a condition, that all threads depend on: to leave its `with` takes no memory.

    The locks of threading stay locked for ever where memory runs out at that moment.
    """

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.release()


class Bell:
    """Wakes one thread. threading.Event may stay locked for ever where memory runs out while it is set."""

    def __init__(self) -> None:
        self._silent = _thread.allocate_lock()
        self._silent.acquire()

    def ring(self) -> None:
        """Any thread."""
        if self._silent.locked():
            with contextlib.suppress(RuntimeError):  # another thread was quicker
                self._silent.release()

    def wait(self, seconds: float) -> None:
        """Until it rings, or has rung since the last time; at most for so long."""
        self._silent.acquire(timeout=seconds)


def start_thread(name: str, run: Callable[[], object]) -> None:
    """start_thread - a daemon thread; RuntimeError if it cannot be had in time: it never runs then"""
    here, claim = threading.Lock(), threading.Lock()
    here.acquire()

    def arrive() -> None:
        if claim.acquire(blocking=False):
            here.release()
            run()

    with contextlib.suppress(RuntimeError, MemoryError):
        _thread.start_new_thread(arrive, ())
        here.acquire(timeout=ARRIVAL)
    if claim.acquire(blocking=False):
        raise RuntimeError(f"no thread for {name}")
