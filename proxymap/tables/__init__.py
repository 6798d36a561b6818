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
from proxymap.config.source import Stamp, stamp_at
from proxymap.tables._table import CHANGED_SPOILED, Slow, Surrogate, Table
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
    "btree": TableType("indexed.bdb", suffix=b".db", writable=True),
    "cdb": TableType("indexed.cdb", suffix=b".cdb"),
    "cidr": TableType("rules.cidr", suffix=b"", flags=RHS_IS_FILE),
    "environ": TableType("memory.environ", writable=True),
    "fail": TableType("memory.fail", writable=True),
    "hash": TableType("indexed.bdb", suffix=b".db", writable=True),
    "inline": TableType("memory.inline", flags=FOLD_FIX | UTF8_REQUEST | RHS_IS_FILE),
    "internal": TableType("memory.internal", writable=True, flags=ALL_FLAGS),
    "lmdb": TableType("indexed.lmdb", suffix=b".lmdb", writable=True),
    "pcre": TableType("rules.pcre", suffix=b"", flags=NO_REGSUB | RHS_IS_FILE),
    "pipemap": TableType(
        "composite.pipemap", flags=ALL_FLAGS
    ),  # its members keep the flags that they are opened with
    "randmap": TableType("memory.randmap", flags=RHS_IS_FILE),
    "regexp": TableType("rules.regexp", suffix=b"", flags=NO_REGSUB | RHS_IS_FILE),
    "sqlite": TableType("databases.sqlite"),
    "static": TableType("memory.static", writable=True, flags=RHS_IS_FILE),
    "texthash": TableType("memory.texthash", suffix=b"", flags=TEXTHASH_FLAGS),
    "unionmap": TableType("composite.unionmap", flags=ALL_FLAGS),
    "unix": TableType("databases.unix"),
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


def load_types(names: Iterable[bytes | str], *, writes: bool = False) -> None:
    """Import what these tables and their members need, while that can be done; `names` may be types."""
    text = " ".join(os.fsdecode(name) + ":" for name in names)
    for name, maptype in TABLE_TYPES.items():
        if name + ":" in text:
            writer = ["proxymap.tables.indexed.lmdb_writer"] if writes and name == "lmdb" else []
            for module in (f"proxymap.tables.{maptype.module}", *writer):
                with contextlib.suppress(ImportError):  # a library is missing, which open_table will say
                    import_module(module)


# What makes two tables the same: the name, the flags that matter at open, opened for updates or not.
Key = tuple[bytes, int, bool]

QUIET = 0.05  # seconds without a write, after which a file is taken to be whole
QUIET_EMPTY = 1.0  # the same of an empty one, whose writer has perhaps not begun
SETTLE_LIMIT = 1.5  # seconds to wait for that

_open: WeakValueDictionary[Key, Table] = WeakValueDictionary()
# Which thread is opening a table, and what a thread waits for; a table that opens slowly delays only itself.
_openers: dict[Key, int] = {}
_waiting: dict[int, Key] = {}
_lock = threading.Condition()


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
    key = _key(type_name, flags, writes)
    type_name = key[0]
    me = threading.get_ident()
    with _lock:
        while key in _openers:
            if _waits_for(_openers[key], me):
                return Surrogate(type_name, b"%b names itself" % type_name)  # by way of another that we open
            _waiting[me] = key
            _lock.wait()
            del _waiting[me]
        _openers[key] = me
        table = _open.get(key)
    try:
        if table is not None and not table.changed and not table.incomplete:
            return table
        return _open_or_keep(key, flags, host or Host(), settle, table)
    finally:
        with _lock:
            del _openers[key]
            _lock.notify_all()


def _waits_for(thread: int | None, me: int) -> bool:
    """Is it this thread, or does it wait for a table that this one is opening, or that waits in turn?"""
    while thread is not None and thread != me:
        waits_for = _waiting.get(thread)
        thread = None if waits_for is None else _openers.get(waits_for)
    return thread == me


def _key(type_name: bytes, flags: int, writes: bool) -> Key:
    while type_name.startswith(b"proxy:"):
        type_name = type_name[6:]
    known = TABLE_TYPES.get(os.fsdecode(type_name.partition(b":")[0]))
    return type_name, flags & known.flags if known else 0, writes


def _open_or_keep(key: Key, flags: int, host: Host, settle: bool, old: Table | None) -> Table:
    type_name, _, writes = key
    settle = settle or (old is not None and not old.quick)
    new, stamps = _open_whole(type_name, flags, writes, host, settle, old)
    if new is old:
        return old
    with _lock:
        if new.reason is None and _names_itself(key, new, flags):
            names = ", ".join(sorted(os.fsdecode(part) for part in new.parts))
            text = f"{os.fsdecode(type_name)} names itself, by way of {names}"
            new = _surrogate(type_name, text, [(file, stamp_at(file)) for file in new.files])
        if old is None or not _is_good(old) or not _is_worse(new, old):
            if new.reason is None:
                _open[key] = new
            return new
    trouble = new.reason.decode(errors="surrogateescape") if new.reason else "faulty lines"
    old.trouble = f"{trouble}; going on with the previous content"
    host.warn(f"{os.fsdecode(type_name)}: {old.trouble}")
    old.refuse(stamps)
    return old


def _names_itself(key: Key, table: Table, flags: int) -> bool:
    """Would it ask for itself? Each of those that it would ask names others, by now."""
    seen: set[Key] = set()
    to_see = [_key(part, flags, key[2]) for part in table.parts]
    while to_see:
        part = to_see.pop()
        if part == key:
            return True
        if part not in seen and (found := _open.get(part)) is not None:
            to_see += [_key(name, flags, key[2]) for name in found.parts]
        seen.add(part)
    return False


def _is_good(old: Table) -> bool:
    """Can it be served on, whatever has become of its files?"""
    return old.changed != CHANGED_SPOILED


def _is_worse(new: Table, old: Table) -> bool:
    return new.reason is not None or new.faults > old.faults


def _open_whole(
    type_name: bytes, flags: int, writes: bool, host: Host, settle: bool, old: Table | None
) -> tuple[Table, list[Stamp]]:
    """Open it, again if it changes meanwhile; with `settle`, until what was read is whole.

    Returns also the stamps of the files of `old` from before that; or `old` itself if
    the files are still being written: there will be an event when they are whole.
    """
    files = old.files if old is not None else _files(type_name)
    keeps = settle and old is not None and _is_good(old)
    until = time.monotonic() + SETTLE_LIMIT
    while True:
        if settle:
            time.sleep(min(QUIET, _until_quiet(files, time.time())))
        stamps = old.stamps() if old is not None else []
        began = time.time()
        new = _open_new(type_name, flags, writes, host, settle)
        if host.watch is not None:
            new.watch(host.watch)
        late = time.monotonic() > until
        whole = not settle or (_is_whole(new, host, began) and (late or old is None or not old.torn))
        # In this order: what was read is whole if the files have not changed when all else has been asked.
        if whole and not new.changed:
            return new, stamps
        if old is not None and keeps and (new.written or late):
            return old, stamps
        if new.written and (new.reason is not None or late):
            return _being_written(new, host), stamps
        if late:
            return new, stamps
        time.sleep(QUIET if settle else 0)


def _files(type_name: bytes) -> list[bytes]:
    """What it will be loaded from, as far as its name tells."""
    maptype, _, mapname = type_name.partition(b":")
    known = TABLE_TYPES.get(os.fsdecode(maptype))
    if known is None or mapname.startswith(b"{"):
        return []
    if known.suffix is None:
        return [mapname] if mapname.startswith((b"/", b".")) else []
    return [mapname + known.suffix]


def _being_written(table: Table, host: Host) -> Table:
    """What stands for a table until its file is whole, which will be an event."""
    if table.reason is not None:
        return table
    text = f"{os.fsdecode(table.type_name)} is being written"
    surrogate = _surrogate(table.type_name, text, [(file, stamp_at(file)) for file in table.files])
    if host.watch is not None:
        surrogate.watch(host.watch)
    return surrogate


def _is_whole(table: Table, host: Host, began: float) -> bool:
    """Were its files whole when somebody began to read them?"""
    if host.watch is not None:
        host.watch.take()  # whatever was written before now is marked
    return not table.written and not _until_quiet(table.files, began)


def _until_quiet(files: Iterable[bytes], when: float) -> float:
    """Seconds from `when` until none of the files was written to lately."""
    pause = 0.0
    for file in files:
        with contextlib.suppress(OSError):
            status = os.stat(file)
            quiet = QUIET if status.st_size else QUIET_EMPTY
            if status.st_mtime <= time.time():
                pause = max(pause, quiet - (when - status.st_mtime))
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
        parts.add(name)
        return open_table(name, flags, writes=writes, host=host, settle=settle)

    parts: set[bytes] = set()
    opening = Opening(flags, writes, host, member, doubtful=settle)
    tried = _stamped(type_name)
    table: Table
    try:
        made = import_module(f"proxymap.tables.{known.module}").open_table(type_name, mapname, opening)
    except OSError as error:
        reason = f"open database {error.filename}: {error.strerror}"
    except (ValueError, ImportError, errors.ProxymapError, errors.ConfigError) as error:
        reason = str(error)
    else:
        if isinstance(made, Table):
            table = made
        else:
            table = Slow(type_name, made)
            if opening.files:
                table.loaded_from([*made.files, *opening.files])
            finalize(table, made.close).atexit = False  # when nobody can find it in _open any more
        table.parts = parts
        return table
    if writes:
        tried = _stamped(type_name)  # an attempt may have created it, and is no change to try again for
    return _surrogate(type_name, reason, [*tried, *opening.files])


def _stamped(type_name: bytes) -> list[tuple[bytes, Stamp]]:
    return [(file, stamp_at(file)) for file in _files(type_name)]


def _surrogate(type_name: bytes, reason: str, tried: list[tuple[bytes, Stamp]]) -> Surrogate:
    """tried: the files that it could not be opened from; when they change it is tried again."""
    surrogate = Surrogate(type_name, os.fsencode(reason))
    surrogate.loaded_from(tried)
    return surrogate


def _unsupported(maptype: str) -> str:
    reason = f"unsupported dictionary type: {maptype}"
    return f"{reason}; use {GONE[maptype]}" if maptype in GONE else reason
