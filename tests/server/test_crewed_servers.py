"""test_crewed_servers - directories and documents: what their servers are asked, and when these fail

As test_database_sharing, for an ldap table, for one that follows referrals, and for a
mongodb table over a pretended server.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fix_ctl import run
from fix_server import NOT_FOUND, ServerProcess, found, lookup, peers, wait_until
from fix_slapd import Slapd
from oracle import Attributes

from proxymap.server.control import ask_all

RETRY: Attributes = [(b"status", b"2"), (b"value", b"")]
ABSENT = 99_999_999  # of no user; the directory is shared with tests that fill it
CLIENTS = 50
SLACK = 10.0  # seconds; a thread that waits for a CPU of a busy machine


class Directory:
    """A private server with user1@example.com and so on."""

    maptype = "ldap"

    def __init__(self, server: Slapd, **parameters: str) -> None:
        self.server, self.parameters = server, server.parameters(**parameters)
        server.fill_many(1000)
        self.limited = {"query_filter": "(|(mailacceptinggeneralid=%s)(cn=many1))", "size_limit": "1"}
        self.pause, self.resume = server.pause, server.resume
        self.leave, self.listen = server.kill, server.start

    def asked(self) -> int:
        """Searches so far; each of these questions is one, too."""
        return self.server.figure("cn=Search,cn=Operations", "monitorOpInitiated")

    own_questions = 1


class Documents:
    """A pretended server with the same."""

    maptype = "mongodb"
    own_questions = 0

    def __init__(self, server: Any) -> None:
        self.server = server
        self.parameters = {
            "uri": f"mongodb://127.0.0.1:{server.port}/", "dbname": "mail", "collection": "t",
            "query_filter": '{"k": "%s"}', "result_attribute": "v",
        }  # fmt: skip
        self.limited = {"query_filter": '{"g": 1, "%u": null}', "expansion_limit": "1"}
        self.leave, self.listen = server.leave, server.listen

    def asked(self) -> int:
        return len(self.server.finds)

    def pause(self) -> None:
        self.server.manner = "silent"
        self.server.mute.clear()

    def resume(self) -> None:
        self.server.manner = "answer"
        self.server.mute.set()


class Place(ServerProcess):
    """Our server before one of them. Answers are kept for an hour, unless own says otherwise."""

    def __init__(self, backend: Any, **own: str) -> None:
        super().__init__(own={"cache_ttl": "1h", "lookup_time_limit": "3s",
                              "server_connect_time_limit": "1s"} | own)  # fmt: skip
        self.backend, self.serial = backend, 0

    def table(self, **parameters: str) -> bytes:
        self.serial += 1
        path = self.dir / f"{self.serial}.cf"
        values = self.backend.parameters | parameters
        path.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
        self.approve(f"{self.backend.maptype}:{path}")
        return f"{self.backend.maptype}:{path}".encode()

    def ask(self, table: bytes, number: int) -> Attributes:
        with self.connect() as peer:
            return peer.ask(lookup(table, key(number)))

    def control(self, do: str, **request: Any) -> Any:
        (_, reply), *_ = ask_all(self.path, do=do, **request)
        return reply["ok"]

    def told(self, *words: str) -> list[str]:
        done = run("--socket", self.path, "-c", str(self.dir), *words)
        return (done.stdout + done.stderr).decode().splitlines()

    def until_right(self, table: bytes, number: int) -> None:
        wait_until(lambda: self.ask(table, number) == right(number), "a right answer", 30)


def key(number: int) -> bytes:
    return b"user%d@example.com" % number


def right(number: int) -> Attributes:
    return found(b"box%d" % number)


@contextlib.contextmanager
def documents() -> Iterator[Documents]:
    fix_mongo = pytest.importorskip("fix_mongo", reason="PyMongo is not installed")
    records = [{"k": key(n).decode(), "v": f"box{n}", "g": 1} for n in range(1, 1001)]
    with fix_mongo.FakeMongo(records) as server:
        yield Documents(server)


@pytest.fixture(params=["ldap", "ldap that follows referrals", "mongodb"])
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "mongodb":
        with documents() as made:
            yield made
        return
    server: Slapd = request.getfixturevalue("slapd")
    yield Directory(server, **({} if request.param == "ldap" else {"chase_referrals": "yes"}))
    if server.process is None:
        server.start()
    server.resume()


def test_clients_with_one_cold_key_are_one_question(backend: Any) -> None:
    with Place(backend, lookup_time_limit="30s", server_connect_time_limit="20s") as place:
        table = place.table()
        place.start()
        assert place.ask(table, 1) == right(1)
        before = backend.asked()
        backend.pause()
        with peers(place, CLIENTS) as clients:
            for peer in clients:
                peer.send(lookup(table, key(2)))
            time.sleep(0.5)
            backend.resume()
            assert all(peer.reply() == right(2) for peer in clients)
        assert backend.asked() - before <= 1 + 1 + backend.own_questions  # PyMongo may ask twice
        assert [place.ask(table, 2) for _ in range(5)] == [right(2)] * 5
        assert backend.asked() - before <= 1 + 1 + 2 * backend.own_questions


def test_without_a_cache_each_lookup_is_a_question(backend: Any) -> None:
    with Place(backend, cache_ttl="0s") as place:
        table = place.table()
        place.start()
        assert place.ask(table, 1) == right(1)
        before = backend.asked()
        assert [place.ask(table, 2) for _ in range(20)] == [right(2)] * 20
        assert backend.asked() - before == 20 + backend.own_questions


def test_values_and_absent_keys_are_kept(backend: Any) -> None:
    with Place(backend, cache_negative_ttl="1h") as place:
        table = place.table()
        place.start()
        assert place.ask(table, 1) == right(1)
        assert place.ask(table, ABSENT) == NOT_FOUND
        before = backend.asked()
        assert [place.ask(table, 1) for _ in range(5)] == [right(1)] * 5
        assert [place.ask(table, ABSENT) for _ in range(5)] == [NOT_FOUND] * 5
        assert backend.asked() - before == backend.own_questions
        assert place.control("flush", table=table.decode())["answers"] == 2
        assert place.ask(table, 1) == right(1)
        assert backend.asked() - before == 1 + 2 * backend.own_questions


def test_refused_question_is_not_asked_again_and_hurts_no_other(backend: Any) -> None:
    with Place(backend, cache_error_ttl="1h") as place:
        limited, table = place.table(**backend.limited), place.table()
        place.start()
        assert place.ask(limited, 2) == RETRY
        before = backend.asked()
        assert [place.ask(limited, 2) for _ in range(5)] == [RETRY] * 5
        assert backend.asked() - before == backend.own_questions
        assert place.ask(table, 2) == right(2)
        assert "is down" not in place.log()


def test_dead_server_refuses_at_once_and_says_so_once(backend: Any) -> None:
    with Place(backend, cache_ttl="0s") as place:
        table = place.table()
        place.start()
        assert place.ask(table, 1) == right(1)
        backend.leave()
        wait_until(lambda: place.ask(table, 1) == RETRY and "is down: " in place.log(), "the outage", 60)
        with place.connect() as peer:
            start = time.monotonic()
            for number in range(1, 201):
                assert peer.ask(lookup(table, key(number))) == RETRY
                assert peer.ask(lookup(table, key(number + 5000))) == RETRY  # never "no such key"
            assert time.monotonic() - start < SLACK + 400 * 0.05
        lines = place.log().count("lookup error")
        backend.listen()
        place.until_right(table, 2)
        place.wait_log("is up again after ")
        assert place.log().count("is down: ") == 1
        assert lines < 20  # and not one for each lookup


def test_old_values_stand_in_for_a_dead_server(backend: Any) -> None:
    with Place(backend, cache_ttl="1s", cache_stale_ttl="1h", cache_refresh_percent="0") as place:
        table = place.table()
        place.start()
        assert place.ask(table, 1) == right(1)
        backend.leave()
        since = time.monotonic()
        wait_until(lambda: time.monotonic() > since + 1.5, "the end of its life")
        wait_until(lambda: place.ask(table, 2) == RETRY and "is down: " in place.log(), "the outage", 60)
        assert [place.ask(table, 1) for _ in range(5)] == [right(1)] * 5
        assert place.ask(table, 3) == RETRY
        assert "answering from memory up to 1h old" in place.log()
        backend.listen()
        place.until_right(table, 3)


def test_silent_server_is_retry_in_time_and_found_out(backend: Any) -> None:
    with Place(backend, cache_ttl="0s") as place:
        table = place.table()
        place.start()
        place.until_right(table, 1)
        backend.pause()
        start = time.monotonic()
        assert place.ask(table, 2) == RETRY
        assert time.monotonic() - start < 3 + SLACK
        if backend.maptype == "ldap":  # a pretended one answers probes
            wait_until(lambda: place.ask(table, 2) == RETRY and "is down: " in place.log(), "the outage", 60)
        backend.resume()
        place.until_right(table, 2)


def test_servers_shows_them(backend: Any) -> None:
    with Place(backend) as place:
        table = place.table()
        place.start()
        assert place.ask(table, 1) == right(1)
        server, host = place.told("servers")
        assert re.match(
            rf"{backend.maptype} \S+127\.0\.0\.1:\d+ \(process {place.pid}, 1 table\): up; .*0 busy,"
            r" 0 waiting, \d+\.\d ms each; 1 answers \(\d+\.\d/s\), 0 late, 0 deferred at once",
            server,
        ), server
        assert re.fullmatch(r"  \S+: up for \d+ s", host)
        backend.leave()
        wait_until(lambda: place.ask(table, 2) == RETRY and "is down" in place.log(), "the outage", 60)
        server, host = place.told("servers")
        assert ": down; " in server
        assert re.fullmatch(r"  \S+: down for \d+ s; last error: .*", host)
        (line,) = place.told("--json", "servers")
        assert json.loads(line)["tables"] == [table.decode()]


def test_tables_of_one_server_share_what_is_known_of_it(backend: Any) -> None:
    with Place(backend, cache_ttl="0s") as place:
        first, second = place.table(), place.table(result_format="<%s>")
        place.start()
        assert place.ask(first, 1) == right(1)
        assert place.ask(second, 1) == found(b"<box1>")
        (known,) = place.control("servers")
        assert known["tables"] == sorted([first.decode(), second.decode()])
