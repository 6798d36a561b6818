"""template - what database tables ask for a key, and what they make of the values

A query is a template that is filled from the key, and not sent if the key lacks
what a template wants. Each value goes through result_format; what comes of it
is joined by commas.

            in a query (of the key)     in result_format
    %s      the key                     the value
    %u %d   before and after its `@`    the same of the value
    %S %U %D                            of the key, in both
    %1..%9  labels of its domain,       of the key, in both
            from the right
    %%      a percent sign

Source: mysql_table(5), ldap_table(5) ...; as postmap of 3.7.11 does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from proxymap.config.maincf import ERRORS, TEXT
from proxymap.errors import TableRetry
from proxymap.tables.base import Opening
from proxymap.tables.databases.domains import DomainList
from proxymap.tables.databases.tablecf import TableCf

LETTERS = frozenset(b"%c" % letter for letter in b"sudSUD123456789")
DIGITS = frozenset(b"%c" % digit for digit in b"123456789")

Parts = Mapping[bytes, bytes]  # letter -> what stands for it; of a key: key_parts


def unquoted(text: bytes) -> bytes:
    """unquoted - the text as it is: what memcache and result_format want of a quoting function"""
    return text


class Template:
    """A compiled template. Raises ValueError (what was expected) for a `%` that means nothing.

    letters: what it wants. A query's %s, %u, %d are the key's, hence %S, %U, %D.
    """

    def __init__(self, text: bytes, *, query: bool) -> None:
        self.text, self._query = text, query
        self.letters: set[bytes] = set()
        self._format = re.sub(rb"%(.?)", self._compile, text, flags=re.DOTALL)

    def __str__(self) -> str:
        return self.text.decode(TEXT, ERRORS)

    def _compile(self, found: re.Match[bytes]) -> bytes:
        """%x as Python's own formatting has it."""
        letter = found[1].upper() if self._query else found[1]
        if letter == b"%":
            return b"%%"
        if found[1] not in LETTERS:
            shown = found[0].decode(TEXT, ERRORS)
            raise ValueError(f'a template, in which "{shown}" means nothing (a percent sign is "%%")')
        self.letters.add(letter)
        return b"%%(%b)s" % letter

    def fill(self, parts: Parts, quote: Callable[[bytes], bytes] = unquoted) -> bytes:
        """fill - the text with each part quoted; `parts` has all that it wants"""
        return self._format % {letter: quote(parts[letter]) for letter in self.letters}


def key_parts(key: bytes) -> Parts:
    """key_parts - letter -> part of the key; %1 to %9 as far as there are labels, which are never empty"""
    user, domain = _split_address(key)
    parts = {b"S": key, b"U": user, b"D": domain}
    labels = [label for label in domain.split(b".") if label]
    parts.update((b"%d" % n, label) for n, label in enumerate(reversed(labels[-9:]), 1))
    return parts


def _split_address(text: bytes) -> tuple[bytes, bytes]:
    """(before, after) the last `@`; without one it is all user."""
    user, at, domain = text.rpartition(b"@")
    return (user, domain) if at else (text, b"")


class Templates:
    """The templates of one table, with `domain`, result_format and expansion_limit.

    queries: the query templates, already compiled; see `compile_query`.
    """

    def __init__(
        self, type_name: bytes, cf: TableCf, opening: Opening, queries: Iterable[Template],
        result_format: str = "%s", expansion_limit: int = 0,
    ) -> None:  # fmt: skip
        self.warn = opening.host.warn
        self.table = type_name.decode(TEXT, ERRORS)
        self.limit = expansion_limit
        self.result = _compile(cf, "result_format", result_format, query=False)
        self.wants = self.result.letters.union(*(query.letters for query in queries))
        domains = cf.text("domain").encode(TEXT, ERRORS)
        self.domains = DomainList(domains, cf.where("domain"), opening) if domains else None

    def refusal(self, parts: Parts) -> str | None:
        """refusal - why the database is not asked for the key with these parts; None if it is

        Raises TableRetry if the list of domains cannot tell.
        """
        key, user, domain = parts[b"S"], parts[b"U"], parts[b"D"]
        if self.domains is not None and (b"@" not in key or not user):
            return "it is no user@domain, and parameter domain is set"
        if self.domains is not None and domain not in self.domains:
            return "parameter domain does not match"
        if not key:
            self.warn(f'table "{self.table}": empty query string -- ignored')
            return "it is empty"
        if not domain and self.wants & {b"D", *DIGITS}:
            return "it has no domain, which a template wants"
        if not user and b"U" in self.wants:
            return "it has no user, which a template wants"
        if not self.wants & DIGITS <= parts.keys():
            return "its domain has fewer labels than a template wants"
        return None

    def join(self, parts: Parts, values: Iterable[bytes | None]) -> bytes | None:
        """join - the result for the key with these parts; None if no value is left

        Of a value counts what is before its first NUL. Raises TableRetry if
        there are more of them than expansion_limit.
        """
        results: list[bytes] = []
        for value in values:
            result = None if value is None else self._format(parts, value.partition(b"\0")[0])
            if result is not None:
                results.append(result)
                if 0 < self.limit < len(results):
                    shown = parts[b"S"].decode(TEXT, ERRORS)
                    raise TableRetry(f'more than {self.limit} values (expansion_limit) for: "{shown}"')
        return b",".join(results) if results else None

    def _format(self, parts: Parts, value: bytes) -> bytes | None:
        if not value:
            shown = parts[b"S"].decode(TEXT, ERRORS)
            self.warn(f'table "{self.table}": empty lookup result for: "{shown}" -- ignored')
            return None
        user, domain = _split_address(value)
        if (not domain and b"d" in self.result.letters) or (not user and b"u" in self.result.letters):
            return None
        return self.result.fill({**parts, b"s": value, b"u": user, b"d": domain})


def compile_query(cf: TableCf, name: str, text: str) -> Template:
    """compile_query - the query template that the parameter `name` holds; raises ConfigError"""
    return _compile(cf, name, text, query=True)


def _compile(cf: TableCf, name: str, text: str, query: bool) -> Template:
    try:
        return Template(text.encode(TEXT, ERRORS), query=query)
    except ValueError as trouble:
        raise cf.wrong(name, str(trouble)) from None
