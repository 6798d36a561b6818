"""test_redis_writers - two Postfix with one cache in Redis: verify probes once, postscreen's cleanup works"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import fix_redis
import pytest
from fix_postfix import unavailable
from fix_redis import RedisServer, write_cf
from oracle import Attributes
from test_writers import LIMIT, Writers, report

WHY = unavailable() or fix_redis.unavailable()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

UPDATES, ADDRESSES, OLD = 60, 6, 25
CLEANED = b"_last_cache_cleanup_completed_"


class RedisWriters(Writers):
    """One of several instances with the same cache."""

    def __init__(self, command: str, redis: RedisServer) -> None:
        super().__init__(command, "lmdb")
        self.redis = redis
        names = {}
        for name in ("verify", "postscreen"):
            table = write_cf(self.data_dir / f"{name}.cf", uri=redis.uri, key_format=f"{name}:%s")
            names[name] = "proxy:" + table.decode()
        self.set(address_verify_map=names["verify"], postscreen_cache_map=names["postscreen"])

    def has(self, name: str, start: str) -> bool:
        return bool(self.redis.ask("KEYS", f"{name}:{start}*"))

    def put_old(self, name: str, records: dict[str, str]) -> None:
        self.redis.put({f"{name}:{key}": value for key, value in records.items()})

    def assert_nobody_died(self) -> None:
        assert not re.search(r"fatal|panic|proxywrite.*(exit status|killed)", self.log()), self.log()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def both(command: str, redis: RedisServer) -> Iterator[tuple[RedisWriters, RedisWriters]]:
    with RedisWriters(command, redis) as one, RedisWriters(command, redis) as other:
        yield one, other


def query(address: bytes) -> Attributes:
    """What smtpd asks verify(8)."""
    return [(b"request", b"query"), (b"address", address)]


def test_what_one_verify_learns_the_other_knows(both: tuple[RedisWriters, RedisWriters]) -> None:
    one, other = both
    for n in range(UPDATES):
        asked = report(b"user%d@example.com" % (n % ADDRESSES))
        assert both[n % 2].ask("verify", asked) == [(b"status", b"0")]
    stored = one.redis.ask("GET", "verify:user3@example.com")
    assert stored.endswith(b":250 2.1.5 Ok")
    for n in range(ADDRESSES):
        for each in both:
            answer = dict(each.ask("verify", query(b"user%d@example.com" % n)))
            assert (answer[b"status"], answer[b"recipient_status"]) == (b"0", b"0"), answer
    for each in (one, other):
        each.assert_nobody_died()


def test_cleanup_of_verify_deletes_what_is_old(both: tuple[RedisWriters, RedisWriters]) -> None:
    one, other = both
    one.put_old("verify", {f"old{i}@example.com": "0:1:1:ago" for i in range(OLD)})
    one.redis.put({"verifyx:mine": "is not the cache's"})
    deadline = time.monotonic() + LIMIT
    while one.has("verify", "old"):
        assert time.monotonic() < deadline, one.log()
        other.ask("verify", report(b"busy@example.com"))
        time.sleep(0.1)
    assert one.has("verify", "user3@example.com")
    assert one.redis.ask("EXISTS", "verifyx:mine")
    for each in both:
        each.assert_nobody_died()


def greet(port: int) -> None:
    """The whole banner: who hangs up after its first line has not passed the tests."""
    with socket.create_connection(("127.0.0.1", port), LIMIT) as peer:
        banner = b""
        while b"220 " not in banner and (more := peer.recv(1000)):
            banner += more


def test_postscreen_keeps_its_cache_and_cleans_it(both: tuple[RedisWriters, RedisWriters]) -> None:
    one, other = both
    deadline = time.monotonic() + 3 * LIMIT
    while not one.has("postscreen", "127.0.0.1"):
        greet(one.port)
        assert time.monotonic() < deadline, one.log()
    one.put_old("postscreen", {f"192.0.2.{i}": "1;0;0;0;0" for i in range(OLD)})
    while one.has("postscreen", "192.0.2."):
        assert time.monotonic() < deadline, one.log()
        time.sleep(0.1)
    assert one.has("postscreen", "127.0.0.1")
    cleaned = one.redis.ask("KEYS", f"postscreen:*{CLEANED.decode().upper()}*") or one.redis.ask(
        "KEYS", f"postscreen:*{CLEANED.decode()}*"
    )
    assert len(cleaned) == 1
    assert one.redis.ask("TTL", cleaned[0]) == -1
    greet(other.port)
    wait = time.monotonic() + LIMIT
    while "PASS OLD" not in other.log():  # it learnt of the client from the first one
        assert time.monotonic() < wait, other.log()
        time.sleep(0.1)
    assert "PASS NEW" not in other.log()
    for each in both:
        each.assert_nobody_died()


def test_a_server_that_is_away_defers_and_kills_nobody(both: tuple[RedisWriters, RedisWriters]) -> None:
    one, _ = both
    one.redis.kill()
    one.ask("verify", report(b"late@example.com"))
    one.redis.start()
    deadline = time.monotonic() + LIMIT
    while not one.has("verify", "late@example.com"):
        assert time.monotonic() < deadline, one.log()
        one.ask("verify", report(b"late@example.com"))
        time.sleep(0.1)
    one.assert_nobody_died()


def test_key_of_cleanup_is_told_apart(tmp_path: Path) -> None:
    from proxymap.tables.databases.redispy.redis import CLEANED as SPELT

    assert SPELT.lower() == CLEANED
