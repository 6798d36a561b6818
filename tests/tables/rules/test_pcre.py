"""test_pcre - rules of Perl-compatible regular expressions"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pattern_contract import (  # noqa: F401
    LATER,
    PatternContract,
    ask,
    folder,
    opened,
)

from proxymap.errors import TableRetry
from proxymap.tables._table import Table

HOSTILE = b"a" * 60  # for CATASTROPHE: time doubles with each letter
CATASTROPHE = "/^(a+)+[bc]$/ x"


class TestPcre(PatternContract):
    maptype = "pcre"
    options = "imsxAEUX"
    opaque = r"\E{}"


def table(*rules: str) -> Table:
    return TestPcre().table(*rules)


def test_key_that_takes_long_is_left_to_a_worker() -> None:
    hard = table(r"/^(a+)+[bc]$/ no", "/x/ yes")
    key = b"a" * 18 + b"x"
    assert hard.lookup(key, 0)[0] == LATER
    assert hard.ask(key, 0) == (0, 0, b"yes")


def test_rule_that_pcre2_gives_up_on_is_skipped_with_a_warning_as_by_postfix() -> None:
    hopeless, warnings = opened(TestPcre().inline("/a{100}/ no", CATASTROPHE, f"!{CATASTROPHE}", "/./ next"))
    assert hopeless.lookup(HOSTILE, 0)[0] == LATER
    assert hopeless.ask(HOSTILE, 0) == (0, 0, b"next")
    title = f"pcre map {hopeless.type_name[5:].decode()}"
    assert warnings == [f"{title}, line {line}: match limit exceeded" for line in (2, 3)]
    skipped = [f"line {line}: match limit exceeded; the rule is skipped" for line in (2, 3)]
    assert hopeless.explain(HOSTILE) == [*skipped, "line 4: /./ next"]


LIMITS = [
    "/(*LIMIT_MATCH=3)a.*b.*c/ steps",
    "!/(*LIMIT_DEPTH=2)(((a)))*d/ depth",
    "/(*LIMIT_HEAP=0)(((a)+)+)d/ heap",
    "/(*LIMIT_MATCH=100)^ab$/ enough",
    "/./ next",
]


def test_limits_in_patterns_mean_what_they_mean_to_postfix(folder: Path) -> None:  # noqa: F811
    """Of which machine code counts only the first, and that otherwise."""
    if "pcre" not in subprocess.check_output(["postconf", "-m"], text=True).split():
        pytest.skip("postfix-pcre is not installed")
    rules = folder / "limits"
    rules.write_text("".join(line + "\n" for line in LIMITS))
    limited, warnings = opened(f"pcre:{rules}")
    for key in ("abc", "xxxxabxxxxc", "ab", "aaad", "q"):
        command = ["postmap", "-c", str(folder), "-q", key, f"pcre:{rules}"]
        done = subprocess.run(command, capture_output=True, text=True)
        answer = ask(limited, key.encode())
        assert (answer or b"").decode() == done.stdout.strip(), key
        assert warnings == [line.removeprefix("postmap: warning: ") for line in done.stderr.splitlines()], key
        warnings.clear()


def test_what_needs_more_memory_than_we_give_is_retry() -> None:
    """Postfix would take up to 20 GB."""
    greedy = table("/^(?:(a|b))*$/ x", "/z/ y")
    with pytest.raises(TableRetry, match=r"pcre map .*, line 1: matching takes too long"):
        greedy.ask(b"ab" * 500_000 + b"z", 0)


def test_long_key_is_matched_however_deep_the_groups_nest() -> None:
    """Beyond the stack of the machine code, on the heap."""
    deep = table("/^(?:(a|b)*c)*$/ x", "/z/ y")
    key = b"ab" * 20_000 + b"z"
    assert deep.ask(key, 0) == (0, 0, b"y")


def test_many_rules_and_a_long_key_are_left_to_a_worker() -> None:
    many = table(*[f"/a[b-y]*{i}/ x" for i in range(3000)], "/z/ found")
    key = b"abc0123456789" * 100 + b"z"
    assert many.lookup(b"z", 0) == (0, 0, b"found")
    assert many.lookup(key, 0)[0] == LATER
    assert many.ask(key, 0)[0] == 0


def test_pattern_in_utf_mode_does_not_hold_for_what_is_not_utf8() -> None:
    """Not negated either: as Postfix, which warns in addition."""
    utf = table("!/(*UTF)x/ not x", "/(*UTF)^.$/ one", "/^..$/ two")
    assert ask(utf, b"\xff\xfe") == b"two"
    assert ask(utf, b"x") == b"one"
    assert ask(utf, "é".encode()) == b"not x"


def test_obsolete_option_is_warned_of() -> None:
    name = TestPcre().inline("/a/X x")
    made, warnings = opened(name)
    assert ask(made, b"a") == b"x"
    assert warnings == [f'pcre map {name[5:]}, line 1: ignoring obsolete regexp option "X"']


OPEN = """
import ctypes, sys
from proxymap.tables.opening import open_table
from proxymap.tables.base import Host
if "MDWE" in sys.argv:
    ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) and sys.exit()  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
for name in (b"pcre:{{/^(a)b*[cd]/ $1}}", b"pcre:{{/b/ x}}"):
    table = open_table(name, host=Host(warn=print))
    print(table.reason or table.lookup(b"abbd", 0))
"""


def opened_elsewhere(*arguments: str, **environment: str) -> list[str]:
    """What a process of its own prints."""
    command = [sys.executable, "-c", OPEN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return done.stdout.splitlines()


def test_where_machine_code_is_refused_patterns_are_interpreted_and_the_log_says_so_once() -> None:
    """As under systemd's MemoryDenyWriteExecute."""
    lines = opened_elsewhere("MDWE")
    if not lines:
        pytest.skip("this kernel knows no MDWE")
    warning = "pcre: no machine code is allowed here (MemoryDenyWriteExecute?); it is interpreted"
    assert lines == [warning, "(0, 0, b'a')", "(0, 0, b'x')"]


def test_missing_library_is_named_with_its_package(tmp_path: Path) -> None:
    (tmp_path / "libpcre2-8.so.0").write_bytes(b"no library")
    reasons = opened_elsewhere(LD_LIBRARY_PATH=str(tmp_path))
    assert len(reasons) == 2
    for reason in reasons:
        assert "pcre needs libpcre2-8.so.0 (" in reason
        assert "; install libpcre2-8-0 (Debian), pcre2 (Fedora, Alpine)" in reason
