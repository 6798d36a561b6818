"""The table types: one file each, one line each in TABLE_TYPES.

`open_table` is the one way to a table. A module offers
`open_table(type_name, mapname, opening)`, which returns a Table (a .pyx type,
answers on the loop) or a SlowTable (answers on a worker), and raises OSError,
ValueError or an exception of errors.py. Loaded when first used.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from weakref import WeakValueDictionary

from proxymap import errors
from proxymap._table import Slow, Surrogate, Table
from proxymap.tables.base import NO_REGSUB, RHS_IS_FILE, Host, Opening


class TableType:
    """One type: its module; can it be opened for updates; which flags, given at open, make another table."""

    def __init__(self, module: str, *, writable: bool = False, flags: int = 0) -> None:
        self.module, self.writable, self.flags = module, writable, flags


TABLE_TYPES = {
    "cdb": TableType("cdb"),
    "cidr": TableType("cidr", flags=RHS_IS_FILE),
    "lmdb": TableType("lmdb", writable=True),
    "pcre": TableType("pcre", flags=NO_REGSUB | RHS_IS_FILE),
    "regexp": TableType("regexp", flags=NO_REGSUB | RHS_IS_FILE),
    "unix": TableType("unix"),
}

# Types that Postfix has or had and we do not, with what to use in their place.
GONE = {
    "dbm": "lmdb or cdb",
    "sdbm": "lmdb or cdb",
    "netinfo": "ldap",
    "nis": "ldap, or unix",
    "nisplus": "ldap, or unix",
}

# What makes two tables the same: the name, the flags that matter at open, opened for updates or not.
Key = tuple[bytes, int, bool]

_open: WeakValueDictionary[Key, Table] = WeakValueDictionary()
_opening: dict[Key, threading.RLock] = {}  # a table that opens slowly delays only itself
_lock = threading.Lock()


def open_table(type_name: bytes, flags: int = 0, *, writes: bool = False, host: Host | None = None) -> Table:
    """The open table called `type_name` ("maptype:mapname"); never raises.

    Tables are shared: who asks again gets the same one, unless its file was
    replaced meanwhile. What cannot be opened is a Surrogate, with the reason.
    `flags` are those of the first request.
    """
    while type_name.startswith(b"proxy:"):
        type_name = type_name[6:]
    known = TABLE_TYPES.get(os.fsdecode(type_name.partition(b":")[0]))
    key = type_name, flags & known.flags if known else 0, writes
    with _lock:
        opening = _opening.setdefault(key, threading.RLock())
    with opening:
        with _lock:
            table = _open.get(key)
        if table is not None and not table.changed:
            return table
        table = _open_new(type_name, flags, writes, host or Host())
        if table.reason is None:
            with _lock:
                _open[key] = table
        return table


def _open_new(type_name: bytes, flags: int, writes: bool, host: Host) -> Table:
    maptype, _, mapname = type_name.partition(b":")
    known = TABLE_TYPES.get(os.fsdecode(maptype))
    if known is None:
        return Surrogate(type_name, os.fsencode(_unsupported(os.fsdecode(maptype))))
    if writes and not known.writable:
        return Surrogate(type_name, b"%s map requires O_RDONLY access mode" % type_name)
    opening = Opening(flags, writes, host, lambda name: open_table(name, flags, writes=writes, host=host))
    try:
        table = import_module(f"proxymap.tables.{known.module}").open_table(type_name, mapname, opening)
    except OSError as error:
        return Surrogate(type_name, os.fsencode(f"open database {error.filename}: {error.strerror}"))
    except (ValueError, ImportError, errors.ProxymapError) as error:
        return Surrogate(type_name, os.fsencode(str(error)))
    return table if isinstance(table, Table) else Slow(type_name, table)


def _unsupported(maptype: str) -> str:
    reason = f"unsupported dictionary type: {maptype}"
    return f"{reason}; use {GONE[maptype]}" if maptype in GONE else reason
