"""changes - what proxymapctl update and delete read, and how many changes are under way at once

A server makes all updates that wait together, with one sync; but a connection
has one under way. So many changes are spread over LANES connections, a key
always on the same one: its changes stay in order.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple, TypeAlias, TypeVar

LANES = 32  # 10,000 updates of an lmdb take 40 s with 1, 3.5 s with 16, 1.5 s with 64; stock serves 100
WINDOW = 64 * LANES  # changes that are read ahead of the oldest answer
BLANKS = b" \t\r\v\f"

T = TypeVar("T")


class Change(NamedTuple):
    """An update, or without a value a delete. where: "line 7: ", or nothing for the command line's."""

    key: bytes
    value: bytes | None
    where: str = ""


class BadLine(NamedTuple):
    """A line that is no change."""

    where: str


Waiting: TypeAlias = deque[tuple[Change | BadLine, Future[T] | None]]


def updates_in(lines: Iterable[bytes]) -> Iterator[Change | BadLine]:
    """KEY TAB VALUE, as dump prints it; without a TAB: KEY, blanks, VALUE. Blank lines are passed over."""
    for number, line in enumerate(lines, 1):
        where = f"line {number}: "
        line = line.removesuffix(b"\n")
        if b"\t" in line:
            key, _, value = line.partition(b"\t")
        elif line.strip(BLANKS):
            key, *rest = line.split(None, 1)
            value = rest[0].rstrip(BLANKS) if rest else b""
            if not value or line[:1].isspace():
                key = b""
        else:
            continue
        yield Change(key, value, where) if key else BadLine(where)


def deletes_in(lines: Iterable[bytes]) -> Iterator[Change | BadLine]:
    """One key a line. Empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        if key := line.removesuffix(b"\n"):
            yield Change(key, None, f"line {number}: ")


def spread(
    changes: Iterable[Change | BadLine],
    connect: Callable[[ExitStack], Callable[[Change], T]],
    fold: Callable[[bytes], bytes],
) -> Iterator[tuple[Change | BadLine, T | None]]:
    """Each change with what came of it, in their order.

    connect: gives what makes a change on one lane. fold: keys that it makes the same share a lane.
    """
    waiting: Waiting[T] = deque()
    with ExitStack() as stack:
        lanes: dict[int, tuple[ThreadPoolExecutor, Callable[[Change], T]]] = {}
        for change in changes:
            future = None
            if isinstance(change, Change):
                number = zlib.crc32(fold(change.key)) % LANES
                if number not in lanes:
                    make = connect(stack)
                    lanes[number] = ThreadPoolExecutor(1), make
                    stack.callback(lanes[number][0].shutdown, cancel_futures=True)
                executor, make = lanes[number]
                future = executor.submit(make, change)
            waiting.append((change, future))
            yield from _answered(waiting, WINDOW)
        yield from _answered(waiting, 0)


def _answered(waiting: Waiting[T], most: int) -> Iterator[tuple[Change | BadLine, T | None]]:
    """What is answered from the oldest on; those above `most` are waited for."""
    while waiting and (len(waiting) > most or waiting[0][1] is None or waiting[0][1].done()):
        change, future = waiting.popleft()
        yield change, future.result() if future else None
