"""test_docs - no page of docs/ is forgotten, links lead somewhere, what a page names exists

Commands of proxymapctl and make, files and parameters: those that a reader types or writes. What table
recipes answer is in test_recipes.py. `make docs` checks anchors, too.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxymap import main
from proxymap.config.settings import PARAMETERS
from proxymap.ctl import main as ctl
from proxymap.metrics.metrics import METRICS
from proxymap.tables.types import TABLE_TYPES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, *sorted(ROOT.glob("*.md"))]
MANUAL = sorted((ROOT / "man").iterdir())
OTHERS = [
    ROOT / "packaging/debian/README.Debian",
    ROOT / "packaging/Dockerfile",
    *sorted((ROOT / "contrib").glob("*.s*")),
]
ALL = [*TEXTS, *MANUAL, *OTHERS]
MAKEFILE = (ROOT / "Makefile").read_text()
NAV = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_in_the_navigation(page: Path) -> None:
    assert str(page.relative_to(ROOT / "docs")) in NAV


@pytest.mark.parametrize("maptype", TABLE_TYPES)
def test_table_type_is_in_a_title_or_the_list(maptype: str) -> None:
    titles = " ".join(page.read_text().partition("\n")[0] for page in (ROOT / "docs/tables").glob("*.md"))
    assert maptype in re.findall(r"\w+", titles) or maptype == "debug"
    assert f"`{maptype}" in (ROOT / "docs/tables/index.md").read_text()


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [*TEXTS, *MANUAL], ids=lambda page: page.name)
def test_packages_are_installed_as_the_installation_says(page: Path) -> None:
    """By the environment's own pip; and "proxymap", with or without extras, would be looked up on PyPI."""
    wrong = r"(?<!/opt/proxymap/bin/)(?<!\.\d/bin/)pip3? install|(?<!/)proxymap\[[a-z]"
    assert not re.search(wrong, page.read_text())


def snippets(page: Path) -> Iterator[str]:
    """What a reader may type: lines of indented, fenced and .EX blocks, and text between backquotes."""
    text = page.read_text()
    if page in MANUAL:
        text = re.sub(r"\\f[BIRP]", "", text).replace("\\-", "-").replace("\\e\n", "")
        for block in re.findall(r"^\.EX\n(.*?)^\.EE", text, re.MULTILINE | re.DOTALL):
            yield from block.splitlines()
        yield from re.findall(r"^\.BR? \"?(proxymapctl [^\",\n]*)", text, re.MULTILINE)
        return
    yield from re.findall(r"^(?: {4}|#  +|ExecStart=)(.*)", text, re.MULTILINE)
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    yield from (" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """The arguments of each call of a program."""
    for snippet in snippets(page):
        if program not in snippet:
            continue
        lexer = shlex.shlex(snippet, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        call: list[str] = []
        for token in [*lexer, ";"]:
            if not set(token) <= set("();<>|&"):
                call.append(token)
                continue
            if call and call[0].rpartition("/")[2] == program:
                yield call[1:]
            call = []


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_commands_of_proxymapctl_are_such(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may leave out a key, a table or a value, as text that names a command does."""

    def refuse(parser: argparse.ArgumentParser, message: str) -> None:
        if "are required" in message or "expected one argument" in message:
            raise SystemExit
        raise AssertionError(f"{page.name}: {message}")

    monkeypatch.setattr("proxymap.ctl.options.Parser.error", refuse)
    for arguments in commands(page, "proxymapctl"):
        with contextlib.suppress(SystemExit):
            ctl.parser().parse_args(arguments)


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_long_options_of_the_daemon_are_such(page: Path) -> None:
    known = {f"--{name.rstrip('=')}" for name in main.LONG}
    for arguments in commands(page, "proxymap"):
        assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= known


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_words_for_make_are_in_the_makefile(page: Path) -> None:
    for word, *settings in (arguments for arguments in commands(page, "make") if arguments):
        assert re.search(rf"^{word}:", MAKEFILE, re.MULTILINE), f"{page.name}: make {word}"
        for name in (setting.partition("=")[0] for setting in settings):
            assert f"$({name})" in MAKEFILE or f"$(or $({name})," in MAKEFILE, f"{page.name}: {name}"


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_files_of_the_sources_that_are_named_exist(page: Path) -> None:
    names = re.findall(
        r"(?<![\w/.=])((?:contrib|tests|docs|benchmarks|packaging|man)/[\w./-]*\w)", page.read_text()
    )
    missing = {name for name in names if not (ROOT / name).exists() and not re.search("[A-Z]{4}", name)}
    assert not missing


def known_parameters() -> set[str]:
    """This server's, those of the manual, and those of the installed Postfix's main.cf."""
    known = {*PARAMETERS, *(metric.name for metric in METRICS)}
    kept = [name for name in PARAMETERS if name.startswith("cache_")]
    known |= {f"{maptype}_{name}" for maptype in TABLE_TYPES for name in kept}
    for page in MANUAL:
        known |= set(re.findall(r"\w+", re.sub(r"\\f[BIR]", "", page.read_text())))
    if shutil.which("postconf"):
        stock = subprocess.run(["postconf", "-d"], capture_output=True, text=True).stdout
        known |= {line.partition(" ")[0] for line in stock.splitlines()}
    return known


USER_PAGES = [page for page in PAGES if page.parent.name in ("docs", "tables")]
USER_PAGES = [page for page in USER_PAGES if page.name not in ("architecture.md", "releases.md")]


@pytest.mark.parametrize(
    "page", [*USER_PAGES, ROOT / "README.md", ROOT / "SECURITY.md"], ids=lambda page: page.name
)
def test_parameters_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)[`=]", page.read_text()))
    assert not {name for name in named - known_parameters() if not name.endswith("_t")}  # a type of SELinux
