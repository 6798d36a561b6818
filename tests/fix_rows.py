"""fix_rows - stock's proxymap and ours before one database, with a new table for each question

    def test_refused(mysql: Rows) -> None:
        mysql.fails("Can't connect", hosts="127.0.0.1:9")

A table that has failed is out of service with stock for a minute, so that each
test has tables of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_database import PrivateDatabase
from fix_pair import Pair, ask_unless_it_dies
from fix_server import SANDBOXED, found, lookup, wait_until
from oracle import Attributes
from sql_cases import ALIAS, fill

RETRY = [(b"status", b"2"), (b"value", b"")]
NAMES = 80  # of tables, for one life of the servers
KNOWN = b"o'brien@b.c"


class Rows:
    """Both servers before one database."""

    def __init__(self, pair: Pair, database: PrivateDatabase) -> None:
        self.pair, self.database = pair, database
        if SANDBOXED:  # tables come after the start: the sandbox is told what they may need
            pair.ours.own |= {"sandbox_ports": "any", "sandbox_reads": f"{pair.stock.dir} {database.dir}"}

    def table(self, **parameters: str) -> bytes:
        """A table of a name that neither knows yet."""
        name = self.pair.fresh_name()
        self.database.write_cf(self.pair.path(name), **({"query": ALIAS} | parameters))
        return name

    def fails(self, words: str, key: bytes = KNOWN, ours: str | None = None, **parameters: str) -> bytes:
        """Both say RETRY and log these words (ours others, if given); returns the table's name."""
        name = self.table(**parameters)
        self.asked_in_vain(name, words, key, words if ours is None else ours)
        return name

    def asked_in_vain(self, name: bytes, words: str, key: bytes, ours: str) -> None:
        logs = self.pair.stock.log, self.pair.ours.log
        before = [len(log()) for log in logs]
        assert self.pair.ask(lookup(name, key)) == (RETRY, RETRY)
        for log, start, wanted in zip(logs, before, (words, ours), strict=True):
            wait_for(log, start, wanted)

    def answers(self, name: bytes) -> None:
        assert self.same(name, KNOWN) == found(b"ob")

    def same(self, name: bytes, key: bytes) -> Attributes:
        """The answer that both give."""
        stock, ours = self.pair.ask(lookup(name, key))
        assert stock is not None, f"stock died; its log ends\n{self.pair.stock.log()[-500:]}"
        assert ours == stock
        return ours

    def value(self, key: bytes = KNOWN, **parameters: str) -> bytes | None:
        """What both find in a new table; None: no such key."""
        reply = dict(self.same(self.table(**parameters), key))
        assert reply[b"status"] in (b"0", b"1"), reply
        return reply[b"value"] if reply[b"status"] == b"0" else None

    def ours(self, name: bytes, key: bytes = KNOWN) -> Attributes:
        """What ours answers."""
        return self.pair.peers[1].ask(lookup(name, key))

    def stock(self, name: bytes, key: bytes = KNOWN) -> Attributes | None:
        """What stock answers; None: it died, and both start anew with the next table."""
        reply = ask_unless_it_dies(self.pair.peers[0], lookup(name, key))
        if reply is None:
            self.pair.renew()
        return reply

    @property
    def tcp(self) -> str:
        return f"127.0.0.1:{self.database.port}"


@contextlib.contextmanager
def rows_of(maptype: str, database: PrivateDatabase) -> Iterator[Rows]:
    with contextlib.suppress(RuntimeError):  # the session's server may have them already
        fill(database)
    with Pair(maptype, in_a_life=NAMES) as pair:
        yield Rows(pair, database)


@pytest.fixture(scope="module")
def mysql(mariadb: PrivateDatabase) -> Iterator[Rows]:
    with rows_of("mysql", mariadb) as rows:
        yield rows


@pytest.fixture(scope="module")
def pgsql(postgresql: PrivateDatabase) -> Iterator[Rows]:
    with rows_of("pgsql", postgresql) as rows:
        yield rows


def wait_for(log: Callable[[], str], start: int, wanted: str) -> None:
    """Until these words are in what was logged since; blanks count as one."""
    words = " ".join(wanted.split())
    try:
        wait_until(lambda: words in " ".join(log()[start:].split()), "")
    except AssertionError:
        raise AssertionError(f"{wanted!r} is not in {log()[start:]!r}") from None


def readable(rows: Rows, name: str) -> str:
    """A certificate, where mail_owner can read it."""
    path: Path = rows.pair.shared.parent / f"{name}.pem"
    path.write_bytes(Path(rows.database.certificates.pem(name)).read_bytes())
    path.chmod(0o644)
    return str(path)
