"""test_pcre - rules of Perl-compatible regular expressions"""

from __future__ import annotations

import subprocess
import sys

import pytest
from pattern_contract import (  # noqa: F401
    LATER,
    PatternContract,
    ask,
    folder,
    opened,
)

from proxymap.errors import TableRetry

HOSTILE = b"a" * 60  # for CATASTROPHE: time doubles with each letter
CATASTROPHE = "/^(a+)+[bc]$/ x"

# What a host is like without PCRE2, or where it may not make machine code.
WITHOUT = """
import ctypes, ctypes.util, sys
{prepare}
from proxymap.tables import open_table
from proxymap.tables.base import Host
table = open_table(sys.argv[1].encode(), host=Host(warn=print))
print(table.reason or table.lookup(sys.argv[2].encode()))
for name in ("pcre:{{{{/b/ x}}}}", "pcre:{{{{/(c)/ $1}}}}"):
    print(open_table(name.encode(), host=Host(warn=print)).reason)
"""


class TestPcre(PatternContract):
    maptype = "pcre"
    options = "imsxAEUX"


def table(*rules: str):  # type: ignore[no-untyped-def]
    return TestPcre().table(*rules)


def test_key_that_takes_long_is_left_to_a_worker() -> None:
    hard = table(r"/^(a+)+[bc]$/ no", "/x/ yes")
    key = b"a" * 18 + b"x"
    assert hard.lookup(key, 0)[0] == LATER
    assert hard.ask(key, 0) == (0, 0, b"yes")


def test_key_that_takes_too_long_is_retry_with_the_line() -> None:
    hopeless = table("/a{100}/ no", CATASTROPHE)
    assert hopeless.lookup(HOSTILE, 0)[0] == LATER
    with pytest.raises(TableRetry, match=r"pcre map .*, line 2: matching takes too long"):
        hopeless.ask(HOSTILE, 0)
    assert hopeless.explain(HOSTILE) == [f"line 2: {CATASTROPHE} (takes too long)"]


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


def run_without(prepare: str, *arguments: str) -> list[str]:
    code = WITHOUT.format(prepare=prepare)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_where_machine_code_is_refused_patterns_are_interpreted_and_the_log_says_so_once() -> None:
    """As under systemd's MemoryDenyWriteExecute."""
    prepare = "ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN"
    name = TestPcre().inline("/^(a)b*[cd]/ $1")
    lines = run_without("assert " + prepare.replace("  #", " == 0 or sys.exit()  #"), name, "abbd")
    if not lines:
        pytest.skip("this kernel has no MDWE")
    assert lines == [
        "pcre: no machine code is allowed here (MemoryDenyWriteExecute?); it is interpreted",
        "(0, 12, b'a')",
        "None",
        "None",
    ]
