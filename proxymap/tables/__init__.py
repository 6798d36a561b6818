"""The table types: one file each, one line each in TABLE_TYPES.

`open_table` is the one way to a table. A module offers
`open_table(type_name, mapname, flags)`, which returns a Table (a .pyx type,
answers on the loop) or a SlowTable (a .py type, answers on a worker), and
raises OSError, ValueError or an exception of errors.py. Loaded when first used.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from weakref import WeakValueDictionary

from proxymap import errors
from proxymap._table import Slow, Surrogate, Table

# maptype: (module, can it be opened for updates?)
TABLE_TYPES = {
    "cdb": ("cdb", False),
    "lmdb": ("lmdb", True),
    "unix": ("unix", False),
}

# Types that Postfix has or had and we do not, with what to use in their place.
GONE = {
    "dbm": "lmdb or cdb",
    "sdbm": "lmdb or cdb",
    "netinfo": "ldap",
    "nis": "ldap, or unix",
    "nisplus": "ldap, or unix",
}

_open: WeakValueDictionary[bytes, Table] = WeakValueDictionary()
_opening: dict[bytes, threading.Lock] = {}  # a table that opens slowly delays only itself
_lock = threading.Lock()


def open_table(type_name: bytes, flags: int = 0, *, writes: bool = False) -> Table:
    """The open table called `type_name` ("maptype:mapname"); never raises.

    Tables are shared: who asks again gets the same one, unless its file was
    replaced meanwhile. What cannot be opened is a Surrogate, with the reason.
    `flags` are those of the first request.
    """
    with _lock:
        opening = _opening.setdefault(type_name, threading.Lock())
    with opening:
        with _lock:
            table = _open.get(type_name)
        if table is not None and not table.changed:
            return table
        table = _open_new(type_name, flags, writes)
        if table.reason is None:
            with _lock:
                _open[type_name] = table
        return table


def _open_new(type_name: bytes, flags: int, writes: bool) -> Table:
    maptype, _, mapname = type_name.partition(b":")
    try:
        module, writable = TABLE_TYPES[os.fsdecode(maptype)]
    except KeyError:
        return Surrogate(type_name, os.fsencode(_unsupported(os.fsdecode(maptype))))
    if writes and not writable:
        return Surrogate(type_name, b"%s map requires O_RDONLY access mode" % type_name)
    try:
        table = import_module(f"proxymap.tables.{module}").open_table(type_name, mapname, flags)
    except OSError as error:
        return Surrogate(type_name, os.fsencode(f"open database {error.filename}: {error.strerror}"))
    except (ValueError, ImportError, errors.ProxymapError) as error:
        return Surrogate(type_name, os.fsencode(str(error)))
    return table if isinstance(table, Table) else Slow(type_name, table)


def _unsupported(maptype: str) -> str:
    reason = f"unsupported dictionary type: {maptype}"
    return f"{reason}; use {GONE[maptype]}" if maptype in GONE else reason
