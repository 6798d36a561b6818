"""test_database_sharing - what a database is asked, and what it is spared: servers that count their questions

The questions of clients that ask at once, answers that are kept, questions that
the server refuses, values that stand in for it in an outage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fix_fake import FakeMySQL, FakePostgreSQL, FakeServer
from fix_server import NOT_FOUND, ServerProcess, found, lookup, peers, wait_until
from fix_sql import RETRY
from oracle import Attributes

from proxymap.server.control import ask_all

CLIENTS = 200
RECORDS = {f"k{number}": [f"v{number}"] for number in range(1000)}


class Fakes(ServerProcess):
    """Our server over a pretender. Answers are kept for an hour, unless own says otherwise."""

    def __init__(self, fake: FakeServer, **own: str) -> None:
        super().__init__(own={"cache_ttl": "1h", "lookup_time_limit": "5s"} | own)
        self.fake = fake

    def table(self, name: str = "t", **parameters: str) -> bytes:
        """A table over the pretender, approved."""
        path = self.dir / f"{name}.cf"
        values = {"hosts": f"127.0.0.1:{self.fake.port}", "user": "u", "password": "p", "dbname": "mail"}
        values |= {"query": "SELECT v FROM t WHERE k = '%s'"} | parameters
        path.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
        path.chmod(0o644)
        self.approve(f"{self.fake.maptype}:{path}")
        return f"{self.fake.maptype}:{path}".encode()

    def ask(self, table: bytes, key: bytes) -> Attributes:
        """One question over a connection of its own."""
        with self.connect() as peer:
            return peer.ask(lookup(table, key))

    def control(self, do: str, **request: Any) -> Any:
        """The answer of the control socket."""
        (_, reply), *_ = ask_all(self.path, do=do, **request)
        return reply["ok"]

    def counts(self, table: bytes) -> dict[str, Any]:
        """What the server knows of the table."""
        return next(known for known in self.control("tables") if known["table"] == table.decode())


@pytest.fixture(params=[FakeMySQL, FakePostgreSQL])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with request.param(RECORDS) as server:
        yield server


def asked(fake: FakeServer) -> int:
    return len(fake.questions)


# Clients that ask at once


def test_two_hundred_clients_with_one_cold_key_are_one_question(fake: FakeServer) -> None:
    with Fakes(fake) as service:
        table = service.table()
        service.start()
        fake.delay = 0.5
        with peers(service, CLIENTS) as clients:
            for peer in clients:
                peer.send(lookup(table, b"k1"))
            assert all(peer.reply() == found(b"v1") for peer in clients)
    assert asked(fake) == 1


def test_without_a_cache_each_client_asks_for_itself(fake: FakeServer) -> None:
    with Fakes(fake, cache_ttl="0s") as service:
        table = service.table()
        service.start()
        with peers(service, CLIENTS) as clients:
            for peer in clients:
                peer.send(lookup(table, b"k1"))
            assert all(peer.reply() == found(b"v1") for peer in clients)
    assert asked(fake) == CLIENTS


# Questions that are refused


def test_refused_question_is_not_asked_again_at_once(fake: FakeServer) -> None:
    with Fakes(fake, cache_error_ttl="1h") as service:
        table = service.table()
        service.start()
        assert service.ask(table, b"k1") == found(b"v1")
        fake.manner = "error"
        assert [service.ask(table, b"k2") for _ in range(5)] == [RETRY] * 5
        fake.manner = "answer"
        assert service.ask(table, b"k2") == RETRY  # for an hour
        assert service.ask(table, b"k3") == found(b"v3")  # no other key is concerned
        assert service.control("flush", table=table.decode(), keys=["k2"])["answers"] == 1
        assert service.ask(table, b"k2") == found(b"v2")
    assert asked(fake) == 1 + 1 + 1 + 1


def test_refusals_are_forgotten_after_their_time(fake: FakeServer) -> None:
    with Fakes(fake) as service:
        table = service.table()
        service.start()
        fake.manner = "error"
        assert service.ask(table, b"k1") == RETRY
        fake.manner = "answer"
        wait_until(lambda: service.ask(table, b"k1") == found(b"v1"), "the question asked again")


def test_refusals_can_be_asked_each_time(fake: FakeServer) -> None:
    with Fakes(fake, cache_error_ttl="0s") as service:
        table = service.table()
        service.start()
        fake.manner = "error"
        assert [service.ask(table, b"k1") for _ in range(3)] == [RETRY] * 3
    assert asked(fake) == 3


def test_more_values_than_the_limit_are_a_refusal(fake: FakeServer) -> None:
    fake.records[b"many"] = ["a", "b", "c"]
    with Fakes(fake, cache_error_ttl="1h") as service:
        table = service.table(expansion_limit="2")
        service.start()
        assert [service.ask(table, b"many") for _ in range(3)] == [RETRY] * 3
    assert asked(fake) == 1


def test_trouble_of_the_server_is_not_kept(fake: FakeServer) -> None:
    with Fakes(fake, cache_error_ttl="1h") as service:
        table = service.table()
        service.start()
        assert service.ask(table, b"k1") == found(b"v1")
        fake.manner = "close"
        assert service.ask(table, b"k2") == RETRY
        fake.manner = "answer"
        wait_until(lambda: service.ask(table, b"k2") == found(b"v2"), "an answer")
        assert service.ask(table, b"none") == NOT_FOUND
