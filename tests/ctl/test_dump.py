"""test_dump - proxymapctl dump"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fix_ctl import ask, run
from test_client import Request, ScriptedServer, attribute_list


def test_output_that_cannot_be_written_is_status_74_and_one_line(server: ScriptedServer) -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "proxymap.ctl", "--socket", server.path, "query", "t:x", "a"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=buffered
        )
    assert (done.returncode, done.stderr) == (74, "proxymapctl: No space left on device\n")


def test_dump(tmp_path: Path) -> None:
    items = iter([b"a", b"1", b"b", b"\xff"])

    def walk(request: Request) -> bytes:
        if (b"request", b"open") in request:
            return attribute_list(b"status", b"0", b"flags", b"28")
        key = next(items, None)
        if key is None:
            return attribute_list(b"status", b"1", b"key", b"", b"value", b"")
        return attribute_list(b"status", b"0", b"key", key, b"value", next(items))

    with ScriptedServer(str(tmp_path / "s"), walk) as server:
        assert ask(server, "dump", "t:x") == (0, b"a\t1\nb\t\xff\n", "")
        assert ask(server, "dump", "t:x") == (0, b"", "")


def test_dump_of_a_table_that_cannot_is_status_69(server: ScriptedServer) -> None:
    """The stock server dies of it."""
    code, out, err = ask(server, "dump", "t:x")
    assert (code, out) == (69, b"")
    assert "hung up" in err


def test_direct_dump(cdb: str) -> None:
    done = run("dump", "--direct", cdb)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == "a\t1\nb\t\né\t2\nraw\t".encode() + b"\xff\n"


@pytest.mark.parametrize(
    ("table", "status", "text"),
    [("unix:passwd.byname", 78, "cannot be listed"), ("cdb:/none/t", 75, "open database /none/t.cdb")],
)
def test_direct_dump_of_what_cannot_be_listed(table: str, status: int, text: str) -> None:
    done = run("dump", "--direct", table)
    assert (done.returncode, done.stdout) == (status, b"")
    assert text in done.stderr.decode()
