"""Fixtures of the tests of proxymapctl."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_ctl import answer
from fix_server import write_cdb
from test_client import ScriptedServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    with ScriptedServer(str(tmp_path / "s"), answer) as running:
        yield running


@pytest.fixture
def cdb(tmp_path: Path) -> str:
    write_cdb(tmp_path / "t.cdb", {b"a": b"1", b"b": b"", "é".encode(): b"2", b"raw": b"\xff"})
    return f"cdb:{tmp_path}/t"
