"""opening - open_table, the one way to a table: what is open is shared, and replaced by what is better

A table whose file is being written is waited for (`settle`). New content that
cannot be used, or has more faults than the old, is refused: the old table stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from weakref import WeakSet, WeakValueDictionary, finalize

from proxymap import errors
from proxymap.base.files import Stamp, stamp_at
from proxymap.base.threads import Lock
from proxymap.config.source import without_proxy
from proxymap.tables._table import CHANGED_SPOILED, Slow, Surrogate, Table
from proxymap.tables.base import Host, Opening, SlowTable
from proxymap.tables.blame import blame
from proxymap.tables.flags import DUP_IGNORE, DUP_REPLACE, DUP_WARN, RHS_IS_FILE
from proxymap.tables.types import GONE, type_of

KEPT = "going on with the previous content"  # ends the trouble of a table whose new content was refused
# Why a type whose file is built is not written to.
REBUILT_WHOLE = b": a table that has to be rebuilt whole leaves storage inconsistent between updates"

# What makes two tables the same: the name, the flags that matter at open, opened for updates or not.
Key = tuple[bytes, int, bool]

# Flags that say which of two lines with the same key counts, and those that say nothing beside them.
MOOT = ((DUP_IGNORE, DUP_REPLACE | DUP_WARN), (DUP_REPLACE, DUP_WARN))

# What ends by itself: that a file could not be opened for it says nothing of the file.
PASSING = {
    errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOSPC, errno.EIO, errno.EINTR,
}  # fmt: skip

QUIET = 0.05  # seconds without a write, after which a file is taken to be whole
QUIET_EMPTY = 1.0  # the same of an empty one, whose writer has perhaps not begun
SETTLE_LIMIT = 1.5  # seconds to wait for that

_open: WeakValueDictionary[Key, Table] = WeakValueDictionary()
# Which thread is opening a table, and what a thread waits for; a table that opens slowly delays only itself.
_openers: dict[Key, int] = {}
_waiting: dict[int, Key] = {}
_lock = Lock()
_distrusted: WeakSet[Table] = WeakSet()  # to be opened anew, whatever their files look like


class Passing(Surrogate):
    """Stands for a table that could not be opened for a reason that passes."""


def open_table(
    type_name: bytes,
    flags: int = 0,
    *,
    writes: bool = False,
    host: Host | None = None,
    settle: bool = False,
) -> Table:
    """The open table called `type_name` ("maptype:mapname"); never raises.

    Tables are shared: a second call returns the same one, unless its files have
    changed; and even then if the new content is worse than the old, which is
    logged, or if it is being written. What cannot be opened is a Surrogate,
    with the reason. `flags` are those of the first request. settle: the file was
    changed in place, so it is perhaps not whole yet.
    """
    try:
        type_name = (host or Host).redirect(without_proxy(type_name))
    except ValueError as reason:
        return Surrogate(type_name, os.fsencode(f"open {os.fsdecode(type_name)}: {reason}"))
    key = key_of(type_name, flags, writes)
    if key[1] & RHS_IS_FILE and host is not None and (refusal := host.files_refused(type_name)):
        return Surrogate(type_name, os.fsencode(refusal))
    turn = (type_name, 0, writes)  # one after the other, whatever the flags: the next may share the table
    if not _take_turn(turn, threading.get_ident()):
        return Surrogate(type_name, b"%b refers to itself" % type_name)  # through another table
    try:
        table = shared_table(key)
        if table is not None and _is_current(table):
            return table
        if (same := _same_content(key)) is not None:
            with _lock:  # others may walk through it
                _open[key] = same
            return same
        made = _open_or_keep(key, flags, host or Host(), settle, table)
        _distrusted.discard(made)
        return made
    finally:
        _end_turn(turn)


def _take_turn(turn: Key, me: int) -> bool:
    """Wait until no other thread opens the table; False if that one waits for us."""
    with _lock:
        while turn in _openers:
            if _waits_for(_openers[turn], me):
                return False
            _waiting[me] = turn
            _lock.wait()
            del _waiting[me]
        _openers[turn] = me
        return True


def _end_turn(turn: Key) -> None:
    """Let the next one open it. This needs no memory, not even for a `with`: others wait without a limit."""
    _lock.acquire()
    try:
        del _openers[turn]
        _lock.notify_all()
    finally:
        _lock.release()


def distrust(type_name: bytes | None) -> None:
    """distrust - have open_table open what is open anew, or what has that name: the administrator asks"""
    with _lock:
        _distrusted.update(
            table for (name, _, writes), table in _open.items() if not writes and type_name in (None, name)
        )


def _is_current(table: Table) -> bool:
    return table not in _distrusted and not table.changed and not table.incomplete


def _same_content(key: Key) -> Table | None:
    """A table that is open with other flags, none of which makes a difference to what it holds."""
    type_name, flags, writes = key
    with _lock:
        others = [(other[1], table) for other, table in _open.items() if other[::2] == (type_name, writes)]
    for then, table in others:
        if not (flags ^ then) & table.heeded and _is_current(table):
            return table
    return None


def _waits_for(thread: int | None, me: int) -> bool:
    """Is it this thread, or does it wait for a table that this one is opening, or that waits in turn?"""
    while thread is not None and thread != me:
        waits_for = _waiting.get(thread)
        thread = None if waits_for is None else _openers.get(waits_for)
    return thread == me


def shared_table(key: Key) -> Table | None:
    """The table of that key, if it is open."""
    with _lock:  # this, too, may take out what is gone, while others walk through it
        return _open.get(key)


def key_of(type_name: bytes, flags: int, writes: bool) -> Key:
    """What tables are shared by."""
    type_name = without_proxy(type_name)
    known = type_of(type_name)
    if known is None:
        return type_name, 0, writes
    flags &= known.flags
    for stronger, moot in MOOT:
        if flags & stronger:
            flags &= ~moot
    return type_name, flags, writes


def _open_or_keep(key: Key, flags: int, host: Host, settle: bool, old: Table | None) -> Table:
    type_name, _, writes = key
    settle = settle or (old is not None and not old.quick)
    new, stamps = _open_whole(type_name, flags, writes, host, settle, old)
    if new is old or (isinstance(new, Passing) and old is not None and _is_good(old)):
        return new  # the caller goes on with what it has, and comes again
    with _lock:
        if new.reason is None and _names_itself(key, new, flags):
            names = ", ".join(sorted(os.fsdecode(part) for part in new.parts))
            text = f"{os.fsdecode(type_name)} refers to itself through {names}"
            new = _surrogate(type_name, text, [(file, stamp_at(file)) for file in new.files])
        if old is None or not _is_good(old) or not _is_worse(new, old):
            if new.reason is None:
                _open[key] = new
            return new
    trouble = new.reason.decode(errors="surrogateescape") if new.reason else "faulty lines"
    old.trouble = f"{trouble}; {KEPT}"
    host.warn(f"{os.fsdecode(type_name)}: {old.trouble}")
    old.refuse(stamps)
    return old


def _names_itself(key: Key, table: Table, flags: int) -> bool:
    """Does it refer to itself? Each table that it asks names others."""
    seen: set[Key] = set()
    to_see = [key_of(part, flags, key[2]) for part in table.parts]
    while to_see:
        part = to_see.pop()
        if part == key:
            return True
        if part not in seen and (found := _open.get(part)) is not None:
            to_see += [key_of(name, flags, key[2]) for name in found.parts]
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
    mapname = type_name.partition(b":")[2]
    known = type_of(type_name)
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
    known = type_of(type_name)
    if not maptype or not mapname:
        return Surrogate(type_name, b'expecting "type:name" form instead of "%s"' % type_name)
    if known is None:
        return Surrogate(type_name, os.fsencode(_unsupported(os.fsdecode(maptype))), absent=True)
    if writes and not known.writable:
        why = REBUILT_WHOLE if known.suffix else b""
        return Surrogate(type_name, b"%b map requires O_RDONLY access mode%b" % (type_name, why))
    parts: set[bytes] = set()
    # No function is made here: Python 3.13 crashes where there is no memory for one (gh-122752).
    member = partial(_open_member, parts, flags=flags, writes=writes, host=host, settle=settle)
    opening = Opening(flags, writes, host, member, doubtful=settle)
    tried = _stamped(type_name)
    kind = Surrogate
    try:
        if outside := host.outside(type_name):
            raise ValueError(f"open {os.fsdecode(type_name)}: {outside}")
        made = import_module(f"proxymap.tables.{known.module}").open_table(type_name, mapname, opening)
    except OSError as error:
        file = error.filename or os.fsdecode(mapname)  # where a read failed it has none
        reason = f"open database {file}: {error.strerror}"
        kind = Passing if error.errno in PASSING else Surrogate
    except (ValueError, ImportError, errors.ProxymapError, errors.ConfigError) as error:
        reason = str(error)
    except MemoryError:
        raise
    except Exception as error:  # a fault of a library's, or of ours
        reason = f"open {os.fsdecode(type_name)}: {blame(error, '')}"
    else:
        table = made if isinstance(made, Table) else _asked_by_workers(type_name, made, opening)
        table.parts = parts
        return table
    if writes:
        tried = _stamped(type_name)  # an attempt may have created it, and is no change to try again for
    return _surrogate(type_name, reason, [*tried, *opening.files], kind)


def _open_member(
    parts: set[bytes], name: bytes, *, flags: int, writes: bool, host: Host, settle: bool
) -> Table:
    """Open a table that one is made of, and note that in parts."""
    parts.add(name)
    return open_table(name, flags, writes=writes, host=host, settle=settle)


def _asked_by_workers(type_name: bytes, made: SlowTable, opening: Opening) -> Table:
    table = Slow(type_name, made)
    if opening.files:
        table.loaded_from([*made.files, *opening.files])
    finalize(table, made.close).atexit = False  # when nobody can find it in _open any more
    return table


def _stamped(type_name: bytes) -> list[tuple[bytes, Stamp]]:
    return [(file, stamp_at(file)) for file in _files(type_name)]


def _surrogate(
    type_name: bytes, reason: str, tried: list[tuple[bytes, Stamp]], kind: type[Surrogate] = Surrogate
) -> Surrogate:
    """tried: the files that it could not be opened from; when they change it is tried again."""
    surrogate = kind(type_name, os.fsencode(reason))
    surrogate.loaded_from(tried)
    return surrogate


def _unsupported(maptype: str) -> str:
    reason = f"unsupported dictionary type: {maptype}"
    return f"{reason}; use {GONE[maptype]}" if maptype in GONE else reason
