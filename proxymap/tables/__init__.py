"""The table types: one file each, one line each in TABLE_TYPES.

`open_table` is the one way to a table. A module offers
`open_table(type_name, mapname, opening)`, which returns a Table (a .pyx type,
answers on the loop) or a SlowTable (answers on a worker), and raises OSError,
ValueError or an exception of errors.py. Loaded when first used.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from importlib import import_module
from weakref import WeakValueDictionary, finalize

from proxymap import errors
from proxymap._table import CHANGED_SPOILED, Slow, Surrogate, Table
from proxymap.source import Stamp, stamp_of
from proxymap.tables.base import (
    ALL_FLAGS,
    DUP_IGNORE,
    DUP_REPLACE,
    DUP_WARN,
    FOLD_FIX,
    NO_REGSUB,
    RHS_IS_FILE,
    UTF8_REQUEST,
    Host,
    Opening,
)


class TableType:
    """One type.

    module: the file here. suffix: what follows a table's name in the name of its
    file; None if it has no single one. writable: can it be opened for updates?
    flags: dictionary flags that make another table of it when they are given at open.
    """

    def __init__(
        self, module: str, *, suffix: bytes | None = None, writable: bool = False, flags: int = 0
    ) -> None:
        self.module, self.suffix, self.writable, self.flags = module, suffix, writable, flags


TEXTHASH_FLAGS = DUP_WARN | DUP_IGNORE | DUP_REPLACE | FOLD_FIX | UTF8_REQUEST | RHS_IS_FILE

TABLE_TYPES = {
    "btree": TableType("bdb", suffix=b".db", writable=True),
    "cdb": TableType("cdb", suffix=b".cdb"),
    "cidr": TableType("cidr", suffix=b"", flags=RHS_IS_FILE),
    "environ": TableType("environ", writable=True),
    "fail": TableType("fail", writable=True),
    "hash": TableType("bdb", suffix=b".db", writable=True),
    "inline": TableType("inline", flags=FOLD_FIX | UTF8_REQUEST | RHS_IS_FILE),
    "internal": TableType("internal", writable=True, flags=ALL_FLAGS),
    "lmdb": TableType("lmdb", suffix=b".lmdb", writable=True),
    "pcre": TableType("pcre", suffix=b"", flags=NO_REGSUB | RHS_IS_FILE),
    "pipemap": TableType("pipemap", flags=ALL_FLAGS),  # its members keep the flags that they are opened with
    "randmap": TableType("randmap", flags=RHS_IS_FILE),
    "regexp": TableType("regexp", suffix=b"", flags=NO_REGSUB | RHS_IS_FILE),
    "sqlite": TableType("sqlite"),
    "static": TableType("static", writable=True, flags=RHS_IS_FILE),
    "texthash": TableType("texthash", suffix=b"", flags=TEXTHASH_FLAGS),
    "unionmap": TableType("unionmap", flags=ALL_FLAGS),
    "unix": TableType("unix"),
}

# Why a type whose file is built is not written to.
REBUILT_WHOLE = b": a table that has to be rebuilt whole leaves storage inconsistent between updates"

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

QUIET = 0.05  # seconds without a write, after which a file is taken to be whole
QUIET_EMPTY = 1.0  # the same of one that has just been created
SETTLE_LIMIT = 1.5  # seconds to wait for that

_open: WeakValueDictionary[Key, Table] = WeakValueDictionary()
# A table that opens slowly delays only itself.
_opening: WeakValueDictionary[Key, threading.RLock] = WeakValueDictionary()
_lock = threading.Lock()


def open_table(
    type_name: bytes,
    flags: int = 0,
    *,
    writes: bool = False,
    host: Host | None = None,
    settle: bool = False,
) -> Table:
    """The open table called `type_name` ("maptype:mapname"); never raises.

    Tables are shared: who asks again gets the same one, unless its files have
    changed; and even then if the new content is worse than the old, which the
    log is told, or if it is being written. What cannot be opened is a Surrogate,
    with the reason. `flags` are those of the first request. settle: the file was
    changed in place, so it is perhaps not whole yet.
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
        if table is not None and not table.changed and not table.incomplete:
            return table
        host = host or Host()
        settle = settle or (table is not None and not table.quick)
        new, stamps = _open_whole(type_name, flags, writes, host, settle, table)
        if table is not None and new is not table and _is_good(table) and _is_worse(new, table):
            trouble = new.reason.decode(errors="surrogateescape") if new.reason else "faulty lines"
            table.trouble = f"{trouble}; going on with the previous content"
            host.warn(f"{os.fsdecode(type_name)}: {table.trouble}")
            table.refuse(stamps)
            return table
        if new.reason is None:
            with _lock:
                _open[key] = new
        return new


def _is_good(old: Table) -> bool:
    """Can it be served on, whatever has become of its files?"""
    return old.changed != CHANGED_SPOILED


def _is_worse(new: Table, old: Table) -> bool:
    return new.reason is not None or new.faults > old.faults


def _open_whole(
    type_name: bytes, flags: int, writes: bool, host: Host, settle: bool, old: Table | None
) -> tuple[Table, list[Stamp]]:
    """Open it, again if it changes meanwhile; with `settle`, when nobody has written to it for a while.

    Returns also the stamps of the files of `old` from before that; or `old` itself if
    the files are still being written: there will be an event when they are whole.
    """
    files = old.files if old is not None else _files(type_name)
    until = time.monotonic() + SETTLE_LIMIT
    while True:
        while settle and (pause := _until_quiet(files)) and time.monotonic() < until:
            time.sleep(min(pause, QUIET))
        stamps = old.stamps() if old is not None else []
        if old is not None and old.written and _is_good(old):
            return old, stamps
        before = _stamps(files)
        new = _open_new(type_name, flags, writes, host, settle)
        if host.watch is not None:
            new.watch(host.watch)
        if old is not None and new.written and _is_good(old):
            return old, stamps
        # In this order: what was read is whole if the files have not changed when all else has been asked.
        if not settle and not new.changed:
            return new, stamps
        if not new.written and not _until_quiet(files) and not new.changed and _stamps(files) == before:
            return new, stamps
        if time.monotonic() > until:
            if settle and old is not None and _is_good(old):
                return old, stamps  # each change is an event, and a reason to come here again
            if settle and new.written:
                new = Surrogate(type_name, b"%s is being written" % type_name)
            return new, stamps
        time.sleep(QUIET if new.written else 0)


def _files(type_name: bytes) -> list[bytes]:
    """What it will be loaded from, as far as its name tells."""
    maptype, _, mapname = type_name.partition(b":")
    known = TABLE_TYPES.get(os.fsdecode(maptype))
    return [] if known is None or known.suffix is None else [mapname + known.suffix]


def _stamps(files: list[bytes]) -> list[Stamp | None]:
    found: list[Stamp | None] = []
    for file in files:
        try:
            found.append(stamp_of(os.stat(file)))
        except OSError:
            found.append(None)
    return found


def _until_quiet(files: Iterable[bytes]) -> float:
    """Seconds until none of the files was written to lately."""
    pause = 0.0
    for file in files:
        with contextlib.suppress(OSError):
            status = os.stat(file)
            age = time.time() - status.st_mtime
            quiet = QUIET if status.st_size else QUIET_EMPTY
            if 0 <= age < quiet:
                pause = max(pause, quiet - age)
    return pause


def _open_new(type_name: bytes, flags: int, writes: bool, host: Host, settle: bool) -> Table:
    maptype, _, mapname = type_name.partition(b":")
    known = TABLE_TYPES.get(os.fsdecode(maptype))
    if not maptype or not mapname:
        return Surrogate(type_name, b'expecting "type:name" form instead of "%s"' % type_name)
    if known is None:
        return Surrogate(type_name, os.fsencode(_unsupported(os.fsdecode(maptype))))
    if writes and not known.writable:
        why = REBUILT_WHOLE if known.suffix else b""
        return Surrogate(type_name, b"%b map requires O_RDONLY access mode%b" % (type_name, why))

    def member(name: bytes) -> Table:
        return open_table(name, flags, writes=writes, host=host, settle=settle)

    opening = Opening(flags, writes, host, member, doubtful=settle)
    try:
        table = import_module(f"proxymap.tables.{known.module}").open_table(type_name, mapname, opening)
    except OSError as error:
        return Surrogate(type_name, os.fsencode(f"open database {error.filename}: {error.strerror}"))
    except (ValueError, ImportError, errors.ProxymapError, errors.ConfigError) as error:
        return Surrogate(type_name, os.fsencode(str(error)))
    if isinstance(table, Table):
        return table
    slow = Slow(type_name, table)
    finalize(slow, table.close).atexit = False  # when nobody can find it in _open any more
    return slow


def _unsupported(maptype: str) -> str:
    reason = f"unsupported dictionary type: {maptype}"
    return f"{reason}; use {GONE[maptype]}" if maptype in GONE else reason
