"""test_mastercf - entries of master.cf, and the commands that master can and cannot run"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from proxymap.ctl.mastercf import (
    Postfix,
    command_for,
    entry_of,
    faulty_fields,
    is_ours,
    only_entry,
    program_of,
    read_entries,
    split_words,
    traps,
)
from proxymap.errors import ConfigError

MASTER = """\
# comment
proxymap  unix  -  -  n  -  -  proxymap
  -o max_idle=7
# in between
  -o { a = b c } -v
proxywrite\tunix -\t- n - 1 proxymap
proxymap inet - - n - - proxymap
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "master.cf").write_text(MASTER)
    return tmp_path


def test_entries(folder: Path) -> None:
    entries = read_entries(str(folder))
    assert [(e.name, e.process_limit, e.command) for e in entries] == [
        ("proxymap/unix", "-", "proxymap"),
        ("proxywrite/unix", "1", "proxymap"),
        ("proxymap/inet", "-", "proxymap"),
    ]
    assert entries[0].arguments == ("-o", "max_idle=7", "-o", "a = b c", "-v")
    assert entries[0].overrides == ["max_idle=7", "a = b c"]
    assert [e.where for e in entries] == [f"{folder}/master.cf, line {n}" for n in (2, 6, 7)]


def test_options_of_another_program_are_not_ours(folder: Path) -> None:
    (folder / "master.cf").write_text("x unix - - n - - pipe -oa=b flags=x argv=/bin/x -o c=d\n")
    assert read_entries(str(folder))[0].overrides == ["a=b"]


def test_carriage_return_is_a_blank(folder: Path) -> None:
    """As an editor on Windows leaves them."""
    (folder / "master.cf").write_bytes(b"# ends\r\nproxymap unix - - n - - proxymap\r\n  -o a=b\r\n")
    (entry,) = read_entries(str(folder))
    assert (entry.command, entry.overrides, list(faulty_fields(entry))) == ("proxymap", ["a=b"], [])


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("x foo - - n - - y", 2),
        ("x unix x - n - - y", 3),
        ("x unix - -\xa0 n - - y", 4),
        ("x unix - - Y - - y", 5),
        ("x unix - - n 1h? - y", 6),
        ("x unix - - n - +1 y", 7),
        ("x\xa0y unix - - n - - y", 1),
        ("x unix - - n - - y\u2003z", 8),
    ],
)
def test_faulty_column_is_named(folder: Path, line: str, column: int) -> None:
    (folder / "master.cf").write_text(line + "\n")
    (entry,) = read_entries(str(folder))
    (fault,) = faulty_fields(entry)
    assert (fault.where, fault.warning) == (f"{folder}/master.cf, line 1", False)
    assert f"column {column}" in fault.what


@pytest.mark.skipif(shutil.which("postconf") is None, reason="Postfix is not installed")
@pytest.mark.parametrize(
    "field", ["-", "n", "N", "5", "5?", "?", "-?", "05", "+5", "-1", "5s", "unix", "pass", ""]
)
def test_columns_are_those_that_postconf_takes(folder: Path, field: str) -> None:
    (folder / "main.cf").write_text("compatibility_level = 3.6\n")
    for at in range(1, 7):
        words = ["x", "unix", "-", "-", "n", "-", "-", "y"]
        words[at] = field or words[at]
        (folder / "master.cf").write_text(" ".join(words) + "\n")
        done = subprocess.run(["postconf", "-c", str(folder), "-M"], capture_output=True, check=False)
        faults = list(faulty_fields(read_entries(str(folder))[0]))
        assert (faults == []) is (done.returncode == 0), words


def test_last_of_several_entries_counts(folder: Path) -> None:
    with open(folder / "master.cf", "a") as file:
        file.write("proxymap unix - - n - 3 proxymap\n")
    entry = entry_of(read_entries(str(folder)), "proxymap")
    assert entry is not None
    assert entry.process_limit == "3"
    with pytest.raises(ConfigError, match=r"line 2: proxymap/unix has 2 entries.*remove the others"):
        only_entry(str(folder), "proxymap")


def test_missing_entry_and_file(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no entry"):
        only_entry(str(folder), "other")
    with pytest.raises(ConfigError, match=r"open .*master\.cf: No such file"):
        read_entries(str(folder / "none"))


def test_short_line_is_an_error(folder: Path) -> None:
    """As for master itself."""
    (folder / "master.cf").write_text("proxymap unix -\n")
    with pytest.raises(ConfigError, match=r"master\.cf, line 1: 3 columns, expected at least 8"):
        read_entries(str(folder))


def test_blank_at_the_start_is_told(folder: Path) -> None:
    (folder / "master.cf").write_text("  proxymap unix -\n")
    told: list[str] = []
    assert read_entries(str(folder), told.append) == []
    assert "must not start with whitespace" in told[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" a  b\tc ", ["a", "b", "c"]),
        ("{ a {b} } c", ["a {b}", "c"]),
        ("a {b", ["a", "b"]),
        ("{}x", ["", "x"]),
        ("a\r\n b\xa0c\x0bd\r", ["a", "b\xa0c\x0bd"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


# Commands


def test_command_leads_from_the_daemons_to_the_program(tmp_path: Path) -> None:
    daemons = tmp_path / "lib" / "postfix"
    daemons.mkdir(parents=True)
    (tmp_path / "link").symlink_to("lib")
    program = tmp_path / "opt" / "proxymap"
    program.parent.mkdir()
    program.write_text("#!")
    for directory in (daemons, tmp_path / "link" / "postfix"):
        command = command_for(str(program), str(directory))
        assert command == "../../opt/proxymap"
        assert os.path.samefile(program_of(command, str(directory)), program)


def test_absolute_command_is_looked_for_below_the_daemons() -> None:
    assert (
        os.path.normpath(program_of("/opt/proxymap", "/usr/lib/postfix")) == "/usr/lib/postfix/opt/proxymap"
    )


@pytest.mark.parametrize("command", ["proxymap", "../../opt/pm/bin/proxymap", "../opt/x-y/proxymap"])
def test_good_commands(command: str) -> None:
    assert not list(traps("x", command))


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("/opt/bin/proxymap", "looks for"),
        ("../opt/daemon", "adds a stock entry"),
        ("../opt/py-proxymap/proxymap", "1proxymap"),
        ("../opt/proxymap-2", "another name"),
    ],
)
def test_trapped_commands(command: str, text: str) -> None:
    (fault,) = traps("x", command)
    assert text in fault.what
    assert fault.warning == (text == "another name")


def test_ours_is_a_python_script(tmp_path: Path) -> None:
    path = tmp_path / "proxymap"
    assert not is_ours(str(path))
    for text, ours in (
        ("#!/usr/bin/python3\nfrom proxymap.main import main\n", True),
        ("#!/usr/bin/python3\nprint()\n", False),
        ("#!/bin/sh\nproxymap\n", False),
        ("\x7fELF proxymap python", False),
    ):
        path.write_text(text)
        assert is_ours(str(path)) == ours


# postconf


@pytest.mark.skipif(not os.access("/usr/sbin/postconf", os.X_OK), reason="Postfix is not installed")
def test_arguments_and_columns_are_kept(folder: Path) -> None:
    """postconf -F takes the arguments for a part of the command: given none, it removes them."""
    (folder / "main.cf").write_text("compatibility_level = 3.6\n")
    postfix = Postfix(str(folder), "/usr/sbin", "/usr/lib/postfix/sbin")
    before = read_entries(str(folder))
    postfix.run(postfix.set_command("proxymap", "../../x/proxymap"))
    postfix.run(postfix.set_command("proxywrite", "../../x/proxymap"))
    after = read_entries(str(folder))
    assert [e.command for e in after] == ["../../x/proxymap", "../../x/proxymap", "proxymap"]
    names = after[0].overrides[1].split("=")
    assert [name.strip() for name in names] == ["a", "b c"]
    assert after[0].arguments[::2] == before[0].arguments[::2]
    for old, new in zip(before, after, strict=True):
        assert (old.name, old.chroot, old.process_limit) == (new.name, new.chroot, new.process_limit)
    assert "# in between" in (folder / "master.cf").read_text()


def test_failing_command_is_one_line(folder: Path) -> None:
    postfix = Postfix(str(folder), str(folder), str(folder))
    with pytest.raises(ConfigError, match=r"postconf.*failed: .*No such file"):
        postfix.run(postfix.postconf("-n"))
    with pytest.raises(ConfigError, match=r'"sh -c .*failed: last$'):
        postfix.run(["sh", "-c", "echo first >&2; echo last >&2; exit 1"])
