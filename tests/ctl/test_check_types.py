"""test_check_types - `check` and `servers` for tables of the types http and python"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_ctl import run
from fix_server import ServerProcess, lookup
from test_checks import Host, root_only

from proxymap.ctl import checks
from proxymap.ctl.safety import Fault

pytest.importorskip("urllib3", reason="urllib3 is not installed")
from fix_http import Web

PLUGIN = """\
from proxymap.tables import SlowTable


class Table(SlowTable):
    def doubts(self, connect=False):
        return [("its source is away", "call them", False)] if connect else []
"""


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    shutil.rmtree(made.dir)


def faults(host: Host, table: str, *, connect: bool = False) -> list[Fault]:
    host.set(virtual_alias_maps=f"proxy:{table}")
    return [fault for fault in checks.check(str(host.dir), connect=connect) if table in fault.what]


@root_only
def test_plugin_is_checked_as_the_server_loads_it(host: Host) -> None:
    table = f"python:{host.dir}/p.cf"
    (host.dir / "p.cf").write_text(f"module = {host.dir}/p.py\n")
    (host.dir / "p.py").write_text(PLUGIN)
    assert faults(host, table) == []
    (fault,) = faults(host, table, connect=True)
    assert fault.line().endswith("p.cf: its source is away; call them")
    (host.dir / "p.py").chmod(0o666)
    (fault,) = faults(host, table)
    assert f"others may write to {host.dir}/p.py (mode 666)" in fault.what
    (host.dir / "p.py").chmod(0o644)
    (host.dir / "p.py").write_text("1 / 0\n")
    (fault,) = faults(host, table)
    assert f"ZeroDivisionError: division by zero ({host.dir}/p.py, line 1)" in fault.what


@root_only
def test_http_table_is_checked_and_with_connect_its_server(host: Host) -> None:
    table = f"http:{host.dir}/h.cf"
    with Web({b"1": b"x"}) as web:
        (host.dir / "h.cf").write_text(f"url = http://127.0.0.1:{web.port}/alias?address=%s\n")
        assert faults(host, table) == []
        assert web.requests == []
        assert faults(host, table, connect=True) == []
        assert web.requests[-1].path == "/alias?address=1"
        web.statuses[b"1"] = 500
        (fault,) = faults(host, table, connect=True)
        assert f"127.0.0.1:{web.port}: status 500 Internal Server Error" in fault.what
    (fault,) = faults(host, table, connect=True)
    assert "Connection refused" in fault.what
    assert faults(host, table) == []


def test_servers_shows_an_http_server() -> None:
    folder = Path(tempfile.mkdtemp(prefix="pm-"))
    folder.chmod(0o755)
    with Web({b"k": b"v"}) as web, ServerProcess(own={"server_error_limit": "1"}) as server:
        (folder / "h.cf").write_text(f"url = http://127.0.0.1:{web.port}/%s\n")
        server.approve(f"http:{folder}/h.cf")
        server.start()
        with server.connect() as peer:
            assert peer.ask(lookup(f"http:{folder}/h.cf".encode(), b"k"))[0] == (b"status", b"0")
            line, host = shown(server)
            assert line.startswith(f"http 127.0.0.1:{web.port} (process {server.pid}, 1 table): up; 1 of 32 ")
            assert re.search(r"; 1 answers \(\d+\.\d/s\), 0 late,", line)
            assert host.startswith(f"  127.0.0.1:{web.port}: up for ")
            web.leave()
            assert peer.ask(lookup(f"http:{folder}/h.cf".encode(), b"k"))[0] == (b"status", b"2")
            server.wait_log("is down")
            line, host = shown(server)
            assert ": down; 0 of 32 " in line
            assert host.endswith("last error: Connection refused")
    shutil.rmtree(folder)


def shown(server: ServerProcess) -> list[str]:
    return run("--socket", server.path, "-c", server.dir, "servers").stdout.decode().splitlines()
