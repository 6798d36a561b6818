"""test_memcache_writers - verify and postscreen with caches in memcached, and in lmdb behind it

3.7's own proxywrite ends at the second update of a key, and each of its successors
at the request that is repeated to it.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator

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
        self.set(address_verify_map=names["verify_cache"], postscreen_cache_map=names["postscreen_cache"])

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


def test_postscreen_keeps_its_cache_and_cleans_it(writers: MemcacheWriters) -> None:
    def greeted() -> None:
        """The whole banner: who hangs up after its first line has not passed the tests."""
        with socket.create_connection(("127.0.0.1", writers.port), LIMIT) as peer:
            banner = b""
            while b"220 " not in banner and (more := peer.recv(1000)):
                banner += more

    deadline = time.monotonic() + 3 * LIMIT
    while not writers.has("postscreen_cache", b"127.0.0.1"):
        greeted()
        assert time.monotonic() < deadline, writers.log()
    for _ in range(ROUNDS):
        writers.put_old("postscreen_cache", {f"192.0.2.{i}": "1;0;0;0;0" for i in range(OLD)})
        while writers.has("postscreen_cache", b"192.0.2."):
            assert time.monotonic() < deadline, writers.log()
            time.sleep(0.1)
    assert writers.has("postscreen_cache", b"127.0.0.1")
    writers.assert_nobody_died()
