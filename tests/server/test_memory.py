"""test_memory - tables in memory that clients of proxywrite change, and those that they cannot"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from fix_server import LIMIT, ServerProcess

from proxymap.client import Client
from proxymap.errors import TableConfig, TableRetry

NAMES = ["internal:a", "internal:b", "environ:x", "environ:y", "fail:x", "static:x"]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        server.main["proxy_write_maps"] = ", ".join(f"proxy:{name}" for name in NAMES)
        server.start("-n", "proxywrite")
        yield server
        assert server.stop() == 0


@pytest.fixture(params=["3.6", "3.11"])
def client(server: ServerProcess, request: Any) -> Iterator[Client]:
    with Client(server.path, dialect=request.param, timeout=LIMIT) as client:
        yield client


def test_internal_agrees_with_a_dict(client: Client) -> None:
    rng, expected = random.Random(1), dict(client.items("internal:a"))
    for _ in range(6000):
        key = b"k%d" % rng.randrange(300)
        kind = rng.randrange(3)
        if kind == 0:
            expected[key] = rng.randbytes(rng.randrange(2000)).hex().encode()
            assert client.update("internal:a", key, expected[key])
        elif kind == 1:
            assert client.delete("internal:a", key) == (expected.pop(key, None) is not None)
        else:
            assert client.lookup("internal:a", key) == expected.get(key)
    assert dict(client.items("internal:a")) == expected
    assert client.lookup("internal:b", b"k1") is None


def test_sequence_goes_on_behind_what_was_deleted(client: Client) -> None:
    for i in range(3000):
        client.update("internal:b", b"%d" % i, b"v" * 100)
    seen = []
    for key, _ in client.items("internal:b"):
        seen.append(key)
        assert client.delete("internal:b", key)
    assert seen == [b"%d" % i for i in range(3000)]
    assert list(client.items("internal:b")) == []


def test_update_of_environ_is_seen_whatever_its_name_and_nothing_is_deleted(client: Client) -> None:
    assert client.update("environ:x", b"name", b"value")
    assert client.lookup("environ:y", b"name") == b"value"
    with pytest.raises(TableConfig):
        client.delete("environ:x", b"name")
    with pytest.raises(TableConfig):
        list(client.items("environ:x"))


def test_fail_fails_and_says_nothing(server: ServerProcess, client: Client) -> None:
    for ask in (client.lookup, client.delete):
        with pytest.raises(TableRetry):
            ask("fail:x", b"a")
    with pytest.raises(TableRetry):
        client.update("fail:x", b"a", b"1")
    with pytest.raises(TableRetry):
        list(client.items("fail:x"))
    assert "fail:" not in server.log()


def test_static_is_not_changed(client: Client) -> None:
    with pytest.raises(TableConfig):
        client.update("static:x", b"a", b"1")
    with pytest.raises(TableConfig):
        client.delete("static:x", b"a")
    assert client.lookup("static:x", b"a") == b"x"
