"""test_chasing - which servers that referrals name are shunned, for how long, and when one of ours ends"""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest
from fix_database import free_port
from fix_slapd import BASE, Slapd, unavailable

from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.hosts import ConnectFailed
from proxymap.tables.databases.limits import ServerLimits

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


class Host:
    """Whose log nobody reads."""

    def warn(self, line: str) -> None: ...

    inform = warn


def at(port: int) -> Address:
    return Address("url", f"ldap://127.0.0.1:{port}/", port, f"ldap://127.0.0.1:{port}")


def server_at(address: Address) -> Any:
    from proxymap.tables.databases.openldap.chasing import ChasingServer
    from proxymap.tables.databases.openldap.login import LdapLogin

    login = LdapLogin(3, "no", "", "", "", "", "", 0, 0, False, False, "", "", "", "", "", "")
    host: Any = Host()
    return ChasingServer([address], login, ServerLimits(connect_time_limit=1), host)


@pytest.fixture
def server() -> Any:
    return server_at(at(free_port()))


@pytest.fixture
def silent() -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield at(listening.getsockname()[1])


def test_server_that_had_little_time_is_not_shunned(server: Any, silent: Address) -> None:
    for _ in range(2):
        with pytest.raises(TimeoutError):
            server._reach(silent, 50)


def test_server_that_had_its_time_is_shunned(server: Any, silent: Address) -> None:
    with pytest.raises(TimeoutError):
        server._reach(silent, 5000)
    with pytest.raises(ConnectFailed, match="no answer in time"):
        server._reach(silent, 5000)


def test_server_ends_with_the_last_that_uses_it(slapd: Slapd) -> None:
    from proxymap.tables.databases.openldap._entries import Form

    server = server_at(at(slapd.port))
    form = Form(
        2, [[], [], [b"maildrop"], []], size_limit=0, recursion_limit=9, time_limit=1, base_varies=False
    )
    assert server.search(form, BASE.encode() + b"\0(cn=nobody)") == []
    assert server.connections() == 1
    gone = ref(server)
    gc.disable()
    try:
        del server
        assert gone() is None
    finally:
        gc.enable()


def test_servers_are_not_remembered_for_longer(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxymap.tables.databases.openldap.chasing.SHUNNED", 0.0)
    for _ in range(5):
        with pytest.raises(ConnectFailed):
            server._reach(at(free_port()), 5000)
    assert len(server._shunned) == 1
