"""test_lockfile - a file that other processes write to: locked as Postfix does, and known again"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_server import LIMIT, can_lock

from proxymap.base._lockfile import LockFile

HEAD = 100
HOLD = (
    "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_{}); print(); input()"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "t"
    path.write_bytes(b"a" * 1000)
    return path


@pytest.fixture
def file(path: Path) -> Iterator[LockFile]:
    opened = LockFile(str(path), os.open(path, os.O_RDWR))
    yield opened
    opened.close()


@pytest.fixture
def holder(path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the lock until something is written to it."""
    command = [sys.executable, "-c", HOLD.format(request.param), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_locked_file_is_locked_for_others(file: LockFile, path: Path) -> None:
    assert file.lock()
    assert not can_lock(path, "SH")
    file.unlock()
    assert can_lock(path)


def test_shared_lock_lets_readers_in(file: LockFile, path: Path) -> None:
    assert file.lock(shared=True)
    assert can_lock(path, "SH")
    assert not can_lock(path)


@pytest.mark.parametrize("holder", ["EX"], indirect=True)
def test_lock_that_another_has_is_not_waited_for_unless_wanted(
    file: LockFile, holder: subprocess.Popen[bytes]
) -> None:
    assert not file.lock(wait=False)
    assert not file.lock(wait=False, shared=True)


@pytest.mark.parametrize("holder", ["EX", "SH"], indirect=True)
def test_lock_is_waited_for_while_other_threads_run(file: LockFile, holder: subprocess.Popen[bytes]) -> None:
    thread = threading.Thread(target=file.lock)
    thread.start()
    holder.communicate(b"\n")
    thread.join(LIMIT)
    assert not thread.is_alive()


def test_nothing_is_as_left_before_it_was_left(file: LockFile) -> None:
    assert not file.is_as_left()
    file.leave(HEAD)
    assert file.is_as_left()
    file.forget()
    assert not file.is_as_left()


@pytest.mark.parametrize(
    "content",
    [b"a" * 99 + b"b" + b"a" * 900, b"a" * 999, b"", b"c" * 1000],
    ids=["byte", "cut", "emptied", "all"],
)
def test_what_others_did_shows(file: LockFile, path: Path, content: bytes) -> None:
    file.leave(HEAD)
    path.write_bytes(content)
    assert file.is_current()
    assert not file.is_as_left()


def test_file_that_is_shorter_than_its_head_is_never_as_left(file: LockFile, path: Path) -> None:
    path.write_bytes(b"short")
    file.leave(HEAD)
    assert not file.is_as_left()


@pytest.mark.parametrize("sizes", [(HEAD, 4 * HEAD), (4 * HEAD, HEAD)], ids=["larger", "smaller"])
def test_head_of_another_size_is_known_as_well(file: LockFile, path: Path, sizes: tuple[int, int]) -> None:
    """As when a table was emptied and begun again with other pages."""
    for size in sizes:
        path.write_bytes(b"%d" % size * size)
        file.leave(size)
        assert file.is_as_left()
        with path.open("r+b") as other:
            other.seek(size - 1)
            other.write(b"x")
        assert not file.is_as_left()
        with path.open("r+b") as other:
            other.seek(size)
            other.write(b"x")  # behind the head
        file.leave(size)
        assert file.is_as_left()


def test_file_that_was_replaced_is_not_current(file: LockFile, path: Path) -> None:
    file.leave(HEAD)
    path.rename(path.with_suffix(".old"))
    assert not file.is_current()
    path.write_bytes(b"a" * 1000)
    assert not file.is_current()
    assert not file.is_as_left()
    path.with_suffix(".old").rename(path)
    assert file.is_as_left()


def test_file_in_a_folder_that_cannot_be_searched_is_trouble(path: Path) -> None:
    file = LockFile(str(path / "no" / "folder"), os.open(path, os.O_RDWR))
    with pytest.raises(OSError, match="Not a directory"):
        file.is_current()
    file.close()


def test_closed_file_can_be_closed_again(file: LockFile) -> None:
    file.leave(HEAD)
    file.close()
    file.close()
    file.unlock()
    assert not file.is_as_left()
