"""template_model - what templates mean, in plain Python; shares nothing with _template.pyx"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

DIGITS = frozenset(b"%c" % digit for digit in b"123456789")

Parts = Mapping[bytes, bytes]  # letter -> what stands for it


class TooMany(Exception):
    """More values than the limit allows."""


class Model:
    """A table with these templates. domains: the names in its list; limit: expansion_limit."""

    def __init__(
        self, query: bytes, result: bytes = b"%s", domains: Sequence[bytes] | None = None, limit: int = 0
    ) -> None:
        self.query_letters, self._query = _compiled(query, upper=True)
        self.result_letters, self._result = _compiled(result, upper=False)
        self.domains, self.limit = domains, limit

    def query(self, key: bytes) -> bytes | None:
        """The query for a key, quotes doubled; None: it is not asked for."""
        parts = key_parts(key)
        return None if self._refused(parts) else self._fill(self._query, parts, _doubled)

    def _refused(self, parts: Parts) -> bool:
        wants = self.query_letters | self.result_letters
        key, user, domain = parts[b"S"], parts[b"U"], parts[b"D"]
        if self.domains is not None and (b"@" not in key or not user or _folded(domain) not in self.domains):
            return True
        wanted = {b"%b" % parts[letter] for letter in self.query_letters if letter in parts}
        return (
            not key
            or (not domain and bool(wants & {b"D", *DIGITS}))
            or (not user and b"U" in wants)
            or not wants & DIGITS <= parts.keys()
            or not all(_is_utf8(part) for part in wanted)
            or (bool(DIGITS & set(self.query_letters)) and not _is_utf8(key))
        )

    def answer(self, key: bytes, values: Sequence[bytes | None]) -> bytes | None:
        """What comes of the values that the database has for a key."""
        results: list[bytes] = []
        for value in values:
            text = (value or b"").partition(b"\0")[0]
            user, domain = _split(text)
            if (
                not text
                or (not domain and b"d" in self.result_letters)
                or (not user and b"u" in self.result_letters)
            ):
                continue
            results.append(
                self._fill(self._result, {**key_parts(key), b"s": text, b"u": user, b"d": domain}, bytes)
            )
            if 0 < self.limit < len(results):
                raise TooMany
        return b",".join(results) if results else None

    def _fill(self, template: bytes, parts: Parts, quote: Callable[[bytes], bytes]) -> bytes:
        return template % {letter: quote(part) for letter, part in parts.items()}


def key_parts(key: bytes) -> Parts:
    """letter -> part of the key; %1 to %9 as far as there are labels, which are never empty."""
    user, domain = _split(key)
    labels = [label for label in domain.split(b".") if label]
    numbered = {b"%d" % n: label for n, label in enumerate(reversed(labels[-9:]), 1)}
    return {b"S": key, b"U": user, b"D": domain, **numbered}


def _split(text: bytes) -> tuple[bytes, bytes]:
    user, at, domain = text.rpartition(b"@")
    return (user, domain) if at else (text, b"")


def _doubled(text: bytes) -> bytes:
    return text.replace(b"'", b"''")


def _folded(text: bytes) -> bytes:
    return text.decode().casefold().encode() if _is_utf8(text) else text.lower()


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _compiled(text: bytes, upper: bool) -> tuple[set[bytes], bytes]:
    """The letters, and the template as Python's own formatting has it."""
    letters: set[bytes] = set()

    def one(found: re.Match[bytes]) -> bytes:
        letter = found[1].upper() if upper else found[1]
        if letter == b"%":
            return b"%%"
        letters.add(letter)
        return b"%%(%b)s" % letter

    return letters, re.sub(rb"%(.)", one, text, flags=re.DOTALL)
