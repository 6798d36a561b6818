"""test_redis_hostile - servers that do not speak as Redis does: RETRY, in time, for their own keys alone"""

from __future__ import annotations

import resource
import runpy
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

pytest.importorskip("redis", reason="redis-py is not installed")

from fix_redis import write_cf
from fix_resp import Resp
from fix_server import LIMIT, wait_until
from fix_tables import Logged, opened
from fix_tls import Certificates

from proxymap.errors import STAT_OK, QuestionRefused, TableRetry
from proxymap.tables._table import Table
from proxymap.tables.databases.redispy import bounded
from proxymap.tables.databases.redispy.bounded import BoundedSocket, OverTcp, OverTls, OverUnix
from proxymap.tables.databases.redispy.nodes import Line

GOOD = b"$1\r\nv\r\n"
NESTED = b"*1\r\n" * 20_000
# What is no answer to GET, and none to SMEMBERS.
NO_VALUE = {
    "number": b":7\r\n",
    "list": b"*1\r\n$1\r\nv\r\n",
    "empty list": b"*0\r\n",
    "push": b">2\r\n$10\r\ninvalidate\r\n$1\r\nk\r\n",
    "map": b"%1\r\n$1\r\nk\r\n$1\r\nv\r\n",
    "half": b"$5\r\nval",
    "half a head": b"$5",
    "nothing": b"",
    "bad length": b"$five\r\nvalue\r\n",
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "nested": NESTED,
    "error": b"-ERR no\r\n",
    "bad MOVED": b"-MOVED 7\r\n",
    "bad port": b"-MOVED 7 127.0.0.1:many\r\n",
    "ASK nowhere": b"-ASK 7 \r\n",
    "long number": b":" + b"9" * 5000 + b"\r\n",
}
NO_MEMBERS = {
    "text": b"$1\r\nv\r\n",
    "number": b":7\r\n",
    "null": b"$-1\r\n",
    "null list": b"*-1\r\n",
    "nulls": b"*1\r\n$-1\r\n",
    "numbers": b"*2\r\n:1\r\n:2\r\n",
    "error within": b"*2\r\n$1\r\nv\r\n-ERR no\r\n",
    "list within": b"*1\r\n*1\r\n$1\r\nv\r\n",
    "nested": NESTED,
    "half": b"*2\r\n$1\r\nv\r\n",
}


@pytest.mark.parametrize("name", NO_VALUE)
def test_what_is_no_value_is_retry(tmp_path: Path, name: str) -> None:
    check(tmp_path, "get", b"GET", NO_VALUE[name], GOOD)


@pytest.mark.parametrize("name", NO_MEMBERS)
def test_what_is_no_set_is_retry(tmp_path: Path, name: str) -> None:
    check(tmp_path, "smembers", b"SMEMBERS", NO_MEMBERS[name], b"*1\r\n" + GOOD)


def check(tmp_path: Path, command: str, word: bytes, answer: bytes, good: bytes) -> None:
    """RETRY, in time and with a reason, and then the table goes on."""
    with Resp({word: good}) as server:
        table = opened(write_cf(tmp_path / "t.cf", uri=server.uri, command=command, timeout=1))
        assert is_well(table)
        server.answers[word] = answer
        began = time.monotonic()
        with pytest.raises(TableRetry, match=r"127\.0\.0\.1"):
            table.ask(b"k", 0)
        assert time.monotonic() - began < LIMIT / 2
        server.answers[word] = good
        wait_until(lambda: is_well(table), "the good answer", LIMIT)


def is_well(table: Table) -> bool:
    try:
        return table.ask(b"k", 0)[0] == STAT_OK
    except TableRetry:
        return False


@pytest.mark.parametrize("answer", [b"x", b"$100000\r\n" + b"x"], ids=["of a line", "of a value"])
def test_answer_that_trickles_takes_no_longer_than_any(tmp_path: Path, answer: bytes) -> None:
    with Resp({b"GET": (answer,)}) as server:
        table = opened(write_cf(tmp_path / "t.cf", uri=server.uri, timeout=1))
        began = time.monotonic()
        with pytest.raises(TableRetry):
            table.ask(b"k", 0)
        assert time.monotonic() - began < LIMIT / 2


def test_log_in_that_trickles_takes_no_longer_than_any(tmp_path: Path) -> None:
    with Resp({b"AUTH": (b"x",), b"GET": GOOD}) as server:
        uri = server.uri.replace("//", "//:secret@")
        table = opened(write_cf(tmp_path / "t.cf", uri=uri, timeout=1))
        began = time.monotonic()
        with pytest.raises(TableRetry):
            table.ask(b"k", 0)
        assert time.monotonic() - began < LIMIT / 2


def test_question_has_all_of_its_time_after_an_answer_that_was_late() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor() as pool:
        line = BoundedSocket(ours)
        line.expect(0.05)
        theirs.sendall(b"+OK\r\n")
        assert line.recv(100) == b"+OK\r\n"
        line.expect(LIMIT)
        sent = pool.submit(line.sendall, bytes(4 << 20))
        assert wait([sent], 0.3).done == set()
        left = 4 << 20
        while left:
            left -= len(theirs.recv(left))
        assert sent.result(LIMIT) is None


def test_redis_py_that_makes_connections_in_another_way_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a table is opened, and not by answers without bounds."""
    for kind in OverTcp.__mro__ + OverTls.__mro__ + OverUnix.__mro__:
        if kind.__module__ == "redis.connection":
            monkeypatch.delattr(kind, "_connect", raising=False)
    with pytest.raises(ImportError, match=r"redis-py \d"):
        runpy.run_path(bounded.__file__)


def test_answer_that_is_too_large_fills_no_memory(tmp_path: Path) -> None:
    """It is the fault of one key; others are answered meanwhile."""

    def answer(words: list[bytes]) -> bytes:
        return b"$300000000\r\n" + b"x" * 300_000_000 if words[1] == b"large" else GOOD

    with Resp({b"GET": answer}) as server:
        logged = Logged()
        table = opened(write_cf(tmp_path / "t.cf", uri=server.uri, timeout=20), logged)
        assert is_well(table)
        answer([b"GET", b"large"])  # what the test itself takes
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(TableRetry, match="larger than"):
            table.ask(b"large", 0)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 350_000
        assert is_well(table)
        assert not [line for line in logged.lines if "is down" in line]


def slots(*ranges: tuple[int, int, int]) -> bytes:
    """(first slot, last, port) as CLUSTER SLOTS has them."""
    texts = [
        b"*3\r\n:%d\r\n:%d\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$2\r\nid\r\n" % one for one in ranges
    ]  # fmt: skip
    return b"*%d\r\n" % len(texts) + b"".join(texts)


def test_nodes_that_send_each_other_on_are_asked_no_more(tmp_path: Path) -> None:
    with Resp({}) as one, Resp({}) as other:
        for server, next_one in ((one, other), (other, one)):
            server.answers[b"CLUSTER"] = slots((0, 16383, one.port))
            server.answers[b"GET"] = b"-MOVED 7 127.0.0.1:%d\r\n" % next_one.port
        uri = one.uri.replace("redis:", "redis+cluster:")
        table = opened(write_cf(tmp_path / "t.cf", uri=uri, timeout=1))
        with pytest.raises(TableRetry, match="no node says that it has the key"):
            table.ask(b"k", 0)
        asked = [words for server in (one, other) for words in server.commands if words[0] == b"GET"]
        assert len(asked) <= 5


def test_nodes_that_are_made_up_do_not_pile_up(tmp_path: Path) -> None:
    """Each lookup is sent on to one more, where nobody listens."""
    ports = iter(range(1, 60_000))
    with Resp({b"GET": lambda words: b"-ASK 7 127.0.0.1:%d\r\n" % next(ports)}) as server:
        server.answers[b"CLUSTER"] = slots((0, 16383, server.port))
        table = opened(
            write_cf(tmp_path / "t.cf", uri=server.uri.replace("redis:", "redis+cluster:"), timeout=1)
        )
        for _ in range(3000):
            with pytest.raises(TableRetry):
                table.ask(b"k", 0)
        assert len(table.answers.table.redis.service.route.nodes) < 1100


CLUSTERS: dict[str, bytes] = {
    "text": b"+OK\r\n",
    "number": b":7\r\n",
    "nothing": b"$-1\r\n",
    "flat": b"*1\r\n:1\r\n",
    "short": b"*1\r\n*2\r\n:1\r\n:2\r\n",
    "beyond": slots((0, 10**11, 9)),
    "negative": slots((-5, 3, 9)),
    "words": b"*1\r\n*3\r\n$1\r\nx\r\n$1\r\ny\r\n*2\r\n$1\r\nz\r\n:9\r\n",
    "no master": b"*1\r\n*3\r\n:0\r\n:16383\r\n$-1\r\n",
    "bad port": slots((0, 16383, 99999)),
    "nested": NESTED,
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_that_is_none_is_retry_until_it_is_one(tmp_path: Path, name: str) -> None:
    with Resp({b"GET": GOOD, b"CLUSTER": CLUSTERS[name]}) as server:
        logged = Logged()
        uri = server.uri.replace("redis:", "redis+cluster:")
        table = opened(write_cf(tmp_path / "t.cf", uri=uri, timeout=1), logged)
        for _ in range(2):
            with pytest.raises(TableRetry, match="tells of the others"):
                table.ask(b"k", 0)
        server.answers[b"CLUSTER"] = slots((0, 16383, server.port))
        wait_until(lambda: is_well(table), "the cluster", LIMIT)
        assert len(logged.lines) < 5, logged.lines


def sentinel(port: int, epoch: bytes = b"1") -> bytes:
    words = [b"ip", b"127.0.0.1", b"port", b"%d" % port, b"config-epoch", epoch]
    return b"*6\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


SENTINELS: dict[str, bytes] = {
    "text": b"+OK\r\n",
    "nothing": b"*-1\r\n",
    "number": b":1\r\n",
    "odd": b"*1\r\n$2\r\nip\r\n",
    "numbers": b"*2\r\n:1\r\n:2\r\n",
    "lists": b"*2\r\n*1\r\n:1\r\n:2\r\n",
    "bad epoch": sentinel(9, b"x"),
    "bad port": sentinel(99999),
    "nested": NESTED,
}


@pytest.mark.parametrize("name", SENTINELS)
def test_sentinel_that_is_none_is_retry_until_it_is_one(tmp_path: Path, name: str) -> None:
    role = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
    with Resp({b"GET": GOOD, b"ROLE": role, b"SENTINEL": SENTINELS[name]}) as server:
        logged = Logged()
        uri = server.uri.replace("redis:", "redis+sentinel:") + "/mymaster"
        table = opened(write_cf(tmp_path / "t.cf", uri=uri, timeout=1), logged)
        for _ in range(2):
            with pytest.raises(TableRetry, match="no sentinel knows a master"):
                table.ask(b"k", 0)
        server.answers[b"SENTINEL"] = sentinel(server.port)
        wait_until(lambda: is_well(table), "the master", LIMIT)
        assert len(logged.lines) < 5, logged.lines


@pytest.mark.parametrize("role", [b"*0\r\n", b"+OK\r\n", b":1\r\n", b"*1\r\n$5\r\nslave\r\n", b"$-1\r\n"])
def test_master_that_says_otherwise_is_not_asked(tmp_path: Path, role: bytes) -> None:
    with Resp({b"GET": GOOD, b"ROLE": role}) as server:
        server.answers[b"SENTINEL"] = sentinel(server.port)
        uri = server.uri.replace("redis:", "redis+sentinel:") + "/mymaster"
        table = opened(write_cf(tmp_path / "t.cf", uri=uri, timeout=1))
        with pytest.raises(TableRetry, match="no master"):
            table.ask(b"k", 0)
        assert b"GET" not in [words[0] for words in server.commands]


def test_sentinels_and_nodes_of_a_cluster_are_verified_too(tmp_path: Path) -> None:
    """By TLS, each of them; nothing is asked of one whose certificate is refused."""
    made = Certificates(tmp_path / "tls")
    role = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
    for kind, rest in (("sentinel", "/mymaster"), ("cluster", "")):
        for name, is_right in (("server", True), ("other_name", False)):
            with Resp({b"GET": GOOD, b"ROLE": role}, (made.pem(name), made.key(name))) as server:
                server.answers[b"CLUSTER"] = slots((0, 16383, server.port))
                server.answers[b"SENTINEL"] = sentinel(server.port)
                uri = f"rediss+{kind}://127.0.0.1:{server.port}{rest}"
                table = opened(write_cf(tmp_path / "t.cf", uri=uri, tls_CAfile=made.pem("ca"), timeout=5))
                if is_right:
                    assert table.ask(b"k", 0)[::2] == (STAT_OK, b"v")
                    continue
                with pytest.raises(TableRetry, match="CERTIFICATE_VERIFY_FAILED"):
                    table.ask(b"k", 0)
                assert server.commands == []


def test_check_tells_of_parameters_that_mean_nothing(tmp_path: Path) -> None:
    """With the name of key_format mistyped, each answer would be "no such key"."""
    path = tmp_path / "t.cf"
    path.write_text("uri = redis://127.0.0.1\nkeyformat = alias:%s\ntimeout = 1\ntls_CAfile = /ca\n")
    whats = [what for what, _, only_a_warning in opened(f"redis:{path}".encode()).doubts() if only_a_warning]
    assert whats == [
        f"{path}, line {line}: parameter {name} is not used"
        for line, name in ((2, "keyformat"), (4, "tls_CAfile"))
    ]


# Walks

SCANS: dict[str, bytes | Callable[[list[bytes]], bytes]] = {
    "text": b"+OK\r\n",
    "one": b"*1\r\n$1\r\n0\r\n",
    "three": b"*3\r\n$1\r\n0\r\n*0\r\n*0\r\n",
    "numbers": b"*2\r\n$1\r\n0\r\n*1\r\n:1\r\n",
    "no list": b"*2\r\n$1\r\n0\r\n$1\r\nk\r\n",
    "nothing": b"*-1\r\n",
    "nested": NESTED,
}


@pytest.mark.parametrize("name", SCANS)
def test_walk_of_what_is_no_scan_is_retry(tmp_path: Path, name: str) -> None:
    with Resp({b"GET": GOOD, b"SCAN": SCANS[name]}) as server:
        name = write_cf(tmp_path / "t.cf", uri=server.uri, key_format="w:%s", timeout=1)
        table = opened(name, writes=True)
        with pytest.raises(TableRetry):
            table.answers.sequence(1, True)


def test_connection_with_more_than_an_answer_may_have_is_dead() -> None:
    """So it is closed and counted as such, and the lookup goes to another."""

    class Endless:
        def can_read(self, timeout: float) -> bool:
            raise QuestionRefused("the answer is larger than 4 MB")

    assert Line(Endless()).is_dead()
