"""test_regexp - rules of POSIX regular expressions"""

from __future__ import annotations

import threading

import pytest
from pattern_contract import (  # noqa: F401
    LATER,
    PatternContract,
    ask,
    folder,
)

from proxymap.tables._table import Table

COPIES = 4  # lookups that workers do at the same time


class TestRegexp(PatternContract):
    maptype = "regexp"
    options = "imx"
    opaque = "{}x{{,0}}"


def table(*rules: str) -> Table:
    return TestRegexp().table(*rules)


@pytest.mark.parametrize(
    "rule",
    [r"/(.)\1/ x", r"/(a*)*b/ $1", r"/((a|b)+c)+/ $1", r"/(a+){2}/ $1", r"/\(a*\)/x $1", r"/a/!/(.)\1/ x"],
)
def test_rule_that_may_take_very_long_is_left_to_a_worker(rule: str) -> None:
    made = table(rule)
    assert made.lookup(b"aab(c)", 0)[0] == LATER
    assert made.ask(b"zz", 0)[0] in (0, 1)


@pytest.mark.parametrize(
    "rule",
    [
        *(r"/(a)(b*)/ $1", r"/(a*)*b/ x", r"/(a|b)c/ $1", r"/(abc)+/ $1", r"/\w*\.(com|org)[[:space:]]*/ $1"),
        *(r"/plain/x $$1", r"/[]a][^]b]/ x"),
    ],
)
def test_other_rules_are_tried_on_the_loop(rule: str) -> None:
    assert table(rule).lookup(b"aab(c)", 0)[0] != LATER


def test_risky_rule_does_not_matter_for_a_key_that_cannot_match_it() -> None:
    made = table(r"/^from:((a|b)*)*c/ $1", "/z/ found")
    assert made.lookup(b"z", 0) == (0, 0, b"found")
    assert made.lookup(b"from: c", 0)[0] == LATER


def test_many_rules_and_a_long_key_are_left_to_a_worker() -> None:
    many = table(*[f"/a[b-y]*{i}/ x" for i in range(2000)], "/z/ found")
    assert many.lookup(b"z", 0) == (0, 0, b"found")
    key = b"abc0123456789" * 10 + b"z"
    assert many.lookup(key, 0)[0] == LATER
    assert many.ask(key, 0)[0] == 0


def test_workers_match_at_the_same_time_and_get_what_the_loop_gets() -> None:
    made = table(r"/^(a+)([0-9]+)$/ <$2,$1>", "/b/ found b")
    wrong: list[bytes] = []

    def work(number: int) -> None:
        for i in range(200):
            if made.ask(b"aaa%d" % (number + i), 0) != (0, 0, b"<%d,aaa>" % (number + i)):
                wrong.append(b"%d" % i)
            if made.ask(b"b", 0) != (0, 0, b"found b"):
                wrong.append(b"b")

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(COPIES)]
    for thread in threads:
        thread.start()
    for i in range(200):
        assert made.lookup(b"aa%d" % i, 0) == (0, 0, b"<%d,aa>" % i)
    for thread in threads:
        thread.join()
    assert wrong == []


BANGS = ["/^a/ !x", "/^b/i !y y", "/^g/ ! /h/ v", "/^(k)$/ !host!$1", "/^p/ !", "/^q/!/^qq/ two"]


def test_exclamation_mark_behind_a_blank_belongs_to_the_result() -> None:
    """As in UUCP's paths."""
    made = table(*BANGS)
    answers = [ask(made, key) for key in (b"a", b"bob", b"g", b"k", b"p", b"qa", b"qq")]
    assert answers == [b"!x", b"!y y", b"! /h/ v", b"!host!k", b"!", b"two", None]


def test_unused_groups_are_empty() -> None:
    assert ask(table("/^(a)|(b)(c)?/ <$1$2$3>"), b"b") == b"<b>"
