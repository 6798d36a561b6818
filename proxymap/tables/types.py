"""types - the table types: one file each, one line each in TABLE_TYPES

The file is imported when the first table of its type is opened. It offers
`open_table(type_name, mapname, opening)`, which returns a Table (a .pyx type,
answers on the loop) or a SlowTable (answers on a worker; see base), and raises
OSError, ValueError or an exception of errors.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module

from proxymap.tables.flags import (
    ALL_FLAGS,
    DUP_IGNORE,
    DUP_REPLACE,
    DUP_WARN,
    FIXED,
    FOLD_FIX,
    FOLD_MUL,
    NO_REGSUB,
    PATTERN,
    RHS_IS_FILE,
    TRY0NULL,
    TRY1NULL,
    UTF8_ACTIVE,
    UTF8_REQUEST,
)


class TableType:
    """One type.

    module: the file, below this folder. suffix: what follows a table's name in the name of its
    file; None if it has no single one. writable: can it be opened for updates?
    flags: dictionary flags that make another table of it when they are given at open.
    writer: another module that updates need. heavy: does it bring megabytes of libraries?
    remote: does opening it for updates touch no file?
    """

    def __init__(
        self,
        module: str,
        *,
        suffix: bytes | None = None,
        writable: bool = False,
        flags: int = 0,
        writer: str | None = None,
        heavy: bool = False,
        remote: bool = False,
    ) -> None:
        self.module, self.suffix, self.writable, self.flags = module, suffix, writable, flags
        self.writer, self.heavy, self.remote = writer, heavy, remote


TEXTHASH_FLAGS = DUP_WARN | DUP_IGNORE | DUP_REPLACE | FOLD_FIX | UTF8_REQUEST | RHS_IS_FILE

# What members may heed, and what says how they are asked.
MEMBER_FLAGS = TEXTHASH_FLAGS | NO_REGSUB | TRY0NULL | TRY1NULL | FIXED | PATTERN | FOLD_MUL | UTF8_ACTIVE

TABLE_TYPES = {
    "btree": TableType("indexed.bdb", suffix=b".db", writable=True),
    "cdb": TableType("indexed.cdb", suffix=b".cdb"),
    "cidr": TableType("rules.cidr", suffix=b"", flags=RHS_IS_FILE),
    "debug": TableType("composite.debug", writable=True, flags=ALL_FLAGS),  # as its table
    "environ": TableType("memory.environ", writable=True),
    "fail": TableType("memory.fail", writable=True),
    "hash": TableType("indexed.bdb", suffix=b".db", writable=True),
    "http": TableType("databases.web.http", heavy=True),
    "inline": TableType("memory.inline", flags=FOLD_FIX | UTF8_REQUEST | RHS_IS_FILE),
    "internal": TableType("memory.internal", writable=True, flags=ALL_FLAGS),
    "ldap": TableType("databases.openldap.ldap", heavy=True),
    "lmdb": TableType("indexed.lmdb", suffix=b".lmdb", writable=True, writer="indexed.lmdb_writer"),
    "memcache": TableType("network.memcache", writable=True, heavy=True),
    "mongodb": TableType("databases.mongo.mongodb", heavy=True),
    "mysql": TableType("databases.mysql"),
    "pcre": TableType("rules.pcre", suffix=b"", flags=NO_REGSUB | RHS_IS_FILE),
    "pgsql": TableType("databases.pgsql"),
    "pipemap": TableType("composite.pipemap", flags=MEMBER_FLAGS),  # members keep the flags of their opening
    "python": TableType("plugins.python"),
    "randmap": TableType("memory.randmap", flags=RHS_IS_FILE),
    "redis": TableType("databases.redispy.redis", writable=True, heavy=True, remote=True),
    "regexp": TableType("rules.regexp", suffix=b"", flags=NO_REGSUB | RHS_IS_FILE),
    "socketmap": TableType("network.socketmap"),
    "sqlite": TableType("databases.sqlite"),
    "static": TableType("memory.static", writable=True, flags=RHS_IS_FILE),
    "tcp": TableType("network.tcp"),
    "texthash": TableType("memory.texthash", suffix=b"", flags=TEXTHASH_FLAGS),
    "unionmap": TableType("composite.unionmap", flags=MEMBER_FLAGS),
    "unix": TableType("databases.unix"),
}

# Types that Postfix has or had and we do not, with what to use in their place.
GONE = {
    "dbm": "lmdb or cdb",
    "sdbm": "lmdb or cdb",
    "netinfo": "ldap",
    "nis": "ldap, or unix",
    "nisplus": "ldap, or unix",
}

# Types that Postfix does not have: it can use them by way of "proxy:" only.
NOT_IN_POSTFIX = frozenset({"redis", "http", "python"})


def type_of(type_name: bytes | str) -> TableType | None:
    """type_of - the type of the table called "maptype:mapname"; None: there is no such type"""
    return TABLE_TYPES.get(os.fsdecode(type_name).partition(":")[0])


def load_types(names: Iterable[bytes | str], *, writes: bool = False) -> None:
    """load_types - import what these tables (or types) and their members need, while that can be done"""
    text = " ".join(os.fsdecode(name) + ":" for name in names)
    for name, maptype in TABLE_TYPES.items():
        if name + ":" in text:
            for module in (maptype.module, maptype.writer if writes else None):
                with contextlib.suppress(Exception):  # a library is missing or broken, as open_table will say
                    if module:
                        loaded = import_module(f"proxymap.tables.{module}")
                        if hasattr(loaded, "preload_tables"):
                            loaded.preload_tables(_mapnames(text, name))


def stand_by(alone: bool = False) -> None:
    """stand_by - have the loaded types start what they cannot start later

    Call this when privileges were dropped and there are no threads yet. alone: no program can be
    run later.
    """
    for maptype in TABLE_TYPES.values():
        loaded = sys.modules.get(f"proxymap.tables.{maptype.module}")
        if begin := getattr(loaded, "stand_by", None):
            begin(alone)


def _mapnames(text: str, maptype: str) -> Iterator[bytes]:
    """The names of all tables of that type in a text, in which a colon follows each table."""
    for rest in text.split(f"{maptype}:")[1:]:
        if name := rest.replace(",", " ").replace("}", " ").split(" ")[0].rstrip(":"):
            yield os.fsencode(name)
