"""terminal - keys in and answers out: lines of standard input, the two forms of output, a progress bar"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

BAR_WIDTH = 40  # characters

Show = Callable[[bytes, bytes | None, str, list[str] | None], None]


def text_of(raw: bytes) -> str:
    """text_of - for JSON and messages: a byte that is not UTF-8 becomes a lone surrogate"""
    return raw.decode("utf-8", "surrogateescape")


def printer(as_json: bool, with_key: bool) -> Show:
    """printer - how to print an answer: key, value, the status's name, and lines that explain it, or None"""
    write = sys.stdout.buffer.write
    flush = sys.stdout.buffer.flush if sys.stdout.isatty() else lambda: None

    def show_json(key: bytes, value: bytes | None, name: str, lines: list[str] | None) -> None:
        answer: dict[str, Any] = {
            "key": text_of(key),
            "value": None if value is None else text_of(value),
            "status": name,
        }
        if lines is not None:
            answer["explain"] = lines
        write(json.dumps(answer).encode() + b"\n")
        flush()

    def show(key: bytes, value: bytes | None, name: str, lines: list[str] | None) -> None:
        if value is not None:
            write(b"%b\t%b\n" % (key, value) if with_key else value + b"\n")
            flush()
        for line in lines or ():
            print(f"{text_of(key)}: {line}", file=sys.stderr)

    return show_json if as_json else show


class Input:
    """The lines of standard input. `bar`: shows on a terminal how much of a file is read."""

    def __init__(self) -> None:
        self._size = os.fstat(sys.stdin.fileno()).st_size  # 0: a pipe or a terminal
        self.bar = Bar() if self._size and sys.stderr.isatty() else None

    def __iter__(self) -> Iterator[bytes]:
        done = 0
        for line in sys.stdin.buffer:
            yield line
            done += len(line)
            if self.bar:
                self.bar.show(done, self._size)


class Bar:
    """A progress bar on standard error."""

    def __init__(self) -> None:
        self._percent = -1

    def show(self, done: int, total: int) -> None:
        """Draw it, if the percentage is another one than before."""
        percent = 100 * done // max(total, 1)
        if percent != self._percent:
            self._percent = percent
            filled = BAR_WIDTH * percent // 100
            print(f"\r[{'#' * filled:{BAR_WIDTH}}] {percent:3} %", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take it away, for a line of text."""
        print(f"\r{'':{BAR_WIDTH + 8}}\r", end="", file=sys.stderr, flush=True)
        self._percent = -1
