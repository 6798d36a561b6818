"""test_crewed - a server that workers ask: what a probe of its host counts beside the answers of others"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxymap.tables.base import Host
from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.crewed import CrewedServer
from proxymap.tables.databases.limits import ServerLimits


class Silent(CrewedServer):
    """Its probes fail; before that `meanwhile` happens."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def probe(self, address: Address) -> None:
        self.meanwhile()
        raise TimeoutError("no answer")


@pytest.fixture
def server() -> Silent:
    return Silent("mongodb", [Address("inet", "db", 1, "db:1")], ServerLimits(), Host())


def test_probe_that_fails_takes_the_host_down(server: Silent) -> None:
    (host,) = server.hosts.all
    assert not server._is_up(host)
    assert host.down_since is not None


def test_probe_that_fails_after_an_answer_says_nothing(server: Silent) -> None:
    (host,) = server.hosts.all

    def answer() -> None:
        with server.asking():
            pass

    server.meanwhile = answer
    assert server._is_up(host)
    assert host.down_since is None
