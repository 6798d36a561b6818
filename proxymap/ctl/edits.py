"""edits - what proxymapctl update and delete read, and how many edits are under way at once

A server makes all updates that wait together, with one sync; but a connection
has one under way. So the edits are spread over LANES connections, those of one
key always on the same one, which keeps them in order.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

from proxymap.base._fold import fold
from proxymap.ctl.connection import Connection
from proxymap.ctl.outcome import EX_DATAERR, EX_OK, EX_USAGE, Answer, answer_of, complain
from proxymap.ctl.terminal import Bar, text_of

LANES = 32  # 10,000 updates of an lmdb take 40 s with 1, 3.5 s with 16, 1.5 s with 64; stock serves 100
WINDOW = 64 * LANES  # edits that are read ahead of the oldest answer
BLANKS = b" \t\r\v\f"

T = TypeVar("T")


class Edit(NamedTuple):
    """An update, or without a value a delete. where: "line 7: ", or nothing for the command line's."""

    key: bytes
    value: bytes | None
    where: str = ""


class BadLine(NamedTuple):
    """A line that is no edit."""

    where: str


Waiting: TypeAlias = deque[tuple[Edit | BadLine, Future[T] | None]]


def updates_in(lines: Iterable[bytes]) -> Iterator[Edit | BadLine]:
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
        yield Edit(key, value, where) if key else BadLine(where)


def deletes_in(lines: Iterable[bytes]) -> Iterator[Edit | BadLine]:
    """One key a line. Empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        if key := line.removesuffix(b"\n"):
            yield Edit(key, None, f"line {number}: ")


def spread(
    edits: Iterable[Edit | BadLine],
    connect: Callable[[ExitStack], Callable[[Edit], T]],
    same: Callable[[bytes], bytes],
) -> Iterator[tuple[Edit | BadLine, T | None]]:
    """Each edit with what came of it, in their order.

    connect: gives what makes an edit on one lane. same: keys that it makes the same share a lane.
    """
    waiting: Waiting[T] = deque()
    with ExitStack() as stack:
        lanes: dict[int, tuple[ThreadPoolExecutor, Callable[[Edit], T]]] = {}
        for edit in edits:
            future = None
            if isinstance(edit, Edit):
                number = zlib.crc32(same(edit.key)) % LANES
                if number not in lanes:
                    make = connect(stack)
                    lanes[number] = ThreadPoolExecutor(1), make
                    stack.callback(lanes[number][0].shutdown, cancel_futures=True)
                executor, make = lanes[number]
                future = executor.submit(make, edit)
            waiting.append((edit, future))
            yield from _answered(waiting, WINDOW)
        yield from _answered(waiting, 0)


def _answered(waiting: Waiting[T], most: int) -> Iterator[tuple[Edit | BadLine, T | None]]:
    """What is answered from the oldest on; those above `most` are waited for."""
    while waiting and (len(waiting) > most or waiting[0][1] is None or waiting[0][1].done()):
        edit, future = waiting.popleft()
        yield edit, future.result() if future else None


def make_edits(arguments: argparse.Namespace, edits: Iterable[Edit | BadLine], bar: Bar | None = None) -> int:
    """Make them on the server, and tell of each trouble once; the exit status is the highest."""

    def connect(stack: ExitStack) -> Callable[[Edit], Answer]:
        server = stack.enter_context(Connection(arguments))
        return lambda edit: answer_of(server, lambda: server.change(edit.key, edit.value))

    worst = EX_OK
    told = {""}
    for edit, answer in spread(edits, connect, partial(fold, utf8=True)):
        if isinstance(edit, BadLine):
            status, trouble = EX_DATAERR, "expected KEY TAB VALUE: skipped"
        else:
            assert answer is not None
            status, trouble = answer.status, answer.trouble
            if arguments.json:
                print(json.dumps({"key": text_of(edit.key), "status": answer.name}))
        if trouble not in told or status in (EX_DATAERR, EX_USAGE):
            told.add(trouble)
            if bar:
                bar.clear()
            complain(edit.where + trouble, status)
        worst = max(worst, status)
    if bar:
        bar.clear()
    return worst
