"""test_outage_memory - a database stops under load of 32 clients, with its values in the cache

PROXYMAP_WARM: how many keys (the page of figures says 100,000). PROXYMAP_OUTAGE: seconds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import pytest
from fix_database import PrivateDatabase
from fix_server import NOT_FOUND, found, lookup
from fix_sql import RETRY, Clients, Service, database, fill_many, key_of, served

__all__ = ["database"]

WARM = int(os.environ.get("PROXYMAP_WARM", "5000"))
OUTAGE = float(os.environ.get("PROXYMAP_OUTAGE", "4"))  # seconds
BACK = 2.0  # seconds from when the server accepts connections to the first new answer
SLACK = 2.0  # for a busy machine
LIMIT = 8  # connections
OWN = {"cache_ttl": "1s", "lookup_time_limit": "5s", "server_connection_limit": str(LIMIT)}


@pytest.fixture
def warm(database: PrivateDatabase) -> Iterator[tuple[Service, bytes]]:
    """A server that has asked for WARM keys."""
    fill_many(database, WARM + 1000)
    with served(database, OWN) as service:
        table = service.table()
        service.start()
        service.until_right(table)
        with service.connect() as peer:
            for first in range(1, WARM + 1, 500):
                numbers = range(first, min(first + 500, WARM + 1))
                peer.send(b"".join(lookup(table, key_of(number)) for number in numbers))
                assert all(peer.reply() == found(b"box%d" % number) for number in numbers)
        yield service, table


def test_values_go_on_and_the_rest_is_refused_at_once(warm: tuple[Service, bytes]) -> None:
    service, table = warm
    with Clients(service, table, records=WARM) as clients, service.connect() as peer:
        clients.until("right", 500)
        service.database.kill()
        service.wait_log("is down: ")
        until = time.monotonic() + OUTAGE
        took = []
        retried = clients.counts["retry"]
        for number in range(1, 1000):
            began = time.monotonic()
            assert peer.ask(lookup(table, key_of(WARM + number))) == RETRY  # never asked for before
            took.append(time.monotonic() - began)
            assert peer.ask(lookup(table, key_of(number))) == found(b"box%d" % number)
            if time.monotonic() > until and number > 100:
                break
        assert statistics.median(took) < 0.05
        assert clients.counts["retry"] > retried  # what is not there is not "no" now
        time.sleep(max(0.0, until - time.monotonic()))
        service.database.start()
        began = time.monotonic()
        seen = []
        while peer.ask(lookup(table, b"none@example.com")) != NOT_FOUND:
            seen.append(service.database.connections())
            assert time.monotonic() < began + 30
        back = time.monotonic() - began
        clients.until("right", 500)
        seen.append(service.database.connections())
    assert clients.wrong == []  # "no" for what is there, or another value
    assert back < BACK + SLACK, back
    assert max(seen) <= LIMIT
    assert "lookups from memory, " in service.log()
    print(f"back after {back:.2f} s; refused within {statistics.median(took) * 1000:.2f} ms (median),"
          f" {max(took) * 1000:.1f} ms (slowest); {clients.counts}")  # fmt: skip
