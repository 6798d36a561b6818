"""test_completion - bash and zsh know every command and option of proxymapctl, and no other

contrib/completion.py writes the scripts from the same parser: `make completion`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from proxymap.ctl import main as ctl

ROOT = Path(__file__).resolve().parents[2]
BASH = ROOT / "contrib/completion/proxymapctl"
ZSH = ROOT / "contrib/completion/_proxymapctl"


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
    script = f'. {BASH}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_proxymapctl 2>/dev/null; '
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


@pytest.mark.parametrize(("shell", "file"), [("bash", BASH), ("zsh", ZSH)])
def test_shell_can_read_it(shell: str, file: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", file], check=True)


def test_scripts_are_installed() -> None:
    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    assert files["share/bash-completion/completions"] == ["contrib/completion/proxymapctl"]
    assert files["share/zsh/site-functions"] == ["contrib/completion/_proxymapctl"]
