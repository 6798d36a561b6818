"""test_writers - Postfix's own programs that write: verify(8) and postmap(1), by way of our proxywrite

A private Postfix whose master runs our daemon as proxywrite; its tables are in
data_directory, as by default.
"""

from __future__ import annotations

import os
import pwd
import socket
import time
from collections.abc import Iterator

import pytest
from fix_postfix import StockPostfix, unavailable
from oracle import Attributes, encode, take_list
from test_master import command  # noqa: F401

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

MASTER = """\
postlog    unix-dgram n - n - 1 postlogd
verify     unix  -  -  n  -  1  verify
proxymap   unix  -  -  n  -  -  {command}
proxywrite unix  -  -  n  -  1  {command}
"""
LIMIT = 30.0
CLEANUP = 1  # seconds between two runs of verify(8)'s cleanup, which walks the cache and deletes


class Writers(StockPostfix):
    def __init__(self, command: str) -> None:  # noqa: F811
        super().__init__(
            {
                "address_verify_map": "proxy:lmdb:$data_directory/verify_cache",
                "address_verify_cache_cleanup_interval": f"{CLEANUP}s",
                "proxy_write_maps": "$address_verify_map proxy:lmdb:$data_directory/own",
            },
            MASTER.format(command=command),
        )

    def ask(self, service: str, attributes: Attributes) -> Attributes:
        """One request to a server of Postfix, after its greeting."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(LIMIT)
            peer.connect(self.socket(service))
            unread = b""
            lists: list[Attributes] = []
            peer.sendall(encode(attributes))
            while len(lists) < 2:
                data = peer.recv(4096)
                assert data, f"{service} hung up; its log:\n{self.log()}"
                unread += data
                while (taken := take_list(unread)) is not None:
                    lists.append(taken[0])
                    unread = taken[1]
            return lists[1]

    def stored(self, name: str) -> dict[bytes, bytes]:
        done = self.postmap("-s", f"lmdb:{self.data_dir}/{name}")
        assert done.returncode == 0, done.stderr
        return dict(line.split(b"\t", 1) for line in done.stdout.splitlines())  # type: ignore[misc]


@pytest.fixture(scope="module")
def writers(command: str) -> Iterator[Writers]:  # noqa: F811
    with Writers(command) as made:
        yield made


def report(address: bytes) -> Attributes:
    """What a delivery agent tells verify(8) of a probe."""
    return [
        (b"request", b"update"),
        (b"address", address),
        (b"recipient_status", b"0"),
        (b"reason", b"250 2.1.5 Ok"),
    ]


def test_verify_keeps_its_cache_with_us(writers: Writers) -> None:
    for i in range(50):
        assert writers.ask("verify", report(b"user%d@example.com" % i)) == [(b"status", b"0")]
    stored = writers.stored("verify_cache")
    addresses = {key for key in stored if not key.startswith(b"_")}
    assert addresses == {b"user%d@example.com" % i for i in range(50)}
    assert all(value.endswith(b":250 2.1.5 Ok") for key, value in stored.items() if key in addresses)


def test_cleanup_of_verify_walks_and_deletes(writers: Writers) -> None:
    """Records that are older than their time; the cleanup leaves its own mark in the table."""
    table = f"proxy:lmdb:{writers.data_dir}/verify_cache"
    old = "".join(f"old{i}@example.com 0:1:1:long ago\n" for i in range(30))
    writers.postmap("-i", f"lmdb:{writers.data_dir}/verify_cache", input=old.encode(), check=True)
    assert writers.postmap("-q", "old7@example.com", table).returncode in (0, 1)
    deadline = time.monotonic() + LIMIT
    while any(key.startswith(b"old") for key in writers.stored("verify_cache")):
        assert time.monotonic() < deadline, writers.log()
        writers.ask("verify", report(b"busy@example.com"))
        time.sleep(0.05)
    assert b"user7@example.com" in writers.stored("verify_cache")


def test_postmap_deletes_by_way_of_us(writers: Writers) -> None:
    table = f"lmdb:{writers.data_dir}/own"
    writers.postmap("-i", table, input=b"one 1\ntwo 2\n", check=True)
    owner = pwd.getpwnam("postfix")
    os.chown(writers.data_dir / "own.lmdb", owner.pw_uid, owner.pw_gid)
    assert writers.postmap("-d", "one", f"proxy:{table}").returncode == 0
    assert writers.postmap("-d", "one", f"proxy:{table}").returncode == 1
    assert writers.stored("own") == {b"two": b"2"}
