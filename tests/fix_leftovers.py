"""fix_leftovers - a test that leaves a thread, a process or an open file behind fails

conftest.py has it around every test of the folders in IN_FORCE; those that follow are to be
added there. While a fixture of a module has something started, its tests share that and what
it starts later; the fixture is checked at its end instead.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

GRACE = 10.0  # seconds for what was told to end
# Python and its libraries open these once and keep them.
KEPT = ("/dev/urandom", "/dev/null", "anon_inode:[io_uring]")
# Fixtures of a module that start servers when a test first asks for them.
LAZY = ("both", "mysql", "pgsql")
IN_FORCE = (
    *("base", "config", "ctl", "tables/composite", "tables/memory", "tables/rules"),
    *("tables/indexed/test_cdb", "tables/indexed/test_lmdb"),
    "test_it.py",  # of test_leftovers
)
OTHERS = ("_pytest", "pytest", "hypothesis", "_hypothesis")  # whose fixtures are not looked at


class Open(NamedTuple):
    """What the process of the tests has now: names, and how many of each."""

    threads: Counter[str]
    processes: Counter[str]
    descriptors: Counter[str]

    def beyond(self, other: Open) -> Open:
        return Open(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    def __str__(self) -> str:
        return ", ".join(
            f"{kind} {name}"
            for kind, names in zip(("thread", "process", "descriptor of"), self, strict=True)
            for name in names.elements()
        )


def now() -> Open:
    return Open(threads(), children(), descriptors())


def threads() -> Counter[str]:
    """All threads of this process, those of C included."""
    names = {str(thread.native_id): thread.name for thread in threading.enumerate()}
    return Counter(names.get(number, "not of Python") for number in os.listdir("/proc/self/task"))


def children() -> Counter[str]:
    """The processes that this one started and has not waited for."""
    found: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                found[Path(f"/proc/{pid}/comm").read_text().strip()] += 1
    return found


def descriptors() -> Counter[str]:
    """What the open descriptors lead to; a socket or pipe has no name of its own."""
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that reads the folder
            target = os.readlink(f"/proc/self/fd/{number}")
            if not target.startswith(KEPT):
                found[target.partition(":[")[0]] += 1
    return found


class Shared(NamedTuple):
    """A living fixture of more than one test."""

    has: Open  # what its beginning started
    grows: bool  # do its tests share what starts later?


living: dict[object, Shared] = {}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Iterator[None]:
    """Note what a fixture of more than one test starts, and look at its end whether it is gone."""
    if fixturedef.scope == "function" or fixturedef.func.__module__.startswith(OTHERS):
        return (yield)
    before = now()

    def check() -> None:
        living.pop(fixturedef, None)
        if fixturedef.scope != "session" and is_in_force(request.path):
            assert_nothing_left(before, f"fixture {fixturedef.argname}")

    fixturedef.addfinalizer(check)  # after the fixture's own end
    try:
        return (yield)
    finally:
        has = now().beyond(before)
        of_module = fixturedef.scope != "session"
        living[fixturedef] = Shared(has, of_module and (any(has) or fixturedef.argname in LAZY))


def left(before: Open) -> Open:
    """What was started since and belongs to no living fixture."""
    found = now().beyond(before)
    for one in living.values():
        found = found.beyond(one.has)
    return found


def assert_nothing_left(before: Open, by: str) -> None:
    if not any(left(before)):
        return
    end_verifier()
    gc.collect()  # tables in a circle of references close their files then
    deadline = time.monotonic() + GRACE
    while any(found := left(before)):
        assert time.monotonic() < deadline, f"{by} left behind: {found}"
        time.sleep(0.01)


def end_verifier() -> None:
    """The process that verifies hash: and btree: files waits for the next one, on purpose."""
    if verifier := sys.modules.get("proxymap.tables.indexed.verifier"):
        verifier.dismiss()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In these folders warnings are errors, too."""
    for item in items:
        if is_in_force(item.path):
            item.add_marker(pytest.mark.filterwarnings("error"))


def is_in_force(path: Path) -> bool:
    return any(f"/{part}" in str(path) for part in IN_FORCE)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    if not is_in_force(request.node.path):
        yield
        return
    before = now()
    yield
    if not any(one.grows for one in living.values()):
        assert_nothing_left(before, request.node.name)
