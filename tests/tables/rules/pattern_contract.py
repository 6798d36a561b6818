"""pattern_contract - what regexp and pcre tables must hold, whatever their expressions mean

    class TestPcre(PatternContract):
        maptype = "pcre"

Where Postfix is installed, random rule files are answered as `postmap -q -`
answers them, warnings included.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_postfix import copy_dynamicmaps
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxymap.tables._table import CHANGED_REPLACED, SLOW_LOOKUP, Table
from proxymap.tables.base import Host
from proxymap.tables.flags import NO_REGSUB, PATTERN, RHS_IS_FILE
from proxymap.tables.opening import open_table
from proxymap.tables.rules.patterns import anatomy

HERE = Path(__file__).parent
OK, NOKEY, LATER = 0, 1, 100
NOISE = ("empty string result is not allowed", "should return NO RESULT")  # postmap's own, not the table's


def opened(type_name: str, flags: int = 0) -> tuple[Table, list[str]]:
    """A table, and the warnings of reading it."""
    warnings: list[str] = []
    table = open_table(type_name.encode(), flags, host=Host(warn=warnings.append))
    assert table.reason is None, table.reason
    return table, warnings


def ask(table: Table, key: bytes) -> bytes | None:
    """The value as a worker gives it; the loop gives the same, or leaves it to the worker."""
    status, flags, value = table.ask(key, 0)
    assert flags == 0
    if (on_loop := table.lookup(key, 0)) != (LATER, 0, b""):
        assert on_loop == (status, flags, value)
    assert status in (OK, NOKEY)
    return value if status == OK else None


# Rule files and keys in which something happens: few letters, many special characters.
ATOMS = [
    "a",
    "b",
    ".",
    "^",
    "$",
    "(a)",
    "(b|a)",
    "(a*)",
    "[ab]",
    "[^a]",
    r"\.",
    r"\b",
    "x",
    "|",
    "+",
    "*",
    "?",
]
ATOMS += ["{2}", "{0,1}", "{1,}", r"\/", "(", ")", "[", "]", r"\w", "A", "-", "@", "{", "[[:alpha:]]", "()"]
RESULTS = ["", "r", "$1", "${1}-$(1)", "$2", "$$1", "$0", "$x", "${1", "a$", "${}", "$1$2", " s  t ", "$(1"]
RESULTS += ["!r", "! /b/ s"]
pattern = st.lists(st.sampled_from(ATOMS), max_size=6).map("".join)
negation = st.sampled_from(["", "", "", "!", "! ", "!!"])


def rule_files(options: str) -> st.SearchStrategy[list[str]]:
    flags = st.sampled_from(["", "", "", *options, options, "q", "!/b/", "!/(c"])
    match = st.builds("{}/{}/{} {}".format, negation, pattern, flags, st.sampled_from(RESULTS))
    condition = st.builds("if {}/{}/{}".format, negation, pattern, flags)
    others = st.sampled_from(["endif", "endif", "endif", "ENDIF x", "if", "foo", "/a", "!", "# none", ""])
    # glibc looks behind the end of a pattern with a backslash in it; Postfix, of a line
    return st.lists(st.one_of(match, match, condition, others), max_size=8)


keys = st.text(alphabet="aabbxA.@-/\\", min_size=1, max_size=8)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """With a main.cf for postmap: from pattern_contract import folder."""
    if shutil.which("postmap") is None:
        pytest.skip("Postfix is not installed")
    with tempfile.TemporaryDirectory(prefix="pm-") as name:
        folder = Path(name)
        (folder / "main.cf").write_text("compatibility_level = 3.6\nmyhostname = test.invalid\n")
        copy_dynamicmaps(folder)
        yield folder


class PatternContract:
    maptype: str
    options: str
    opaque: str  # a pattern's equal that patterns.anatomy cannot see through

    def table(self, *rules: str, flags: int = 0) -> Table:
        """Of rules in its name, without a fault."""
        table, warnings = opened(self.inline(*rules), flags)
        assert warnings == []
        return table

    def inline(self, *rules: str) -> str:
        return f"{self.maptype}:{{{','.join(f'{{{rule}}}' for rule in rules)}}}"

    def test_answers_and_warnings_are_those_of_postfix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The queries of the .in file, as postmap answered them when .ref was made."""
        monkeypatch.chdir(HERE)
        table, warnings = opened(f"{self.maptype}:{self.maptype}.map")
        answers = []
        for key in Path(f"{self.maptype}.in").read_bytes().splitlines():
            if (value := ask(table, key)) is not None:
                answers.append(f"{key.decode()}\t{value.decode()}")
        assert warnings + answers == Path(f"{self.maptype}.ref").read_text().splitlines()

    def test_random_rules_are_answered_as_postmap_does(self, folder: Path) -> None:
        if self.maptype not in subprocess.check_output(["postconf", "-m"], text=True).split():
            pytest.skip(f"Postfix has no {self.maptype}: postfix-{self.maptype} is not installed")

        @settings(max_examples=150, deadline=None)
        @given(rule_files(self.options), st.lists(keys, min_size=1, max_size=12, unique=True))
        def compare(rules: list[str], keys: list[str]) -> None:
            (folder / "rules").write_text("".join(rule + "\n" for rule in rules))
            name = f"{self.maptype}:{folder}/rules"
            done = subprocess.run(
                ["postmap", "-c", str(folder), "-q", "-", name],
                input="".join(key + "\n" for key in keys), capture_output=True, text=True, check=False,
            )  # fmt: skip
            table, warnings = opened(name)
            values = [(key, ask(table, key.encode())) for key in keys]
            expected = [line.removeprefix("postmap: warning: ") for line in done.stderr.splitlines()]
            assert warnings == [line for line in expected if not any(noise in line for noise in NOISE)]
            found = "".join(f"{key}\t{value.decode()}\n" for key, value in values if value is not None)
            assert found == done.stdout

        compare()

    def test_rule_is_passed_over_only_where_it_cannot_match(self, tmp_path: Path) -> None:
        @settings(max_examples=300, deadline=None)
        @given(pattern, st.lists(keys, min_size=1, max_size=12))
        def compare(pattern: str, keys: list[str]) -> None:
            opaque = self.opaque.format(pattern)
            assert not anatomy(opaque.encode(), self.maptype == "regexp").clear
            tables = []
            for file, text in ((tmp_path / "seen", pattern), (tmp_path / "opaque", opaque)):
                file.write_text(f"/{text}/ x\n")
                table, warnings = opened(f"{self.maptype}:{file}")
                assume(not warnings)
                tables.append(table)
            for key in keys:
                assert tables[0].ask(key.encode(), 0) == tables[1].ask(key.encode(), 0)

        compare()

    def test_it_is_a_pattern_table(self) -> None:
        table = self.table("/A/ x")
        assert table.flags == PATTERN
        assert table.generation == 0
        assert table.slow == SLOW_LOOKUP  # it has workers of its own

    def test_patterns_see_bytes_whatever_the_locale_is(self) -> None:
        table = self.table("/^.$/ one", "/^..$/ two", "/\xe9/ e acute")
        assert ask(table, "é".encode()) == b"two"
        assert ask(table, b"\xff") == b"one"
        assert ask(table, "xxÉ".encode()) is None

    def test_empty_key_is_matched(self) -> None:
        assert ask(self.table("/./ x", "/^$/ empty"), b"") == b"empty"
        assert ask(self.table("!/x(.)/ none"), b"") == b"none"

    def test_no_regsub_refuses_groups(self) -> None:
        rules = ("/(a)/ $1", "/a/ plain", "!/(b)/ $1")
        table, warnings = opened(self.inline(*rules), NO_REGSUB)
        assert ask(table, b"a") == b"plain"
        assert [line.partition("line ")[2] for line in warnings] == [
            "1: regular expression substitution is not allowed: skipping this rule",
            "3: $number found in negative match replacement text: skipping this rule",
        ]
        assert opened(self.inline(*rules))[0] is not table

    def test_result_can_be_the_content_of_files(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"one")
        (tmp_path / "b$1").write_bytes(b"two")
        rules = (f"/1/ {tmp_path}/a", f"/2/ {tmp_path}/a,{tmp_path}/b$1", f"/3/ {tmp_path}/c", "/4/ ,")
        table, warnings = opened(self.inline(*rules), RHS_IS_FILE)
        assert ask(table, b"1") == base64.b64encode(b"one")
        assert ask(table, b"2") == base64.b64encode(b"one\ntwo")
        assert ask(table, b"3") is None
        assert [line.partition("line ")[2] for line in warnings] == [
            f"3: open {tmp_path}/c: No such file or directory: skipping this rule",
            "4: empty pathname list: >>,<<': skipping this rule",
        ]

    def test_explain_names_the_rule_that_decided(self, tmp_path: Path) -> None:
        file = tmp_path / "rules"
        file.write_text("# comment\nif /a/\n/b/ x\n  y\nendif\n")
        table, _ = opened(f"{self.maptype}:{file}")
        assert table.explain(b"ab") == ["line 3: /b/ x  y"]
        assert table.explain(b"b") == []

    def test_changed_file_is_noticed(self, tmp_path: Path) -> None:
        file = tmp_path / "rules"
        file.write_text("/a/ old\n")
        table, _ = opened(f"{self.maptype}:{file}")
        assert not table.changed
        file.write_text("/a/ newer\n")
        assert table.changed == CHANGED_REPLACED
        assert ask(table, b"a") == b"old"
        assert ask(opened(f"{self.maptype}:{file}")[0], b"a") == b"newer"
        file.unlink()
        assert open_table(f"{self.maptype}:{file}".encode()).reason == (
            f"open {file}: No such file or directory".encode()
        )

    def test_bad_inline_rules_are_no_table(self) -> None:
        table = open_table(f"{self.maptype}:{{/a/ x}}".encode())
        assert table.reason == f"{self.maptype} map: no '{{' at start of text in \"/a/\"".encode()

    def test_keys_without_a_needed_byte_are_answered_without_matching(self) -> None:
        """Rules that need letters, in whatever case, still hold for every key that has them."""
        table = self.table("/^sub+ject: *(x|y)z{0}q?w\\.$/ $1", "!/needed/ no", "/[n]|e/ yes")
        assert ask(table, b"SUBBJECT:  xw.") == b"x"
        assert ask(table, b"nothing") == b"no"
        assert ask(table, b"NEEDED") == b"yes"
