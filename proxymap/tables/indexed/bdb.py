"""bdb - Berkeley DB files: hash:NAME and btree:NAME, both NAME.db, through the berkeleydb package

Every operation holds Postfix's flock(2) on the file, whether the client asked
for it or not: shared to read, exclusive to write. postmap holds it until a
rebuild is complete, and lookups meanwhile wait. One operation at a time: each
takes microseconds, and libdb's handle is then used by one thread only.

libdb keeps pages in memory. So each operation, once it has the lock, looks at
the file: if it is not as the handle has seen it, there is a new handle.

libdb writes page after page, and an end in between leaves a file that has lost
records or cannot be read. So it never writes to a file: it has a copy in memory,
and the pages in which the copy differs go to the file through a journal. All
changes of one write() are made so at once.

libdb reads a damaged file without care: it may crash, or go round for ever. So
a file that somebody changed is verified first, by libdb too (4 ms a megabyte),
but in a process of its own, which may crash and has a time limit.
What somebody does to a file that is being read, without a lock, can still end
the process.

Source: libdb 5.3 as seen in system call traces; tables.md 4.2, 4.3, 4.5, 4.7.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from proxymap.base.files import Stamp, stamp_of, sync_folder
from proxymap.base.packages import how_to_install
from proxymap.errors import STAT_CONFIG, STAT_NOKEY, STAT_OK, TableRetry
from proxymap.tables.base import Change, Host, Opening, SlowTable, refuse_open_folder
from proxymap.tables.flags import FIXED, TRY0NULL, TRY1NULL
from proxymap.tables.indexed import journal, verifier

try:
    from berkeleydb import db
except ImportError as error:
    raise ImportError(
        "hash and btree need the Python package berkeleydb, which is compiled with libdb's headers"
        f" (Debian: libdb5.3-dev): {how_to_install('bdb')}"
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

stand_by = verifier.stand_by  # see tables/types


class Place:
    """Where a walk stands: on `key`, as stored. given: the walker has had that record."""

    def __init__(self, key: bytes, given: bool) -> None:
        self.key, self.given = key, given


class BerkeleyDB(SlowTable):
    """One .db file. `_file` is a descriptor to lock and to look at, `_handle` is libdb's.

    For updates there is `_copy`, in memory, and the handle is on that.
    """

    flags = FIXED | TRY0NULL | TRY1NULL
    has_sequence = True
    at_a_time = 1

    def __init__(self, kind: int, path: str, cache_size: int, writes: bool, host: Host) -> None:
        self.kind, self.path, self.cache_size, self.host = kind, path, cache_size, host
        self.has_updates = writes
        if writes:
            self.path = os.path.realpath(path)  # its journal has one name then
            refuse_open_folder(self.path, host)
        self._lock = threading.Lock()  # lookups and updates come on different threads
        self._walks: dict[int, Place] = {}  # in order of use
        self._handle: db.DB | None = None
        self._copy = -1
        self._seen: Stamp | None = None  # the file as the handle knows it; None: it may know too little
        self._sound: Stamp | None = None  # what was verified
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
            self._seen = None  # until it is as the copy again
            size = os.fstat(self._copy).st_size  # libdb lets a file shrink, too
            journal.commit(self.path, self._file, self._changed_pages(), size)
            self._sign()

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

    def _changed_pages(self) -> list[journal.Page]:
        """Where the copy differs from the file."""
        size, pages = self._page_size, []
        for start in range(0, os.fstat(self._copy).st_size, CHUNK):
            old, new = os.pread(self._file, CHUNK, start), os.pread(self._copy, CHUNK, start)
            if old != new:
                old = old.ljust(len(new), b"\0")
                for at in range(0, len(new), size):
                    page = journal.Page(start + at, old[at : at + size], new[at : at + size])
                    if page.old != page.new or start + at >= os.fstat(self._file).st_size:
                        pages.append(page)
        return pages

    def _sign(self) -> None:
        """Know the file as we left it: its time is between two ticks, and others' are ticks of the kernel."""
        with suppress(PermissionError):  # it is not ours
            os.utime(self._file, ns=(time.time_ns(),) * 2)
            self._seen = self._sound = self._look()[0]

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
        self._create()
        sync_folder(self.path)
        return os.open(self.path, how)

    def _create(self) -> None:
        """In a folder of its own at first: a file that libdb had begun when it was killed is in its way."""
        folder, name = os.path.split(self.path)
        with tempfile.TemporaryDirectory(prefix=f"{name}.new-", dir=folder) as new:
            path = os.path.join(new, name)
            self._open_handle(path, db.DB_CREATE).close()
            with suppress(FileExistsError):  # somebody was quicker
                os.link(path, self.path)

    def _try_out(self) -> None:
        """See if the file can be used; while somebody rebuilds it, leave that to the first request."""
        try:
            fcntl.flock(self._file, (fcntl.LOCK_EX if self.has_updates else fcntl.LOCK_SH) | fcntl.LOCK_NB)
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
        source, path = self._file, self.path
        if self.has_updates:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if trouble := journal.recover(self.path, self._file):
                self.host.warn(f"{self.path}: {trouble}")
            stamp, settled = self._look()
            source = self._copy = copy_of(self._file)
            path = f"/proc/self/fd/{source}"
        self._page_size = check_first_page(source, self.path, MAGIC[self.kind])
        if stamp != self._sound:
            check_pages(source, self.path, self._page_size, PAGE_TYPES[self.kind])
            self._verify(source, path)
            self._sound = stamp
        self._handle = self._open_handle(path, 0 if self.has_updates else db.DB_RDONLY)
        if not os.path.samestat(os.fstat(self._handle.fd()), os.fstat(source)):
            raise OSError(errno.ESTALE, "replaced at this very moment", self.path)
        self._seen = stamp if settled else None
        return self._handle

    def _verify(self, file: int, path: str) -> None:
        """OSError if libdb finds damage, or if no process can be had to look for it."""
        try:
            found = verifier.verify(file, path, UNVERIFIED[self.kind])
        except OSError as error:
            why = f"no process can be had to verify it: {error.strerror or error}"
            raise OSError(errno.ENOMEM, why, self.path) from error
        if found:
            raise trouble_of(*found, self.path)

    def _look(self) -> tuple[Stamp, bool]:
        """How the file looks, and whether every later change will show."""
        status = os.fstat(self._file)
        settled = abs(time.time_ns() - status.st_mtime_ns) >= TICK_NS
        return stamp_of(status), settled

    def _open_handle(self, path: str, flags: int) -> db.DB:
        handle = db.DB()
        with db_errors_as_os_errors(self.path):
            handle.set_cachesize(0, self.cache_size)
            if self.kind == db.DB_HASH and flags & db.DB_CREATE:
                handle.set_h_nelem(NEW_HASH_RECORDS)
            # Mapped, a file that is cut would end the process.
            handle.open(path, dbtype=self.kind, flags=flags | db.DB_NOMMAP, mode=0o600)
        return handle

    def _drop_handle(self) -> None:
        """And the copy with it: what is not in the file is of a write that failed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(db.DBError):
                handle.close(db.DB_NOSYNC)
        if self._copy >= 0:
            os.close(self._copy)
            self._copy = -1


@contextmanager
def db_errors_as_os_errors(path: str) -> Iterator[None]:
    try:
        yield
    except db.DBError as error:
        number, text = error.args
        raise trouble_of(number, text, path) from error


def trouble_of(number: int, text: str, path: str) -> OSError:
    """number: one of errno, or negative and libdb's own."""
    return OSError(max(number, 0), text.partition(" -- ")[0], path)


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


def copy_of(file: int) -> int:
    """A file in memory with the same content."""
    copy = os.memfd_create("proxymap", os.MFD_CLOEXEC)
    try:
        position = 0
        while copied := os.sendfile(copy, file, position, CHUNK):
            position += copied
    except BaseException:
        os.close(copy)
        raise
    return copy


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
    return BerkeleyDB(KINDS[maptype], os.fsdecode(mapname) + ".db", int(size), opening.writes, opening.host)
