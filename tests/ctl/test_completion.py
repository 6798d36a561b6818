"""test_completion - bash and zsh know every command and option of proxymapctl, and no other

contrib/completion.py writes the scripts from the same parser: `make completion`.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxymap.ctl import main as ctl

ROOT = Path(__file__).resolve().parents[2]
BASH = ROOT / "contrib/completion/proxymapctl"
ZSH = ROOT / "contrib/completion/_proxymapctl"
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], f". {BASH}"),
    "zsh": (["zsh", "-f", "-i"], f"fpath=({ZSH.parent} $fpath); autoload -Uz compinit; compinit -u -D"),
}
LIMIT = 60  # seconds; for a machine that is very busy


def commands() -> dict[str, argparse.ArgumentParser]:
    found = next(a for a in ctl.parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    for command in found.values():
        command.load()
    return dict(found)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def words(name: str) -> set[str]:
    """An array of the bash script."""
    found = re.search(rf"^_shtab_proxymapctl{name}=\((.*)\)$", BASH.read_text(), re.MULTILINE)
    assert found, name
    return set(found[1].split())


def completed(*line: str) -> set[str]:
    """What bash offers for the last of these words."""
    script = f'. {BASH}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _proxymapctl; '
    done = subprocess.run(
        ["bash", "-c", script + 'printf "%s\\n" "${COMPREPLY[@]}"', "bash", "proxymapctl", *line],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_bash_knows_the_commands_and_their_options() -> None:
    assert words("_subparsers") == set(commands())
    assert words("_option_strings") == options_of(ctl.parser())
    for name, command in commands().items():
        assert words(f"_{name}_option_strings") == options_of(command)


def test_zsh_knows_the_commands_and_their_options() -> None:
    text = ZSH.read_text()
    for name, command in commands().items():
        block = text.partition(f"_shtab_proxymapctl_{name}_options=(\n")[2].partition("\n)\n")[0]
        found = set(re.findall(r'^  "(?:\([^)]*\))?(--?[\w-]+)\[', block, re.MULTILINE))
        assert found | {"-h", "--help"} == options_of(command), name
        assert f"    {name}:'" in text


def test_bash_offers_commands_options_choices_types_and_files(tmp_path: Path) -> None:
    assert completed("qu") == {"query"}
    assert completed("query", "--ex") == {"--explain"}
    assert completed("enable", "--service", "") == {"proxymap", "proxywrite", "both"}
    assert completed("query", "lm") == {"lmdb:"}
    (tmp_path / "virtual").touch()
    assert completed("query", "cdb", ":", f"{tmp_path}/vir") == {f"{tmp_path}/virtual"}
    assert completed("-c", f"{tmp_path.parent}/{tmp_path.name[:-1]}") >= {str(tmp_path)}


class Terminal:
    """A shell at a terminal, in which proxymapctl prints its arguments between < and >."""

    def __init__(self, shell: str, folder: Path) -> None:
        command, setup = SHELLS[shell]
        self.fd, other = os.openpty()
        environment = {**os.environ, "TERM": "dumb", "HOME": str(folder), "HISTFILE": ""}
        self.process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        os.close(other)
        self.said = b""
        self.type(setup + "; proxymapctl() { printf '<%s>' \"$@\"; echo; }; echo set''up\n", "setup")

    def type(self, line: str, expected: str) -> None:
        """Type it, and wait until the shell has printed what is expected."""
        self.said = b""
        os.write(self.fd, line.encode())
        deadline = time.monotonic() + LIMIT
        while expected.encode() not in self.said:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, (line, expected, self.said)
            self.said += os.read(self.fd, 65536)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    for name in ("virtual", "my access"):
        (tmp_path / "maps" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "maps" / name).touch()
    opened = Terminal(request.param, tmp_path)
    yield opened
    opened.close()


def test_tab_completes_what_is_typed(terminal: Terminal) -> None:
    """The name follows its type's colon without a blank, in a folder or not; a command follows with one."""
    terminal.type("proxymapctl que\t--dir\tcd\tma\tvir\t\n", "<query><--direct><cdb:maps/virtual>")
    terminal.type("proxymapctl buil\tlmdb:maps/my\t\n", "<build><lmdb:maps/my access>")
    terminal.type(
        "proxymapctl build cdb:maps/virtual ma\tmy\t\n", "<build><cdb:maps/virtual><maps/my access>"
    )
    terminal.type("proxymapctl --socket ma\tvir\tflu\tldap:ma\tvir\tkey\n", "<flush><ldap:maps/virtual><key>")
    terminal.type("proxymapctl enab\t--serv\tbo\t\n", "<enable><--service><both>")


@pytest.mark.parametrize(("shell", "file"), [("bash", BASH), ("zsh", ZSH)])
def test_shell_can_read_it(shell: str, file: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", file], check=True)


def test_scripts_are_installed() -> None:
    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    assert files["share/bash-completion/completions"] == ["contrib/completion/proxymapctl"]
    assert files["share/zsh/site-functions"] == ["contrib/completion/_proxymapctl"]
