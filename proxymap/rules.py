"""rules - the rules of a pattern table: a file of logical lines, or `{ {rule}, {rule} }` in the table's name

    rules = Rules("cidr", mapname, host.warn)
    for line, text in rules: ...

What a rule says is its type's business; so is what becomes of a faulty one. Here
is what cidr, regexp and pcre share: lines and their numbers, the words `if` and
`endif`, and whether the file has changed since.

Source: tables.md 6; the warnings as Postfix 3.7 words them.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator

from proxymap.source import BLANKS, logical_lines, split_braced, unbraced

ATTEMPTS = 10  # to read a file that changes all the time

_word = re.compile(rb"[0-9A-Za-z]+")


class Rules:
    """The rules of one table, read at once. Raises ValueError, with Postfix's words for the log.

    file: where they are from, b"" if they are in the name. stamp: of the file as it was read.
    """

    def __init__(self, maptype: str, mapname: bytes, warn: Callable[[str], None]) -> None:
        self._title = f"{maptype} map {os.fsdecode(mapname)}"
        self._warn = warn
        self.stamp: tuple[int, ...] = ()
        self._rules: Iterable[tuple[int, bytes]]
        if mapname.startswith(b"{"):
            self.file = b""
            self._rules = _inline(maptype, mapname)
        else:
            self.file = mapname
            content, self.stamp = _read(mapname)
            self._rules = logical_lines(io.BytesIO(content), os.fsdecode(mapname), warn)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(line number, rule), once."""
        return iter(self._rules)

    def warn(self, line: int, text: str) -> None:
        self._warn(f"{self._title}, line {line}: {text}")

    def warn_unclosed(self, lines: Iterable[int]) -> None:
        """Warn of each IF without ENDIF, given in file order."""
        for line in reversed(list(lines)):
            self.warn(line, "IF has no matching ENDIF")


def split_word(rule: bytes) -> tuple[bytes, bytes]:
    """(letters and digits that a rule begins with, in lower case; what follows, without blanks around)."""
    match = _word.match(rule)
    end = match.end() if match else 0
    return rule[:end].lower(), rule[end:].strip(BLANKS)


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """What tells one content of a file from another: device, inode, size, time of change in ns."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _inline(maptype: str, mapname: bytes) -> list[tuple[int, bytes]]:
    try:
        rules = [unbraced(item).strip(BLANKS) for item in split_braced(mapname)]
    except ValueError as error:
        raise ValueError(f"{maptype} map: {error}") from None
    return [(number, rule) for number, rule in enumerate(rules, 1) if rule and not rule.startswith(b"#")]


def _read(file: bytes) -> tuple[bytes, tuple[int, ...]]:
    """Content and stamp of a file; read again if it changes meanwhile."""
    try:
        for _ in range(ATTEMPTS):
            with open(file, "rb", opener=_open_at_once) as opened:
                stamp = stamp_of(os.fstat(opened.fileno()))
                content = opened.read()
                if stamp_of(os.fstat(opened.fileno())) == stamp:
                    break
    except OSError as error:
        raise ValueError(f"open {os.fsdecode(file)}: {error.strerror}") from error
    return content, stamp


def _open_at_once(path: str, flags: int) -> int:
    """A pipe or a device could keep us waiting, or never end."""
    fd = os.open(path, flags | os.O_NONBLOCK)
    status = os.fstat(fd)  # open() itself refuses a directory
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return fd
    if os.path.samestat(status, os.stat(os.devnull)):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", path)
