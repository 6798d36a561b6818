"""test_slapd_service - our server beside a slapd that ends idle connections, or has an IPv6 address"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from fix_relay import Relay
from fix_server import found
from fix_slapd import Slapd, unavailable
from fix_sql import Clients, Service, key_of

RECORDS = 100

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture(scope="module")
def impatient() -> Iterator[Slapd]:
    """It ends a connection that was idle for a second."""
    with Slapd("idletimeout 1") as server:
        server.fill_many(RECORDS)
        yield server


def test_connections_that_slapd_ends_when_idle_cost_no_retry(impatient: Slapd) -> None:
    with Service(impatient) as service:
        table = service.table()
        service.start()
        for number, pause in enumerate((0, 0.9, 1.0, 1.1, 2.1, 3.2), start=1):
            time.sleep(pause)
            assert service.ask(table, key_of(number)) == found(b"box%d" % number)
        for _ in range(3):
            with Clients(service, table, records=RECORDS) as clients:
                clients.until("right", 200)
            assert clients.wrong == []
            assert clients.counts["retry"] == 0
            time.sleep(1.5)


def test_ipv6(impatient: Slapd) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no ::1")
    with Relay(("127.0.0.1", impatient.port), "::1") as relay, Service(impatient) as service:
        tables = [service.table(server_host=f"{scheme}[::1]:{relay.port}") for scheme in ("", "ldap://")]
        service.start()
        for table in tables:
            assert service.ask(table, key_of(1)) == found(b"box1")
        assert relay.accepted == 1  # both tables ask the same server


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as one:
        try:
            one.bind(("::1", 0))
        except OSError:
            return False
    return True
