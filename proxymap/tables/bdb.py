"""bdb - Berkeley DB files: hash:NAME and btree:NAME, both NAME.db, through the berkeleydb package

Every operation holds Postfix's flock(2) on the file, whether the client asked
for it or not: shared to read, exclusive to write. postmap holds it until a
rebuild is complete, and who asks meanwhile waits. One operation at a time: each
takes microseconds, and libdb's handle is then used by one thread only.

libdb keeps pages in memory. So each operation, once it has the lock, looks at
the file: if it is not as the handle has seen it, there is a new handle.

libdb reads a damaged file without care: it may crash, or go round for ever. So
a file is verified first (by libdb too; 4 ms a megabyte): one to read whenever
somebody changed it, one to write only when it is new to us, since a cache
changes all the time. What somebody does to a file without a lock, or to a file
that is written here, can still end the process.

Source: libdb 5.3 as seen in system call traces; tables.md 4.2, 4.3, 4.5, 4.7.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from proxymap.errors import STAT_CONFIG, STAT_NOKEY, STAT_OK, TableRetry
from proxymap.tables.base import FIXED, TRY0NULL, TRY1NULL, Change, Opening, SlowTable

try:
    from berkeleydb import db
except ImportError as error:
    raise ImportError(
        "hash and btree need the Python package berkeleydb: pip install proxymap[bdb]"
        f" (or make the table anew as lmdb or cdb): {error}"
    ) from error

KINDS = {b"hash": db.DB_HASH, b"btree": db.DB_BTREE}
MAGIC = {db.DB_HASH: 0x061561, db.DB_BTREE: 0x053162}  # on the first page, in the byte order of its maker
# The types of pages: never used, metadata, records, long values; of a btree the inner ones.
PAGE_TYPE = 25  # where a page has it
PAGE_TYPES = {db.DB_HASH: bytes([0, 2, 7, 8, 13]), db.DB_BTREE: bytes([0, 3, 5, 7, 9])}
METADATA_SIZE = 36  # bytes of it that are looked at
PAGE_SIZES = [512 << i for i in range(8)]
# What libdb is not to verify; of a hash the order, where it prints the pages that it complains of.
UNVERIFIED = {db.DB_HASH: db.DB_NOORDERCHK, db.DB_BTREE: 0}
NEW_HASH_RECORDS = 4096  # the size of a new hash, as Postfix's
CACHE_SIZE = "131072"  # bytes; default of berkeley_db_read_buffer_size
CHUNK = 1 << 20  # bytes read at a time; whole pages
TICK_NS = 20_000_000  # a file changed twice within this time may bear the same time; Linux: up to 10 ms
WALKS_MAX = 64  # sequences under way; the one that rested longest makes room

# What a file looked like: device, inode, size, time of the latest change.
Stamp = tuple[int, int, int, int]


class Place:
    """Where a walk stands: on `key`, as stored. given: the walker has had that record."""

    def __init__(self, key: bytes, given: bool) -> None:
        self.key, self.given = key, given


class BerkeleyDB(SlowTable):
    """One .db file. `_file` is a descriptor to lock and to look at, `_handle` is libdb's."""

    flags = FIXED | TRY0NULL | TRY1NULL
    has_sequence = True
    at_a_time = 1

    def __init__(self, kind: int, path: str, cache_size: int, writes: bool) -> None:
        self.kind, self.path, self.cache_size = kind, path, cache_size
        self.has_updates = writes
        self._lock = threading.Lock()  # lookups and updates come on different threads
        self._walks: dict[int, Place] = {}  # in order of use
        self._handle: db.DB | None = None
        self._seen: Stamp | None = None  # the file as the handle knows it; None: it may know too little
        self._sound: tuple[int, ...] | None = None  # what was verified: a Stamp, or the first part of it
        self._file = self._open_file()
        self._try_out()

    def close(self) -> None:
        self._drop_handle()
        os.close(self._file)

    # The operations

    def lookup_flags(self, key: bytes, flags: int) -> tuple[bytes | None, int]:
        with self._locked(fcntl.LOCK_SH) as records:
            for stored, flags_then in ways_to_store(key, flags):
                value: bytes | None = records.get(stored)
                if value is not None:
                    return value, flags_then
        return None, flags

    def sequence(self, cursor: int, first: bool) -> tuple[bytes, bytes] | None:
        """A walk goes on where it was, even if the file changed. Of a hash: unless another process
        deleted the very record that it stands on, which ends it."""
        with self._locked(fcntl.LOCK_SH) as records:
            if not first and cursor not in self._walks:
                return None
            place = self._walks.pop(cursor, None)
            record = next_record(records, None if first else place)
            if record is None:
                return None
            self._walks[cursor] = Place(record[0], given=True)
            if len(self._walks) > WALKS_MAX:
                del self._walks[next(iter(self._walks))]
        key, value = record
        return key.partition(b"\0")[0], value.partition(b"\0")[0]

    def write(self, changes: list[Change]) -> None:
        with self._locked(fcntl.LOCK_EX) as records:
            for change in changes:
                if change.value is None:
                    self._delete(records, change)
                else:
                    update(records, change.value, change)
            records.sync()
            stamp, settled = self._look()
            self._seen = stamp if settled else None

    def _delete(self, records: db.DB, change: Change) -> None:
        change.status = STAT_NOKEY
        for stored, flags_then in ways_to_store(change.key, change.flags):
            if stored in records:
                if self.kind == db.DB_HASH:
                    self._step_off(records, stored)
                records.delete(stored)
                change.status, change.flags = STAT_OK, flags_then
                return

    def _step_off(self, records: db.DB, stored: bytes) -> None:
        """Have the walks that stand on a record, which is about to go, stand before the next one.

        In a btree they need not, since its order tells where the record was.
        """
        for cursor, place in list(self._walks.items()):
            if place.key == stored:
                record = next_record(records, Place(stored, given=True))
                if record is None:
                    del self._walks[cursor]
                else:
                    self._walks[cursor] = Place(record[0], given=False)

    def explain(self, key: bytes) -> list[str]:
        value, flags = self.lookup_flags(key, self.flags)
        if value is None:
            return [f"{self.path}: no such key, neither with a trailing NUL nor without"]
        return [f"{self.path}: the key {'with' if flags & TRY1NULL else 'without'} a trailing NUL"]

    # The file, its lock and the handle

    @contextmanager
    def _locked(self, how: int) -> Iterator[db.DB]:
        """The records, with the file locked: LOCK_SH or LOCK_EX. After trouble there is a new handle."""
        with self._lock:
            try:
                self._lock_file(how)
                try:
                    yield self._current_handle()
                finally:
                    fcntl.flock(self._file, fcntl.LOCK_UN)
            except (OSError, db.DBError) as error:
                self._drop_handle()
                self._sound = None
                reason = error.strerror if isinstance(error, OSError) else error.args[-1]
                raise TableRetry(f"{self.path}: {reason}") from error

    def _lock_file(self, how: int) -> None:
        """Lock the file that the name leads to. If it leads nowhere, what was open still answers."""
        fcntl.flock(self._file, how)
        while not self._is_named():
            fresh = self._open_file()
            self._drop_handle()
            os.close(self._file)
            self._file = fresh
            fcntl.flock(self._file, how)

    def _is_named(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except FileNotFoundError:
            return not self.has_updates

    def _open_file(self) -> int:
        how = (os.O_RDWR if self.has_updates else os.O_RDONLY) | os.O_NONBLOCK
        try:
            return os.open(self.path, how)
        except FileNotFoundError:
            if not self.has_updates:
                raise
        self._open_handle(db.DB_CREATE).close()  # libdb makes a temporary file and renames it
        return os.open(self.path, how)

    def _try_out(self) -> None:
        """See if the file can be used; while somebody rebuilds it, leave that to the first request."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._current_handle()
            fcntl.flock(self._file, fcntl.LOCK_UN)
        except BlockingIOError:
            return
        except BaseException:
            os.close(self._file)
            raise

    def _current_handle(self) -> db.DB:
        """A handle that knows the file as it is now."""
        stamp, settled = self._look()
        if self._handle is not None:
            if stamp == self._seen or not os.path.exists(self.path):
                return self._handle
            self._drop_handle()
        page_size = check_first_page(self._file, self.path, MAGIC[self.kind])
        sound = stamp[:2] if self.has_updates else stamp
        if sound != self._sound:
            check_pages(self._file, self.path, page_size, PAGE_TYPES[self.kind])
            with db_errors_as_os_errors(self.path):
                db.DB().verify(self.path, flags=UNVERIFIED[self.kind])
            self._sound = sound
        self._handle = self._open_handle(0 if self.has_updates else db.DB_RDONLY)
        if not os.path.samestat(os.fstat(self._handle.fd()), os.fstat(self._file)):
            raise OSError(errno.ESTALE, "replaced at this very moment", self.path)
        self._seen = stamp if settled else None
        return self._handle

    def _look(self) -> tuple[Stamp, bool]:
        """How the file looks, and whether every later change will show."""
        status = os.fstat(self._file)
        settled = abs(time.time_ns() - status.st_mtime_ns) >= TICK_NS
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns), settled

    def _open_handle(self, flags: int) -> db.DB:
        handle = db.DB()
        with db_errors_as_os_errors(self.path):
            handle.set_cachesize(0, self.cache_size)
            if self.kind == db.DB_HASH and flags & db.DB_CREATE:
                handle.set_h_nelem(NEW_HASH_RECORDS)
            # Mapped, a file that is cut would end the process.
            handle.open(self.path, dbtype=self.kind, flags=flags | db.DB_NOMMAP, mode=0o600)
        return handle

    def _drop_handle(self) -> None:
        """Without writing anything: what it has not synced is of a write that failed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(db.DBError):
                handle.close(db.DB_NOSYNC)


@contextmanager
def db_errors_as_os_errors(path: str) -> Iterator[None]:
    try:
        yield
    except db.DBError as error:
        number, text = error.args  # the number is one of errno, or negative and libdb's own
        raise OSError(max(number, 0), text.partition(" -- ")[0], path) from error


def ways_to_store(key: bytes, flags: int) -> Iterator[tuple[bytes, int]]:
    """What key may be in the file, and the flags if it is that: with a trailing NUL first."""
    if flags & TRY1NULL:
        yield key + b"\0", flags & ~TRY0NULL
    if flags & TRY0NULL:
        yield key, flags & ~TRY1NULL


def update(records: db.DB, value: bytes, change: Change) -> None:
    """Store, in place of what is there; with NUL if that is not decided yet."""
    if change.flags & TRY1NULL:
        records.put(change.key + b"\0", value + b"\0")
        change.flags &= ~TRY0NULL
    elif change.flags & TRY0NULL:
        records.put(change.key, value)
    else:
        change.status = STAT_CONFIG  # where Postfix's own server ends
        return
    change.status = STAT_OK


def next_record(records: db.DB, place: Place | None) -> tuple[bytes, bytes] | None:
    """The record where a walk at that place goes on; None: at the end."""
    cursor = records.cursor()
    try:
        if place is None:
            record = cursor.first()
        else:
            record = cursor.set_range(place.key)  # of a hash: that very key or none
            if record is not None and place.given and record[0] == place.key:
                record = cursor.next_nodup()
        return record  # type: ignore[no-any-return]
    finally:
        cursor.close()


def check_first_page(file: int, path: str, magic: int) -> int:
    """Refuse what libdb should not see: raises OSError. Returns the size of a page."""
    status = os.fstat(file)
    head = os.pread(file, METADATA_SIZE, 0) if stat.S_ISREG(status.st_mode) else b""
    if len(head) < METADATA_SIZE:
        raise OSError(errno.EINVAL, "Invalid argument", path)
    order = "<" if head[12:16] == struct.pack("<I", magic) else ">"
    found, page_size, last_page = struct.unpack(f"{order}12xI4xI8xI", head)
    if found != magic or page_size not in PAGE_SIZES:
        raise OSError(errno.EINVAL, "Invalid argument", path)
    if status.st_size < (last_page + 1) * page_size:
        raise OSError(errno.EINVAL, f"cut: {status.st_size} of {(last_page + 1) * page_size} bytes", path)
    return int(page_size)


def check_pages(file: int, path: str, page_size: int, types: bytes) -> None:
    """Refuse pages of other access methods, on which libdb 5.3 fails even to verify."""
    position = 0
    while pages := os.pread(file, CHUNK, position):
        if pages[PAGE_TYPE::page_size].translate(None, types):
            raise OSError(errno.EINVAL, "damaged: pages of another type", path)
        position += len(pages)


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> SlowTable:
    maptype = type_name.partition(b":")[0]
    size = opening.host.parameter("berkeley_db_read_buffer_size") or CACHE_SIZE
    if not size.isdecimal() or int(size) >= 1 << 31:
        raise ValueError(f"bad numerical configuration: berkeley_db_read_buffer_size = {size}")
    return BerkeleyDB(KINDS[maptype], os.fsdecode(mapname) + ".db", int(size), opening.writes)
