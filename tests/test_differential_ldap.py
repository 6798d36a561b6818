"""test_differential_ldap - the same questions to stock's ldap tables and to ours, over a private slapd

As test_differential_sql. What differs on purpose has a test of its own in test_ldap:
test_intended_difference_*.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from differential import Case, make_shared
from fix_database import removed
from fix_pair import Pair
from fix_postfix import type_missing, unavailable
from fix_server import lookup, request
from fix_slapd import Slapd
from fix_slapd import unavailable as slapd_unavailable
from ldap_cases import fill, ldap
from oracle import Attributes
from test_differential import put, run

REASON = unavailable() or slapd_unavailable() or type_missing("ldap")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

FRESH_NAMES = 40  # for one life of the servers
STATUS, VALUE = b"status", b"value"
OK, NOKEY, RETRY = b"0", b"1", b"2"


@pytest.fixture(scope="module")
def directory() -> Iterator[Slapd]:
    with removed(Slapd()) as server:
        assert isinstance(server, Slapd)
        fill(server)
        yield server


@pytest.fixture
def pair(directory: Slapd) -> Iterator[Pair]:
    with Pair("ldap", in_a_life=FRESH_NAMES) as made:
        make_shared(made.shared)
        yield made


def loses_values(case: Case) -> bool:
    """May stock lose values of entries? See test_intended_difference_values_of_later_entries."""
    assert case.source is not None
    return b"terminal_result_attribute" in case.source or (
        b"leaf_result_attribute" in case.source and b"special_result_attribute" in case.source
    )


def is_part(stock: Attributes, ours: Attributes) -> bool:
    """Are stock's values some of ours, in order?"""
    if stock[0] != (STATUS, OK) or ours[0] != (STATUS, OK):
        return stock[0] == (STATUS, NOKEY) and ours[0] == (STATUS, OK)
    left = iter(ours[1][1].split(b","))
    return all(value in left for value in stock[1][1].split(b","))


def test_same_answers(pair: Pair, directory: Slapd) -> None:
    counts = {OK: 0, NOKEY: 0, RETRY: 0, b"lost": 0}

    def ask(case: Case) -> None:
        name = put(pair, case)
        for flags in case.flags:
            for key in case.keys:
                stock, ours = pair.ask(lookup(name, key, flags=flags))
                assert stock is not None, f"stock died of {key!r}; its log ends\n{pair.stock.log()[-500:]}"
                counts[stock[0][1]] += 1
                if ours != stock and loses_values(case) and is_part(stock, ours):
                    counts[b"lost"] += 1
                    continue
                assert ours == stock, f"stock says {stock}, ours {ours}, to {key!r}"

    run(pair, ldap(directory), ask)
    print(f"found {counts[OK]}, absent {counts[NOKEY]}, failed {counts[RETRY]}; in part {counts[b'lost']}")
    assert counts[b"lost"] < pair.asked / 50


def test_open_is_the_same(pair: Pair, directory: Slapd) -> None:
    name = pair.fresh_name()
    directory.write_cf(pair.path(name))
    for flags in (0, 64, 1 << 14, 1 << 19):
        stock, ours = pair.ask(request("open", name, flags=flags))
        assert ours == stock
