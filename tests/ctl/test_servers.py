"""test_servers - what an administrator sees of database servers, and of answers that are kept"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest
from fix_ctl import run
from fix_fake import FakeMySQL
from fix_fakes import Fakes
from fix_memcached import write_cf
from fix_scripted import Scripted
from fix_server import NOT_FOUND, ServerProcess, found, lookup, wait_until


@pytest.fixture
def fake() -> Iterator[FakeMySQL]:
    with FakeMySQL({"k1": ["v1"], "k2": ["v2"]}) as server:
        yield server


def told(service: ServerProcess, *words: str | bytes) -> list[str]:
    done = run("--socket", service.path, "-c", str(service.dir), *words)
    return (done.stdout + done.stderr).decode().splitlines()


def test_servers_and_their_hosts(fake: FakeMySQL) -> None:
    with Fakes(fake, server_error_limit="1") as service:
        table = service.table()
        service.start()
        assert told(service, "servers") == []
        assert service.ask(table, b"k1") == found(b"v1")
        server, host = told(service, "servers")
        name = f"inet:127.0.0.1:{fake.port}"
        assert re.fullmatch(
            rf"mysql {name} \(process {service.pid}, 1 table\): up; 1 of 32 connections, 0 busy, 0 waiting,"
            r" \d+\.\d ms each; 1 answers \(\d+\.\d/s\), 0 late, 0 deferred at once;"
            r" p50 \d+\.\d ms and p99 \d+\.\d ms in the queue",
            server,
        )
        assert re.fullmatch(rf"  {name}: up for \d+ s", host)
        wait_until(lambda: "lookups/s" in told(service, "tables")[0], "some time to reckon with")
        (line,) = told(service, "tables")
        assert re.search(
            r"; 1 lookups, 0 from the cache, 0 errors, \d+\.\d lookups/s,"
            r" p50 \d+\.\d ms and p99 \d+\.\d ms of those not answered at once",
            line,
        )
        fake.leave()
        wait_until(lambda: service.ask(table, b"k2") and "is down" in service.log(), "the outage")
        server, host = told(service, "servers")
        assert ": down; 0 of " in server
        assert re.fullmatch(rf"  {name}: down for \d+ s; last error: .*", host)
        (line,) = told(service, "--json", "servers")
        known = json.loads(line)
        assert (known["process"], known["state"], known["tables"]) == (service.pid, "down", [table.decode()])
        assert known["hosts"][0]["last_error"] in service.log()


@pytest.mark.parametrize("maptype", ["socketmap", "tcp", "memcache"])
def test_servers_of_the_network_types_and_what_failed_last(maptype: str) -> None:
    with ServerProcess(own={"lookup_time_limit": "1s"}) as service, Scripted(maptype, {}) as scripted:
        table, where = scripted.table(), scripted.endpoint
        if maptype == "memcache":
            table = write_cf(service.dir / "t.cf", memcache=where, timeout=1)
        elif maptype == "tcp":
            where = where.removeprefix("inet:")
        service.approve(table)
        service.start()
        with service.connect() as peer:
            assert peer.ask(lookup(table, b"k")) == NOT_FOUND
            server, host = told(service, "servers")
            assert server.startswith(f"{maptype} {where} (process {service.pid}, 1 table): up; 1 of 32")
            assert host == f"  {where}: up"
            scripted.manner = "silent"
            peer.ask(lookup(table, b"k"))
            assert told(service, "servers")[1] == f"  {where}: up; last error: time limit exceeded"
            scripted.close()
            wait_until(lambda: peer.ask(lookup(table, b"k")) and "Connection refused" in service.log(), "it")
            assert re.fullmatch(
                rf"  {where}: down for \d+ s; last error: Connection refused", told(service, "servers")[1]
            )


def test_tables_shows_the_policy_in_force(fake: FakeMySQL) -> None:
    own = {"cache_ttl": "0s", "mysql_cache_ttl": "1m", "cache_negative_ttl": "5s"}
    with Fakes(fake, **own) as service:
        table = service.table()
        service.start()
        service.ask(table, b"k1")
        (line,) = told(service, "tables")
        assert '; keeps values 60 s, "no" 5 s, refusals 1 s, old values 3600 s;' in line
        (line,) = told(service, "--json", "tables")
        assert json.loads(line)["keeps"] == {
            "cache_ttl": 60, "cache_negative_ttl": 5, "cache_error_ttl": 1, "cache_stale_ttl": 3600,
            "cache_stale_negative_ttl": 0, "cache_stale_wait": 2, "cache_refresh_percent": 20,
        }  # fmt: skip


def explained(service: Fakes, table: bytes, key: str) -> list[str]:
    """The lines on what the cache had."""
    lines = told(service, "query", "--explain", table.decode(), key)
    return [re.sub(r".*\): ", "", line) for line in lines if ": before that, " in line]


def test_explain_says_what_the_cache_had(fake: FakeMySQL) -> None:
    with Fakes(fake, cache_ttl="10s", cache_stale_ttl="1h") as service:
        table = service.table()
        service.start()
        assert explained(service, table, "k1") == []  # its server was asked
        asked = len(fake.questions)
        (line,) = explained(service, table, "k1")
        assert re.fullmatch(r"OK, \d\.\d s old, answers for \d\.\d s more", line)
        assert len(fake.questions) == asked + 2  # by the table that --explain opens here
        since = time.monotonic()
        wait_until(lambda: time.monotonic() > since + 10, "the end of a life")
        (line,) = explained(service, table, "K1")
        assert re.fullmatch(
            r"OK, \d+\.\d s old, stands in for 3\d\d\d s more if its server does not answer", line
        )


def test_explain_says_that_a_question_is_under_way_or_refused(fake: FakeMySQL) -> None:
    with Fakes(fake, cache_error_ttl="1h") as service:
        table = service.table()
        service.start()
        fake.manner = "error"
        with service.connect() as peer:
            peer.ask(lookup(table, b"k1", flags=0))  # as proxymapctl does
            (line,) = explained(service, table, "k1")
            assert re.fullmatch(
                r"the question was refused, \d+\.\d s old; it is asked again after 3\d\d\d\.\d s", line
            )
            fake.manner = "answer"
            fake.delay = 3.0
            peer.send(lookup(table, b"k2", flags=0))
            wait_until(lambda: any(b"k2" in question for question in fake.questions), "the question")
            assert "is being asked for; who asks now joins" in explained(service, table, "k2")
