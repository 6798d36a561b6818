"""test_database_contract - what tables over a database server hold: over pretended servers and real ones

The pretenders (fix_fake) count what they are asked and misbehave; what only they
can show is below "Only pretended".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fix_database import PrivateDatabase
from fix_fake import FakeMySQL, FakePostgreSQL, FakeServer
from fix_server import NOT_FOUND, Peer, ServerProcess, ask_at_once, found, lookup, peers, wait_until
from fix_slapd import PEOPLE, Slapd, entry
from oracle import Attributes

RETRY: Attributes = [(b"status", b"2"), (b"value", b"")]
FAIL_FAST = {"lookup_time_limit": "3s", "server_connect_time_limit": "1s", "cache_ttl": "0s"}
ANY_UTF8 = [chr(c) for c in range(1, 128)] + ["\u00e9", "\u4e2d", "\U0001f600", "x" * 1000]
RECORDS: dict[str, Sequence[str | None]] = {
    "a": ["1"], "several": ["1", "2", "3"], "null": [None], "empty": [""], "some": [None, "1", "", "2"],
    "comma": [" a, b "], "o'brien": ["ob"], "back\\slash": ["bs"], "' OR ''='": ["injected"],
    "a@b.c": ["x@y.z"], "\u00e9": ["\u4e2d"], "long": ["x" * 20_000],
}  # fmt: skip
KEYS = {f"key {text} end": [f"value {text} end"] for text in ANY_UTF8}


class Real:
    """A private server with these records in a table t."""

    def __init__(self, server: PrivateDatabase) -> None:
        self.server = server
        self.maptype = server.maptype
        self.port = server.port
        fill(server, RECORDS | KEYS)

    def parameters(self) -> dict[str, str]:
        return self.server.parameters(query="SELECT v FROM t WHERE k = '%s' ORDER BY n")

    def cut(self) -> None:
        self.server.end_connections()

    def leave(self) -> None:
        self.server.kill()

    def listen(self) -> None:
        self.server.start()


class Fake:
    """A pretender."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.maptype = server.maptype
        self.cut, self.leave, self.listen = server.cut, server.leave, server.listen

    def parameters(self) -> dict[str, str]:
        hosts = f"127.0.0.1:{self.server.port}"
        query = "SELECT v FROM t WHERE k = '%s'"
        return {"hosts": hosts, "user": "pm", "password": "x", "dbname": "mail", "query": query}


class Directory:
    """A private directory: of values that are none there is nothing, and keys with odd blanks are left out.

    chases: with the parameter chase_referrals, for which workers ask.
    """

    maptype = "ldap"
    keys = {key: value for key, value in KEYS.items() if key.isprintable()}

    def __init__(self, server: Slapd, chases: str) -> None:
        self.server, self.chases = server, chases
        server.remove_entries()
        server.add(
            *(
                entry(f"entry {n}", other=key, maildrop=[value for value in values if value])
                for n, (key, values) in enumerate((RECORDS | self.keys).items())
            )
        )

    def parameters(self) -> dict[str, str]:
        return self.server.parameters(
            search_base=PEOPLE, query_filter="(other=%s)", chase_referrals=self.chases
        )

    def cut(self) -> None:
        self.server.restart()

    def leave(self) -> None:
        self.server.kill()

    def listen(self) -> None:
        self.server.start()


class Documents:
    """A pretended MongoDB server."""

    maptype = "mongodb"

    def __init__(self, server: Any) -> None:
        self.server = server
        self.cut, self.leave, self.listen = server.cut, server.leave, server.listen

    def parameters(self) -> dict[str, str]:
        return {
            "uri": f"mongodb://127.0.0.1:{self.server.port}/", "dbname": "mail", "collection": "t",
            "query_filter": '{"k": "%s"}', "result_attribute": "v",
        }  # fmt: skip


def fill(server: PrivateDatabase, records: dict[str, Sequence[str | None]]) -> None:
    rows = [(n, key, row) for key, values in records.items() for n, row in enumerate(values)]
    text = "VARCHAR(1100) COLLATE utf8mb4_nopad_bin" if server.maptype == "mysql" else "text"
    long = "TEXT" if server.maptype == "mysql" else "text"
    lines = ", ".join(f"({n}, {literal(key)}, {literal(row)})" for n, key, row in rows)
    sql = f"DROP TABLE IF EXISTS t; CREATE TABLE t (n int, k {text}, v {long}); "
    if server.maptype == "mysql":
        sql += f"SET sql_mode = 'NO_BACKSLASH_ESCAPES'; INSERT INTO t VALUES {lines}"
    else:
        sql += f"INSERT INTO t VALUES {lines}; ALTER TABLE t OWNER TO pm"
    server.execute(sql)


def literal(text: str | None) -> str:
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


@contextlib.contextmanager
def backend_of(kind: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    if kind == "mariadb" or kind == "postgresql":
        server: PrivateDatabase = request.getfixturevalue(kind)
        yield Real(server)
        if server.process is None:
            server.start()
        return
    if kind.startswith("slapd"):
        directory: Slapd = request.getfixturevalue("slapd")
        yield Directory(directory, "yes" if "referrals" in kind else "no")
        if directory.process is None:
            directory.start()
        return
    if kind == "fake mongodb":
        fix_mongo = pytest.importorskip("fix_mongo", reason="PyMongo is not installed")
        documents = [{"k": key, "v": list(values)} for key, values in (RECORDS | KEYS).items()]
        with fix_mongo.FakeMongo(documents) as mongo:
            yield Documents(mongo)
        return
    with {"fake mysql": FakeMySQL, "fake pgsql": FakePostgreSQL}[kind](RECORDS | KEYS) as fake:
        yield Fake(fake)


KINDS = (
    "mariadb", "postgresql", "fake mysql", "fake pgsql", "slapd", "slapd, with referrals", "fake mongodb",
)  # fmt: skip


class Place(ServerProcess):
    """Our server with tables over one backend."""

    def __init__(self, backend: Any) -> None:
        super().__init__(own=dict(FAIL_FAST))
        self.backend, self.serial = backend, 0

    def table(self, **others: str) -> bytes:
        self.serial += 1
        path = self.dir / f"{self.serial}.cf"
        lines = [f"{name} = {value}\n" for name, value in (self.backend.parameters() | others).items()]
        path.write_text("".join(lines))
        self.approve(f"{self.backend.maptype}:{path}")
        return f"{self.backend.maptype}:{path}".encode()


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with backend_of(request.param, request) as backend, Place(backend) as made:
        yield made


@pytest.fixture(params=["fake mysql", "fake pgsql"])
def pretended(request: pytest.FixtureRequest) -> Iterator[tuple[Place, FakeServer]]:
    with backend_of(request.param, request) as backend, Place(backend) as made:
        yield made, backend.server


def started(place: Place, **parameters: str) -> tuple[bytes, Peer]:
    """A table, and a connection to the server that has it."""
    table = place.table(**parameters)
    place.start()
    return table, place.connect()


def ask(peer: Peer, table: bytes, key: str) -> Attributes:
    return peer.ask(lookup(table, key.encode()))


# Answers


def test_rows_are_joined_and_what_is_not_there_is_nokey(place: Place) -> None:
    table, peer = started(place)
    values = {"a": b"1", "several": b"1,2,3", "some": b"1,2", "comma": b" a, b ", "a@b.c": b"x@y.z"}
    for key, value in values.items():
        assert ask(peer, table, key) == found(value)
    for key in ("null", "empty", "absent", "A", "a ", "a'", "%", "_"):
        if key != "a " or place.backend.maptype != "ldap":  # which does not count blanks at the end
            assert ask(peer, table, key) == NOT_FOUND
    assert ask(peer, table, "\u00e9") == found("\u4e2d".encode())
    assert ask(peer, table, "long") == found(b"x" * 20_000)


def test_keys_are_quoted(place: Place) -> None:
    table, peer = started(place)
    for key, value in {"o'brien": b"ob", "back\\slash": b"bs", "' OR ''='": b"injected"}.items():
        assert ask(peer, table, key) == found(value)
    for key in (
        "' OR '1'='1",
        "\\' OR 1=1 -- ",
        "'; DROP TABLE t; -- ",
        "a\\",
        "\\",
        "*",
        "a)(other=*",
        '"}',
    ):
        assert ask(peer, table, key) == NOT_FOUND


def test_keys_of_any_characters(place: Place) -> None:
    table, peer = started(place)
    for key, (value,) in getattr(place.backend, "keys", KEYS).items():
        assert value is not None
        assert ask(peer, table, key) == found(value.encode())


def test_key_that_is_not_utf8_is_nokey(place: Place) -> None:
    table, peer = started(place)
    for key in (b"\xff", b"a\xc3", b"\xbf' OR 1=1 -- ", b"\xed\xa0\x80", b"\xc0\xa7"):
        assert peer.ask(lookup(table, key)) == NOT_FOUND


def test_format_limit_and_domain(place: Place) -> None:
    formatted = place.table(result_format="<%s> of %S")
    limited = place.table(expansion_limit="2")
    domain = place.table(domain="b.c, x.y")
    place.start()
    with place.connect() as peer:
        assert ask(peer, formatted, "a") == found(b"<1> of a")
        assert ask(peer, limited, "several") == RETRY
        assert ask(peer, limited, "some") == found(b"1,2")
        assert ask(peer, domain, "a@b.c") == found(b"x@y.z")
        assert ask(peer, domain, "a") == NOT_FOUND
        assert ask(peer, domain, "a@other") == NOT_FOUND


def test_lookups_leave_no_trace(place: Place) -> None:
    table, peer = started(place)
    for _ in range(20):
        assert ask(peer, table, "several") == found(b"1,2,3")
        assert ask(peer, table, "absent") == NOT_FOUND
        assert ask(peer, table, "null") == NOT_FOUND
        assert ask(peer, table, "a") == found(b"1")


def test_clients_side_by_side_get_each_their_own(place: Place) -> None:
    table = place.table()
    place.start()
    keys = list(getattr(place.backend, "keys", KEYS))
    with peers(place, 16) as clients:
        for turn in range(20):
            asked = [keys[(turn * 16 + n) % len(keys)] for n in range(16)]
            for peer, key in zip(clients, asked, strict=True):
                peer.send(lookup(table, key.encode()))
            for peer, key in zip(clients, asked, strict=True):
                assert peer.reply() == found(KEYS[key][0].encode())  # type: ignore[union-attr]


def test_it_is_no_table_for_updates_and_has_no_sequence(place: Place) -> None:
    from fix_server import request

    table, peer = started(place)
    assert dict(peer.ask(request("sequence", table, function=0)))[b"status"] == b"5"
    assert ask(peer, table, "a") == found(b"1")


# Trouble


def test_connections_that_were_cut_cost_nothing(place: Place) -> None:
    table, peer = started(place)
    for _ in range(5):
        assert ask(peer, table, "a") == found(b"1")
        place.backend.cut()
        time.sleep(0.05)


def test_absent_server_is_retry_and_its_return_is_seen(place: Place) -> None:
    table, peer = started(place)
    assert ask(peer, table, "a") == found(b"1")
    place.backend.leave()
    for _ in range(5):
        assert ask(peer, table, "a") == RETRY
        assert ask(peer, table, "absent") == RETRY
        assert peer.ask(lookup(table, b"")) == NOT_FOUND
    place.backend.listen()
    wait_until(lambda: ask(peer, table, "a") == found(b"1"), "the answer")
    assert ask(peer, table, "absent") == NOT_FOUND


# Only pretended


@pytest.mark.parametrize("manner", ["error", "silent", "close", "half", "garbage", "leave", "full"])
def test_whatever_a_server_does_is_retry_and_then_right_again(
    pretended: tuple[Place, FakeServer], manner: str
) -> None:
    place, server = pretended
    table, peer = started(place)
    assert ask(peer, table, "a") == found(b"1")
    server.manner = manner  # type: ignore[assignment]
    if manner == "full":
        server.cut()
    for _ in range(3):
        assert ask(peer, table, "several") == RETRY
        assert ask(peer, table, "absent") == RETRY
    server.manner = "answer"
    wait_until(lambda: ask(peer, table, "several") == found(b"1,2,3"), "the answer")
    for key, value in {"a": b"1", "some": b"1,2"}.items():
        assert ask(peer, table, key) == found(value)
    assert ask(peer, table, "absent") == NOT_FOUND


def test_failing_questions_leave_the_connection_alone(pretended: tuple[Place, FakeServer]) -> None:
    place, server = pretended
    table, peer = started(place)
    assert ask(peer, table, "a") == found(b"1")
    server.manner = "error"
    for _ in range(20):
        assert ask(peer, table, "a") == RETRY
    server.manner = "answer"
    assert ask(peer, table, "a") == found(b"1")
    assert server.log_ins == 1


def test_a_reply_too_many_shifts_nothing(pretended: tuple[Place, FakeServer]) -> None:
    place, server = pretended
    table, peer = started(place)
    server.manner = "extra"
    assert ask(peer, table, "a") in (found(b"1"), RETRY)
    server.manner = "answer"
    wrong = 0
    for key, value in {"several": b"1,2,3", "some": b"1,2", "comma": b" a, b ", "a@b.c": b"x@y.z"}.items():
        time.sleep(0.02)
        wrong += ask(peer, table, key) != found(value)
    assert wrong == 0


def test_refused_keys_are_not_asked(pretended: tuple[Place, FakeServer]) -> None:
    place, server = pretended
    table = place.table(query="SELECT v FROM t WHERE k = '%u@%d'", domain="b.c")
    place.start()
    with place.connect() as peer:
        for key in (b"", b"a", b"@b.c", b"a@", b"a@x.y", b"\xff@b.c"):
            assert peer.ask(lookup(table, key)) == NOT_FOUND
        assert (server.questions, server.log_ins) == ([], 0)
        assert ask(peer, table, "a@b.c") == found(b"x@y.z")
        assert len(server.questions) == 1


def test_each_lookup_is_one_question(pretended: tuple[Place, FakeServer]) -> None:
    place, server = pretended
    table, peer = started(place)
    for _ in range(10):
        assert ask(peer, table, "a") == found(b"1")
    assert len(server.questions) == 10
    assert server.log_ins == 1


@pytest.mark.parametrize("prepared", ["no", "forgetful"])
def test_pooler_without_prepared_statements(prepared: str) -> None:
    """As pgbouncer may be: the same answers, as text."""
    with FakePostgreSQL(RECORDS, prepared) as server, Place(Fake(server)) as place:  # type: ignore[arg-type]
        table, peer = started(place)
        for _ in range(5):
            for key, value in {"a": b"1", "several": b"1,2,3", "o'brien": b"ob"}.items():
                assert ask(peer, table, key) == found(value)
            assert ask(peer, table, "absent") == NOT_FOUND


def test_slow_server_is_given_more_connections_but_no_more_than_the_limit(
    pretended: tuple[Place, FakeServer],
) -> None:
    place, server = pretended
    place.own["server_connection_limit"] = "5"
    table = place.table()
    place.start()
    server.delay = 0.05
    with peers(place, 16) as clients:
        for _ in range(6):
            ask_at_once(clients, lookup(table, b"a"), found(b"1"))
            assert server.open <= 5
        assert server.open >= 3
