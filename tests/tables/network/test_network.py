"""test_network - socketmap and tcp tables: what is asked, what answers mean, and servers that misbehave"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fix_scripted import NeverConnects, Scripted
from fix_server import FOLD_FIX, wait_until

from proxymap.errors import TableConfig, TableRetry
from proxymap.tables._table import Table
from proxymap.tables.base import Host
from proxymap.tables.opening import open_table

FOLD_MUL = 1 << 15
RECORDS = {
    "socketmap": {b"a": b"OK 1", b"b": b"OK two  words", b"empty": b"OK ", b"perm": b"PERM no such map"},
    "tcp": {b"a": b"200 1", b"b": b"200 two%20%20words", b"empty": b"200 ", b"later": b"400 not%20now"},
}
TYPES = ["socketmap", "tcp"]
DEADLINE = 2  # seconds


class Lines:
    """A host that keeps what is logged."""

    def __init__(self, limits: dict[str, int], **main_cf: str) -> None:
        self.lines: list[str] = []
        self.host = Host(warn=self.lines.append, parameter=lambda name: main_cf.get(name, ""))
        self.host.inform = self.lines.append
        self.host.server_limits = lambda type_name: {"time_limit": DEADLINE, **limits}

    def wait(self, words: str) -> None:
        wait_until(lambda: any(words in line for line in self.lines), f"{words} in {self.lines}")


@pytest.fixture(params=TYPES)
def server(request: pytest.FixtureRequest) -> Iterator[Scripted]:
    with Scripted(request.param, RECORDS[request.param]) as server:
        yield server


def opened(name: bytes, lines: Lines | None = None, **limits: int) -> Table:
    table = open_table(name, host=(lines or Lines(limits)).host)
    assert table.reason is None
    return table


def ask(server: Scripted, key: bytes = b"a", **limits: int) -> bytes | None:
    return opened(server.table(), **limits).answer(key, 0)


def test_values(server: Scripted) -> None:
    assert ask(server) == b"1"
    assert ask(server, b"b") == b"two  words"
    assert ask(server, b"empty") == b""
    assert ask(server, b"missing") is None
    assert server.connections == 1


@pytest.mark.parametrize("key", [b"", b"a b", b"a\nb\r\t", b"\xff\x80", b"100%", b"~\x7f", b"x" * 9000])
def test_any_key_arrives_as_it_is(server: Scripted, key: bytes) -> None:
    assert ask(server, key) is None
    assert server.questions == [key]


def test_keys_are_folded_by_fold_mul_only(server: Scripted) -> None:
    table = opened(server.table())
    assert table.answer(b"A", FOLD_FIX) is None
    assert table.answer(b"A", FOLD_MUL) == b"1"


def test_value_ends_at_a_nul() -> None:
    with Scripted("socketmap", {b"a": b"OK 1\0002"}) as server:
        assert ask(server) == b"1"
    with Scripted("tcp", {b"a": b"200 1%002", b"b": b"200 1\0002"}) as server:
        assert ask(server) == ask(server, b"b") == b"1"


def test_maps_of_one_server_share_a_connection() -> None:
    with Scripted("socketmap", RECORDS["socketmap"], unix=True) as server:
        assert opened(server.table("x")).answer(b"a", 0) == opened(server.table("y")).answer(b"a", 0) == b"1"
        assert server.connections == 1


# Servers that misbehave

RETRY_AT_ONCE = ["close", "reset", "half", "garbage", "error"]


@pytest.mark.parametrize("manner", RETRY_AT_ONCE)
def test_trouble_is_retry_at_once_and_then_over(server: Scripted, manner: str) -> None:
    server.manner = manner
    with pytest.raises(TableRetry):
        ask(server)
    assert len(server.questions) == 1  # on a connection that is new
    server.manner = "answer"
    assert ask(server) == b"1"


def test_silence_ends_at_the_deadline(server: Scripted) -> None:
    server.manner = "silent"
    with pytest.raises(TableRetry, match="time limit exceeded"):
        ask(server, time_limit=1)
    wait_until(lambda: server.open == 0, "the connection's end")


def test_deadline_is_for_the_whole_answer(server: Scripted) -> None:
    server.records[b"long"] = RECORDS[server.maptype][b"a"] + b"x" * 60
    server.manner = "drip"  # 6 s
    with pytest.raises(TableRetry, match="time limit exceeded"):
        ask(server, b"long", time_limit=1)


def test_answer_in_pieces(server: Scripted) -> None:
    server.manner = "drip"
    assert ask(server, time_limit=30) == b"1"


def test_connection_that_was_closed_while_idle_costs_nothing(server: Scripted) -> None:
    for connections in (1, 2, 3):
        assert ask(server) == b"1"
        assert server.connections == connections
        server.hang_up()


def test_reused_connection_that_breaks_is_tried_once_more(server: Scripted) -> None:
    server.manner = "once"
    for _ in range(20):
        assert ask(server) == b"1"


def test_two_failures_are_retry(server: Scripted) -> None:
    assert ask(server) == b"1"
    server.manner = "close"
    with pytest.raises(TableRetry, match="unexpected disconnect"):
        ask(server)
    assert len(server.questions) == 3


def test_answer_too_many_in_one_piece_hurts_no_other_key(server: Scripted) -> None:
    server.manner = "twice"
    for _ in range(3):
        assert ask(server) == b"1"
        assert ask(server, b"b") == b"two  words"


def test_answer_too_many_is_taken_for_one_answer_at_most(server: Scripted) -> None:
    lines = Lines({})
    table = opened(server.table(), lines)
    server.manner = "extra"
    asked = [(b"a", b"1"), (b"b", b"two  words")] * 6
    wrong = 0
    for key, value in asked:
        wrong += table.answer(key, 0) != value
        time.sleep(0.1)
    assert wrong <= 1
    lines.wait("sent an answer that nobody asked for; for 10 minutes each question")
    before = server.connections
    assert [table.answer(b"a", 0), table.answer(b"b", 0)] == [b"1", b"two  words"]
    assert server.connections == before + 2


# Servers that are not there

NOWHERE: dict[str, Callable[[str], bytes]] = {
    "socketmap": lambda where: f"socketmap:inet:{where}:map".encode(),
    "tcp": lambda where: f"tcp:{where}".encode(),
}


@pytest.mark.parametrize("maptype", TYPES)
@pytest.mark.parametrize(
    ("where", "why"), [("127.0.0.1:1", "Connection refused"), ("nosuch.invalid:1", "host not found")]
)
def test_no_server_is_retry_at_once(maptype: str, where: str, why: str) -> None:
    lines = Lines({"time_limit": 100})
    table = opened(NOWHERE[maptype](where), lines)
    with pytest.raises(TableRetry, match=why):
        table.answer(b"a", 0)
    with pytest.raises(TableRetry):
        table.answer(b"a", 0)
    lines.wait(f"{where}: {why}")
    lines.wait(f"table {table.type_name.decode()} lookup error: {why}")
    assert len(lines.lines) == 2


def test_absent_socket_is_retry() -> None:
    with pytest.raises(TableRetry, match="No such file"):
        opened(b"socketmap:unix:/nosuch/socket:x").answer(b"a", 0)


@pytest.mark.parametrize("maptype", TYPES)
def test_connect_that_hangs_is_retry(maptype: str) -> None:
    with NeverConnects() as nowhere, pytest.raises(TableRetry, match="time limit exceeded"):
        opened(NOWHERE[maptype](f"127.0.0.1:{nowhere.port}"), connect_time_limit=1).answer(b"a", 0)


def test_server_that_comes_back_is_found(server: Scripted) -> None:
    lines = Lines({})
    table = opened(server.table(), lines)
    with Scripted(server.maptype, server.records) as other:
        name = other.table()
    table = opened(name, lines)
    with pytest.raises(TableRetry):
        table.answer(b"a", 0)
    listener = socket.create_server(("127.0.0.1", other.port))
    threading.Thread(target=lambda: server._serve(listener.accept()[0]), daemon=True).start()

    def answers() -> bool:
        try:
            return table.answer(b"a", 0) == b"1"
        except TableRetry:
            return False

    wait_until(answers, "the server's return")
    lines.wait("is up again after")
    listener.close()


@pytest.mark.parametrize("maptype", TYPES)
def test_name_of_a_host_is_looked_up(maptype: str) -> None:
    with Scripted(maptype, RECORDS[maptype]) as server:
        assert opened(NOWHERE[maptype](f"localhost:{server.port}")).answer(b"a", 0) == b"1"
        assert opened(NOWHERE[maptype](f"[127.0.0.1]:{server.port}")).answer(b"b", 0) == b"two  words"


@pytest.mark.parametrize("maptype", TYPES)
def test_address_of_ipv6(maptype: str) -> None:
    with Scripted(maptype, RECORDS[maptype], host="::1") as server:
        assert ask(server) == b"1"
    with pytest.raises(TableRetry, match="Connection refused"):
        opened(server.table("other")).answer(b"a", 0)


@pytest.mark.parametrize("maptype", TYPES)
@pytest.mark.parametrize(
    ("host", "protocols", "answers"),
    [
        ("127.0.0.1", "", True), ("127.0.0.1", "ipv4", True), ("127.0.0.1", "ipv6, ipv4", True),
        ("127.0.0.1", "ipv6", False), ("::1", "ipv4", False),
    ],
)  # fmt: skip
def test_addresses_of_a_name_are_of_inet_protocols(
    maptype: str, host: str, protocols: str, answers: bool
) -> None:
    with Scripted(maptype, RECORDS[maptype], host=host) as server:
        table = opened(NOWHERE[maptype](f"localhost:{server.port}"), Lines({}, inet_protocols=protocols))
        if answers:
            assert table.answer(b"a", 0) == b"1"
        else:
            with pytest.raises(TableRetry, match=r"host not found|refused"):
                table.answer(b"a", 0)


@pytest.mark.parametrize("name", [b"x", b"foo:x:y", b":x", b"unix::y", b"inet:nohost:y", b"inet:h:0:y"])
def test_socketmap_that_names_no_server_is_a_surrogate(name: bytes) -> None:
    table = open_table(b"socketmap:" + name)
    assert table.reason is not None
    with pytest.raises(TableRetry):
        table.answer(b"a", 0)


@pytest.mark.parametrize("name", [b"x", b":1", b"h:", b"h:0", b"h:70000", b"h:nosuchservice"])
def test_tcp_that_names_no_server_is_a_surrogate(name: bytes) -> None:
    assert open_table(b"tcp:" + name).reason is not None


# Connections


def test_idle_connection_is_closed(server: Scripted) -> None:
    ask(server, idle_limit=1)
    wait_until(lambda: server.open == 0, "the end of the idle connection")


def test_old_connection_is_closed(server: Scripted) -> None:
    table = opened(server.table(), age_limit=1)
    began = time.monotonic()
    while server.connections < 3:
        assert table.answer(b"a", 0) == b"1"
        assert time.monotonic() - began < 60


def test_slow_server_gets_more_connections_up_to_the_limit(server: Scripted) -> None:
    server.delay = 0.2
    table = opened(server.table(), connection_limit=4, time_limit=30)
    askers = [threading.Thread(target=table.answer, args=(b"a", 0)) for _ in range(12)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(server.questions) == 12
    assert server.connections == 4


def test_what_is_known_of_a_server(server: Scripted) -> None:
    table = opened(server.table())
    table.answer(b"a", 0)
    wait_until(lambda: not table.endpoint.describe()["busy"], "the connection at rest")
    told = table.endpoint.describe()
    assert told["state"] == "up"
    assert told["tables"] == [server.table().decode()]
    assert (told["open"], told["busy"], told["answers"]) == (1, 0, 1)


# socketmap alone

LIMIT = 100000


def test_statuses_of_socketmap() -> None:
    with Scripted("socketmap", {}) as server:
        lines = Lines({})
        table = opened(server.table(), lines)
        server.records = {b"%d" % n: payload for n, payload in enumerate(
            [b"OK", b"NOTFOUND", b"NOTFOUND because", b"OK\tx", b"ok x", b"", b"TEMP x", b"TIMEOUT", b"FOO x"]
        )}  # fmt: skip
        assert table.answer(b"0", 0) == b""
        assert table.answer(b"1", 0) is table.answer(b"2", 0) is None
        for n in range(3, 9):
            with pytest.raises(TableRetry):
                table.answer(b"%d" % n, 0)
        server.records[b"perm"] = b"PERM no such map"
        with pytest.raises(TableConfig):
            opened(server.table("other"), lines).answer(b"perm", 0)
        lines.wait("socketmap server unknown error: OK\tx")
        lines.wait("socketmap server permanent error: no such map")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"004:OK a,", b"a"), (b"6:OK a,b,", b"a,b"), (b"3:OK ,", b""),
        (b" 4:OK a,", None), (b"+4:OK a,", None), (b"4 :OK a,", None), (b":OK a,", None), (b"\n", None),
        (b"4:OK a;", None), (b"3:OK a,", None), (b"100001:OK ", None), (b"99999999999999999999:", None),
        (b"9:OK a,", None), (b"4:OK", None), (b"", None),
    ],
)  # fmt: skip
def test_framing_of_socketmap(raw: bytes, value: bytes | None) -> None:
    with Scripted("socketmap", {}) as server:
        server.raw[b"k"] = raw
        if value is None:
            with pytest.raises(TableRetry):
                ask(server, b"k")
        else:
            assert ask(server, b"k") == value


@pytest.mark.parametrize(("main_cf", "limit"), [("", LIMIT), ("200", 200), ("0", None)])
def test_longest_answer_of_socketmap(main_cf: str, limit: int | None) -> None:
    with Scripted("socketmap", {}) as server:
        lines = Lines({}, socketmap_max_reply_size=main_cf)
        table = opened(server.table(f"map{limit}"), lines)
        fits = (limit or 3 * LIMIT) - len("OK ")
        server.records = {b"fits": b"OK " + b"x" * fits, b"over": b"OK " + b"x" * (fits + 1)}
        assert table.answer(b"fits", 0) == b"x" * fits
        if limit is not None:
            with pytest.raises(TableRetry, match="size limit"):
                table.answer(b"over", 0)


@pytest.mark.parametrize(("main_cf", "limit"), [("", 10000), ("50", 50), ("0", None)])
def test_longest_question_of_socketmap(main_cf: str, limit: int | None) -> None:
    with Scripted("socketmap", {}) as server:
        table = opened(server.table(f"map{limit}"), Lines({}, socketmap_max_query_size=main_cf))
        fits = b"x" * ((limit or 30000) - len(f"map{limit} "))
        assert table.answer(fits, 0) is None
        assert table.answer(fits + b"x", 0) is None
        assert server.questions == ([fits] if limit else [fits, fits + b"x"])


# tcp alone


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"200 a", b"a"), (b"299\ta", b"a"), (b"200\ra", b"a"), (b"200 a\r", b"a\r"), (b"200\r", b""),
        (b"200 +", b"+"), (b"200 %41%7e%7E", b"A~~"), (b"200 \xff\x01", b"\xff\x01"), (b"200  a", b" a"),
        (b"200 " + b"x" * 4091, b"x" * 4091),
        (b"500 x", None), (b"599\t", None),
    ],
)  # fmt: skip
def test_answers_of_tcp(line: bytes, value: bytes | None) -> None:
    with Scripted("tcp", {b"k": line}) as server:
        assert ask(server, b"k") == value


@pytest.mark.parametrize(
    "line",
    [
        b"400 x", b"000 x", b"100 x", b"300 x", b"600 x", b"200", b"500", b"20 x", b"2000 x", b"200x", b"",
        b"200 %4", b"200 %", b"200 %zz", b"400 %zz", b"500 %zz", b"200 " + b"x" * 4092,
    ],
)  # fmt: skip
def test_other_answers_of_tcp_are_retry(line: bytes) -> None:
    with Scripted("tcp", {b"k": line, b"a": b"200 1"}) as server:
        with pytest.raises(TableRetry):
            ask(server, b"k")
        assert ask(server) == b"1"
        assert server.connections == 2
