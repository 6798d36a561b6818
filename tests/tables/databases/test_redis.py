"""test_redis - redis tables over a private server: what is asked and found, changes, walks, and trouble"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_redis import RedisServer, free_port, unavailable, write_cf
from fix_tls import Certificates

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
pytest.importorskip("redis", reason="redis-py is not installed")

from fix_server import LIMIT, wait_until  # noqa: E402
from fix_tables import Logged, change, opened  # noqa: E402

from proxymap.errors import STAT_NOKEY, STAT_OK, STAT_RETRY, ConfigError, TableRetry  # noqa: E402
from proxymap.tables._table import Table  # noqa: E402
from proxymap.tables.base import Change, Host  # noqa: E402
from proxymap.tables.databases.redispy.places import Login, read_place  # noqa: E402
from proxymap.tables.databases.redispy.walks import WALKS_MAX, escaped  # noqa: E402
from proxymap.tables.opening import open_table  # noqa: E402
from proxymap.tables.tablecf import TableCf  # noqa: E402

VALUES = {
    "alias:a@b.c": "x@y", "alias:two": "one, two", "alias:o'brien": "ob", "alias:empty": "",
    "alias:nul": "v\0w", "alias:B": "upper", "d:b.c:a": "parts", "alias:\xff": "not UTF-8",
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Nobody harms it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        client = server.client()
        for key, value in VALUES.items():
            client.set(key.encode("latin-1"), value)
        client.hset("people", mapping={"joe": "joe@here", "a@b.c": "ab"})
        client.hset("of:b.c", "a", "hash of a domain")
        client.sadd("team:all", "carol@z", "alice@x", "bob@y")
        client.sadd("team:none", "")
        client.set("team:wrong", "a string")
        client.close()
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """To be killed."""
    with RedisServer(tmp_path) as server:
        yield server


def value(table: Table, key: bytes) -> bytes | None:
    status, _, found = table.ask(key, 0)
    assert status in (STAT_OK, STAT_NOKEY)
    return found if status == STAT_OK else None


def records(table: Table, number: int = 1) -> dict[bytes, bytes]:
    found, record = {}, table.answers.sequence(number, True)
    while record is not None:
        found[record[0]] = record[1]
        record = table.answers.sequence(number, False)
    return found


# What is asked, and what is found

FORMS: list[tuple[dict[str, str], dict[bytes, bytes | None]]] = [
    (
        {"key_format": "alias:%s"},
        {
            b"a@b.c": b"x@y", b"two": b"one, two", b"o'brien": b"ob", b"empty": None, b"nul": b"v",
            b"absent": None, b"": None, b"\xff": b"not UTF-8", b"B": b"upper", b"b": None,
        },
    ),
    ({"key_format": "d:%d:%u"}, {b"a@b.c": b"parts", b"a": None, b"@b.c": None, b"x@b.c": None}),
    ({"key_format": "d:%2.%1:%u"}, {b"a@b.c": b"parts", b"a@c": None}),
    ({"key_format": "alias:%s", "domain": "b.c"}, {b"a@b.c": b"x@y", b"two": None, b"a@d.c": None}),
    ({"key_format": "alias:%s", "result_format": "<%s>"}, {b"two": b"<one, two>"}),
    ({"command": "hget", "hash": "people"}, {b"joe": b"joe@here", b"a@b.c": b"ab", b"absent": None}),
    ({"command": "HGET", "hash": "of:%d", "key_format": "%u"}, {b"a@b.c": b"hash of a domain", b"a@x": None}),
    (
        {"command": "smembers", "key_format": "team:%s"},
        {b"all": b"alice@x,bob@y,carol@z", b"none": None, b"absent": None},
    ),
    (
        {"command": "smembers", "key_format": "team:%s", "result_format": "%u", "expansion_limit": "3"},
        {b"all": b"alice,bob,carol"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "expected"), FORMS, ids=lambda x: str(x)[:50])
def test_found(
    shared: RedisServer, tmp_path: Path, parameters: dict[str, str], expected: dict[bytes, bytes | None]
) -> None:
    table = opened(write_cf(tmp_path / "t.cf", uri=shared.uri, **parameters))
    assert {key: value(table, key) for key in expected} == expected


@pytest.mark.parametrize(
    "form", ["redis://127.0.0.1:{port}/0", "valkey://127.0.0.1:{port}", "unix://{socket}?db=0"]
)
def test_ways_to_a_server(shared: RedisServer, tmp_path: Path, form: str) -> None:
    uri = form.format(port=shared.port, socket=shared.socket)
    assert value(opened(write_cf(tmp_path / "t.cf", uri=uri, key_format="alias:%s")), b"a@b.c") == b"x@y"


def tls_server(folder: Path, made: Certificates, name: str) -> tuple[RedisServer, str]:
    """One with the certificate of that name, and its URI."""
    port = free_port()
    options = {
        "tls_port": port, "tls_cert_file": made.pem(name), "tls_key_file": made.key(name),
        "tls_ca_cert_file": made.pem("ca"), "tls_auth_clients": "yes",
    }  # fmt: skip
    return RedisServer(folder, **options), f"rediss://127.0.0.1:{port}"


def test_tls(tmp_path: Path) -> None:
    made = Certificates(tmp_path / "tls")
    own = {"tls_cert_file": made.pem("client"), "tls_key_file": made.key("client")}
    server, uri = tls_server(tmp_path, made, "server")
    other, other_uri = tls_server(tmp_path, made, "other_name")
    refused: list[dict[str, str]] = [
        {"uri": uri, "tls_CAfile": made.pem("other_ca"), **own},
        {"uri": uri, "tls_CAfile": made.pem("ca")},
        {"uri": uri.replace("rediss", "redis")},
        {"uri": other_uri, "tls_CAfile": made.pem("ca"), **own},
    ]
    with server, other:
        server.put({"k": "v"})
        good = opened(write_cf(tmp_path / "good.cf", uri=uri, tls_CAfile=made.pem("ca"), **own))
        assert (value(good, b"k"), value(good, b"absent")) == (b"v", None)
        for number, parameters in enumerate(refused):
            table = opened(write_cf(tmp_path / f"{number}.cf", **parameters))
            assert {answer(table, key) for key in (b"k", b"absent")} == {b"RETRY"}


def test_too_many_and_the_wrong_type_are_retry_for_that_key_alone(
    shared: RedisServer, tmp_path: Path
) -> None:
    table = opened(
        write_cf(
            tmp_path / "t.cf", uri=shared.uri, command="smembers", key_format="team:%s", expansion_limit=2
        )
    )
    for key, words in ((b"all", "Expansion limit"), (b"wrong", "WRONGTYPE")):
        with pytest.raises(TableRetry, match=words):
            table.ask(key, 0)
    assert value(table, b"absent") is None


def test_explain(shared: RedisServer, tmp_path: Path) -> None:
    table = opened(write_cf(tmp_path / "t.cf", uri=shared.uri, command="hget", hash="of:%d", key_format="%u"))
    where = f"asked at 127.0.0.1:{shared.port}"
    assert table.explain(b"a@b.c") == ["HGET of:b.c a", "rows: 1", where]
    assert table.explain(b"a")[0].startswith("no query for this key: it has no domain")


# Parameters


def place(tmp_path: Path, uri: str, **others: str) -> Any:
    path = tmp_path / "p.cf"
    write_cf(path, uri=uri, **others)
    return read_place(TableCf(str(path).encode(), Host()))


def test_uris(tmp_path: Path) -> None:
    found = place(tmp_path, "redis+sentinel://u:p%40w@a,b:1,[::1]:2/mymaster/3")
    assert found.shown == "mymaster by sentinels a:26379, b:1, [::1]:2"
    assert (found.kind, found.name, found.number, found.login) == (
        "sentinel",
        "mymaster",
        3,
        Login("u", "p@w"),
    )
    found = place(tmp_path, "unix://:secret@/run/redis.sock?db=2")
    assert (found.shown, found.number, found.login) == ("/run/redis.sock", 2, Login("", "secret"))
    found = place(tmp_path, "rediss+cluster://a,b:7000")
    assert (found.kind, found.shown, found.tls is not None) == ("cluster", "a:6379, b:7000", True)
    assert place(tmp_path, "redis://localhost").shown == "localhost:6379"


@pytest.mark.parametrize(
    "uri",
    [
        "http://a", "redis://", "redis://a:0", "redis://a:70000", "redis://a/x", "redis://a/1/2", "redis://a,b",
        "redis+sentinel://a", "redis+cluster://a/1", "unix://a/b", "unix:///a?x=1", "redis://a?db=x", "a:1",
        "redis://a?ssl_cert_reqs=none", "rediss+sentinel://",
    ],
)  # fmt: skip
def test_uri_that_cannot_be_used(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match="parameter uri"):
        place(tmp_path, uri)


@pytest.mark.parametrize(
    "faulty",
    [
        {"uri": None}, {"command": "del"}, {"key_format": "%x"}, {"command": "hget"}, {"hash": "x"},
        {"ttl": "-1"}, {"timeout": "0"}, {"expansion_limit": "x"}, {"result_format": "%x"},
        {"key_format": ""}, {"uri": "rediss://a", "tls_CAfile": "/nonexistent"},
    ],
)  # fmt: skip
def test_faulty_table(tmp_path: Path, faulty: dict[str, str | None]) -> None:
    table = open_table(write_cf(tmp_path / "t.cf", **({"uri": "redis://127.0.0.1:9"} | faulty)))
    assert table.reason is not None
    assert b"expected" in table.reason or b"TLS cannot be used" in table.reason


@pytest.mark.parametrize(
    "faulty",
    [
        {"key_format": "%s"}, {"key_format": "v:%u"}, {"key_format": "v:%s%s"}, {"command": "smembers"},
        {"result_format": "<%s>"}, {"command": "hget", "hash": "h"},
    ],
)  # fmt: skip
def test_table_that_cannot_be_written(tmp_path: Path, faulty: dict[str, str]) -> None:
    parameters = {"uri": "redis://127.0.0.1:9", "key_format": "v:%s"} | faulty
    table = open_table(write_cf(tmp_path / "t.cf", **parameters), writes=True)
    assert b"written to" in (table.reason or b"")


@pytest.mark.parametrize(
    "uri",
    [
        "redis://:my s3cret@10.0.0.5:6379/db0",
        "redis://:hun s3cret@h:99999",
        "redis+sentinel://:my s3cret@a,b",
        "redis://j oe:s3cret@h/x",
    ],
)
def test_password_of_a_uri_that_is_wrong_is_not_shown(uri: str, tmp_path: Path) -> None:
    reason = open_table(write_cf(tmp_path / "t.cf", uri=uri)).reason
    assert reason is not None
    assert b"s3cret" not in reason


def test_password_is_in_no_line(own: RedisServer, tmp_path: Path) -> None:
    own.ask("CONFIG", "SET", "requirepass", "s3cretword")
    logged = Logged()
    for number, login in enumerate(("", ":wrongword@", "joe:wrongword@", ":s3cretword@")):
        uri = f"redis://{login}127.0.0.1:{own.port}"
        table = opened(write_cf(tmp_path / f"{number}.cf", uri=uri), logged)
        if "s3cret" in login:
            assert value(table, b"absent") is None
        else:
            with pytest.raises(TableRetry) as caught:
                table.ask(b"absent", 0)
            logged.lines.append(str(caught.value))
    assert logged.lines
    assert not [line for line in logged.lines if "word" in re.sub("[Pp]assword", "", line)]


# Changes and records


@pytest.fixture
def cache(shared: RedisServer, tmp_path: Path) -> Table:
    name = write_cf(tmp_path / "c.cf", uri=shared.uri, key_format=f"{tmp_path.name}[*?]\\:%s:end", ttl=100)
    return opened(name, writes=True)


def test_update_delete_and_ttl(shared: RedisServer, cache: Table, tmp_path: Path) -> None:
    name = f"{tmp_path.name}[*?]\\:%s:end"
    assert change(cache, b"k", b"1") == STAT_OK
    assert change(cache, b"k", b"2") == STAT_OK
    assert value(cache, b"k") == b"2"
    assert 90 < shared.ask("TTL", name % "k") <= 100
    assert change(cache, b"k", None) == STAT_OK
    assert change(cache, b"k", None) == STAT_NOKEY
    assert value(cache, b"k") is None
    cleaned = b"_LAST_CACHE_CLEANUP_COMPLETED_"
    assert change(cache, cleaned.lower(), b"1") == STAT_OK  # keys come folded
    assert shared.ask("TTL", name % cleaned.lower().decode()) == -1


def test_records_of_one_table_only(shared: RedisServer, cache: Table, tmp_path: Path) -> None:
    shared.put({f"{tmp_path.name}x:no:end": "1", f"{tmp_path.name}[*?]\\:no": "1"})
    shared.ask("SADD", f"{tmp_path.name}[*?]\\:set:end", "member")
    prefix, suffix = cache.answers.table.frame
    forged = prefix + b"a\0value\0x\0\0status\0000\0" + suffix  # would be two replies
    cache.answers.table.redis.ask(forged, "SET", forged, b"1")
    expected = {b"key%d" % n: b"value%d" % n for n in range(3000)}
    cache.write([Change(key, text, 0) for key, text in expected.items()])
    assert records(cache) == expected
    other = cache.answers.sequence(2, True)
    assert other is not None
    assert records(cache, 3) == expected
    seen = [other]
    while (record := cache.answers.sequence(2, False)) is not None:
        seen.append(record)
        change(cache, record[0], None)  # as a cleanup does
    assert {key for key, _ in seen} == set(expected)
    assert records(cache) == {seen[0][0]: expected[seen[0][0]]}


def test_walk_that_nobody_began_is_retry(cache: Table) -> None:
    with pytest.raises(TableRetry):
        cache.answers.sequence(99, False)


def test_walks_that_nobody_goes_on_with_keep_no_connections(
    own: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = opened(write_cf(tmp_path / "t.cf", uri=own.uri, key_format="w:%s"), writes=True)
    table.write([Change(b"%d" % n, b"v", 0) for n in range(100)])
    (node,) = table.answers.table.redis.masters()
    for number in range(3 * WALKS_MAX):
        assert table.answers.sequence(number, True) is not None
    assert WALKS_MAX <= node.open <= WALKS_MAX + 1
    with pytest.raises(TableRetry, match="this walk has ended"):
        table.answers.sequence(0, False)
    service = table.answers.table.redis.service
    assert table.answers.sequence(3 * WALKS_MAX - 1, False) is not None
    service._trimmed = 0.0
    service._tend(time.monotonic())  # they have not rested for long
    assert node.open >= WALKS_MAX
    monkeypatch.setattr(service, "limits", service.limits._replace(idle_limit=0))
    service._trimmed = 0.0
    service._tend(time.monotonic())
    assert node.open == 0
    with pytest.raises(TableRetry, match="this walk has ended"):
        table.answers.sequence(3 * WALKS_MAX - 1, False)
    assert len(records(table)) == 100


def test_walk_ends_with_its_server(own: RedisServer, tmp_path: Path) -> None:
    table = opened(write_cf(tmp_path / "t.cf", uri=own.uri, key_format="w:%s"), writes=True)
    table.write([Change(b"%d" % n, b"v", 0) for n in range(5000)])
    assert table.answers.sequence(1, True) is not None
    own.kill()
    own.start()
    assert went_on(table, 5001) < 5000
    wait_until(lambda: walked(table), "a whole walk", LIMIT)


def went_on(table: Table, steps: int) -> int:
    """How many records there were before RETRY; the end of the walk is an error."""
    for step in range(steps):
        try:
            assert table.answers.sequence(1, False) is not None
        except TableRetry:
            return step
    return steps


def walked(table: Table) -> bool:
    try:
        return len(records(table)) == 5000
    except TableRetry:
        return False


def test_escaped() -> None:
    assert escaped(b"a*b?[c]\\-^") == b"a\\*b\\?\\[c\\]\\\\\\-\\^"


# Trouble


def answer(table: Table, key: bytes = b"k") -> bytes | None:
    """What it says; RETRY is b"RETRY"."""
    try:
        return value(table, key)
    except TableRetry:
        return b"RETRY"


def test_down_is_retry_at_once_and_used_again(own: RedisServer, tmp_path: Path) -> None:
    own.put({"k": "v"})
    logged = Logged()
    table = opened(write_cf(tmp_path / "t.cf", uri=own.uri), logged)
    assert answer(table) == b"v"
    own.kill()
    start = time.monotonic()
    assert {answer(table, key) for key in (b"k", b"absent")} == {b"RETRY"}
    for _ in range(100):
        assert answer(table) == b"RETRY"
    assert time.monotonic() - start < LIMIT
    assert change_fails(table)
    own.start()
    wait_until(lambda: answer(table) == b"v", "an answer", LIMIT)
    assert answer(table, b"absent") is None
    shown = f"redis server 127.0.0.1:{own.port}"
    assert [line for line in logged.lines if line.startswith(f"{shown} is down: ")]
    assert [line for line in logged.lines if line.startswith(f"{shown} is up again after ")]


def change_fails(table: Table) -> bool:
    return change(table, b"k", b"w") == STAT_RETRY if table.slow & 4 else True


def test_restart_between_two_lookups_is_not_seen(own: RedisServer, tmp_path: Path) -> None:
    own.put({"k": "v"})
    table = opened(write_cf(tmp_path / "t.cf", uri=own.uri))
    assert answer(table) == b"v"
    own.kill()
    own.start()
    assert answer(table) == b"v"


def test_silent_server_is_retry_and_its_late_answers_are_nobodys(own: RedisServer, tmp_path: Path) -> None:
    own.put({"a": "1", "b": "2"})
    table = opened(write_cf(tmp_path / "t.cf", uri=own.uri, timeout=1))
    assert (answer(table, b"a"), answer(table, b"b")) == (b"1", b"2")
    own.pause()
    assert answer(table, b"a") == b"RETRY"
    assert answer(table, b"b") == b"RETRY"
    own.resume()
    wait_until(lambda: answer(table, b"b") == b"2", "an answer", LIMIT)
    for _ in range(20):
        assert (answer(table, b"a"), answer(table, b"b"), answer(table, b"c")) == (b"1", b"2", None)


def test_probe_that_fails_after_an_answer_says_nothing(
    own: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.put({"a": "1"})
    table = opened(write_cf(tmp_path / "t.cf", uri=own.uri))
    assert answer(table, b"a") == b"1"
    service = table.answers.table.redis.service
    (node,) = service.masters()

    def fail(*commands: object) -> None:
        if answered:
            service._answered(node, 0.1)
        raise TimeoutError("no answer")

    for answered in (True, False):
        monkeypatch.setattr(node, "ask", fail)
        monkeypatch.setattr(service, "_probe", lambda node: None)  # of the keeper
        service._try(node)
        assert (node.host.down_since is None) is answered
        monkeypatch.undo()


def test_slow_answer_does_not_take_the_server_down(own: RedisServer, tmp_path: Path) -> None:
    own.put({"k": "v"})
    logged = Logged()
    table = opened(write_cf(tmp_path / "t.cf", uri=own.uri, timeout=1), logged)
    assert answer(table) == b"v"
    client = own.client()
    line = client.connection_pool.get_connection()
    line.send_command("DEBUG", "SLEEP", "1.2")
    assert answer(table) == b"RETRY"
    line.read_response()
    assert wait_until(lambda: answer(table) == b"v", "an answer", LIMIT)
    client.close()
    assert not [line for line in logged.lines if "is down" in line]


def test_server_that_is_loading_or_read_only(own: RedisServer, tmp_path: Path) -> None:
    own.put({"k": "v"})
    table = opened(write_cf(tmp_path / "t.cf", uri=own.uri, key_format="k%s"), writes=True)
    own.ask("REPLICAOF", "127.0.0.1", 9)
    assert change(table, b"x", b"1") == STAT_RETRY
    own.ask("REPLICAOF", "NO", "ONE")
    assert change(table, b"x", b"1") == STAT_OK
    own.ask("CONFIG", "SET", "maxmemory", 1)
    assert change(table, b"y", b"1") == STAT_RETRY
    assert answer(table, b"x") == b"1"


def test_servers_tells_of_it(shared: RedisServer, tmp_path: Path) -> None:
    names = [write_cf(tmp_path / f"{n}.cf", uri=shared.uri, key_format=f"{n}%s") for n in "ab"]
    tables = [opened(name) for name in names]
    assert tables[0].server is tables[1].server  # type: ignore[attr-defined]
    assert [answer(table) for table in tables] == [None, None]
    told = tables[0].server.describe()  # type: ignore[attr-defined]
    assert told["server"] == f"redis 127.0.0.1:{shared.port}"
    assert told["state"] == "up"
    assert set(told["tables"]) >= {name.decode() for name in names}
    assert told["open"] >= 1
    assert told["busy"] == 0
    assert told["answers"] >= 2


def test_check_with_connect(shared: RedisServer, own: RedisServer, tmp_path: Path) -> None:
    table = opened(write_cf(tmp_path / "t.cf", uri=shared.uri))
    assert list(table.doubts(connect=False)) == []
    assert list(table.doubts(connect=True)) == []
    own.ask("CONFIG", "SET", "maxmemory", 100 << 20)
    own.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    table = opened(write_cf(tmp_path / "u.cf", uri=own.uri))
    assert ["forgets keys" in what for what, _, _ in table.doubts(connect=True)] == [True]
    own.kill()
    ((what, _, warning),) = table.doubts(connect=True)
    assert ("refused" in what or "is down" in what, warning) == (True, False)
