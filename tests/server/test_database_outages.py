"""test_database_outages - a database server is killed, stopped, restarted, cut off: under load of 32 clients

Never a wrong answer, never "no such key" for one that is there; right answers
again within BACK seconds after the server is back; clients of other tables do
not notice.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import pytest
from fix_database import PrivateDatabase
from fix_relay import Relay
from fix_server import lookup, wait_until
from fix_sql import CLIENTS, RETRY, Clients, Service, any_database, key_of, served

__all__ = ["any_database"]

BACK = 2.0  # seconds from when the server accepts connections to the first right answer
OUTAGES = [float(word) for word in os.environ.get("PROXYMAP_OUTAGES", "0.5 1.5 4").split()]  # seconds
LIMIT = 2.0  # lookup_time_limit
SLACK = 10.0  # seconds; a thread that waits for a CPU of a busy machine


@pytest.fixture
def service(any_database: PrivateDatabase) -> Iterator[Service]:
    with served(any_database, {"lookup_time_limit": f"{LIMIT:.0f}s"}) as made:
        yield made


@pytest.mark.parametrize("how", ["kill", "restart", "pause"])
def test_outages_under_load(service: Service, how: str) -> None:
    database, table = service.database, service.table()
    service.start()
    took = []
    with Clients(service, table) as clients:
        clients.until("right", 500)
        for seconds in OUTAGES:
            end, begin = {
                "kill": (database.kill, database.start),
                "restart": (database.stop, database.start),
                "pause": (database.pause, database.resume),
            }[how]
            end()
            time.sleep(seconds)
            begin()
            took.append(clients.until_right())
            clients.until("right", 200)
    print(f"{how}: first right answer after {' '.join(f'{s:.2f}' for s in took)} s; {dict(clients.counts)}")
    assert clients.wrong == []
    assert statistics.median(took) <= BACK, took
    assert clients.slowest <= LIMIT + SLACK


def test_connections_cut_under_load(service: Service) -> None:
    """All at once, the idle and the busy and those that are just being made."""
    with Relay(("127.0.0.1", service.database.port)) as relay:
        table = service.table(hosts=f"127.0.0.1:{relay.port}")
        service.start()
        took = []
        with Clients(service, table) as clients:
            clients.until("right", 200)
            for _ in range(20):
                relay.cut()
                took.append(clients.until_right())
                clients.until("right", 50)
    assert clients.wrong == []
    assert statistics.median(took) < BACK / 2, took
    assert max(took) < BACK + SLACK, took


def test_replies_in_single_bytes_are_whole_answers(service: Service) -> None:
    with Relay(("127.0.0.1", service.database.port)) as relay:
        relay.piece = 1
        table = service.table(hosts=f"127.0.0.1:{relay.port}")
        service.start()
        with Clients(service, table, count=4) as clients:
            clients.until("right", 100)
    assert clients.wrong == []
    assert clients.counts["retry"] == 0


@pytest.mark.parametrize("bytes_of_reply", [1, 3, 4, 5, 20, 40, 80])
def test_half_an_answer_is_never_an_answer(service: Service, bytes_of_reply: int) -> None:
    """Each connection is cut after so many bytes of each reply; without TLS, which would notice."""
    with Relay(service.database.socket_file) as relay:
        table = service.table(hosts=f"127.0.0.1:{relay.port}")
        service.start()
        service.until_right(table)
        relay.marker = b"user"
        relay.cut_after = bytes_of_reply
        with Clients(service, table, count=4) as clients:
            wait_until(lambda: clients.counts["retry"] or clients.counts["right"] > 300, "replies")
            relay.cut_after = 0
            clients.until("right", 20)
    assert clients.wrong == []


def test_idle_connections_closed_by_the_server_cost_no_retry(service: Service) -> None:
    table = service.table()
    service.start()
    service.until_right(table)
    for number in range(2, 12):
        service.database.end_connections()
        assert service.ask(table, key_of(number)) == [(b"status", b"0"), (b"value", b"box%d" % number)]


def test_restart_between_two_lookups_costs_no_retry(service: Service) -> None:
    table = service.table()
    service.start()
    service.until_right(table)
    service.database.restart()
    assert service.ask(table, key_of(2)) == [(b"status", b"0"), (b"value", b"box2")]


def test_dead_server_refuses_at_once_and_says_so_once(service: Service) -> None:
    table = service.table()
    service.start()
    service.until_right(table)
    service.database.kill()
    service.until_down(table)
    wait_until(lambda: "is down: " in service.log(), "the line in the log")
    with service.connect() as peer:
        start = time.monotonic()
        for number in range(200):
            assert peer.ask(lookup(table, key_of(number + 1))) == RETRY
        assert time.monotonic() - start < SLACK + 200 * 0.05
    service.database.start()
    service.until_right(table)
    wait_until(lambda: "is up again after " in service.log(), "the line in the log")
    assert service.log().count("is down: ") == 1
    assert service.log().count("is up again after ") == 1


def test_silent_server_is_retry_within_the_time_limit(service: Service) -> None:
    table = service.table()
    service.start()
    service.until_right(table)
    service.database.pause()
    for _ in range(3):
        start = time.monotonic()
        assert service.ask(table, key_of(2)) == RETRY
        assert time.monotonic() - start < LIMIT + SLACK
    service.database.resume()
    assert service.until_right(table) <= BACK + SLACK


def test_other_tables_do_not_notice_a_silent_server(service: Service) -> None:
    """Rate and slowest reply of a cdb table; the CPU is free meanwhile, so little may change."""
    table = service.table()
    other = service.cdb("t", {key_of(n): b"box%d" % n for n in range(1, 20_001)})
    service.start()
    service.until_right(table)

    def rate() -> float:
        with Clients(service, other, count=4) as clients:
            time.sleep(1.0)
        assert clients.wrong == []
        assert clients.counts["retry"] == 0
        assert clients.slowest < 1.0
        return float(clients.counts["right"])

    before = [rate() for _ in range(3)]
    service.database.pause()
    with Clients(service, table):
        meanwhile = [rate() for _ in range(3)]
    service.database.resume()
    assert max(meanwhile) > max(before) / 2


def test_load_goes_on_while_a_server_comes_and_goes_often(service: Service) -> None:
    """Threads and descriptors do not grow with the number of outages."""
    table = service.table()
    service.start()
    with Clients(service, table) as clients:
        clients.until("right", 200)
        service.database.restart()
        clients.until("right", 200)
        descriptors, threads = service.descriptors(), len(os.listdir(f"/proc/{service.pid}/task"))
        for _ in range(5):
            service.database.restart()
            clients.until("right", 100)
    assert clients.wrong == []
    wait_until(lambda: service.descriptors() <= descriptors + 4, "descriptors back to what they were")
    assert len(os.listdir(f"/proc/{service.pid}/task")) <= threads + 4


def test_clients_that_leave_amid_an_outage_are_forgotten(service: Service) -> None:
    table = service.table()
    service.start()
    service.until_right(table)
    service.database.pause()
    peers = [service.connect() for _ in range(CLIENTS)]
    for number, peer in enumerate(peers):
        peer.send(lookup(table, key_of(number + 1)))
    for peer in peers:
        peer.close()
    service.database.resume()
    assert service.until_right(table) <= BACK + LIMIT + SLACK
    with Clients(service, table) as clients:
        clients.until("right", 200)
    assert clients.wrong == []
