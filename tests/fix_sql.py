"""fix_sql - our server before a private database, and clients that judge every reply

    with served(database, own={"lookup_time_limit": "2s"}) as service:
        table = service.table(query="SELECT v FROM many WHERE k = '%s'")
        service.start()
        with Clients(service, table) as clients:
            database.restart()
            clients.until_right()
        assert clients.wrong == []

`many` has RECORDS rows: user1@example.com has box1, and so on.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Self

import pytest
from fix_database import PrivateDatabase
from fix_server import NOT_FOUND, Peer, ServerProcess, found, lookup, wait_until
from fix_slapd import Slapd
from oracle import Attributes, take_list

RECORDS = 20_000
MANY = "SELECT v FROM many WHERE k = '%s'"
RETRY: Attributes = [(b"status", b"2"), (b"value", b"")]
CLIENTS = 32
FIXTURES = {"mysql": "mariadb", "pgsql": "postgresql"}
ALL_FIXTURES = FIXTURES | {"ldap": "slapd"}


@pytest.fixture(params=FIXTURES)
def database(request: pytest.FixtureRequest) -> Iterator[PrivateDatabase]:
    """Each SQL type's server in turn, with `many`; running again at the end, whatever the test did to it."""
    yield from server_of(request)


@pytest.fixture(params=ALL_FIXTURES)
def any_database(request: pytest.FixtureRequest) -> Iterator[PrivateDatabase]:
    """The same, and a directory."""
    yield from server_of(request)


def server_of(request: pytest.FixtureRequest) -> Iterator[PrivateDatabase]:
    server: PrivateDatabase = request.getfixturevalue(ALL_FIXTURES[request.param])
    server.fill_many(RECORDS) if isinstance(server, Slapd) else fill_many(server)
    yield server
    if server.process is None:
        server.start()
    server.resume()


def fill_many(server: PrivateDatabase, records: int = RECORDS) -> None:
    """Make `many`, unless it is there with that number of records."""
    with contextlib.suppress(RuntimeError):
        if server.execute("SELECT count(*) FROM many") == [[str(records)]]:
            return
    if server.maptype == "mysql":
        numbers = f"SELECT concat('user', seq, '@example.com'), concat('box', seq) FROM seq_1_to_{records}"
        types = "k VARCHAR(64) COLLATE utf8mb4_bin PRIMARY KEY, v VARCHAR(64)"
    else:
        numbers = (
            f"SELECT concat('user', n, '@example.com'), concat('box', n) FROM generate_series(1, {records}) n"
        )
        types = "k text PRIMARY KEY, v text"
    server.execute(
        f"DROP TABLE IF EXISTS many; CREATE TABLE many ({types}); INSERT INTO many {numbers}; "
        + ("ANALYZE TABLE many" if server.maptype == "mysql" else "ALTER TABLE many OWNER TO pm")
    )


def key_of(number: int) -> bytes:
    return b"user%d@example.com" % number


def sleeping(server: PrivateDatabase, seconds: float, when: str = "'%s' LIKE 'slow%%'") -> str:
    """A query that takes so long for some keys, and answers with the key."""
    if server.maptype == "mysql":
        return f"SELECT CASE WHEN {when} THEN concat('%s', left(SLEEP({seconds}), 0)) ELSE '%s' END"
    return f"SELECT CASE WHEN {when} THEN concat('%s', left(pg_sleep({seconds})::text, 0)) ELSE '%s' END"


class Service(ServerProcess):
    """Our server, with tables over one database."""

    def __init__(self, database: PrivateDatabase, own: dict[str, str] | None = None) -> None:
        super().__init__(own={"cache_ttl": "0s"} | (own or {}))
        self.database = database
        self.serial = 0

    def table(self, **parameters: str) -> bytes:
        """A table of `many`, or as these parameters say; approved."""
        self.serial += 1
        path = self.database.write_cf(self.dir / f"{self.serial}.cf", **({"query": MANY} | parameters))
        self.approve(f"{self.database.maptype}:{path}")
        return f"{self.database.maptype}:{path}".encode()

    def ask(self, table: bytes, key: bytes) -> Attributes:
        """One question over a connection of its own."""
        with self.connect() as peer:
            return peer.ask(lookup(table, key))

    def until_right(self, table: bytes, number: int = 1, limit: float = 30.0) -> float:
        """Ask until it is answered right; how long that took."""
        start = time.monotonic()
        right = found(b"box%d" % number)
        wait_until(lambda: self.ask(table, key_of(number)) == right, "a right answer", limit)
        return time.monotonic() - start

    def until_down(self, table: bytes) -> None:
        wait_until(lambda: self.ask(table, key_of(1)) == RETRY, "RETRY")


@contextlib.contextmanager
def served(database: PrivateDatabase, own: dict[str, str] | None = None) -> Iterator[Service]:
    """Not started yet: tables come first."""
    with Service(database, own) as service:
        yield service


class Clients:
    """Clients on a thread, each with one lookup under way; a few ask for what is not there.

    counts: by verdict (right, retry, wrong). wrong: replies that are neither right nor RETRY.
    slowest: seconds that the slowest reply took.
    """

    def __init__(
        self, service: ServerProcess, table: bytes, count: int = CLIENTS, records: int = RECORDS
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[tuple[bytes, Attributes]] = []
        self.slowest = 0.0
        self.last_right = self.first_right_since_mark = 0.0
        self._table, self._records = table, records
        self._random = random.Random(count)
        self._peers = [service.connect() for _ in range(count)]
        self._asked: dict[Peer, tuple[int, float]] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="clients")

    def mark(self) -> float:
        """From now on, when is the first right answer? Returns the time."""
        self.first_right_since_mark = 0.0
        return time.monotonic()

    def until_right(self, limit: float = 60.0) -> float:
        """Wait for the first right answer from now on; seconds."""
        start = self.mark()
        wait_until(lambda: self.first_right_since_mark, "a right answer", limit, pause=0.002)
        return self.first_right_since_mark - start

    def until(self, verdict: str, more: int = 1, limit: float = 60.0) -> None:
        """Wait for so many more replies of this kind."""
        wanted = self.counts[verdict] + more
        wait_until(lambda: self.counts[verdict] >= wanted, f"{more} replies: {verdict}", limit)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopping = True
        self._thread.join()
        for peer in self._peers:
            peer.close()

    # On the thread

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer.socket, selectors.EVENT_READ, peer)
                self._ask(peer)
            while not self._stopping:
                for key, _ in selector.select(0.1):
                    self._read(key.data)

    def _ask(self, peer: Peer) -> None:
        number = self._random.randrange(-self._records // 10, self._records) + 1
        self._asked[peer] = number, time.monotonic()
        peer.send(lookup(self._table, key_of(number)))

    def _read(self, peer: Peer) -> None:
        data = peer.socket.recv(1 << 16)
        assert data, "the server hung up"
        peer.unread += data
        if (taken := take_list(peer.unread)) is None:
            return
        reply, peer.unread = taken
        number, since = self._asked[peer]
        self._judge(number, reply)
        self.slowest = max(self.slowest, time.monotonic() - since)
        self._ask(peer)

    def _judge(self, number: int, reply: Attributes) -> None:
        if reply == RETRY:
            self.counts["retry"] += 1
        elif reply == (found(b"box%d" % number) if number > 0 else NOT_FOUND):
            self.counts["right"] += 1
            self.last_right = time.monotonic()
            self.first_right_since_mark = self.first_right_since_mark or self.last_right
        else:
            self.counts["wrong"] += 1
            self.wrong.append((key_of(number), reply))
