"""test_writers - Postfix's own programs that write, by way of our proxywrite: verify, postscreen, postmap

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
from fix_database import free_port
from fix_postfix import StockPostfix, unavailable
from oracle import Attributes, encode, take_list

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

MASTER = """\
postlog    unix-dgram n - n - 1 postlogd
verify     unix  -  -  n  -  1  verify
127.0.0.1:{port} inet n - n - 1 postscreen
smtpd      pass  -  -  n  -  -  smtpd
dnsblog    unix  -  -  n  -  0  dnsblog
proxymap   unix  -  -  n  -  -  {command}
proxywrite unix  -  -  n  -  1  {command}
"""
LIMIT = 30.0
CLEANUP = 1  # seconds between two runs of the cleanup, which walks the cache and deletes


class Writers(StockPostfix):
    def __init__(self, command: str, maptype: str) -> None:
        self.maptype = maptype
        self.port = free_port()
        super().__init__(
            {
                "address_verify_map": f"proxy:{maptype}:$data_directory/verify_cache",
                "address_verify_cache_cleanup_interval": f"{CLEANUP}s",
                "postscreen_cache_map": f"proxy:{maptype}:$data_directory/postscreen_cache",
                "postscreen_cache_cleanup_interval": f"{CLEANUP}s",
                "postscreen_greet_wait": "1s",
                "local_recipient_maps": "",  # else smtpd wants unix:passwd.byname approved
                "mynetworks": "10.0.0.0/8",  # so that we are tested as strangers are
                "proxy_write_maps": "$address_verify_map $postscreen_cache_map"
                f" proxy:{maptype}:$data_directory/own $proxy_read_maps",
                "proxy_read_maps": f"proxy:{maptype}:$data_directory/listed",
            },
            MASTER.format(command=command, port=self.port),
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

    def table(self, name: str) -> str:
        return f"{self.maptype}:{self.data_dir}/{name}"

    def stored(self, name: str) -> dict[bytes, bytes]:
        done = self.postmap("-s", self.table(name))
        assert done.returncode == 0, done.stderr
        return dict(line.split(b"\t", 1) for line in done.stdout.splitlines())  # type: ignore[misc]


@pytest.fixture(scope="module", params=["lmdb", "btree"])
def writers(command: str, request: pytest.FixtureRequest) -> Iterator[Writers]:
    with Writers(command, request.param) as made:
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
    table = writers.table("verify_cache")
    old = "".join(f"old{i}@example.com 0:1:1:long ago\n" for i in range(30))
    writers.postmap("-i", table, input=old.encode(), check=True)
    assert writers.postmap("-q", "old7@example.com", f"proxy:{table}").returncode in (0, 1)
    deadline = time.monotonic() + LIMIT
    while any(key.startswith(b"old") for key in writers.stored("verify_cache")):
        assert time.monotonic() < deadline, writers.log()
        writers.ask("verify", report(b"busy@example.com"))
        time.sleep(0.05)
    assert b"user7@example.com" in writers.stored("verify_cache")


def test_postscreen_keeps_its_cache_with_us_and_cleans_it(writers: Writers) -> None:
    def greeted() -> bytes:
        """The whole banner: who hangs up after its first line has not passed the tests."""
        with socket.create_connection(("127.0.0.1", writers.port), LIMIT) as peer:
            banner = b""
            while b"220 " not in banner and (more := peer.recv(1000)):
                banner += more
            return banner

    deadline = time.monotonic() + LIMIT
    greeted()
    while "127.0.0.1" not in {key.decode() for key in writers.stored("postscreen_cache")}:
        assert time.monotonic() < deadline, writers.log()
        greeted()
    old = "".join(f"192.0.2.{i} 1;0;0;0;0\n" for i in range(1, 31))
    writers.postmap("-i", writers.table("postscreen_cache"), input=old.encode(), check=True)
    while any(key.startswith(b"192.0.2.") for key in writers.stored("postscreen_cache")):
        assert time.monotonic() < deadline, writers.log()
        time.sleep(0.05)
    assert b"127.0.0.1" in writers.stored("postscreen_cache")


def test_postmap_deletes_by_way_of_us(writers: Writers) -> None:
    table = writers.table("own")
    writers.postmap("-i", table, input=b"one 1\ntwo 2\n", check=True)
    owner = pwd.getpwnam("postfix")
    (file,) = writers.data_dir.glob("own.*")
    os.chown(file, owner.pw_uid, owner.pw_gid)
    assert writers.postmap("-d", "one", f"proxy:{table}").returncode == 0
    assert writers.postmap("-d", "one", f"proxy:{table}").returncode == 1
    assert writers.stored("own") == {b"two": b"2"}


def test_postmap_asks_the_reader_for_what_the_writer_has_changed(writers: Writers) -> None:
    """-q goes to proxymap, -d to proxywrite; with -s postmap itself refuses proxy: tables."""
    table = writers.table("listed")
    writers.postmap("-i", table, input=b"one 1\ntwo 2\n", check=True)
    owner = pwd.getpwnam("postfix")
    (file,) = writers.data_dir.glob("listed.*")
    os.chown(file, owner.pw_uid, owner.pw_gid)
    assert writers.postmap("-q", "two", f"proxy:{table}").stdout == b"2\n"
    assert writers.postmap("-d", "two", f"proxy:{table}").returncode == 0
    assert writers.postmap("-q", "two", f"proxy:{table}").returncode == 1
    assert writers.postmap("-q", "one", f"proxy:{table}").stdout == b"1\n"
