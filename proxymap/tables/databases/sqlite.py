"""sqlite - sqlite:/path/to/file.cf: a query to an SQLite database

The database is opened for reading and is never created. Each worker has a
connection while it asks; they wait here for the next one. A database whose file
was replaced by another is opened anew with the next lookup; one whose file is
gone goes on answering as long as a connection is there.

Where stock's proxymap dies (a locked database, an SQL error) the answer is RETRY.

Source: sqlite_table(5); tables.md 9.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from urllib.parse import quote as quote_path

from proxymap.errors import ConfigError, QuestionRefused, TableRetry
from proxymap.tables.base import Opening
from proxymap.tables.databases.database import DatabaseTable
from proxymap.tables.databases.doubts import Doubt, explaining, of_query
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import query_of

BUSY_WAIT = 1.0  # seconds to wait for a database that somebody else has locked
TIME_LIMIT = 10.0  # seconds; a query that takes longer is ended
REFUSALS = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_AUTH)
STEPS = 100_000  # of SQLite's machine between two looks at the clock; about a millisecond

# The first statement of a text, with its semicolon; those between quotes and in comments do not end it.
FIRST_STATEMENT = re.compile(
    r"""(?: [^;'"`[/-]+ | '[^']*(?:'|\Z) | "[^"]*(?:"|\Z) | `[^`]*(?:`|\Z) | \[[^]]*(?:]|\Z)
          | --[^\n]* | /\*.*?(?:\*/|\Z) | [/-] )*+ ;?""",
    re.DOTALL | re.VERBOSE,
)

Identity = tuple[int, int]  # device and inode


class Connection:
    """A connection, used by one thread at a time. identity: of the file that it was opened for."""

    def __init__(self, path: str, identity: Identity) -> None:
        self.identity = identity
        self.until = 0.0
        location = f"file://{quote_path(os.path.abspath(path), errors='surrogateescape')}?mode=ro"
        self._database = sqlite3.connect(
            location, uri=True, timeout=BUSY_WAIT, isolation_level=None, check_same_thread=False,
            cached_statements=0,
        )  # fmt: skip
        self._database.text_factory = bytes
        self._database.set_progress_handler(self._is_late, STEPS)

    def _is_late(self) -> bool:
        return time.monotonic() > self.until

    def execute(self, sql: bytes, *values: float) -> sqlite3.Cursor:
        return self._database.execute(sql.decode(), values)

    def text(self, value: bytes | float | None) -> bytes | None:
        """A value as SQLite itself has it as text."""
        if value is None or isinstance(value, bytes):
            return value
        if isinstance(value, int):
            return b"%d" % value
        found: bytes = self.execute(b"SELECT CAST(? AS TEXT)", value).fetchone()[0]
        return found

    def close(self) -> None:
        self._database.close()


class Sqlite(DatabaseTable):
    """One .cf file."""

    def __init__(self, type_name: bytes, cf: TableCf, opening: Opening) -> None:
        self._idle: list[Connection] = []
        self.path = cf.required("dbpath")
        super().__init__(type_name, cf, opening, query_of(cf))
        try:
            self._idle.append(Connection(self.path, self._identity()))
        except sqlite3.Error as error:
            raise ConfigError(f"open database {self.path}: {error}") from error

    def doubts(self, connect: bool = False) -> Iterator[Doubt]:
        yield from of_query(self.query)
        try:
            with self.values(explaining(self.query).pieces[0][0]) if connect else contextlib.nullcontext():
                pass
        except TableRetry as error:
            yield str(error), "correct the query, or the database", False

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    __del__ = close

    def statement(self, text: bytes) -> bytes:
        return first_statement(text.decode()).encode()

    @contextlib.contextmanager
    def values(self, sql: bytes) -> Iterator[Iterator[bytes | None]]:
        """The first column of each row."""
        try:
            with self._connected() as connection, contextlib.closing(connection.execute(sql)) as cursor:
                if cursor.description is None:
                    raise QuestionRefused(f"this gives no column; query: {self.query.text}")
                yield (connection.text(row[0]) for row in cursor)
        except (sqlite3.Error, sqlite3.Warning) as error:
            kind = QuestionRefused if _is_refusal(error) else TableRetry
            raise kind(f"{self.path}: {error}; query: {self.query.text}") from None

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection for one query. After trouble of any kind it is not used again."""
        connection = self._take()
        connection.until = time.monotonic() + TIME_LIMIT
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def _take(self) -> Connection:
        try:
            identity = self._identity()
        except OSError as error:
            with contextlib.suppress(IndexError):
                return self._idle.pop()
            raise TableRetry(f"open database {self.path}: {error.strerror}") from error
        with contextlib.suppress(IndexError):
            while (connection := self._idle.pop()).identity != identity:
                connection.close()
            return connection
        return Connection(self.path, identity)

    def _identity(self) -> Identity:
        """Of the file as it is now. By name, for closing a descriptor of it would drop SQLite's locks."""
        found = os.stat(self.path)
        return found.st_dev, found.st_ino


def _is_refusal(error: Exception) -> bool:
    """Is it the question that is at fault, rather than the database or its file?"""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in REFUSALS


def first_statement(sql: str) -> str:
    """first_statement - as Postfix does, without what follows it"""
    if ";" not in sql:
        return sql
    found = FIRST_STATEMENT.match(sql)
    assert found is not None
    return found[0]


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> Sqlite:
    return Sqlite(type_name, TableCf(mapname, opening.host), opening)
