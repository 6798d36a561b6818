"""memcache - memcache:/path/to/file.cf: values in memcached, and a backup that has the truth

    lookup            memcached; if that has nothing, the backup, whose value memcached then gets
    update, delete    memcached, then the backup, whose answer counts

The exchange answers what memcached has (_memcache); the rest is here, on workers. A
change that was confirmed is never followed by what was before it:

- memcached gets a backup's value only where it has none (`add`), and not while a
  change is under way;
- what memcached could not store it has to delete; if that fails, too, the key is
  *doubtful* (doubts.py): it is answered from the backup until memcached has confirmed
  that it has it no more;
- a change that memcached may still carry out late makes its key doubtful, too; where
  there is no backup, the key is not changed again before that is over.

That holds among the clients of one process; proxywrite is one.

Source: memcache_table(5) of Postfix 3.12; network-tables.md 2.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from proxymap.config.maincf import ERRORS, TEXT
from proxymap.errors import STAT_NOKEY, STAT_OK, STAT_RETRY, ConfigError, ProxymapError, TableRetry
from proxymap.tables._table import SLOW_WRITE
from proxymap.tables.base import Change, Opening
from proxymap.tables.domains import DomainList
from proxymap.tables.network._memcache import (
    ADD,
    DELETE,
    FAILED,
    GET,
    LONGEST_KEY,
    MISSED,
    SET,
    MemcacheTable,
    speaks,
)
from proxymap.tables.network.addresses import read_server
from proxymap.tables.network.doubts import doubts_of, order_of
from proxymap.tables.network.keeper import endpoint_for
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import IN_QUERY, compile_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables._jobs import Queue
    from proxymap.tables._table import Table
    from proxymap.tables._template import Program
    from proxymap.tables.network._network import Endpoint

KNOWN = (
    *("memcache", "backup", "key_format", "key_digest", "domain", "ttl", "flags", "timeout", "max_try"),
    *("retry_pause", "line_size_limit", "data_size_limit"),
)
MONTH = 30 * 86400  # seconds; a longer ttl is a date for memcached
SWEEP = 1.0  # seconds between two attempts to have doubtful keys deleted
SWEEP_MAX = 200  # keys in one
MARK_LENGTH = len(MISSED)


class _Changing(Protocol):
    """A Change, or a job of the loop's."""

    key: bytes
    value: bytes | None
    status: int


class Parameters(NamedTuple):
    """Those of the file that are numbers."""

    ttl: int
    flags: int
    timeout: int
    line_size_limit: int
    data_size_limit: int


def read_parameters(cf: TableCf) -> Parameters:
    """read_parameters - raises ConfigError; max_try and retry_pause are read, and mean nothing to us"""
    for name, default in (("max_try", 2), ("retry_pause", 1)):
        cf.integer(name, default, low=1)
    return Parameters(
        cf.integer("ttl", 3600), cf.integer("flags", 0), cf.integer("timeout", 2),
        cf.integer("line_size_limit", 1024, low=1), cf.integer("data_size_limit", 10240, low=1),
    )  # fmt: skip


class Memcache(MemcacheTable):
    """One .cf file."""

    def __init__(self, type_name: bytes, cf: TableCf, opening: Opening) -> None:
        self.own = read_parameters(cf)
        self.warn, self.name = opening.host.warn, type_name.decode(TEXT, ERRORS)
        self.digest = _digest(cf)
        self.domains = DomainList.of(cf, opening)
        self.doubtful = doubts_of(type_name, self.own.ttl)
        self.order = order_of(type_name)
        self._sweeping, self._swept = threading.Lock(), 0.0
        self.backup_flags = 0
        self._member, self._try_backup = opening.member, 0.0
        if cf.files or opening.files:
            self.loaded_from([*cf.files, *opening.files])
        backup: Table | None = None
        if name := cf.text("backup").encode(TEXT, ERRORS):
            backup = opening.member(name)
            self.backup_flags = backup.opened_flags(0, False)  # keys come folded, and checked
            if backup.reason is not None:
                self.warn(f"{name.decode(TEXT, ERRORS)} is unavailable. {backup.reason.decode(TEXT, ERRORS)}")
        self.equip(
            self._endpoint(cf, opening), _key_format(cf), self.domains, backup,
            line_limit=self.own.line_size_limit, data_limit=self.own.data_size_limit,
            ttl=self.own.ttl, flags=self.own.flags, writes=opening.writes,
            in_python=self.digest is not None,
        )  # fmt: skip
        self.doubtful.join(self)

    def _endpoint(self, cf: TableCf, opening: Opening) -> Endpoint:
        try:
            place = read_server(cf.text("memcache", "inet:localhost:11211").encode(TEXT, ERRORS))
        except ValueError as trouble:
            raise ConfigError(f"{cf.where('memcache')}: {trouble}") from None
        timeout = max(1, self.own.timeout)
        return endpoint_for(
            "memcache", speaks, place, opening.host, self.type_name, time_limit=timeout,
            connect_time_limit=timeout,
        )  # fmt: skip

    # Keys

    def _wanted(self, key: bytes) -> bytes | None:
        """What memcached is asked for; None: it is never asked for that. May raise TableRetry."""
        return None if self._why_skipped(key) else self._key_at_server(key)

    def _key_at_server(self, key: bytes) -> bytes:
        wanted = self.memcached_key(key) or b""
        return wanted if self.digest is None else hashlib.new(self.digest, wanted).hexdigest().encode()

    def _why_skipped(self, key: bytes) -> str:
        if not key:
            return "empty lookup key"
        if not self.may_ask(key):
            return "domain mismatch"
        if self._is_foreign(key):
            return "domain mismatch"
        wanted = self.memcached_key(key)
        if not wanted:
            return "empty expansion"
        if self.digest is None and any(byte <= 32 or byte == 127 for byte in wanted):
            return "name contains space or controls"
        return ""

    def _is_foreign(self, key: bytes) -> bool:
        """Does a list of domains that may take long not have its domain?"""
        return (
            self.domains is not None
            and self.domains.quick is None
            and key.rpartition(b"@")[2] not in self.domains
        )

    # Lookups

    def ask(self, key: bytes, flags: int) -> tuple[int, int, bytes]:
        """A key that begins with a mark was asked for already, in vain."""
        mark, plain = key[:MARK_LENGTH], key[MARK_LENGTH:]
        missed, failed = mark == MISSED, mark == FAILED
        key = plain if missed or failed else key
        wanted = self._wanted(key)
        if wanted is None:
            return STAT_NOKEY, flags, b""
        version, why = self.order.version, ""
        if self.backup is not None and wanted in self.doubtful:
            self._sweep()
        elif not missed and not failed:
            status, value, why = self.end(self.begin(GET, wanted))
            if status == STAT_OK:
                return STAT_OK, flags, value
            missed = status == STAT_NOKEY
        if self.backup is None:
            if not missed:
                raise TableRetry(f"{self.endpoint.shown}: {why or 'no usable answer'}")
            return STAT_NOKEY, flags, b""
        found = self._in_backup(key)
        if found is None:
            return STAT_NOKEY, flags, b""
        if missed and len(found) <= self.own.data_size_limit:
            self._fill(wanted, found, version)
        return STAT_OK, flags, found

    def _in_backup(self, key: bytes) -> bytes | None:
        backup = self._current_backup()
        try:
            return backup.answer(key, self.backup_flags)
        except ProxymapError as error:
            raise TableRetry(f"backup {backup.type_name.decode(TEXT, ERRORS)}: {error}") from error

    def _current_backup(self) -> Table:
        """Opened anew if its file was replaced, or could not be opened, and it is time to try again."""
        backup = self.backup
        assert backup is not None
        if backup.changed or (backup.reason is not None and time.monotonic() >= self._try_backup):
            self._try_backup = time.monotonic() + SWEEP
            backup = self.backup = self._member(backup.type_name)
        return backup

    def _fill(self, wanted: bytes, value: bytes, version: int) -> None:
        if self.order.begin_fill(version):
            try:
                status, _, _ = self.end(self.begin(ADD, wanted, value))
                if status == STAT_RETRY and self.doubtful.owed:
                    self.doubtful.add(wanted)
            finally:
                self.order.end_fill()

    def explain(self, key: bytes) -> list[str]:
        wanted = self._wanted(key)
        if wanted is None:
            return [f"not asked: {self._why_skipped(key)}"]
        lines = [f"asked at {self.endpoint.shown}: {wanted.decode(TEXT, ERRORS)}"]
        if self.backup is not None:
            lines.append(f"backup {self.backup.type_name.decode(TEXT, ERRORS)}")
        return lines

    # Changes

    def write(self, changes: Sequence[_Changing], on_disk: object = None) -> None:
        fits = [change for change in changes if not self._is_skipped(change)]
        with self.order.change():
            for some in _without_repetition(fits, self._key_at_server):
                self._to_server(some)
            if self.backup is not None and fits:
                self._to_backup(fits)
        self._sweep()

    def _is_skipped(self, change: _Changing) -> bool:
        why = self._why_skipped(change.key)
        if why:
            change.status = STAT_NOKEY
            self.warn(f'{self.name}: skipping update for name "{change.key.decode(TEXT, ERRORS)}": {why}')
        return bool(why)

    def _to_server(self, changes: Sequence[_Changing]) -> None:
        """Changes of different keys, all at the same time."""
        owed = self.doubtful.owed  # then what is confirmed now may be undone
        if self.backup is None:
            changes = self._without_doubtful(changes, owed)
        sent = [(change, *self._send(change)) for change in changes]
        failed = []
        for change, wanted, deletes, replies in sent:
            change.status = self.end(replies)[0]
            if change.status == STAT_RETRY:
                failed.append((wanted, deletes))
                continue
            if not owed:
                self.doubtful.discard(wanted)
            if deletes and change.value is not None:
                change.status = STAT_NOKEY
        self._make_up_for(failed)

    def _without_doubtful(self, changes: Sequence[_Changing], owed: bool) -> Sequence[_Changing]:
        """Refuse those that a late one might undo: there is no backup that has the truth."""
        if not owed:
            self.doubtful.clear()
        for change in changes:
            change.status = STAT_RETRY
        return [change for change in changes if self._key_at_server(change.key) not in self.doubtful]

    def _make_up_for(self, failed: Sequence[tuple[bytes, bool]]) -> None:
        """Have memcached delete what it could not store; what it could not delete, or owes, is doubtful."""
        failed = [(wanted, deletes) for wanted, deletes in failed if len(wanted) <= LONGEST_KEY]
        again = [wanted for wanted, deletes in failed if not deletes and not self.doubtful.owed]
        sent = [(wanted, self.begin(DELETE, wanted)) for wanted in again]
        gone = {wanted for wanted, replies in sent if self.end(replies)[0] != STAT_RETRY}
        for wanted, _ in failed:
            if wanted not in gone and (self.backup is not None or self.doubtful.owed):
                self.doubtful.add(wanted)  # else the client knows that it failed, and that is all

    def _send(self, change: _Changing) -> tuple[bytes, bool, Queue]:
        """Memcached's key; is it deleted? So is one whose value is too long: the old must not stay."""
        wanted, value = self._key_at_server(change.key), change.value
        if value is not None and len(value) > self.own.data_size_limit:
            self.warn(f"{self.name}: data for key {wanted.decode(TEXT, ERRORS)} is too long"
                      f" (data_size_limit={self.own.data_size_limit}) -- not stored")  # fmt: skip
            value = None
        if value is None:
            return wanted, True, self.begin(DELETE, wanted)
        return wanted, False, self.begin(SET, wanted, value)

    def _to_backup(self, changes: Sequence[_Changing]) -> None:
        backup = self._current_backup()
        copies = [Change(change.key, change.value, self.backup_flags) for change in changes]
        if backup.reason is None:
            if backup.slow & SLOW_WRITE:
                backup.write(copies)
            else:
                for copy in copies:
                    copy.status = self.store(copy.key, copy.value, copy.flags)
        for change, copy in zip(changes, copies, strict=True):
            change.status = copy.status

    def _sweep(self) -> None:
        """Have memcached delete doubtful keys, if it may answer: one, and then the rest."""
        now = time.monotonic()
        if not self.doubtful or self.endpoint.down or now - self._swept < SWEEP or self.doubtful.owed:
            return
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            self._swept = now
            some = self.doubtful.some(SWEEP_MAX)
            if self._deleted(some[:1]):
                self._deleted(some[1:])
        finally:
            self._sweeping.release()

    def _deleted(self, doubts: Iterable[tuple[bytes, int]]) -> bool:
        """Are all of them gone?"""
        sent = [(key, number, self.begin(DELETE, key)) for key, number in doubts]
        gone = True
        for key, number, replies in sent:
            if self.end(replies)[0] == STAT_RETRY:
                gone = False
                self.doubtful.add(key)  # as the last one: others go first
            else:
                self.doubtful.discard(key, number)
        return gone

    # For the administrator

    def doubts(self, connect: bool = False) -> Iterator[tuple[str, str, bool]]:
        if self.own.ttl > MONTH:
            yield (
                f"ttl = {self.own.ttl} is more than 30 days, which memcached takes for a date long ago",
                "write a smaller number of seconds, or 0", True,
            )  # fmt: skip
        if connect and self.end(self.begin(GET, b"proxymap-check"))[0] == STAT_RETRY:
            yield f"{self.endpoint.shown} does not answer", "see to memcached, and to the parameter", False


def _without_repetition(
    changes: Iterable[_Changing], key_of: Callable[[bytes], bytes]
) -> Iterator[list[_Changing]]:
    """In order, in pieces that have each key once."""
    piece: dict[bytes, _Changing] = {}
    for change in changes:
        if (key := key_of(change.key)) in piece:
            yield list(piece.values())
            piece = {}
        piece[key] = change
    if piece:
        yield list(piece.values())


def _digest(cf: TableCf) -> str | None:
    """key_digest: the name of a digest, in any case."""
    name = cf.text("key_digest")
    if not name:
        return None
    try:
        if hashlib.new(name.lower()).digest_size:
            return name.lower()
    except ValueError:
        pass
    raise cf.wrong("key_digest", "a digest of a fixed length, such as sha256")


def _key_format(cf: TableCf) -> Program:
    text = cf.optional("key_format")
    try:
        return compile_text("%s" if text is None else text, IN_QUERY)
    except ValueError as trouble:
        raise cf.wrong("key_format", str(trouble)) from None


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> Memcache:
    return Memcache(type_name, TableCf(mapname, opening.host), opening)
