"""lmdb_writer - updates of an LMDB file: all that wait in one transaction, one sync for them

Around each transaction stands Postfix's lock: fcntl, the whole file, for
writing (_lockfile). A reader or py-lmdb may close descriptors of the file.

What is written goes to the file that the path names at that moment: a file that
was replaced or removed is opened anew. After an error the environment is closed
and opened again: LMDB refuses to go on after a failed sync, and so it should.

LMDB trusts what it reads, and ends the process where it should not have. So a
file is checked as a whole before it is first written to, and again when anybody
else has written to it: `postmap -i` takes no lock, and a rebuild by postmap
begins its transaction before it has the lock, so that either can write over
pages in use. A damaged file is set aside: these tables are caches, and what
their clients need most is one that works.

Source: lmdb_table(5), LMDB's lmdb.h; tables.md 4.2 to 4.4.
"""

import errno
import io
import itertools
import os
import stat
import threading
import time
from contextlib import suppress
from importlib import import_module
from weakref import WeakValueDictionary

import lmdb

from libc.stdint cimport uint64_t

from proxymap.tables.indexed._lmdb cimport newest_in
from proxymap.base._lockfile cimport LockFile
from proxymap.errors import STAT_CONFIG, STAT_NOKEY, STAT_OK, TableRetry
from proxymap.base.files import sync_folder
from proxymap.tables.base import refuse_open_folder
from proxymap.tables.flags import TRY0NULL, TRY1NULL

with suppress(ImportError):
    import_module("lmdb._envid")  # lmdb.open() would load it; after chroot it cannot

MAP_SIZE = 16 << 20  # bytes of address space, as Postfix's lmdb_map_size
MAP_UNIT = 1 << 16  # no machine has larger pages
NEW_FORMAT = 0  # py-lmdb's lib_version: LMDB 0.9, which every Postfix reads
COMPLAINTS_MAX = 2  # the first may be another writer's doing, without a lock
# What LMDB says of a file that contradicts itself.
DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.CursorFullError,
    lmdb.PageFullError,
)

_writers = WeakValueDictionary()  # path -> Writer
_writers_lock = threading.Lock()


def writer_for(str path, host, damage_in) -> Writer:
    """The one writer of that file in this process, its file looked at anew. Raises OSError, ValueError.

    py-lmdb does not open a file twice in a process.
    """
    path = os.path.realpath(path)
    with _writers_lock:
        writer = _writers.get(path)
        if writer is None:
            writer = _writers[path] = Writer(path, host, damage_in)
    writer.look()
    return writer


cdef class Writer:
    """Writes to the LMDB file at `path`; any thread may call it.

    damage_in looks a file through (path -> what is wrong in it, or None; may raise OSError, ValueError).
    """

    cdef object __weakref__
    cdef str path
    cdef object host, damage_in
    cdef object _mutex
    cdef LockFile _file    # with a descriptor of our own, or None
    cdef object _env       # lmdb.Environment, or None
    cdef Py_ssize_t _meta_size, _longest  # bytes: of both meta pages, and of a key at most
    cdef list _complaints  # of LMDB about the file, during this work
    cdef bint _told        # of a key that is too long

    def __init__(self, str path, host, damage_in):
        self.path, self.host, self.damage_in = path, host, damage_in
        self._mutex = threading.Lock()
        self._complaints = []

    def __del__(self) -> None:
        with self._mutex:  # writer_for may find us until we are gone
            self._close()

    def look(self):
        """Create the file if there is none, check it and set it aside if it is damaged.

        Does not wait for another holder of the lock, unless the table is not there yet.
        """
        refuse_open_folder(self.path, self.host)
        with self._mutex:
            if self._file is not None:
                self._file.forget()
            try:
                self._mending(None, None)
            except OSError as error:
                self._close()
                raise OSError(error.errno, error.strerror, error.filename or self.path) from error
            except lmdb.Error as error:
                self._close()
                raise ValueError(f"open database {self.path}: {error}") from error

    def write(self, list changes not None, on_disk=None):
        """Make the changes, in order; they are on disk when this returns. TableRetry: they may be or not.

        on_disk is called with them as soon as they are, before the lock is given up.
        """
        with self._mutex:
            try:
                self._mending(changes, on_disk)
            except (OSError, ValueError, lmdb.Error) as error:
                self._close()
                raise TableRetry(str(error)) from error

    cdef _mending(self, list changes, on_disk):
        """_make_all. If LMDB finds damage, the file is checked; if it does so again, it is right."""
        self._complaints.clear()
        while True:
            try:
                return self._make_all(changes, on_disk)
            except DAMAGE as error:
                if len(self._complaints) == COMPLAINTS_MAX:
                    raise
                self._close()
                self._complaints.append(str(error))

    cdef _make_all(self, list changes, on_disk):
        """With None for changes: only look whether the file is sound, and wait for no lock."""
        cdef LockFile file = self._lock_file(changes is not None)
        cdef uint64_t newest
        if changes is None:
            if file is not None:
                file.unlock()
            return
        try:
            newest = self._commit(changes)
            if on_disk is not None:
                on_disk(changes)
            file.leave(self._meta_size)
            if newest_in(file.left, file.head) != newest:
                file.forget()  # somebody wrote without the lock, and that is what was remembered
        finally:
            file.unlock()

    # The transaction

    cdef uint64_t _commit(self, list changes) except? 0:
        """All changes in one transaction, which is synced; with a larger map if need be. Its number."""
        cdef bint useless = True
        cdef uint64_t number = 0
        while True:
            try:
                txn = self._env.begin(write=True)
                try:
                    done = [self._make(txn, change) for change in changes]
                    number = txn.id()
                except BaseException:
                    txn.abort()
                    raise
                txn.commit()
                break
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            except lmdb.MapResizedError:  # another process has let the file grow
                self._env.set_mapsize(0)
        for change, (status, flags) in zip(changes, done):
            change.status, change.flags = status, flags
            useless = useless and status != STAT_OK
        return number - 1 if useless else number

    cdef tuple _make(self, txn, change):
        """One update or delete: (status, flags afterwards). See tables.md 4.2 for the trailing NUL."""
        cdef bytes key = change.key, value = change.value, nul
        cdef int flags = change.flags
        if value is None:
            for nul, bit, other in ((b"\0", TRY1NULL, TRY0NULL), (b"", TRY0NULL, TRY1NULL)):
                if flags & bit and self._is_key(key + nul) and txn.delete(key + nul):
                    return STAT_OK, flags & ~other
            return STAT_NOKEY, flags
        if flags & TRY1NULL:
            nul, flags = b"\0", flags & ~TRY0NULL
        elif flags & TRY0NULL:
            nul = b""
        else:
            return STAT_CONFIG, flags
        if not self._is_key(key + nul):
            self._tell_of_length(key + nul)
            return STAT_CONFIG, change.flags
        txn.put(key + nul, value + nul)
        return STAT_OK, flags

    cdef bint _is_key(self, bytes key):
        return 0 < len(key) <= self._longest

    cdef _tell_of_length(self, bytes key):
        if not self._told:
            self._told = True
            self.host.warn(f"{self.path}: a key of {len(key)} bytes cannot be stored in this format")

    # The file

    cdef LockFile _lock_file(self, bint wait):
        """The file that the path names, locked, open and sound; created if there is none.

        None if that would mean to wait; an empty file is always waited for.
        """
        cdef LockFile file
        while True:
            if self._file is None:
                self._file = self._open_file()
            file = self._file
            if not file.lock(wait or file.size == 0):
                return None
            try:
                if file.is_as_left() or (file.is_current() and self._prepare(file)):
                    return file
            except BaseException:
                file.unlock()
                raise
            self._close()

    cdef LockFile _open_file(self):
        mode = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        file = LockFile(self.path, os.open(self.path, mode, 0o600))
        if not stat.S_ISREG(os.fstat(file.fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        return file

    cdef bint _prepare(self, LockFile file) except -1:
        """Have the locked file checked, where that is due, and open; False: another file has its name now."""
        size = file.size
        if size and (fault := self.damage_in(self.path) or self._complaint()):
            self._set_aside(fault)
            return False
        if size == 0:
            self._close_environment()  # if there was one, its file was emptied
        if self._env is None:
            self._open_environment(file, size)
        return file.is_current()  # what was opened by its name is what was locked

    cdef _complaint(self):
        """What LMDB finds damaged, after the check has found nothing."""
        return self._complaints[COMPLAINTS_MAX - 1] if len(self._complaints) == COMPLAINTS_MAX else None

    cdef _open_environment(self, LockFile file, size):
        """Open the file; one of no bytes becomes a table, or stays as it is."""
        wanted = max(int(self.host.parameter("lmdb_map_size") or MAP_SIZE), 2 * size)
        wanted = (wanted // MAP_UNIT + 1) * MAP_UNIT
        options = {"subdir": False, "lock": False, "map_size": wanted, "mode": 0o600}
        if size == 0:
            options["lib_version"] = NEW_FORMAT  # an old file's own format decides
        try:
            self._env = lmdb.open(self.path, **options)
            self._meta_size = 2 * self._env.stat()["psize"]
            self._longest = self._env.max_key_size()
            if size == 0:
                os.fsync(file.fd)
            sync_folder(self.path)  # its creator may not have come so far
        except BaseException:
            self._close_environment()
            if size == 0:
                os.ftruncate(file.fd, 0)
            raise

    cdef _set_aside(self, str fault):
        """Give the damaged file another name, and say so."""
        with io.open(self.path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass  # an OSError: the disk is to blame, not the file
        if not self.host.replace_damaged:
            raise ValueError(f"{self.path}: {fault}; move it away, or set lmdb_replace_damaged = yes")
        now = time.strftime("%Y%m%dT%H%M%S")
        for count in itertools.count():
            aside = f"{self.path}.corrupt-{now}" + (f".{count}" if count else "")
            try:
                os.link(self.path, aside)
                break
            except FileExistsError:
                continue
        os.unlink(self.path)
        self._complaints.clear()
        self.host.warn(f"{self.path}: {fault}; set aside as {aside}, a new and empty table takes its place")

    cdef _close(self):
        """Let go of the file, and with it of the lock."""
        self._close_environment()
        if self._file is not None:
            self._file.close()
            self._file = None

    cdef _close_environment(self):
        if self._env is not None:
            self._env.close()
            self._env = None
