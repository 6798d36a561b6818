"""test_redis_commands - proxymapctl on tables in Redis; and what an idle server loads"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_ctl import run
from fix_redis import RedisServer, unavailable, write_cf
from fix_server import NOT_FOUND, ServerProcess, lookup
from test_checks import Host, root_only

from proxymap.ctl import checks

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        server.put({"alias:a@b.c": "x@y"})
        yield server


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    shutil.rmtree(made.dir)


def told(host: Host) -> list[str]:
    faults = [fault for fault in checks.check(str(host.dir), connect=True) if fault.where != "proxymapctl"]
    return [fault.what for fault in faults]


@root_only
def test_check(host: Host, redis: RedisServer) -> None:
    aliases = write_cf(host.dir / "aliases.cf", uri=redis.uri, key_format="alias:%s").decode()
    cache = write_cf(host.dir / "cache.cf", uri=redis.uri, key_format="verify:%s", ttl=60).decode()
    host.set(virtual_alias_maps=f"proxy:{aliases}", address_verify_map=f"proxy:{cache}")
    assert told(host) == []
    write_cf(host.dir / "cache.cf", uri=redis.uri, key_format="%s")
    (line,) = told(host)
    assert line.endswith("for a table that is written to")
    write_cf(host.dir / "cache.cf", uri="redis://127.0.0.1:9", key_format="verify:%s")
    (line,) = told(host)
    assert "refused" in line


@root_only
def test_check_as_mail_owner_who_may_not_read_python(host: Host, redis: RedisServer) -> None:
    """Of the commands' own process, which has imported less than this one."""
    aliases = write_cf(host.dir / "aliases.cf", uri=redis.uri, key_format="alias:%s").decode()
    host.set(virtual_alias_maps=f"proxy:{aliases}")
    done = run("-c", host.dir, "check", "--connect")
    assert b"Traceback" not in done.stderr
    assert b"aliases.cf" not in done.stdout


def test_query(tmp_path: Path, redis: RedisServer) -> None:
    name = write_cf(tmp_path / "t.cf", uri=redis.uri, key_format="alias:%s").decode()
    done = run("query", "--direct", "--explain", name, "a@b.c")
    assert b"x@y" in done.stdout
    assert b"GET alias:a@b.c" in done.stdout + done.stderr
    assert run("query", "--direct", name, "nobody").returncode == 1


def test_servers(redis: RedisServer) -> None:
    with ServerProcess() as service:
        table = write_cf(service.dir / "t.cf", uri=redis.uri)
        service.approve(table)
        service.start()
        with service.connect() as peer:
            assert peer.ask(lookup(table, b"k")) == NOT_FOUND
        done = run("--socket", service.path, "-c", service.dir, "servers")
        shown = f"127.0.0.1:{redis.port}"
        first, second = done.stdout.decode().splitlines()
        assert re.match(rf"redis {shown} \(process {service.pid}, 1 table\): up; 1 of 32 connections", first)
        assert re.match(rf"  {shown}: up for \d+ s", second)


def test_a_server_without_such_a_table_does_not_load_the_library() -> None:
    with ServerProcess() as service:
        service.cdb("t", {b"k": b"v"})
        service.start()
        assert "/_ssl." not in Path(f"/proc/{service.pid}/maps").read_text()  # which redis-py brings
