"""test_mongodb - mongodb tables over a pretended server; each row of network-tables.md 5

A real server is asked, too, where PROXYMAP_MONGODB is its URI: it gets a database `proxymap_test`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pymongo = pytest.importorskip("pymongo", reason="PyMongo is not installed")

from bson import ObjectId  # noqa: E402
from fix_mongo import FakeMongo  # noqa: E402
from fix_server import NOT_FOUND, ServerProcess, found, lookup, request  # noqa: E402

from proxymap.tables.databases.limits import ServerLimits  # noqa: E402
from proxymap.tables.databases.mongo.mongodb import MongoServer, quoted  # noqa: E402
from proxymap.tables.flags import FIXED, FOLD_FIX, FOLD_MUL, PATTERN, UTF8_REQUEST  # noqa: E402

RETRY = [(b"status", b"2"), (b"value", b"")]
DOCUMENTS = [
    {"_id": 1, "k": "a", "v": "one"},
    {"k": "two", "v": "v1"}, {"k": "two", "v": "v2"},
    {"k": "last", "v": "v1"}, {"k": "last", "other": 1},
    {"k": "list", "v": ["x", ["y", 5], 2**40]},
    {"k": "types", "v": [1.5, True, None, {"a": 1}, ObjectId(), "kept"]},
    *[{"k": "many", "v": f"m{n}"} for n in range(120)], {"k": "Joe", "v": "as it is"},
    {"k": "empty", "v": ""}, {"k": "mixed", "v": "", "w": ["z"]}, {"k": "none", "v": []},
    {"k": 'q"uo\\te', "v": "quoted"}, {"k": "tab\tlf\n\x01\x7f", "v": "controls"},
    {"k": "o'brien''s", "v": "ob"},
    {"k": '", "x": "', "v": "text"}, {"k": 7, "v": "number"}, {"k": "a@b.c", "v": "x@y", "w": "u@v"},
]  # fmt: skip
BASIC = {"dbname": "mail", "collection": "t", "query_filter": '{"k": "%s"}', "result_attribute": "v, w"}


class Place(ServerProcess):
    """Our server before a pretended one."""

    def __init__(self, uri: str) -> None:
        super().__init__(own={"cache_ttl": "0s", "lookup_time_limit": "2s"})
        self.uri, self.serial = uri, 0

    def table(self, **others: str | None) -> bytes:
        self.serial += 1
        path = self.dir / f"{self.serial}.cf"
        parameters = {"uri": self.uri} | BASIC | others
        path.write_text("".join(f"{n} = {v}\n" for n, v in parameters.items() if v is not None))
        self.approve(f"mongodb:{path}")
        return f"mongodb:{path}".encode()

    def value(self, table: bytes, key: bytes) -> bytes | None:
        """What is found; None: no such key; otherwise it fails."""
        with self.connect() as peer:
            reply = peer.ask(lookup(table, key))
        assert reply != RETRY, self.log()[-2000:]
        return None if reply == NOT_FOUND else dict(reply)[b"value"]

    def retries(self, table: bytes, key: bytes = b"a") -> None:
        with self.connect() as peer:
            assert peer.ask(lookup(table, key)) == RETRY


@pytest.fixture
def server() -> Iterator[FakeMongo]:
    with FakeMongo(DOCUMENTS) as made:
        yield made


@pytest.fixture
def place(server: FakeMongo) -> Iterator[Place]:
    with Place(f"mongodb://127.0.0.1:{server.port}/?serverSelectionTimeoutMS=30000") as made:
        yield made


def test_values_of_all_documents_in_order(place: Place) -> None:
    table = place.table()
    place.start()
    expected = {
        b"a": b"one", b"two": b"v1,v2", b"last": b"v1", b"list": b"x,y,5,1099511627776", b"types": b"kept",
        b"empty": None, b"mixed": b"z", b"none": None, b"absent": None, b"": None, b"\xff": None,
        b"a@b.c": b"x@y,u@v", b"7": None,
        b"many": b",".join(b"m%d" % n for n in range(120)),  # stock: RETRY from the eleventh on
    }  # fmt: skip
    assert {key: place.value(table, key) for key in expected} == expected
    for what in ("float", "bool", "NoneType", "dict", "ObjectId"):
        place.wait_log(f"failed to retrieve value of 'v', Unknown result type {what}")
    place.wait_log('empty lookup result for: "empty" -- ignored')
    place.wait_log("empty query string -- ignored")


def test_parts_are_quoted(place: Place, server: FakeMongo) -> None:
    table = place.table()
    place.start()
    for key in ('q"uo\\te', "tab\tlf\n\x01\x7f", "o'brien''s", '", "x": "'):
        assert place.value(table, key.encode()) is not None
        assert server.finds[-1]["filter"] == {"k": key}
    assert quoted("a\x1f\x7f\u00e9") == "a\\u001f\\u007f\u00e9"


def test_what_is_sent(place: Place, server: FakeMongo) -> None:
    table = place.table(query_filter='{"k": {"$in": ["%u@%d", "$ne"]}}')
    projected = place.table(result_attribute=None, projection='{"_id": 1, "v": 1}')
    number = place.table(query_filter='{"k": %s}')
    place.start()
    place.value(table, b"a@b.c")
    sent = server.finds[-1]
    assert sent["filter"] == {"k": {"$in": ["a@b.c", "$ne"]}}
    assert sent["projection"] == {"_id": 0, "v": 1, "w": 1}
    assert 0 < sent["maxTimeMS"] <= 2000
    assert not sent.keys() & {"limit", "sort", "skip"}
    assert place.value(projected, b"a") == b"one"
    assert server.finds[-1]["projection"] == {"_id": 0, "v": 1}
    assert place.value(number, b"7") == b"number"
    place.retries(number, b"x y")


@pytest.mark.parametrize(
    "manner", ["error", "unauthorized", "not_primary", "close", "silent", "half", "garbage", "invalid"]
)
def test_whatever_fails_is_retry(place: Place, server: FakeMongo, manner: str) -> None:
    table = place.table()
    place.start()
    assert place.value(table, b"a") == b"one"
    server.manner = manner
    start = time.monotonic()
    place.retries(table, b"a")
    if manner != "invalid":  # there is nothing invalid in an answer without values
        place.retries(table, b"absent")
    assert time.monotonic() - start < 15
    server.manner = "answer"
    deadline = time.monotonic() + 30
    with place.connect() as peer:
        while peer.ask(lookup(table, b"a")) != found(b"one"):
            assert time.monotonic() < deadline


def test_server_that_is_down_is_retry_and_used_again(place: Place, server: FakeMongo) -> None:
    table = place.table()
    server.leave()
    place.start()
    place.retries(table)
    place.retries(table, b"absent")
    server.listen()
    deadline = time.monotonic() + 30
    with place.connect() as peer:
        while peer.ask(lookup(table, b"a")) != found(b"one"):
            assert time.monotonic() < deadline


def test_limit_format_and_domain(place: Place) -> None:
    limited = place.table(expansion_limit="1")
    formatted = place.table(result_format="<%s> %U")
    parts = place.table(result_format="%u at %d")
    domain = place.table(domain="b.c")
    place.start()
    place.retries(limited, b"two")
    assert place.value(limited, b"a") == b"one"
    assert place.value(formatted, b"a@b.c") == b"<x@y> a,<u@v> a"
    assert place.value(parts, b"a@b.c") == b"x at y,u at v"
    assert place.value(domain, b"a@b.c") == b"x@y,u@v"
    assert place.value(domain, b"a") is None


def test_open_says_neither_fixed_nor_pattern_and_asks_nothing(place: Place, server: FakeMongo) -> None:
    """So only clients with the UTF-8 layer may have keys folded, and those that fold such keys."""
    tables = {flags: place.table() for flags in (0, FOLD_FIX, FOLD_MUL)}
    tables |= {UTF8_REQUEST | flags: place.table() for flags in tables}
    server.leave()
    place.start()
    with place.connect() as peer:
        for flags, table in tables.items():
            opened = dict(peer.ask(request("open", table, flags=flags)))
            assert opened[b"status"] == b"0"
            assert int(opened[b"flags"]) & (FIXED | PATTERN) == 0
        server.listen()
        for flags, table in tables.items():
            peer.ask(lookup(table, b"Joe", flags=flags))
            folded = flags == UTF8_REQUEST | FOLD_MUL
            assert server.finds[-1]["filter"] == {"k": "joe" if folded else "Joe"}
        count = len(server.finds)
        assert peer.ask(lookup(tables[UTF8_REQUEST], b"\xff", flags=UTF8_REQUEST)) == NOT_FOUND
        assert len(server.finds) == count


@pytest.mark.parametrize(
    "faulty",
    [
        {"query_filter": '{"k": '}, {"query_filter": "[1]"}, {"result_attribute": None}, {"projection": "{}"},
        {"result_attribute": None, "projection": "{x"}, {"uri": "nonsense://"}, {"dbname": None},
        {"query_filter": '{"k": "%x"}'}, {"result_format": "%x"}, {"query_filter": None},
        {"collection": None},
    ],
)  # fmt: skip
def test_faulty_table_is_retry(place: Place, faulty: dict[str, str | None]) -> None:
    table = place.table(**faulty)
    place.start()
    place.retries(table)
    place.wait_log("error: ")


def test_password_is_in_no_log_line(place: Place, tmp_path: Path) -> None:
    table = place.table(uri="mongodb://joe:s3cretword@127.0.0.1:9/?serverSelectionTimeoutMS=500")
    place.start()
    place.retries(table)
    assert "s3cretword" not in place.log()


def test_nobody_waits_for_the_end_of_a_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    parting, heard = threading.Event(), threading.Event()

    class Silent:
        """A client whose goodbye is not answered."""

        def close(self) -> None:
            parting.set()
            heard.wait(30)

    class Host:
        """Whose log nobody reads."""

        warn = inform = print

    host: Any = Host()
    monkeypatch.setattr(pymongo, "MongoClient", lambda *_, **__: Silent())
    server = MongoServer("mongodb://localhost/", ServerLimits(), host)
    start = time.monotonic()
    del server
    assert time.monotonic() - start < 10
    assert parting.wait(10)
    heard.set()


@pytest.mark.skipif("PROXYMAP_MONGODB" not in os.environ, reason="PROXYMAP_MONGODB names no server")
def test_a_real_server() -> None:
    uri = os.environ["PROXYMAP_MONGODB"]
    with pymongo.MongoClient(uri) as client:
        client.drop_database("proxymap_test")
        client["proxymap_test"]["t"].insert_many(DOCUMENTS)
        with Place(uri) as place:
            table = place.table(dbname="proxymap_test")
            place.start()
            assert place.value(table, b"two") == b"v1,v2"
            assert place.value(table, b"absent") is None
        client.drop_database("proxymap_test")
