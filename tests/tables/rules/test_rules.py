"""test_rules - rule files and rules in a table's name: lines, numbers, words, and files that are none"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxymap.tables.rules.rules import Rules, split_word


def rules_of(mapname: bytes) -> tuple[list[tuple[int, bytes]], list[str]]:
    warnings: list[str] = []
    return list(Rules("cidr", mapname, warnings.append)), warnings


def test_rules_of_a_file_have_the_number_of_their_first_line(tmp_path: Path) -> None:
    file = tmp_path / "rules"
    file.write_bytes(b"# none\n\na b\r\n  c\n#\nd\0e\nf")
    assert rules_of(bytes(file)) == ([(3, b"a b\r  c"), (6, b"d"), (7, b"f")], [])


def test_inline_rules_are_counted_with_empty_ones_and_comments() -> None:
    mapname = b"{ { a  b },{}, {# no}\t{c{d}},}"
    assert rules_of(mapname) == ([(1, b"a  b"), (4, b"c{d}")], [])


@pytest.mark.parametrize(
    ("mapname", "reason"),
    [
        (b"{", "missing '}' in \"{\""),
        (b"{ {a} b }", "no '{' at start of text in \"b\""),
        (b"{ {a}b }", "syntax error after '}' in \"{a}b\""),
        (b"{ {a} } ", "syntax error after '}' in \"{ {a} } \""),
    ],
)
def test_inline_rules_without_their_braces_are_refused(mapname: bytes, reason: str) -> None:
    with pytest.raises(ValueError) as raised:
        rules_of(mapname)
    assert str(raised.value) == f"cidr map: {reason}"


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file, reason in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(ValueError) as raised:
            rules_of(bytes(file))
        assert str(raised.value) == f"open {file}: {reason}"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = os.listdir("/proc/self/fd")
    for file in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        try:
            rules_of(bytes(file))
        except ValueError:
            continue
    assert os.listdir("/proc/self/fd") == before


def test_dev_null_holds_no_rules() -> None:
    assert rules_of(b"/dev/null") == ([], [])


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        (b"IF /x/", (b"if", b"/x/")),
        (b"if!/x/ ", (b"if", b"!/x/")),
        (b"EndIf", (b"endif", b"")),
        (b"endiff", (b"endiff", b"")),
        (b"/if/ x", (b"", b"/if/ x")),
    ],
)
def test_the_word_of_a_rule_is_its_leading_letters_and_digits(
    rule: bytes, parts: tuple[bytes, bytes]
) -> None:
    assert split_word(rule) == parts


def test_warnings_name_the_map_and_the_line_innermost_if_first() -> None:
    warnings: list[str] = []
    rules = Rules("pcre", b"{ {if /x/} }", warnings.append)
    rules.warn(1, "no regexp: skipping this rule")
    rules.warn_unclosed([1, 4])
    assert warnings == [
        "pcre map { {if /x/} }, line 1: no regexp: skipping this rule",
        "pcre map { {if /x/} }, line 4: IF has no matching ENDIF",
        "pcre map { {if /x/} }, line 1: IF has no matching ENDIF",
    ]
