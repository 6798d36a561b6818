"""targets - what is fuzzed: each takes any bytes, and raises if something must not be

    TARGETS["cdb"](data)

A target knows what bytes stand for (a file, a request), hands them to the code that
meets them in a running server, and compares with a second reading where there is one.
Memory errors are for AddressSanitizer to find, hangs for the fuzzer's time limit.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeAlias

import oracle
from template_model import Model, TooMany

from proxymap import _codec
from proxymap.config import maincf, source
from proxymap.errors import ConfigError, TableRetry
from proxymap.server import control
from proxymap.tables._table import Table
from proxymap.tables.base import Host, Opening
from proxymap.tables.databases.database import DatabaseTable
from proxymap.tables.flags import DUP_WARN
from proxymap.tables.indexed.cdb import CdbTable
from proxymap.tables.indexed.lmdb import LmdbTable
from proxymap.tables.opening import open_table
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import compile_query

Target: TypeAlias = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}

OK, NOKEY, RETRY = 0, 1, 2
PLACE = Path(tempfile.mkdtemp(prefix="proxymap-fuzz-", dir="/dev/shm"))
atexit.register(shutil.rmtree, PLACE, ignore_errors=True)
# Repetitions in a regular expression that the C library needs gigabytes for, as anybody may write them.
LARGE_COUNT = re.compile(rb"\{[^}]*\d{3}|(\{[^}]*\}.*){3}|(\+.*){12}", re.DOTALL)


def target(function: Target) -> Target:
    """Register it by its name."""
    TARGETS[function.__name__] = function
    return function


def written(data: bytes) -> bytes:
    """A file of these bytes; a new one each time, as what is open is shared by name and stamp."""
    path = PLACE / "table"
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return bytes(path)


def split_input(data: bytes) -> tuple[bytes, bytes]:
    """Two parts, at the first line that is only `%%`: a file, and keys to ask it for."""
    first, _, second = data.partition(b"%%\n")
    return first, second


def ask(table: Table, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
    """What is found, as (key, value)."""
    found = []
    for key in keys:
        status, _, value = table.ask(key, 0)
        assert status in (OK, NOKEY, RETRY), status
        if status == OK:
            found.append((key, value))
    return found


# Bytes of a client


@target
def codec(data: bytes) -> None:
    """A request is read as the plain-Python reader reads it, wherever the bytes are cut."""
    size = _codec.scan_list(data)
    assert size == _codec.scan_list(data, range(1, len(data)))
    taken = oracle.take_list(data)
    if taken is None:
        assert size == 0
        return
    attributes, rest = taken
    assert size == len(data) - len(rest)
    assert _codec.parse(data[:size]) == oracle.parse(attributes)


@target
def request(data: bytes) -> None:
    """A line to the control socket gets one reply, which the other end understands."""
    commands = {"tables": lambda asked: [asked], "refuse": refuse, "fail": lambda asked: asked["x"]}
    silent = SimpleNamespace(exception=lambda *_, **__: None)
    reply = control.Control("socket", commands, silent)._answer(data)
    line = json.dumps(reply)
    assert json.dumps(control._checked(line.encode())) == line  # not the values: NaN is not equal to itself


def refuse(asked: object) -> None:
    raise control.Refused("no")


@target
def answer(data: bytes) -> None:
    """Whatever stands on a control socket, proxymapctl makes one of the two forms of it."""
    reply = control._checked(data)
    assert "ok" in reply or isinstance(reply["error"], str)


# Files that are mapped


def mapped(kind: Callable[..., Table], data: bytes) -> None:
    """What is found stands in the file."""
    try:
        table = kind(b"fuzz:t", written(data))
    except (OSError, ValueError):
        return
    keys = {data[at : at + size] for at in range(0, len(data), 64) for size in (1, 5, 9)}
    walked = table.sequence()
    for key, value in walked + ask(table, [b"", b"k", *sorted(keys)[:32], *(key for key, _ in walked[:32])]):
        assert key in data, key
        assert value in data, value


@target
def cdb(data: bytes) -> None:
    mapped(CdbTable, data)


@target
def lmdb(data: bytes) -> None:
    mapped(lambda name, path: LmdbTable(name, path, 1 << 20), data)


# Source text


def rules(type_name: bytes, data: bytes) -> None:
    text, keys = split_input(data)
    table = open_table(type_name + b":" + written(text), host=Host(warn=len))
    ask(table, keys.split(b"\n")[:16])


@target
def cidr(data: bytes) -> None:
    rules(b"cidr", data)


@target
def pcre(data: bytes) -> None:
    rules(b"pcre", data)


@target
def regexp(data: bytes) -> None:
    if not LARGE_COUNT.search(data):
        rules(b"regexp", data)


@target
def texthash(data: bytes) -> None:
    """Every line that is a record is found, with a value that one of its lines has."""
    warnings: list[str] = []
    records: dict[bytes, set[bytes]] = {}
    for _, line in source.logical_lines(io.BytesIO(data), "t", warnings.append):
        try:
            key, value = source.split_record(line)
        except source.RecordError:
            continue
        if not set(b'"\\') & set(key):  # which do not stay in it
            records.setdefault(key, set()).add(value)
    table = open_table(b"texthash:" + written(data), DUP_WARN, host=Host(warn=warnings.append))
    found = dict(ask(table, list(records)))
    assert found.keys() == records.keys()
    assert all(value in records[key] for key, value in found.items())


@target
def lists(data: bytes) -> None:
    """Lists with braces, words, keys in quotes: nothing but RecordError and ValueError comes of them."""
    for split in (source.split_list, source.split_braced, source.unbraced, source.without_proxy):
        try:
            list(split(data))
        except ValueError:
            pass
    at = source.key_end(data, source.BLANKS)
    assert -1 <= at <= len(data)


# Configuration


class MainCf(maincf.MainCf):
    """Of a host without Postfix."""

    def _ask_postconf(self) -> dict[str, str]:
        return {}


@target
def main_cf(data: bytes) -> None:
    """Each parameter of a main.cf has a value, or a ConfigError that says where."""
    (PLACE / "main.cf").write_bytes(data)
    try:
        main = MainCf(str(PLACE), [], {"process_name": "proxymap"}, {}, len)
        names = maincf.read_parameters(str(PLACE / "main.cf"), len)[0]
    except ConfigError:
        return
    for name in [*list(names)[:32], "mydomain", "myhostname"]:
        with contextlib.suppress(ConfigError):
            assert isinstance(main.get(name), str)


class Recipe(DatabaseTable):
    """A table whose templates alone matter."""

    def __new__(cls, *rest: object) -> Recipe:
        return super().__new__(cls, b"sqlite:t")

    def __init__(self, cf: TableCf, query: str) -> None:
        opening = Opening(0, False, Host(warn=len), open_table)
        super().__init__(b"sqlite:t", cf, opening, compile_query(cf, "query", query))

    def values(self, sql: bytes) -> Values:
        self.asked = sql
        return Values(self.found)


class Values:
    """What the database has, as a context."""

    def __init__(self, found: list[bytes]) -> None:
        self.found = found

    def __enter__(self) -> list[bytes]:
        return self.found

    def __exit__(self, *_: object) -> None:
        pass


@target
def template(data: bytes) -> None:
    """A query and a result are what the model makes of them. Lines: query, result, key, values ..."""
    query, result, key, *values = [*data.split(b"\n"), b"", b"", b""][:8]
    if b"\0" in data or not query or not result:
        return
    try:
        text = query.decode()
        lines = b"result_format = <" + result + b">\nexpansion_limit = 3\n"
        table = Recipe(TableCf(written(lines), Host(warn=len)), text)
    except (ConfigError, UnicodeDecodeError):
        return
    table.found, table.asked = values, None
    model = Model(query, b"<" + result + b">", None, 3)
    try:
        status, _, value = table.ask(key, 0)
    except TableRetry:
        status, value = RETRY, b""
    assert table.asked == model.query(key), (table.asked, model.query(key))
    if table.asked is None:
        assert status == NOKEY
        return
    try:
        expected = model.answer(key, values)
    except TooMany:
        assert status == RETRY
        return
    assert (value if status == OK else None) == expected, (status, value, expected)
