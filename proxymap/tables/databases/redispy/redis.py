"""redis - redis:/path/to/file.cf: strings, hashes and sets in Redis or Valkey, by redis-py

    command = get        the value of a key
    command = hget       a field of a hash: `hash` is its key, `key_format` the field
    command = smembers   the members of a set, in the order of their bytes

A table that is opened for updates (proxywrite) is a cache of Postfix's that hosts share: with
command get, and a key_format that has the key once, after text of its own. Then all its records
can be walked through, and the caches of several tables lie side by side.

Only masters are asked. Whatever fails is RETRY.

Source: memcache_table(5) for key_format, domain and ttl; mysql_table(5) for the rest;
DICT_CACHE(3) for the record that says when a cache was cleaned up last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from proxymap.base.packages import how_to_install
from proxymap.config.maincf import ERRORS, TEXT
from proxymap.errors import STAT_NOKEY, STAT_OK, ConfigError, ProxymapError, QuestionRefused
from proxymap.tables._template import NO_PART, PART_KEY, Program
from proxymap.tables.base import Opening
from proxymap.tables.databases.database import DatabaseTable
from proxymap.tables.databases.doubts import Doubt, of_unused
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import IN_QUERY, compile_text

try:
    from redis.exceptions import RedisError
except ImportError as error:
    raise ImportError(f"redis needs redis-py 6 or later ({error}); {how_to_install('redis')}") from error

from proxymap.tables.databases.redispy.places import read_place
from proxymap.tables.databases.redispy.server import server_for, shown
from proxymap.tables.databases.redispy.walks import keys_like

COMMANDS = ("get", "hget", "smembers")
BETWEEN = b"\0"  # hash and field; no key has that
CLEANED = b"_LAST_CACHE_CLEANUP_COMPLETED_"  # a record of Postfix's caches, which never expires here
TTL_MAX = (1 << 31) - 1  # seconds


class _Changing(Protocol):
    """A Change, or a job of the loop's."""

    key: bytes
    value: bytes | None
    status: int


class Frame(NamedTuple):
    """What stands around the key of Postfix in that of Redis."""

    prefix: bytes
    suffix: bytes


def read_query(cf: TableCf, command: str) -> Program:
    """read_query - key_format; of hget: hash, BETWEEN and key_format. Raises ConfigError"""
    key = _template(cf, "key_format", cf.text("key_format", "%s"))
    if command != "hget":
        if cf.optional("hash") is not None:
            raise cf.wrong("hash", "none without command = hget")
        return key
    name = _template(cf, "hash", cf.required("hash"))
    last = len(key.pieces)
    pieces = [*name.pieces[:-1], (name.pieces[-1][0] + BETWEEN + key.pieces[0][0], key.pieces[0][1])]
    return Program(f"{name.text} {key.text}", [*pieces, *key.pieces[1:last]])


def _template(cf: TableCf, name: str, text: str) -> Program:
    try:
        return compile_text(text, IN_QUERY)
    except ValueError as trouble:
        raise cf.wrong(name, str(trouble)) from None


def frame_of(key_format: Program) -> Frame | None:
    """frame_of - if it has the key of Postfix once, after some text, and nothing else"""
    match key_format.pieces:
        case [(prefix, part), (suffix, end)] if prefix and part == PART_KEY and end == NO_PART:
            return Frame(prefix, suffix)
    return None


class Redis(DatabaseTable):
    """One .cf file."""

    def __init__(self, type_name: bytes, cf: TableCf, opening: Opening) -> None:
        self.command = cf.text("command", "get").lower()
        if self.command not in COMMANDS:
            raise cf.wrong("command", f"one of {' '.join(COMMANDS)}")
        place, query = read_place(cf), read_query(cf, self.command)
        super().__init__(type_name, cf, opening, query, utf8=False, result_set_required=False, quotes=False)
        self.ttl = cf.integer("ttl", 0, low=0, high=TTL_MAX)
        self.host = opening.host
        self.frame = frame_of(query) if self.command == "get" else None
        if opening.writes:
            _check_for_updates(cf, self)
        self.offer(opening.writes, self.frame is not None)
        timeout = cf.integer("timeout", 2, low=1)
        self.server = self.redis = server_for(place, timeout, opening.host, type_name)
        self.redis.attach(self)
        self.walks = self.redis.new_walks()
        self.unused = cf.unused()

    @property
    def answers(self) -> Records:
        """What workers ask for records."""
        return Records(self)

    # Lookups

    @contextlib.contextmanager
    def values(self, text: bytes) -> Iterator[Iterator[bytes]]:
        name, _, field = text.partition(BETWEEN)
        if self.command == "smembers":
            yield iter(sorted(self.redis.members(name, "SMEMBERS", name)))
            return
        if self.command == "hget":
            value = self.redis.value(name, "HGET", name, field)
        else:
            value = self.redis.value(name, "GET", name)
        yield iter(() if value is None else (value,))

    def shown(self, text: bytes) -> str:
        return f"{self.command.upper()} {text.replace(BETWEEN, b' ').decode(TEXT, ERRORS)}"

    def explain(self, key: bytes) -> list[str]:
        return [*super().explain(key), f"asked at {self.redis.shown}"]

    # Changes

    def write(self, changes: Sequence[_Changing], on_disk: object = None) -> None:
        """Each by itself. What fails stays RETRY, and the others are made."""
        troubles: dict[str, None] = {}
        for change in changes:
            try:
                self._change(change)
            except ProxymapError as error:
                troubles[str(error)] = None
        for trouble in troubles:
            self.host.warn(f"{self.type_name.decode(TEXT, ERRORS)} update error: {trouble}")

    def _change(self, change: _Changing) -> None:
        name, why = self.text_for(change.key)
        if name is None:
            change.status = STAT_NOKEY
            shown = change.key.decode(TEXT, ERRORS)
            self.host.warn(
                f'{self.type_name.decode(TEXT, ERRORS)}: skipping update for name "{shown}": {why}'
            )
        elif change.value is None:
            change.status = STAT_OK if self.redis.ask(name, "DEL", name) else STAT_NOKEY
        else:
            ends = ("EX", self.ttl) if self.ttl and change.key.upper() != CLEANED else ()
            self.redis.ask(name, "SET", name, change.value, *ends)
            change.status = STAT_OK

    # Records

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Each with the value that it has when its turn comes."""
        assert self.frame is not None
        prefix, suffix = self.frame
        for name in keys_like(self.redis.masters(), prefix, suffix):
            key = name.removeprefix(prefix).removesuffix(suffix)
            with contextlib.suppress(QuestionRefused):  # it is of another type, so not one of ours
                value = self.redis.value(name, "GET", name)
                if key and BETWEEN not in key and value is not None:  # Postfix's keys have none
                    yield key, value.partition(BETWEEN)[0]

    # For the administrator

    def doubts(self, connect: bool = False) -> Iterator[Doubt]:
        yield from of_unused(self.unused)
        if connect:
            yield from self._doubts_of_server()

    def _doubts_of_server(self) -> Iterator[Doubt]:
        try:
            for node in self.redis.masters():
                told = node.told()
                if "allkeys" in told.get("maxmemory_policy", "") and told.get("maxmemory") != "0":
                    yield (
                        f"{node.address.shown} forgets keys when its memory is full (maxmemory-policy"
                        f" {told['maxmemory_policy']}), and then there is no such key",
                        "set maxmemory-policy to noeviction, or volatile-ttl", True,
                    )  # fmt: skip
                if told.get("role") == "slave":
                    yield (
                        f"{node.address.shown} is a replica: its answers may be old",
                        "name the master, or use redis+sentinel://", True,
                    )  # fmt: skip
        except (ProxymapError, RedisError, OSError) as error:
            yield shown(error), "see to the server and the login", False


class Records:
    """Those of a table, by the number of the connection that walks."""

    def __init__(self, table: Redis) -> None:
        self.table = table

    def sequence(self, cursor: int, first: bool) -> tuple[bytes, bytes] | None:
        """The first or the next record, or None at the end; TableRetry ends a walk."""
        return self.table.walks.step(cursor, self.table.records() if first else None)


def _check_for_updates(cf: TableCf, table: Redis) -> None:
    """Raises ConfigError for a table that cannot be written to."""
    if table.command != "get":
        raise cf.wrong("command", "get, for a table that is written to")
    if table.frame is None:
        raise cf.wrong("key_format", 'some text and "%s" (such as verify:%s), for a table that is written to')
    if table.result.text != "%s":
        raise cf.wrong("result_format", '"%s", for a table that is written to')


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> Redis:
    try:
        return Redis(type_name, TableCf(mapname, opening.host), opening)
    except RuntimeError as error:
        raise ConfigError(str(error)) from None
