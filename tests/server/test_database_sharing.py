"""test_database_sharing - what a database is asked, and what it is spared: servers that count their questions

The questions of clients that ask at once, answers that are kept, questions that
the server refuses, values that stand in for it in an outage.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator

import pytest
from fix_fake import FakeMySQL, FakePostgreSQL, FakeServer
from fix_fakes import Fakes
from fix_server import NOT_FOUND, found, lookup, peers, wait_until
from fix_sql import RETRY, Clients

CLIENTS = 200
MANY = 1000
RECORDS = {f"k{number}": [f"v{number}"] for number in range(MANY)}
RECORDS |= {f"user{number}@example.com": [f"box{number}"] for number in range(1, MANY + 1)}
SLACK = 2.0  # seconds; a thread that waits for a CPU of a busy machine


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


# More than the server can do


def test_what_cannot_be_answered_in_time_is_refused_at_once(fake: FakeServer) -> None:
    """A server ten times slower than its load: in time or at once, and none late."""
    fake.delay = 0.05
    with Fakes(fake, cache_ttl="0s", lookup_time_limit="1s", server_connection_limit="2") as service:
        table = service.table()
        service.start()
        with Clients(service, table, count=400, records=MANY) as clients:
            time.sleep(3)
        assert clients.wrong == []
        assert clients.slowest <= 1 + SLACK
        assert clients.counts["right"] >= 2 / 0.05  # a third of what it can do
        assert clients.counts["retry"] > 10 * clients.counts["right"]
        server = service.control("servers")[0]
        assert server["shed"] > server["late"] * 20
        assert "is down" not in service.log()


def test_tables_of_one_server_take_turns(fake: FakeServer) -> None:
    """One table is asked by many; a lookup in the other waits for a few of theirs, not for all."""
    with Fakes(fake, cache_ttl="0s", server_connection_limit="1") as service:
        busy, quiet = service.table("busy"), service.table("quiet")
        service.start()
        assert service.ask(quiet, b"k0") == found(b"v0")
        fake.delay = 0.02
        with peers(service, 50) as clients:
            for number, peer in enumerate(clients):
                peer.send(lookup(busy, b"k%d" % number))
            wait_until(lambda: asked(fake) >= 3, "questions")
            assert service.ask(quiet, b"k999") == found(b"v999")
            others = [question for question in fake.questions if b"k999" not in question]
            assert len(others) <= 3 + 10
            assert all(peer.reply() == found(b"v%d" % number) for number, peer in enumerate(clients))


def test_refresh_waits_behind_all_clients_and_costs_nobody_an_answer(fake: FakeServer) -> None:
    own = {"cache_ttl": "10s", "cache_refresh_percent": "100", "server_connection_limit": "1"}
    with Fakes(fake, **own) as service:
        table = service.table()
        service.start()
        with service.connect() as peer:
            assert [peer.ask(lookup(table, b"k1")) for _ in range(2)] == [found(b"v1")] * 2
            fake.delay = 0.2
            with peers(service, 2) as clients:
                for number, other in enumerate(clients):
                    other.send(lookup(table, b"k%d" % (number + 2)))
                wait_until(lambda: asked(fake) >= 2, "a question under way")
                for _ in range(20):
                    assert peer.ask(lookup(table, b"k1")) == found(b"v1")  # from the cache: due, but not now
                assert all(other.reply() for other in clients)
            assert asked(fake) == 3
            fake.delay = 0.0
            wait_until(
                lambda: peer.ask(lookup(table, b"k1")) == found(b"v1") and asked(fake) == 4, "the refresh"
            )


# An outage


def test_outage_is_told_with_what_came_from_memory(fake: FakeServer) -> None:
    with Fakes(fake, cache_ttl="1s", server_error_limit="1") as service:
        table = service.table()
        service.start()
        assert service.ask(table, b"k1") == found(b"v1")
        since = time.monotonic()
        fake.leave()
        wait_until(lambda: service.ask(table, b"k2") == RETRY and "is down" in service.log(), "the outage")
        assert "; used by 1 table, answering from memory up to 1h old" in service.log()
        wait_until(lambda: time.monotonic() > since + 1, "the end of a life")
        assert [service.ask(table, b"k1") for _ in range(5)] == [found(b"v1")] * 5
        assert [service.ask(table, b"k2") for _ in range(3)] == [RETRY] * 3
        (server,) = service.control("servers")
        assert (server["state"], server["hosts"][0]["state"]) == ("down", "down")
        assert server["hosts"][0]["last_error"] in service.log()
        assert server["tables"] == [table.decode()]
        fake.listen()
        service.wait_log("is up again after ")
        line = r"is up again after \d+s; (\d+) lookups from memory, (\d+) deferred$"
        told = re.search(line, service.log(), re.M)
        assert told is not None
        assert int(told[1]) == 5
        assert int(told[2]) >= 3
        wait_until(lambda: service.ask(table, b"k2") == found(b"v2"), "an answer")
        (server,) = service.control("servers")
        assert (server["state"], server["open"]) == ("up", 1)
        assert server["limit"] < 32  # it has to prove itself
        assert server["hosts"][0]["seconds"] <= 60


def test_uncached_key_is_refused_at_once_while_the_server_is_down(fake: FakeServer) -> None:
    with Fakes(fake, server_error_limit="1") as service:
        table = service.table()
        service.start()
        assert service.ask(table, b"k1") == found(b"v1")
        fake.leave()
        wait_until(lambda: service.ask(table, b"k2") == RETRY and "is down" in service.log(), "the outage")
        took = []
        with service.connect() as peer:
            for number in range(3, 103):
                began = time.monotonic()
                assert peer.ask(lookup(table, b"k%d" % number)) == RETRY
                assert peer.ask(lookup(table, b"k1")) == found(b"v1")
                took.append(time.monotonic() - began)
        assert statistics.median(took) < 0.05


def test_shedding_is_told_once(fake: FakeServer) -> None:
    fake.delay = 0.1
    with Fakes(fake, cache_ttl="0s", lookup_time_limit="1s", server_connection_limit="1") as service:
        table = service.table()
        service.start()
        with Clients(service, table, count=100, records=MANY):
            service.wait_log("is too slow for what it is asked: ")
            time.sleep(2)
        assert service.log().count("is too slow") == 1


def test_server_that_is_back_is_not_flooded(fake: FakeServer) -> None:
    """Twice as many connections with each 10 answers, and never more than the limit."""
    with Fakes(fake, cache_ttl="0s", server_connection_limit="8", server_error_limit="1") as service:
        table = service.table()
        service.start()
        fake.delay = 0.01
        with Clients(service, table, count=64, records=MANY) as clients:
            clients.until("right", 500)
            assert max(fake.crowds) > 4
            fake.leave()
            service.wait_log("is down")
            clients.until("retry", 100)
            fake.crowds.clear()
            fake.listen()
            clients.until("right", 500)
        assert clients.wrong == []
        assert max(fake.crowds) <= 8 + 1  # a probe may be one too many for a moment
        for number, crowd in enumerate(fake.crowds):
            assert crowd <= 2 ** (number // 10) + 1, fake.crowds[:100]
