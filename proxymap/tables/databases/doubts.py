"""doubts - what `proxymapctl check` has to say of a database table that opens

A doubt is (what, remedy, is it a warning only?).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl

from proxymap.tables._template import NO_PART, Program
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import filled_with, parts_outside_quotes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables.databases.addresses import Address

Doubt = tuple[str, str, bool]

SAMPLE = b"1"  # for a part of the key; also a number
READING = (b"SELECT", b"WITH", b"VALUES", b"TABLE")  # how statements begin that can be explained
IN_URI = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")  # parameters that name files


def of_query(query: Program) -> Iterator[Doubt]:
    """of_query - parts of the key that strangers may write SQL with"""
    parts = parts_outside_quotes(query.text)
    if parts:
        what = (
            f"{', '.join(parts)} is not between single quotes in its query: a key from outside is SQL there"
        )
        yield what, f"write '{parts[0]}'", True


def of_files(named: Iterable[tuple[str, str]]) -> Iterator[Doubt]:
    """of_files - those of (parameter, path) that cannot be read; paths may be empty"""
    for name, path in named:
        if path and not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
            there = "cannot be read" if os.path.lexists(path) else "is not there"
            yield f"{name}: {path} {there}", "correct the name, or its owner and mode", True


def of_unused(places: Iterable[str]) -> Iterator[Doubt]:
    """of_unused - parameters that mean nothing, perhaps for an error in the name"""
    for place in places:
        yield f"{place} is not used", "correct its name, or take it away", True


def of_uris(addresses: Iterable[Address]) -> Iterator[Doubt]:
    """of_uris - files that URIs name: those that cannot be read, and a key that libpq refuses"""
    for address in addresses:
        named = dict(parse_qsl(address.host.partition("?")[2])) if address.kind == "uri" else {}
        yield from of_files((name, named[name]) for name in IN_URI if named.get(name, "system") != "system")
        key = named.get("sslkey", "")
        if os.access(key, os.R_OK) and stat.S_IMODE(os.stat(key).st_mode) & 0o077 and os.stat(key).st_uid:
            yield f"sslkey: others may read {key}, and libpq refuses it", f"chmod 600 {key}", True


def explaining(query: Program) -> Program:
    """explaining - a statement without parts, which has the server explain the query; or only answer

    What does more than read, and what is more than one statement, is not for the server's eyes.
    """
    text = filled_with(query, SAMPLE).strip(b"; \t\n")
    explained = text.upper().startswith(READING) and b";" not in text
    return Program("", [(b"EXPLAIN " + text if explained else b"SELECT 1", NO_PART)])


class NoParameters(TableCf):
    """The parameters of a table that has none."""

    def __init__(self) -> None:
        self.name, self.is_file, self.files = "", True, []
        self._values, self._lines, self._asked = {}, {}, set()
