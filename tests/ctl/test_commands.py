"""test_commands - proxymapctl itself: its commands, help, usage, and which configuration counts"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fix_ctl import HOME, answer, run
from test_client import ScriptedServer

from proxymap.ctl.main import COMMANDS


@pytest.mark.parametrize(
    "arguments", [[], ["query"], ["query", "t:x"], ["query", "nocolon", "a"], ["nothing"], ["--bad"]]
)
def test_wrong_usage_is_status_64_and_one_line(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (64, b"")
    assert done.stderr.startswith(b"proxymapctl: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("command", [[], ["query"], ["dump"], ["build"]])
def test_help(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert b"TYPE:" in done.stdout or b"examples:" in done.stdout


def test_each_command_is_listed_and_has_a_file() -> None:
    files = {path.stem for path in (HOME / "proxymap/ctl/commands").glob("*.py")} - {"__init__"}
    assert files == set(COMMANDS)


def test_only_the_command_that_runs_is_imported(tmp_path: Path) -> None:
    code = "import sys; from proxymap.ctl.main import main; main(sys.argv[1:]); print(*sys.modules)"
    words = [sys.executable, "-c", code, "-c", str(tmp_path), "status"]
    loaded = subprocess.run(words, cwd=HOME, capture_output=True, text=True, check=True).stdout.split()
    commands = [name for name in loaded if name.startswith("proxymap.ctl.commands.")]
    assert commands == ["proxymap.ctl.commands.status"]


def test_socket_is_in_the_queue_directory(tmp_path: Path) -> None:
    (tmp_path / "q" / "private").mkdir(parents=True)
    (tmp_path / "main.cf").write_text(f"queue_directory = {tmp_path}/q\n")
    with ScriptedServer(str(tmp_path / "q/private/proxymap"), answer):
        for done in (
            run("-c", tmp_path, "query", "t:x", "a"),
            run("query", "-c", tmp_path, "t:x", "a"),
            run("query", "t:x", "a", env={**os.environ, "MAIL_CONFIG": str(tmp_path)}),
        ):
            assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n", b"")


def test_missing_configuration_is_status_78(tmp_path: Path) -> None:
    done = run("-c", tmp_path, "query", "t:x", "a")
    assert done.returncode == 78
    assert b"main.cf" in done.stderr
