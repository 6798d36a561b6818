"""builder - make FILE.cdb or FILE.lmdb from a source text, as postmap(1) does

The answers, the warnings' words and the file's mode and owner are postmap's;
postmap and stock daemons may work on the same file at the same time:

cdb   FILE.cdb.tmp is locked (flock), written, synced and renamed over
      FILE.cdb. Who waited for the lock finds another file at that path, or
      none, and begins again.
lmdb  A new table is written to FILE.lmdb.tmp and renamed, so that a full disk leaves
      none: an empty one would say of all keys that they do not exist. In a table
      that is there one transaction drops the old content and stores the new. The fcntl lock
      on the file, first for writing (no reader uses the snapshot before the
      current one), then for reading (readers go on, writers wait), is held
      until the end. It belongs to process and file, and goes when any
      descriptor of the file is closed: lmdb.open() closes one, so the lock
      comes after it, and nothing but closing the lot comes after the lock.

A new lmdb file gets the format of LMDB 0.9, which every Postfix reads; an old
one keeps the format it has.

Source: postmap(1), lmdb_table(5), cdb(5); system call traces of Postfix 3.7.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import IO, Any, Literal, TypeAlias

from proxymap.base._fold import fold, is_utf8
from proxymap.base.packages import how_to_install
from proxymap.config.source import RecordError, logical_lines, split_record

Duplicates: TypeAlias = Literal["warn", "replace", "ignore"]
Record: TypeAlias = tuple[bytes, bytes]

MAP_SIZE = 16 << 20  # bytes; Postfix's lmdb_map_size. Address space only: the file stays small
MAP_PER_SOURCE = 8  # map bytes for a byte of source: tiny records cost LMDB about six
TEXT = "utf-8", "surrogateescape"  # bytes -> text that has all of them
SYSTEM_ERRORS = {os.strerror(number): number for number in errno.errorcode}
PROBE_SIZE = 1 << 16  # bytes
PROGRESS_EVERY = 5000  # records between two calls of `progress`
# Setting umask and effective user is for the whole process, and so are fcntl locks.
_one_at_a_time = threading.Lock()


class BuildError(Exception):
    """The table cannot be built: one line that says why. The old table is as it was."""


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to build; the letters are postmap's options."""

    fold: bool = True  # -f: False. Keys to lower case
    utf8: bool = True  # -u: False. Skip what is not UTF-8, and fold all of Unicode
    duplicates: Duplicates = "warn"  # -r: "replace" (last wins), -w: "ignore" (first wins, silent)
    trailing_nul: bool | None = None  # -n: False, -N: True. None: cdb without, lmdb with
    inherit_mode: bool = True  # -p: False. A new file is as readable as the source, not 0644
    keep_root: bool = False  # -o: True. Root does not become the source's owner
    map_size: int = MAP_SIZE  # lmdb: bytes at first
    warn: Callable[[str], None] = _warn
    progress: Callable[[int, int], None] = field(default=lambda done, total: None)  # bytes of the source


def build(maptype: str, file: str, source: str | None = None, options: Options | None = None) -> int:
    """Build `file`.cdb or `file`.lmdb from `source` (default: `file`); return the number of records.

    BuildError if maptype, its library or the content is to blame; OSError, with the file's name,
    from the files: of a full disk, "No space left on device".
    """
    write = {"cdb": _write_cdb, "lmdb": _write_lmdb}.get(maptype)
    if write is None:
        raise BuildError(f"cannot build a table of type {maptype}: use cdb or lmdb")
    options = options or Options()
    source = source or file
    library = _library(maptype)
    try:
        with open(source, "rb") as stream, _one_at_a_time, _as_owner(stream.fileno(), options):
            return write(library, file, _Source(stream, source, maptype, options))
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, f"{file}.{maptype}") from error


def _library(maptype: str) -> ModuleType:
    """cdbx or lmdb, wholly loaded: once we are the source's owner we may be unable to read its files."""
    name = {"cdb": "cdbx", "lmdb": "lmdb"}[maptype]
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise BuildError(f"{maptype} tables need {name}: {how_to_install(maptype)} ({error})") from None
    if name == "lmdb":
        with suppress(ImportError):
            importlib.import_module("lmdb._envid")  # lmdb.open() would load it
    return module


@contextmanager
def _as_owner(source: int, options: Options) -> Iterator[None]:
    """postmap's umask and, as root, the user and group that own the source."""
    status = os.fstat(source)
    umask = os.umask(0o022 | (~status.st_mode & 0o077 if options.inherit_mode else 0))
    group, groups = os.getegid(), os.getgroups()
    change = os.geteuid() == 0 and status.st_uid != 0 and not options.keep_root
    try:
        if change:
            os.setegid(status.st_gid)
            os.setgroups([status.st_gid])
            os.seteuid(status.st_uid)
        yield
    finally:
        if change:
            os.seteuid(0)
            os.setgroups(groups)
            os.setegid(group)
        os.umask(umask)


class _Source:
    """The records of a source text, ready to be stored. They can be read again; warnings come once."""

    def __init__(self, stream: IO[bytes], path: str, maptype: str, options: Options) -> None:
        self.options = options
        self.size = os.fstat(stream.fileno()).st_size
        nul = options.trailing_nul if options.trailing_nul is not None else maptype == "lmdb"
        self.nul = b"\0" if nul else b""
        self._stream = stream
        self._path = path
        self._line = self._warned_to = -1  # the line in hand; those up to the other have had their say

    def records(self) -> Iterator[Record]:
        """Key and value of each good line, folded, with trailing NUL where it belongs."""
        self._stream.seek(0)
        self._warned_to, self._line = max(self._warned_to, self._line), 0
        fold, nul = self._fold(), self.nul
        for count, (key, value) in enumerate(self._good_lines(), 1):
            yield fold(key) + nul, value + nul
            if count % PROGRESS_EVERY == 0:
                self.options.progress(self._stream.tell(), self.size)
        self.options.progress(self.size, self.size)

    def duplicate(self, name: str, key: bytes) -> None:
        """postmap's warning about a key that was there before."""
        if self.options.duplicates == "warn":
            self._warn(f'{name}: duplicate entry: "', key.removesuffix(self.nul), '"')

    def _fold(self) -> Callable[[bytes], bytes]:
        if not self.options.fold:
            return bytes
        return partial(fold, utf8=self.options.utf8)

    def _good_lines(self) -> Iterator[Record]:
        """Key and value of each line that has them; each other line gets its warning."""
        for number, text in logical_lines(self._lines(), self._path, self._warn):
            self._line = number
            where = f"{self._path}, line {number}: "
            if self.options.utf8 and not is_utf8(text):
                self._warn(where, 'non-UTF-8 input "', text, '" -- ignoring this line')
                continue
            try:
                key, value = split_record(text)
            except RecordError as error:
                ignored = " -- ignoring this line" if str(error).startswith("unbalanced") else ""
                self._warn(where, str(error), ignored)
                continue
            if key.endswith(b":"):
                self._warn(where, 'record is in "key: value" format; is this an alias file?')
            yield key, value

    def _lines(self) -> Iterator[bytes]:
        try:
            for line in self._stream:  # noqa: UP028 - yield from would close it at the end
                yield line
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from error

    def _warn(self, *parts: str | bytes) -> None:
        if self._line > self._warned_to:
            text = (part if isinstance(part, str) else part.decode(*TEXT) for part in parts)
            self.options.warn(printable("".join(text)))


def printable(text: str) -> str:
    """For a log line: each control character and each byte that is not UTF-8 becomes `?`."""
    return re.sub("[\0-\x1f\x7f\udc80-\udcff]", "?", text)


def _write_cdb(cdbx: Any, file: str, source: _Source) -> int:
    """FILE.cdb through FILE.cdb.tmp."""
    count = 0
    with _locked_file(f"{file}.cdb.tmp") as fd:
        maker = cdbx.CDB.make(fd)
        try:
            for count, (key, value) in enumerate(_cdb_records(file, source), 1):  # noqa: B007
                maker.add(key, value)
            maker.commit().close()
        except OverflowError:
            raise BuildError(f"{file}.cdb: more than 4 GB, the limit of the format; use lmdb") from None
        os.fsync(fd)
        os.rename(f"{file}.cdb.tmp", f"{file}.cdb")
    _sync_directory(file)
    return count


def _cdb_records(file: str, source: _Source) -> Iterator[Record]:
    """The records that a cdb file holds, in order: it would hold duplicates as well, and find the first."""
    if source.options.duplicates == "ignore":
        yield from source.records()
    elif source.options.duplicates == "replace":
        latest: dict[bytes, bytes] = {}
        for key, value in source.records():
            latest.pop(key, None)  # a replaced record moves to the end
            latest[key] = value
        yield from latest.items()
    else:
        seen: set[bytes] = set()
        for key, value in source.records():
            if key in seen:
                source.duplicate(file, key)
            else:
                seen.add(key)
                yield key, value


@contextmanager
def _locked_file(path: str) -> Iterator[int]:
    """A descriptor of the empty file at path, locked. An error takes the file away, success leaves it."""
    fd = _open_locked(path)
    try:
        os.ftruncate(fd, 0)
        yield fd
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def _open_locked(path: str) -> int:
    """Open or create, wait for the lock, and see whether the file is still the one at that path."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            status = os.fstat(fd)
            if status.st_nlink > 1 or status.st_uid != os.geteuid():  # as root we might empty any file
                raise BuildError(f"{path} is another's file, or has more names: remove it")
            fcntl.flock(fd, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _sync_directory(file: str) -> None:
    """Make a rename last; a user who may write to a directory need not be allowed to read it."""
    with suppress(PermissionError):
        fd = os.open(os.path.dirname(file) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_lmdb(lmdb: Any, file: str, source: _Source) -> int:
    """FILE.lmdb, in one transaction: in place, or beside it if there is none."""
    path = f"{file}.lmdb"
    try:
        if not _is_content(path):
            with _locked_file(f"{path}.tmp"):
                with _open_lmdb(lmdb, f"{path}.tmp", source) as env:
                    count = _fill_lmdb(lmdb, env, file, source)
                installed = _install(f"{path}.tmp", path)
            if installed:
                _sync_directory(file)
                return count
        with _open_lmdb(lmdb, path, source) as env:
            return _fill_lmdb(lmdb, env, file, source)
    except lmdb.InvalidError as error:
        raise BuildError(f"{path}: not an LMDB file, move it away and build again ({error})") from None
    except lmdb.Error as error:
        if number := _system_error(error):
            raise OSError(number, os.strerror(number), path) from error
        raise BuildError(f"{path}: {error}") from None


def _system_error(error: Exception) -> int | None:
    """The errno that an lmdb.Error is about; it has but the text."""
    return SYSTEM_ERRORS.get(str(error).rpartition(": ")[2])


def _refuse_full_disk(path: str) -> None:
    """OSError, without a name, if there is no room for another file beside it."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(path) or ".") as probe:
            os.posix_fallocate(probe.fileno(), 0, PROBE_SIZE)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror) from None


def _is_content(path: str) -> bool:
    """Is there a table? An empty file is what is left of a postmap whose disk was full."""
    with suppress(FileNotFoundError):
        return os.stat(path).st_size > 0
    return False


def _install(new: str, path: str) -> bool:
    """Put the new file in place; or remove it: a postmap has made a table there meanwhile."""
    if _is_content(path):
        os.unlink(new)
        return False
    os.rename(new, path)
    return True


@contextmanager
def _open_lmdb(lmdb: Any, path: str, source: _Source) -> Iterator[Any]:
    """An lmdb environment under postmap's lock."""
    old = os.stat(path).st_size if os.path.exists(path) else 0
    size = max(source.options.map_size, old + MAP_PER_SOURCE * source.size)
    size = (size // 4096 + 1) * 4096
    new = {} if old else {"lib_version": 0}  # an old file's own format decides
    env = lmdb.open(path, subdir=False, lock=False, map_size=size, mode=0o644, **new)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            fcntl.lockf(fd, fcntl.LOCK_SH)
            yield env
        except lmdb.Error as error:
            if _system_error(error) == errno.EIO:
                _refuse_full_disk(path)  # LMDB says so, too, of a write that was cut short
            raise
        finally:
            os.close(fd)
    finally:
        env.close()


def _fill_lmdb(lmdb: Any, env: Any, file: str, source: _Source) -> int:
    """Replace the whole content; begin again with twice the map if it is full."""
    while True:
        try:
            with env.begin(write=True) as txn:
                txn.drop(env.open_db(txn=txn), delete=False)
                _put_lmdb(txn, file, source, env.max_key_size())
                return int(txn.stat()["entries"])
        except lmdb.MapFullError:
            env.set_mapsize(2 * env.info()["map_size"])


def _put_lmdb(txn: Any, file: str, source: _Source, max_key: int) -> None:
    replace = source.options.duplicates == "replace"
    for key, value in source.records():
        if len(key) > max_key:
            shown = printable(key[:40].decode(*TEXT))
            raise BuildError(f'lmdb:{file}: key "{shown}..." is longer than {max_key} bytes; use cdb')
        if not txn.put(key, value, overwrite=replace):
            source.duplicate(f"lmdb:{file}", key)
