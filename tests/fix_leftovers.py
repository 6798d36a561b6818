"""fix_leftovers - no test may leave a thread, a process or an open file behind

conftest.py lays it around every test. What a fixture of a module or of the whole run
has is there before the test begins, and is not the test's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

GRACE = 10.0  # seconds; what was told to end may still be about it
# Python and its libraries open these once and keep them.
KEPT = ("/dev/urandom", "/dev/null", "anon_inode:[io_uring]")


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def children() -> set[str]:
    """The processes that this one has started and not waited for: number and name."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                found.add(f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})")
    return found


def descriptors() -> Counter[str]:
    """What the open descriptors lead to, and how many lead there."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that reads the folder
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
    return found


Found = tuple[set[str], set[str], Counter[str]]
shared: list[Found] = []  # what fixtures of a module or of the run have got while a test ran


def everything() -> Found:
    return threads(), children(), descriptors()


def new(before: Found, after: Found) -> Found:
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
    """Note what a fixture has that outlives the test which is the first to use it."""
    before = everything()
    try:
        return (yield)
    finally:
        if fixturedef.scope != "function":
            shared.append(new(before, everything()))


def left(before: Found) -> list[str]:
    """What is there now, was not before, and is of no shared fixture."""
    threads, processes, files = new(before, everything())
    for more in shared:
        threads -= more[0]
        processes -= more[1]
        files = files - more[2]
    return [
        *(f"thread {name}" for name in threads),
        *(f"process {name}" for name in processes),
        *(f"descriptor of {name}" for name in files.elements() if not name.startswith(KEPT)),
    ]


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    shared.clear()
    before = everything()
    yield
    if not left(before):
        return
    gc.collect()  # tables in a circle of references close their files then
    deadline = time.monotonic() + GRACE
    while found := left(before):
        assert time.monotonic() < deadline, f"left behind: {', '.join(found)}"
        time.sleep(0.01)
