"""test_memcache_writers - verify and postscreen with caches in memcached, and in lmdb behind it

3.7's own proxywrite ends at the second update of a key, and each of its successors
at the request that is repeated to it.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import fix_memcached
import pytest
from fix_memcached import Memcached
from fix_postfix import unavailable
from fix_server import Peer, request
from test_writers import LIMIT, Writers, report

WHY = unavailable() or fix_memcached.unavailable()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

ADDRESSES, UPDATES = 10, 100
ROUNDS, OLD = 4, 25  # of a cleanup
CLIENTS = 20  # of postscreen, each with an address of its own


class MemcacheWriters(Writers):
    """`stored` and `table` are of the backup."""

    def __init__(self, command: str, memcached: Memcached) -> None:
        super().__init__(command, "lmdb")
        self.memcached = memcached
        names = {}
        for name in ("verify_cache", "postscreen_cache"):
            table = memcached.table(
                self.data_dir / f"{name}.cf", backup=self.table(name), key_format=f"{name}-%s"
            )
            names[name] = "proxy:" + table.decode()
        self.set(
            address_verify_map=names["verify_cache"], postscreen_cache_map=names["postscreen_cache"],
            postscreen_greet_ttl="1s", postscreen_cache_retention_time="1d",
        )  # fmt: skip

    def put_old(self, name: str, records: dict[str, str]) -> None:
        """By way of proxywrite, as postmap takes no lock."""
        table = f"memcache:{self.data_dir}/{name}.cf".encode()
        with Peer(self.socket("proxywrite")) as peer:
            for key, value in records.items():
                update = request("update", table, key=key.encode(), value=value.encode())
                assert peer.ask(update) == [(b"status", b"0")]

    def has(self, name: str, start: bytes) -> bool:
        exists = (self.data_dir / f"{name}.lmdb").exists()
        return exists and any(key.startswith(start) for key in self.stored(name))

    def dropped(self, name: str) -> int:
        """How many records cleanups have deleted, as Postfix's programs say."""
        cleanups = re.findall(rf"cache \S*{name}\S* full cleanup: retained=\d+ dropped=(\d+)", self.log())
        return sum(map(int, cleanups))

    def assert_nobody_died(self) -> None:
        assert not re.search(r"fatal|panic|proxywrite.*(exit status|killed)", self.log()), self.log()


@pytest.fixture(scope="module")
def writers(command: str) -> Iterator[MemcacheWriters]:
    with Memcached() as memcached, MemcacheWriters(command, memcached) as made:
        yield made


def test_verify_updates_the_same_keys_again_and_again(writers: MemcacheWriters) -> None:
    for n in range(UPDATES):
        assert writers.ask("verify", report(b"user%d@example.com" % (n % ADDRESSES))) == [(b"status", b"0")]
    stored = writers.stored("verify_cache")
    for n in range(ADDRESSES):
        key = b"user%d@example.com" % n
        assert stored[key].endswith(b":250 2.1.5 Ok")
        assert (writers.memcached.get(b"verify_cache-" + key) or b"").endswith(b":250 2.1.5 Ok")
    writers.assert_nobody_died()


def test_cleanup_of_verify_walks_the_backup_and_deletes(writers: MemcacheWriters) -> None:
    for _ in range(ROUNDS):
        writers.put_old("verify_cache", {f"old{i}@example.com": "0:1:1:ago" for i in range(OLD)})
        deadline = time.monotonic() + LIMIT
        while writers.has("verify_cache", b"old"):
            assert time.monotonic() < deadline, writers.log()
            writers.ask("verify", report(b"busy@example.com"))
            time.sleep(0.1)
    assert b"user7@example.com" in writers.stored("verify_cache")
    writers.assert_nobody_died()


def greet(writers: MemcacheWriters, address: str) -> None:
    """The whole banner: who hangs up after its first line has not passed the tests."""
    with socket.create_connection(("127.0.0.1", writers.port), LIMIT, source_address=(address, 0)) as peer:
        banner = b""
        while b"220 " not in banner and (more := peer.recv(1000)):
            banner += more


def test_postscreen_updates_the_same_keys_again_and_again(writers: MemcacheWriters) -> None:
    """A client that has passed is tested again as soon as a second later, and its record replaced."""
    addresses = [f"127.0.1.{n}" for n in range(1, CLIENTS + 1)]
    updates: dict[str, set[bytes]] = {address: set() for address in addresses}
    deadline = time.monotonic() + 5 * LIMIT
    while any(len(values) < UPDATES / CLIENTS for values in updates.values()):
        assert time.monotonic() < deadline, writers.log()
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(lambda address: greet(writers, address), addresses))
        stored = writers.stored("postscreen_cache")
        for address, values in updates.items():
            values |= {stored[key] for key in [address.encode()] if key in stored}
    stored = writers.stored("postscreen_cache")
    for address in addresses:
        in_memcached = writers.memcached.get(b"postscreen_cache-" + address.encode())
        assert in_memcached in (None, stored[address.encode()])
    writers.assert_nobody_died()


def test_cleanup_of_postscreen_walks_the_backup_and_deletes(writers: MemcacheWriters) -> None:
    deadline = time.monotonic() + 3 * LIMIT
    before = writers.dropped("postscreen_cache")
    greet(writers, "127.0.0.1")
    for _ in range(ROUNDS):
        writers.put_old("postscreen_cache", {f"192.0.2.{i}": "1;0;0;0;0" for i in range(OLD)})
        while writers.has("postscreen_cache", b"192.0.2."):
            assert time.monotonic() < deadline, writers.log()
            time.sleep(0.1)
    assert writers.has("postscreen_cache", b"127.0.0.1")
    assert writers.dropped("postscreen_cache") - before >= ROUNDS * OLD
    writers.assert_nobody_died()
