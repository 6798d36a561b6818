"""test_threads - a thread comes, or is known not to come"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable

import pytest

from proxymap.base import threads
from proxymap.base.threads import start_thread


def test_thread_runs() -> None:
    ran = threading.Event()
    start_thread("this", ran.set)
    assert ran.wait(10)


def test_thread_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    with pytest.raises(RuntimeError, match="no thread for this"):
        start_thread("this", pytest.fail)


def test_thread_that_comes_too_late_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does anybody wait for one that never comes."""
    begun: list[Callable[[], None]] = []
    monkeypatch.setattr(_thread, "start_new_thread", lambda run, _: begun.append(run))
    monkeypatch.setattr(threads, "ARRIVAL", 0.01)
    ran = threading.Event()
    with pytest.raises(RuntimeError, match="no thread for this"):
        start_thread("this", ran.set)
    (late,) = begun
    late()
    assert not ran.is_set()
