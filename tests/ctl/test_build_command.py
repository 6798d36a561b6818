"""test_build_command - proxymapctl build: its options, and what it says; test_builder is about the files"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from fix_ctl import HOME, run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "v"
    path.write_text("a 1\nA 2\n")
    return path


@pytest.mark.parametrize("maptype", ["cdb", "lmdb"])
def test_build(source: Path, maptype: str) -> None:
    pytest.importorskip("cdbx" if maptype == "cdb" else "lmdb")
    done = run("build", f"{maptype}:{source}")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"proxymapctl: warning: ")
    assert done.stderr.endswith(b': duplicate entry: "a"\n')
    assert os.path.exists(f"{source}.{maptype}")


def test_build_tells_records_and_warnings_in_json(source: Path) -> None:
    pytest.importorskip("cdbx")
    done = run("build", "--json", f"cdb:{source}")
    warning = f'{source}: duplicate entry: "a"'
    assert json.loads(done.stdout) == {"table": f"cdb:{source}", "records": 1, "warnings": [warning]}


def test_build_takes_postmaps_options(source: Path) -> None:
    cdbx = pytest.importorskip("cdbx")
    run("build", "-fN", f"cdb:{source}.out", source, check=True)
    table = cdbx.CDB(f"{source}.out.cdb")
    assert list(table.items(all=True)) == [(b"a\0", b"1\0"), (b"A\0", b"2\0")]


@pytest.mark.parametrize(
    ("table", "status"), [("cdb:{}/none", 66), ("lmdb:{}/none", 66), ("hash:{}/v", 65), ("cdb:{}", 73)]
)
def test_build_failure_is_one_line(source: Path, table: str, status: int) -> None:
    done = run("build", table.format(source.parent))
    assert done.returncode == status
    assert done.stderr.startswith(b"proxymapctl: ")
    assert done.stderr.count(b"\n") == 1


def test_bar_is_for_terminals_only(source: Path) -> None:
    pytest.importorskip("cdbx")
    terminal, other_end = pty.openpty()
    command = [sys.executable, "-m", "proxymap.ctl", "build", f"cdb:{source}"]
    with subprocess.Popen(command, stderr=other_end, cwd=HOME) as process:
        os.close(other_end)
        shown = os.read(terminal, 10000)
        while True:
            try:
                shown += os.read(terminal, 10000)
            except OSError:  # EIO: the other end is closed
                break
    os.close(terminal)
    assert process.returncode == 0
    assert b"100 %" in shown
    assert b"\r" not in run("build", f"cdb:{source}").stderr
