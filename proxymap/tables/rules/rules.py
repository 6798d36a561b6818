"""rules - the rules of a pattern table: a file of logical lines, or `{ {rule}, {rule} }` in the table's name

    rules = Rules("cidr", mapname, host.warn)
    for line, text in rules: ...

What a rule says is its type's business; so is what becomes of a faulty one. Here
is what cidr, regexp and pcre share: lines and their numbers, the words `if` and
`endif`, and whether the file has changed since.

Source: tables.md 6; the warnings as Postfix 3.7 words them.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator

from proxymap.base.files import Stamp, read_file
from proxymap.config.source import BLANKS, logical_lines, split_braced, unbraced

_word = re.compile(rb"[0-9A-Za-z]+")


class Rules:
    """The rules of one table, read at once. Raises ValueError, with Postfix's words for the log.

    files: what they are from, with its stamp; nothing if they are in the table's name.
    faults: how many lines were found faulty so far.
    """

    def __init__(self, maptype: str, mapname: bytes, warn: Callable[[str], None]) -> None:
        self._title = f"{maptype} map {os.fsdecode(mapname)}"
        self._warn = warn
        self.files: list[tuple[bytes, Stamp]] = []
        self.faults = 0
        self._rules: Iterable[tuple[int, bytes]]
        if mapname.startswith(b"{"):
            self._rules = _inline(maptype, mapname)
        else:
            try:
                content, stamp = read_file(mapname)
            except OSError as error:
                raise ValueError(f"open {os.fsdecode(mapname)}: {error.strerror}") from error
            self.files.append((mapname, stamp))
            self._rules = logical_lines(io.BytesIO(content), os.fsdecode(mapname), self._count)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(line number, rule), once."""
        return iter(self._rules)

    def warn(self, line: int, text: str) -> None:
        self._count(f"{self._title}, line {line}: {text}")

    def _count(self, warning: str) -> None:
        self.faults += 1
        self._warn(warning)

    def warn_unclosed(self, lines: Iterable[int]) -> None:
        """Warn of each IF without ENDIF, given in file order."""
        for line in reversed(list(lines)):
            self.warn(line, "IF has no matching ENDIF")


def split_word(rule: bytes) -> tuple[bytes, bytes]:
    """(letters and digits that a rule begins with, in lower case; what follows, without blanks around)."""
    match = _word.match(rule)
    end = match.end() if match else 0
    return rule[:end].lower(), rule[end:].strip(BLANKS)


def _inline(maptype: str, mapname: bytes) -> list[tuple[int, bytes]]:
    try:
        rules = [unbraced(item).strip(BLANKS) for item in split_braced(mapname)]
    except ValueError as error:
        raise ValueError(f"{maptype} map: {error}") from None
    return [(number, rule) for number, rule in enumerate(rules, 1) if rule and not rule.startswith(b"#")]
