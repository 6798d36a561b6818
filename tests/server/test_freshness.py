"""test_freshness - what a client sees after a change in a database: the list in proxymap.cf(5)"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from fix_fake import FakeMySQL, FakePostgreSQL, FakeServer
from fix_fakes import Fakes
from fix_server import NOT_FOUND, found, lookup, wait_until
from fix_sql import RETRY
from oracle import Attributes

TTL = 2.0  # seconds; long enough for some lookups on a busy machine
OLD, NEW = found(b"old"), found(b"new")
BRIEF = {"cache_ttl": "2s", "server_error_limit": "1", "lookup_time_limit": "10s"}


@pytest.fixture(params=[FakeMySQL, FakePostgreSQL])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with request.param({"a": ["old"]}) as server:
        yield server


class Client:
    """One client of a table over the pretender. since: when it began to ask last."""

    def __init__(self, service: Fakes) -> None:
        self.service, self.table = service, service.table()
        service.start()
        self.peer = service.connect()

    def ask(self, key: bytes = b"a") -> Attributes:
        self.since = time.monotonic()
        return self.peer.ask(lookup(self.table, key))

    def expire(self) -> None:
        """Let the lives end of what was asked for until now."""
        moment = time.monotonic()
        wait_until(lambda: time.monotonic() > moment + TTL, "the end of a life")

    def end_server(self) -> None:
        self.service.fake.leave()
        wait_until(lambda: self.ask(b"other") == RETRY and "is down" in self.service.log(), "the outage")

    def start_server(self) -> None:
        self.service.fake.listen()
        self.service.wait_log("is up again")


def change(fake: FakeServer, *value: str) -> None:
    """Change the value of a, or delete it."""
    if value:
        fake.records[b"a"] = list(value)
    else:
        del fake.records[b"a"]


def test_changed_while_the_server_answers(fake: FakeServer) -> None:
    with Fakes(fake, **BRIEF) as service:
        client = Client(service)
        assert client.ask() == OLD
        change(fake, "new")
        if time.monotonic() < client.since + 0.8 * TTL:
            assert client.ask() == OLD
        client.expire()
        assert client.ask() == NEW


def test_changed_while_the_server_is_down(fake: FakeServer) -> None:
    with Fakes(fake, **BRIEF) as service:
        client = Client(service)
        assert client.ask() == OLD
        change(fake, "new")
        client.end_server()
        client.expire()
        assert client.ask() == OLD
        client.start_server()
        wait_until(lambda: client.ask() == NEW, "the new value")


def test_old_value_ends_at_its_limit(fake: FakeServer) -> None:
    with Fakes(fake, cache_stale_ttl="2s", **BRIEF) as service:
        client = Client(service)
        assert client.ask() == OLD
        client.end_server()
        client.expire()
        client.expire()
        assert client.ask() == RETRY


def test_deleted_while_the_server_answers(fake: FakeServer) -> None:
    with Fakes(fake, **BRIEF) as service:
        client = Client(service)
        assert client.ask() == OLD
        change(fake)
        client.expire()
        assert client.ask() == NOT_FOUND
        client.end_server()
        assert client.ask() == RETRY  # the old value is known to be untrue


def test_deleted_while_the_server_is_down(fake: FakeServer) -> None:
    with Fakes(fake, **BRIEF) as service:
        client = Client(service)
        assert client.ask() == OLD
        change(fake)
        client.end_server()
        client.expire()
        assert client.ask() == OLD
        client.start_server()
        wait_until(lambda: client.ask() == NOT_FOUND, "the truth")


def test_made_while_the_server_answers(fake: FakeServer) -> None:
    change(fake)
    with Fakes(fake, **BRIEF) as service:
        client = Client(service)
        assert client.ask() == NOT_FOUND
        change(fake, "new")
        assert client.ask() == NEW


def test_made_while_no_is_kept(fake: FakeServer) -> None:
    change(fake)
    with Fakes(fake, cache_negative_ttl="2s", **BRIEF) as service:
        client = Client(service)
        assert client.ask() == NOT_FOUND
        change(fake, "new")
        if time.monotonic() < client.since + 0.8 * TTL:
            assert client.ask() == NOT_FOUND
        client.expire()
        assert client.ask() == NEW


@pytest.mark.parametrize("negative_ttl", ["0s", "2s"])
def test_made_while_the_server_is_down(fake: FakeServer, negative_ttl: str) -> None:
    change(fake)
    with Fakes(fake, cache_negative_ttl=negative_ttl, **BRIEF) as service:
        client = Client(service)
        assert client.ask() == NOT_FOUND
        change(fake, "new")
        client.end_server()
        client.expire()
        assert client.ask() == RETRY
        client.start_server()
        wait_until(lambda: client.ask() == NEW, "the truth")


def test_made_while_the_server_is_down_and_an_old_no_stands_in(fake: FakeServer) -> None:
    change(fake)
    with Fakes(fake, cache_negative_ttl="1s", cache_stale_negative_ttl="1h", **BRIEF) as service:
        client = Client(service)
        assert client.ask() == NOT_FOUND
        change(fake, "new")
        client.end_server()
        client.expire()
        assert client.ask() == NOT_FOUND


def test_key_that_was_not_asked_for_yet(fake: FakeServer) -> None:
    with Fakes(fake, **BRIEF) as service:
        client = Client(service)
        assert client.ask(b"none") == NOT_FOUND
        client.end_server()
        assert client.ask() == RETRY
        client.start_server()
        wait_until(lambda: client.ask() == OLD, "the truth")


def test_server_is_silent(fake: FakeServer) -> None:
    with Fakes(fake, cache_stale_wait="1s", **BRIEF | {"lookup_time_limit": "3s"}) as service:
        client = Client(service)
        assert client.ask() == OLD
        client.expire()
        fake.manner = "silent"
        began = time.monotonic()
        assert client.ask() == OLD
        assert time.monotonic() - began >= 0.9
        assert client.ask(b"none") == RETRY


def by_flush(client: Client) -> None:
    client.service.control("flush", table=client.table.decode(), keys=["a"])


def by_flush_of_all(client: Client) -> None:
    client.service.control("flush")


def by_reload(client: Client) -> None:
    client.service.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    client.service.wait_log("configuration read anew")


def by_changed_file(client: Client) -> None:
    path = client.table.decode().partition(":")[2]
    with open(path, "a") as file:
        file.write("result_format = %s\n")
    os.utime(path)


FORGETTING = [by_flush, by_flush_of_all, by_reload, by_changed_file]


@pytest.mark.parametrize("forget", FORGETTING)
def test_forgotten_while_the_server_answers(fake: FakeServer, forget: object) -> None:
    with Fakes(fake, **BRIEF | {"cache_ttl": "1h"}) as service:
        client = Client(service)
        assert client.ask() == OLD
        change(fake, "new")
        assert client.ask() == OLD
        forget(client)  # type: ignore[operator]
        wait_until(lambda: client.ask() == NEW, "the new value")


@pytest.mark.parametrize("forget", FORGETTING[:3])
def test_forgotten_while_the_server_is_down(fake: FakeServer, forget: object) -> None:
    with Fakes(fake, **BRIEF | {"cache_ttl": "1h"}) as service:
        client = Client(service)
        assert client.ask() == OLD
        client.end_server()
        forget(client)  # type: ignore[operator]
        assert client.ask() == RETRY


@pytest.mark.parametrize("forget", FORGETTING)
def test_forgotten_while_the_question_is_under_way(fake: FakeServer, forget: object) -> None:
    with Fakes(fake, **BRIEF | {"cache_ttl": "1h"}) as service:
        client = Client(service)
        assert client.ask(b"none") == NOT_FOUND
        fake.delay = 2.0
        client.peer.send(lookup(client.table, b"a"))
        wait_until(lambda: any(b"'a'" in question for question in fake.questions), "the question")
        fake.delay = 0.0
        forget(client)  # type: ignore[operator]
        assert client.peer.reply() == OLD  # good for who waits for it,
        change(fake, "new")
        wait_until(lambda: client.ask() == NEW, "the new value")  # but not kept
