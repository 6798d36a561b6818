"""test_man - the manual pages render cleanly, are installed, and leave nothing out"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from proxymap import main
from proxymap.config.settings import PARAMETERS
from proxymap.ctl import main as ctl
from proxymap.ctl import outcome

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["proxymap.8", "proxymapctl.1", "proxymap.cf.5", "proxymap_tables.5"]
CHECKERS = {
    "groff": ["groff", "-man", "-ww", "-z", "-Tutf8"],
    "mandoc": ["mandoc", "-T", "lint", "-W", "warning"],  # below that it counts the characters of a line
}
OWN = [name for name, param in PARAMETERS.items() if param.file == "proxymap.cf"]
ELSEWHERE = {"config_directory"}  # an option


def text_of(page: str) -> str:
    """The page without its markup, as far as these tests need it: one line for a source line."""
    lines = [line for line in (ROOT / "man" / page).read_text().splitlines() if not line.startswith('.\\"')]
    text = "\n".join(re.sub(r"^\.[A-Z]{1,2} ?", "", line) for line in lines)
    return re.sub(r"\\f[BIR]|\"", "", text).replace("\\-", "-")


def headings(page: str) -> str:
    """The lines that the items of .TP and .TQ begin with."""
    source = re.sub(r"\\f[BIR]|\"", "", (ROOT / "man" / page).read_text()).replace("\\-", "-")
    found = re.findall(r"^\.T[PQ]\n\.[A-Z]+ (.*)", source, re.MULTILINE)
    return "\n".join(" ".join(line.split()) for line in found)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The real subcommands, with their options."""
    actions = ctl.parser()._actions
    found = dict(next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices)
    for parser in found.values():
        parser.load()
    return found


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("checker", CHECKERS)
def test_page_renders_without_a_warning(checker: str, page: str) -> None:
    if shutil.which(checker) is None:
        pytest.skip(f"{checker} is not installed")
    command = [*CHECKERS[checker], str(ROOT / "man" / page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("name", OWN)
def test_own_parameter_is_told_with_its_default(name: str) -> None:
    assert f"{name} (default: {PARAMETERS[name].default})" in headings("proxymap.cf.5").splitlines()


def test_no_parameter_is_told_that_is_not_there() -> None:
    assert set(re.findall(r"^(\w+) \(default", headings("proxymap.cf.5"), re.MULTILINE)) == set(OWN)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name not in {*OWN, *ELSEWHERE}])
def test_parameter_of_main_cf_is_told(name: str) -> None:
    assert name in text_of("proxymap.8")


@pytest.mark.parametrize("letter", main.SHORT.replace(":", ""))
def test_daemon_option_has_a_heading(letter: str) -> None:
    assert re.search(rf"(^|, +)-{letter}\b", headings("proxymap.8"), re.MULTILINE)


@pytest.mark.parametrize("option", main.LONG)
def test_daemon_long_option_has_a_heading(option: str) -> None:
    name = option.removesuffix("=")
    assert re.search(rf"^--{name}\b", headings("proxymap.8"), re.MULTILINE)


@pytest.mark.parametrize("command", parsers())
def test_subcommand_has_a_section_and_its_options_a_heading(command: str) -> None:
    source = (ROOT / "man/proxymapctl.1").read_text()
    assert re.search(rf"^\.SS {command}\b", source, re.MULTILINE)
    for action in parsers()[command]._actions:
        for option in action.option_strings:
            found = re.search(rf"(^|, *){option}(?![\w-])", headings("proxymapctl.1"), re.MULTILINE)
            assert found, f"{command} {option}"
        if action.choices:
            assert all(str(choice) in headings("proxymapctl.1") for choice in action.choices)


def test_exit_statuses_of_ctl_are_told() -> None:
    told = {int(number) for number in re.findall(r"\b\d+\b", headings("proxymapctl.1"))}
    assert {value for name, value in vars(outcome).items() if name.startswith("EX_")} <= told


def test_pages_are_dated_for_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for page in PAGES:
        assert f'"proxymap {project["version"]}"' in (ROOT / "man" / page).read_text()


def test_pages_are_installed() -> None:
    """test_packaging looks into the wheel."""
    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    manual = {folder: pages for folder, pages in files.items() if folder.startswith("share/man/")}
    assert {(folder, page) for folder, pages in manual.items() for page in pages} == {
        (f"share/man/man{page[-1]}", f"man/{page}") for page in PAGES
    }
    assert "recursive-include man *" in (ROOT / "MANIFEST.in").read_text().splitlines()
    assert sorted(path.name for path in (ROOT / "man").iterdir()) == sorted(PAGES)
