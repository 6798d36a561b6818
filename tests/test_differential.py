"""test_differential - the same questions to stock's proxymap and to ours, and the same answers

Tables, flags and keys are drawn by hypothesis, always the same ones; each type
gets QUESTIONS of them. `make differential` asks 10,000 of each type; `-k cidr`
limits it, and PROXYMAP_SEED=n draws others.

What differs on purpose has a test of its own: test_intended_difference_*.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from differential import (
    CASES,
    CHANGES,
    FOLD_FIX,
    LOCK,
    SHARED,
    TRY0,
    UTF8,
    Case,
    Changes,
    make_cdb,
    make_shared,
    write_text,
)  # fmt: skip
from fix_pair import Pair
from fix_postfix import dialect, release, unavailable
from fix_server import NOT_FOUND, OPEN_LOCK, found, lookup, request, wait_until
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy as Strategy
from oracle import Attributes

from proxymap.tables._table import LOOKED_UP
from proxymap.tables.flags import FIXED, PATTERN

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

QUESTIONS = int(os.environ.get("PROXYMAP_QUESTIONS", "400"))  # of each type
SEED = int(os.environ.get("PROXYMAP_SEED", "0"))
CASES_A_ROUND = 25
WALK_LIMIT = 50  # records

BDB = ("hash", "btree")
COMPOSITES = ("pipemap", "unionmap")
ORDERED = ("lmdb", "btree")  # in which records are

OK, NOKEY, RETRY, BAD, CONFIG = 0, 1, 2, 3, 5
END: Attributes = [(b"status", b"1"), (b"key", b""), (b"value", b"")]

# Types whose faults both log while they load the table.
SOURCES = ("texthash", "cidr", "regexp", "pcre")


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    maptype, service = request.param
    if maptype in BDB:
        pytest.importorskip("berkeleydb")
    with Pair(maptype, service, *([1] if maptype in SOURCES else [])) as made:
        make_shared(made.shared)
        yield made


def each_type(names: Iterable[str], service: str = "proxymap") -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pair", [(name, service) for name in names], indirect=True, ids=names)


def run(pair: Pair, cases: Strategy[Any], ask: Callable[[Any], None]) -> None:
    """Draw cases and ask them, until there were enough questions."""

    @settings(
        max_examples=CASES_A_ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink], print_blob=False,
    )  # fmt: skip
    @given(cases)
    def one_round(case: Any) -> None:
        try:
            ask(case)
        except BaseException:
            pair.renew()
            raise

    rounds = SEED
    while pair.asked < QUESTIONS:
        seed(rounds)(one_round)()
        rounds += 1
    print(f"{pair.maptype}, {pair.service}: {pair.asked} questions")


@each_type(CASES)
def test_same_answers(pair: Pair) -> None:
    def ask(case: Case) -> None:
        name = put(pair, case)
        for flags in case.flags:
            same(pair, request("open", name, flags=flags))
            for key in case.keys:
                same(pair, lookup(name, key, flags=flags), case.one_of)
            same(pair, request("open", name, flags=flags))
            if case.walk:
                same_records(pair, name, flags)
        if pair.maptype in SOURCES:
            stock, ours = pair.warnings()
            assert ours == stock

    run(pair, CASES[pair.maptype], ask)


@each_type(CHANGES, "proxywrite")
def test_same_answers_to_changes(pair: Pair) -> None:
    def ask(case: Changes) -> None:
        if case.name is not None:
            pair.start([case.name])
        name = case.name or pair.fresh_name()
        # From 3.11 on each flag word has a Berkeley DB instance, which does not see what another has written.
        only = case.steps[0][1] if pair.maptype in BDB and dialect() == "3.11" else None
        for kind, drawn, key, value in case.steps:
            flags = drawn if only is None else only
            if kind == "walk":
                same_records(pair, name, flags)
            else:
                same(pair, request(kind, name, flags=flags, key=key, value=value))

    run(pair, CHANGES[pair.maptype], ask)


def put(pair: Pair, case: Case) -> bytes:
    """Have both servers know the table; returns its name."""
    if case.name is not None:
        name = case.name.replace(SHARED, bytes(pair.shared))
        pair.start([name])
        return name
    assert case.make is not None
    name = pair.fresh_name()
    case.make(pair.path(name))
    pair.cool()
    return name


def same(pair: Pair, question: bytes, one_of: frozenset[bytes] = frozenset()) -> None:
    stock, ours = pair.ask(question)
    assert stock is not None, f"stock died of {question!r}; its log ends\n{pair.stock.log()[-500:]}"
    if one_of and stock[0] == ours[0] == (b"status", b"0"):
        assert stock[1][1] in one_of
        assert ours[1][1] in one_of
    else:
        expected = [of_what_it_is(stock) if pair.maptype.encode() in LOOKED_UP else stock]
        if pair.maptype in COMPOSITES and b"/missing" in question:  # first, where no member is faulty
            expected.append(of_what_it_is(stock))
        assert ours in expected, f"stock says {stock}, ours {ours}, to {question!r}"
    if dialect() == "3.11":
        words = [peer.flags for peer in pair.peers]
        assert words[1] == words[0], f"stock replies flags {words[0]}, ours {words[1]}, to {question!r}"


def of_what_it_is(opened: Attributes) -> Attributes:
    """Where we differ on purpose: a table that does not open is no table of patterns for a client of 3.6."""
    flags = int(dict(opened).get(b"flags", b"0"))
    if dialect() == "3.11" or not flags & PATTERN:
        return opened
    return [opened[0], (b"flags", b"%d" % (flags & ~PATTERN | FIXED))]


def same_records(pair: Pair, name: bytes, flags: int) -> None:
    """All records; of hash tables in any order. Not beyond the end: that differs."""
    walks: tuple[list[Attributes | None], list[Attributes]] = ([], [])
    for function in (0, *[1] * WALK_LIMIT):
        replies = pair.ask(request("sequence", name, flags=flags, function=function))
        walks[0].append(replies[0])
        walks[1].append(replies[1])
        if replies[0] is None or replies[0][0] != (b"status", b"0"):
            break
    stock, ours = walks
    assert None not in stock, "stock died"
    if pair.maptype not in ORDERED:
        stock, ours = sorted(stock), sorted(ours)
    assert ours == stock


READ_ONLY = {
    "cidr": b"cidr:{{10.0.0.0/8 x}}", "inline": b"inline:{a=b}", "pcre": b"pcre:{{/a/ x}}",
    "pipemap": b"pipemap:{static:a}",
    "randmap": b"randmap:{a}", "regexp": b"regexp:{{/a/ x}}", "sqlite": b"sqlite:@SHARED@/names.cf",
    "texthash": b"texthash:@SHARED@/m", "unionmap": b"unionmap:{static:a}", "unix": b"unix:passwd.byname",
}  # fmt: skip


@each_type(READ_ONLY, "proxywrite")
def test_type_without_updates_is_unavailable_for_them(pair: Pair) -> None:
    name = READ_ONLY[pair.maptype].replace(SHARED, bytes(pair.shared))
    pair.start([name])
    for flags in (0, LOCK, UTF8):
        for kind in ("open", "lookup", "update", "delete", "sequence"):
            same(pair, request(kind, name, flags=flags, key=b"a", value=b"b", function=0))


# What differs on purpose: where stock's process ends, and all its clients are cut off, ours answers


def dies(pair: Pair, question: bytes) -> Attributes:
    """What ours replies to what stock dies of."""
    stock, ours = pair.ask(question)
    assert stock is None
    return ours


def record(key: bytes, value: bytes) -> Attributes:
    """The reply to a sequence request that has one."""
    return [(b"status", b"0"), (b"key", key), (b"value", value)]


def ask_ours(pair: Pair, question: bytes) -> Attributes:
    return pair.peers[1].ask(question)


def status(reply: Attributes) -> int:
    return int(dict(reply)[b"status"])


WITHOUT_SEQUENCE = {
    **{name: table for name, table in READ_ONLY.items() if name not in ("inline", "texthash")},
    "environ": b"environ:x", "static": b"static:a",
}  # fmt: skip


@each_type(WITHOUT_SEQUENCE)
def test_intended_difference_sequence_of_a_type_that_has_none_is_config(pair: Pair) -> None:
    name = WITHOUT_SEQUENCE[pair.maptype].replace(SHARED, bytes(pair.shared))
    pair.start([name])
    assert dies(pair, request("sequence", name, function=0)) == [
        (b"status", b"5"),
        (b"key", b""),
        (b"value", b""),
    ]
    assert status(ask_ours(pair, request("open", name))) == OK


@each_type(["cdb"])
def test_intended_difference_sequence_of_cdb_is_answered_as_stock_does_since_3_10(pair: Pair) -> None:
    name = pair.fresh_name()
    make_cdb(pair.path(name), [(b"k", b"v"), (b"a", b"b")])
    stock, ours = pair.ask(request("sequence", name, function=0))
    assert ours == record(b"k", b"v")
    assert stock == (ours if release() >= (3, 10) else None)
    assert ask_ours(pair, request("sequence", name, function=1)) == record(b"a", b"b")
    assert ask_ours(pair, request("sequence", name, function=1)) == END


@pytest.mark.parametrize("kind", ["update", "delete"])
@each_type(["static"], "proxywrite")
def test_intended_difference_change_of_static_is_config(pair: Pair, kind: str) -> None:
    pair.start([b"static:a"])
    assert dies(pair, request(kind, b"static:a", key=b"a", value=b"b")) == [(b"status", b"5")]


@each_type(["environ"], "proxywrite")
def test_intended_difference_delete_from_environ_is_config(pair: Pair) -> None:
    pair.start([b"environ:x"])
    assert dies(pair, request("delete", b"environ:x", key=b"DIFF_A")) == [(b"status", b"5")]


@pytest.mark.parametrize("key", [b"", b"a=b"])
@each_type(["environ"], "proxywrite")
def test_intended_difference_environ_stores_names_that_no_variable_can_have(pair: Pair, key: bytes) -> None:
    pair.start([b"environ:x"])
    assert status(dies(pair, request("update", b"environ:x", key=key, value=b"b"))) == OK
    assert ask_ours(pair, lookup(b"environ:x", key)) == found(b"b")


@each_type(["cdb"], "proxywrite")
def test_intended_difference_cdb_for_updates_is_unavailable(pair: Pair) -> None:
    name = f"cdb:{pair.shared}/m".encode()
    pair.start([name])
    if release() >= (3, 11):  # the same there
        same(pair, request("open", name))
        same(pair, request("update", name, key=b"a", value=b"b"))
    else:
        assert status(dies(pair, request("open", name))) == OK
    assert status(ask_ours(pair, lookup(name, b"a"))) == RETRY
    assert status(ask_ours(pair, request("update", name, key=b"a", value=b"b"))) == RETRY


@each_type(["cdb"])
def test_intended_difference_first_value_that_a_process_finds_in_a_cdb_is_empty(pair: Pair) -> None:
    name = f"cdb:{pair.dir}/t".encode()
    make_cdb(pair.path(name), [(b"k", b"")])
    pair.start([name])
    stock, ours = pair.ask(lookup(name, b"k"))
    assert ours == found(b"")
    assert stock == (ours if release() >= (3, 10) else None)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 4096], ids=["empty", "short", "garbage"])
@each_type(["cdb"])
def test_intended_difference_damaged_cdb_is_retry(pair: Pair, content: bytes) -> None:
    name = pair.fresh_name()
    path = pair.path(name)
    path.with_name(path.name + ".cdb").write_bytes(content)
    stock, ours = pair.ask(request("open", name))
    assert status(ours) == OK
    stock, ours = pair.ask(lookup(name, b"k"))
    assert stock is None
    assert status(ours) == RETRY


@each_type(["lmdb"])
def test_intended_difference_empty_key_of_lmdb_is_nokey(pair: Pair) -> None:
    """Stock asks LMDB for a key of no bytes, if it may be stored without NUL."""
    name = f"lmdb:{pair.shared}/m".encode()
    pair.start([name])
    assert dies(pair, lookup(name, b"")) == NOT_FOUND


@pytest.mark.parametrize(("key", "flags"), [(b"x" * 511, LOCK), (b"", LOCK | TRY0)])
@each_type(["lmdb"], "proxywrite")
def test_intended_difference_key_that_lmdb_cannot_store_is_not_stored(
    pair: Pair, key: bytes, flags: int
) -> None:
    name = pair.fresh_name()
    assert status(dies(pair, request("update", name, key=key, value=b"v", flags=flags))) != OK
    assert ask_ours(pair, lookup(name, key, flags=flags)) == NOT_FOUND


@each_type(["lmdb"])
def test_intended_difference_both_locks_at_first_open_are_accepted(pair: Pair) -> None:
    name = f"lmdb:{pair.shared}/m".encode()
    pair.start([name])
    assert dies(pair, lookup(name, b"a", flags=OPEN_LOCK | LOCK)) == found(b"lmdb-a")


@each_type(["static"])
def test_intended_difference_negative_flags_are_bad(pair: Pair) -> None:
    pair.start([b"static:a"])
    assert status(dies(pair, lookup(b"static:a", b"k", flags=b"-1"))) == BAD


@pytest.mark.parametrize("name", [b"static:", b":x"])
@each_type(["static"])
def test_intended_difference_empty_type_or_name_is_unavailable(pair: Pair, name: bytes) -> None:
    pair.start([name])
    assert status(dies(pair, request("open", name))) == OK
    assert status(ask_ours(pair, lookup(name, b"k"))) == RETRY


FAULTY_SQLITE = {
    "no dbpath": b"query = SELECT 1",
    "no query": b"dbpath = @SHARED@/names.sqlite",
    "bad query template": b"dbpath = @SHARED@/names.sqlite\nquery = SELECT '%x'",
    "bad result template": b"dbpath = @SHARED@/names.sqlite\nquery = SELECT 1\nresult_format = %x",
    "empty result template": b"dbpath = @SHARED@/names.sqlite\nquery = SELECT 1\nresult_format =",
    "bad line": b"dbpath = @SHARED@/names.sqlite\nquery SELECT 1",
    "bad number": b"dbpath = @SHARED@/names.sqlite\nquery = SELECT 1\nexpansion_limit = x",
    "bad SQL": b"dbpath = @SHARED@/names.sqlite\nquery = SELECT nosuch",
    "no database": b"dbpath = /nowhere/x\nquery = SELECT 1",
    "not a database": b"dbpath = @SHARED@/m\nquery = SELECT 1 FROM a",
}


@pytest.mark.parametrize("fault", FAULTY_SQLITE)
@each_type(["sqlite"])
def test_intended_difference_faulty_sqlite_table_is_unavailable(pair: Pair, fault: str) -> None:
    name = pair.fresh_name()
    write_text(FAULTY_SQLITE[fault] + b"\n")(pair.path(name))
    pair.cool()
    assert status(pair.ask(request("open", name))[1]) == OK
    stock, ours = pair.ask(lookup(name, b"a"))
    if fault == "no database" and release() >= (3, 10):
        assert status(stock) == RETRY
    else:
        assert stock is None
    assert status(ours) in (RETRY, CONFIG)


@each_type(["cdb"])
def test_intended_difference_many_tables_that_cannot_be_opened_are_no_reason_to_end(pair: Pair) -> None:
    """Stock exits at its thirteenth error."""
    names = [f"cdb:{pair.dir}/missing-{n}".encode() for n in range(20)]
    pair.start(names)
    replies = [pair.ask(request("open", name)) for name in names]
    assert sum(stock is not None for stock, _ in replies) == 12
    assert all(status(ours) == OK for _, ours in replies)


@each_type(["cdb"])
def test_intended_difference_table_that_appears_later_is_found(pair: Pair) -> None:
    """Stock remembers for its whole life that the table could not be opened."""
    name = pair.fresh_name()
    same(pair, lookup(name, b"k"))
    make_cdb(pair.path(name), [(b"k", b"v")])
    wait_until(lambda: ask_ours(pair, lookup(name, b"k")) == found(b"v"), "the new table")
    stock, _ = pair.ask(lookup(name, b"k"))
    assert stock is not None
    assert status(stock) == RETRY


@pytest.mark.skipif(release() < (3, 11), reason="up to 3.10 stock folds them, too")
@each_type(["inline", "texthash"])
def test_intended_difference_keys_with_capitals_outside_ascii_are_found(pair: Pair) -> None:
    """Stock folds them in what is looked up, but not while it loads the table."""
    name = "inline:{\u00c4b=v, Cd=w}".encode()
    if pair.maptype == "texthash":
        name = f"texthash:{pair.shared}/capitals".encode()
        write_text("\u00c4b v\nCd w\n".encode())(pair.shared / "capitals")
        pair.cool(pair.shared)
    pair.start([name])
    flags = LOCK | FOLD_FIX | UTF8
    for key in ("\u00c4b", "\u00e4b", "\u00e4B"):
        assert pair.ask(lookup(name, key.encode(), flags=flags)) == (NOT_FOUND, found(b"v"))
    same(pair, lookup(name, b"cD", flags=flags))
    assert ask_ours(pair, lookup(name, b"CD", flags=flags)) == found(b"w")


@each_type(["cdb"])
def test_unknown_type_has_no_utf8_layer_as_other_unavailable_tables_have(pair: Pair) -> None:
    """So a key that is not UTF-8 is not said to be absent."""
    pair.start([b"nosuch:x", b"cdb:/missing"])
    for name, expected in ((b"nosuch:x", RETRY), (b"cdb:/missing", NOKEY)):
        stock, ours = pair.ask(lookup(name, b"\xff", flags=UTF8))
        assert stock is not None
        assert (status(stock), status(ours)) == (expected, expected)


# Sequences. Stock has one cursor for all clients of a process


@each_type(["hash", "btree"], "proxywrite")
def test_intended_difference_next_without_first_is_answered(pair: Pair) -> None:
    name = pair.fresh_name()
    same(pair, request("update", name, key=b"k", value=b"v"))
    assert dies(pair, request("sequence", name, function=1)) in (END, record(b"k", b"v"))


@each_type(["internal"], "proxywrite")
def test_intended_difference_next_in_an_empty_internal_table_is_the_end(pair: Pair) -> None:
    name = pair.fresh_name()
    same(pair, request("sequence", name, function=0))
    stock, ours = pair.ask(request("sequence", name, function=1))
    assert ours == END
    assert stock == (ours if release() >= (3, 11) else None)


@each_type(["lmdb"])
def test_intended_difference_each_client_has_its_own_cursor(pair: Pair) -> None:
    name = f"lmdb:{pair.shared}/m".encode()
    pair.start([name])
    same(pair, request("sequence", name, function=0))
    with pair.ours.connect() as other:
        assert other.ask(request("sequence", name, function=0)) == record(b"1", b"a")
        assert other.ask(request("sequence", name, function=1)) == record(b"a", b"lmdb-a")
    same(pair, request("sequence", name, function=1))
