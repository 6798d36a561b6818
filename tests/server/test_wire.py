"""test_wire - odd input in both dialects: whole, byte by byte, and several requests in one piece

The rows are those of wire.md's table "odd input". Where the stock server dies,
blocks or loses requests, the row's name says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from fix_server import (
    BARE_BAD,
    BULK_UPDATE,
    DIALECTS,
    FIXED,
    GREETING,
    LOCK,
    MULTI_WRITER,
    OPEN_LOCK,
    PATTERN,
    TRY0,
    TRY1,
    Peer,
    ServerProcess,
    found,
    lookup,
    request,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import FIELDS, Attributes, dialect_of, encode, parse, reply
from test_codec import mutated_requests

OK, NOKEY, RETRY, BAD, DENY, CONFIG = range(6)
KINDS = sorted(FIELDS["3.6"])
WAYS = ["whole", "bytes", "several"]
UNAPPROVED = b"cdb:/no/such/approval"
BIG = 65000  # bytes of a key that gets an ordinary reply


class Wire:
    """A server, its tables and the request that every row is followed by."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.cdb = server.cdb("c", {b"k": b"v", b"": b"empty"})
        self.lmdb = server.lmdb("l", {b"k\0": b"v\0"})
        self.nul_cdb = server.cdb("n", {b"k\0": b"v\0"})
        self.opened = server.cdb("o", {b"k": b"v"})  # never looked up: in 3.6 its open reply stays the same
        # Approved, but nothing that could be opened: at `:x` the stock server dies.
        server.approve(b":x", b"cdb:", b"foo:bar", b"cdb:" + bytes(server.dir) + b"/missing", b"cdb:rel")

    def good(self, dialect: str) -> tuple[bytes, Attributes]:
        asked = lookup(self.cdb, b"k", dialect, flags=LOCK | TRY0 | TRY1 | FIXED)
        return asked, reply("lookup", dialect, OK, LOCK | TRY0 | FIXED, value=b"v")


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with ServerProcess() as server:
        wire = Wire(server)
        server.start()
        yield wire
        assert server.stop() == 0


@pytest.fixture(scope="module")
def write_wire() -> Iterator[Wire]:
    with ServerProcess() as server:
        wire = Wire(server)
        server.start("-n", "proxywrite")
        yield wire
        assert server.stop() == 0


def fields_of(kind: str, table: bytes, dialect: str) -> Attributes:
    """A good request as attributes, to be spoilt."""
    values = {"flags": b"64", "instance_flags": b"64", "function": b"0", "key": b"k", "value": b"v"}
    fields = [(name.encode(), values[name]) for name in FIELDS[dialect][kind]]
    return [(b"request", kind.encode()), (b"table", table), *fields]


def check(wire: Wire, dialect: str, way: str, data: bytes, expected: Attributes | None) -> None:
    """Send data in that way; expect that reply (None: no reply). Good requests go on being served."""
    good, good_reply = wire.good(dialect)
    with wire.server.connect() as peer:
        if way == "several":
            peer.send(good + data + good + data + data + good)
            wanted = [good_reply, expected, good_reply, expected, expected, good_reply]
        elif way == "bytes":
            peer.send_slowly(data + good)
            wanted = [expected, good_reply]
        else:
            peer.send(data)
            wanted = [expected]
        for one in wanted:
            assert one is None or peer.reply() == one
        assert peer.ask(good) == good_reply
        assert not peer.unread


# Rows that hold for each kind of request. How the good one is spoilt, by name.

SPOILT = {
    "attribute_missing_in_the_middle": lambda a: a[:-2] + a[-1:],
    "table_missing": lambda a: a[:1] + a[2:],
    "attribute_missing_at_the_end": lambda a: a[:-1],
    "only_request": lambda a: a[:1],
    "attributes_swapped": lambda a: [a[0], a[2], a[1], *a[3:]],
    "attribute_doubled_before_the_end": lambda a: [*a[:2], a[1], *a[2:]],
    "unknown_attribute_before_the_end": lambda a: [*a[:2], (b"foo", b"bar"), *a[2:]],
    "empty_values_in_the_wrong_place": lambda a: [a[0], (b"foo", b""), *a[1:]],
    "name_in_upper_case": lambda a: [a[0], (b"TABLE", a[1][1]), *a[2:]],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_list_is_bad_and_the_next_is_served_where_stock_loses_what_follows(
    wire: Wire, name: str, kind: str, dialect: str, way: str
) -> None:
    spoilt = SPOILT[name](fields_of(kind, wire.cdb, dialect))
    seen_as = dialect if any(n == b"instance_flags" for n, _ in spoilt) else "3.6"
    check(wire, dialect, way, encode(spoilt), reply(kind, seen_as, BAD))


BAD_NUMBERS = {
    "letters": b"x64",
    "empty": b"",
    "hexadecimal": b"0x40",
    "trailing_blank": b"64 ",
    "fraction": b"1.5",
    "only_plus": b"+",
    "overflow_that_stock_wraps": b"99999999999",
    "overflow_of_64_bits": b"18446744073709551616",
    "minus_one_at_which_stock_panics": b"-1",
    "negative": b"-2147483648",
    "bits_6_and_16_of_4294967295_at_which_stock_panics": b"4294967295",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_bad_number_is_bad(wire: Wire, name: str, kind: str, dialect: str, way: str) -> None:
    for at, (attribute, _) in enumerate(good := fields_of(kind, wire.cdb, dialect)):
        if attribute in (b"flags", b"instance_flags", b"function"):
            spoilt = [*good[:at], (attribute, BAD_NUMBERS[name]), *good[at + 1 :]]
            check(wire, dialect, way, encode(spoilt), reply(kind, dialect, BAD))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("text", [b" 64", b"+64", b"\t+64", b"\n64", b"064"])
def test_number_with_leading_blank_or_plus_is_accepted(
    wire: Wire, text: bytes, dialect: str, way: str
) -> None:
    asked = fields_of("open", wire.opened, dialect)
    spoilt = [*asked[:2], (asked[2][0], text)]
    check(wire, dialect, way, encode(spoilt), reply("open", dialect, OK, LOCK | TRY0 | TRY1 | FIXED))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["open", "lookup", "sequence"])
@pytest.mark.parametrize("maptype", ["cdb", "lmdb"])
def test_both_lock_bits_are_accepted_where_stock_panics(
    wire: Wire, maptype: str, kind: str, dialect: str
) -> None:
    """A client of an lmdb cache sends both after a restart of the server; BAD would end that client."""
    both = LOCK | OPEN_LOCK
    fields = {"instance_flags": both, "flags": both | TRY0 | TRY1, "key": b"k", "function": 0}
    with wire.server.connect() as peer:
        answer = peer.ask(request(kind, getattr(wire, maptype), dialect, **fields))
    assert answer[0] == (b"status", b"0")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_bulk_update_bit_on_lmdb_is_answered_where_stock_exits(wire: Wire, dialect: str) -> None:
    with wire.server.connect() as peer:
        flags = LOCK | BULK_UPDATE
        opened = peer.ask(request("open", wire.lmdb, dialect, flags=flags, instance_flags=flags))
        assert opened == reply("open", dialect, OK, flags | TRY0 | TRY1 | FIXED | MULTI_WRITER)
        asked = lookup(wire.lmdb, b"k", dialect, flags=flags | TRY1, instance_flags=flags)
        assert peer.ask(asked)[0] == (b"status", b"0")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("bit", range(31))
def test_no_single_flag_bit_hurts(wire: Wire, bit: int, dialect: str) -> None:
    with wire.server.connect() as peer:
        for table in (wire.cdb, wire.lmdb):
            opened = peer.ask(request("open", table, dialect, flags=1 << bit, instance_flags=1 << bit))
            assert opened[0] == (b"status", b"0")
            assert len(opened) == 2
            asked = lookup(table, b"nokey", dialect, flags=1 << bit, instance_flags=1 << bit)
            assert peer.ask(asked)[0] == (b"status", b"1")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["open", "lookup", "sequence"])
def test_table_not_approved_is_denied(wire: Wire, kind: str, dialect: str, way: str) -> None:
    asked = request(kind, UNAPPROVED, dialect, key=b"k", function=0)
    check(wire, dialect, way, asked, reply(kind, dialect, DENY))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "name", [b":", b"::", b"CDB:%s", b"Proxy:cdb:%s", b" cdb:%s", b"cdb:%s.cdb", b"cdb:%s\x01", b"cdb:%s "]
)
def test_name_that_only_resembles_an_approved_one_is_denied(wire: Wire, name: bytes, dialect: str) -> None:
    name = name.replace(b"%s", wire.cdb.partition(b":")[2])
    check(wire, dialect, "whole", lookup(name, b"k", dialect), reply("lookup", dialect, DENY))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["open", "lookup", "sequence"])
@pytest.mark.parametrize("name", [b"", b"x", b"cdb", b"proxy:", b"proxy:x", b"proxy:proxy:"])
def test_table_name_without_a_colon_is_bad(
    wire: Wire, name: bytes, kind: str, dialect: str, way: str
) -> None:
    asked = request(kind, name, dialect, key=b"k", function=0)
    check(wire, dialect, way, asked, reply(kind, dialect, BAD))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["update", "delete"])
def test_table_name_without_a_colon_is_bad_for_a_change_too(
    write_wire: Wire, kind: str, dialect: str
) -> None:
    asked = request(kind, b"x", dialect, key=b"k", value=b"v")
    with write_wire.server.connect() as peer:
        assert peer.ask(asked) == reply(kind, dialect, BAD)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("prefix", [b"proxy:", b"proxy:proxy:", b"proxy:" * 50])
def test_proxy_prefixes_are_stripped(wire: Wire, prefix: bytes, dialect: str, way: str) -> None:
    asked = lookup(prefix + wire.cdb, b"k", dialect, flags=LOCK | TRY0)
    check(wire, dialect, way, asked, reply("lookup", dialect, OK, LOCK | TRY0, value=b"v"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", [b"foo", b"OPEN", b"", b"lookup ", b"\xff\x01"])
def test_unknown_request_gets_a_bare_status(wire: Wire, kind: bytes, dialect: str, way: str) -> None:
    check(wire, dialect, way, encode([(b"request", kind)]), BARE_BAD)
    attributes = fields_of("lookup", wire.cdb, dialect)[1:]
    check(wire, dialect, way, encode([(b"request", kind), *attributes]), BARE_BAD)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["open", "lookup"])
@pytest.mark.parametrize("more", [1, 3, 40])
def test_attributes_after_the_last_are_ignored(
    wire: Wire, more: int, kind: str, dialect: str, way: str
) -> None:
    attributes = fields_of(kind, wire.opened if kind == "open" else wire.cdb, dialect)
    flags = LOCK | TRY0 | TRY1 | FIXED
    if kind == "lookup":
        flags = LOCK | TRY0
        attributes[-2] = (b"flags", b"%d" % flags)
    attributes += [(b"extra", b"")] * more
    check(wire, dialect, way, encode(attributes), reply(kind, dialect, OK, flags, value=b"v"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("first", [b"foo", b"table", b"Request", b"protocol", None])
def test_list_that_is_no_request_gets_no_reply(
    wire: Wire, first: bytes | None, dialect: str, way: str
) -> None:
    """None: an empty list."""
    attributes = [(first, b"lookup"), *fields_of("lookup", wire.cdb, dialect)[1:]] if first else []
    check(wire, dialect, way, encode(attributes), None)


def test_several_empty_lists_in_one_piece_where_stock_loses_what_follows(wire: Wire) -> None:
    check(wire, "3.6", "whole", b"\0" * 1000, None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["update", "delete"])
def test_change_on_the_read_only_service_is_denied(wire: Wire, kind: str, dialect: str, way: str) -> None:
    for table in (wire.cdb, wire.lmdb, UNAPPROVED):
        asked = request(kind, table, dialect, key=b"k", value=b"v")
        check(wire, dialect, way, asked, reply(kind, dialect, DENY))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_first_of_a_cdb_is_its_first_record_where_stock_exits(wire: Wire, dialect: str, way: str) -> None:
    asked = request("sequence", wire.cdb, dialect, flags=LOCK, function=0)
    check(wire, dialect, way, asked, reply("sequence", dialect, OK, LOCK, b"k", b"v"))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_sequence_of_one_connection_is_not_disturbed_by_another(wire: Wire, dialect: str) -> None:
    first, following = (request("sequence", wire.cdb, dialect, function=function) for function in (0, 1))
    records = [(OK, b"k", b"v"), (OK, b"", b"empty"), (NOKEY, b"", b""), (NOKEY, b"", b"")]
    with wire.server.connect() as one, wire.server.connect() as other:
        for i, (status, key, value) in enumerate(records):
            assert one.ask(first if i == 0 else following) == reply(
                "sequence", dialect, status, LOCK, key, value
            )
            assert other.ask(first) == reply("sequence", dialect, OK, LOCK, b"k", b"v")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_next_without_first_begins_on_lmdb_as_in_stock(wire: Wire, dialect: str) -> None:
    following = request("sequence", wire.lmdb, dialect, function=1)
    with wire.server.connect() as peer:
        for status in (OK, NOKEY, OK):
            assert peer.ask(following) == reply("sequence", dialect, status, LOCK, b"k", b"v")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("function", [b"2", b"3", b"-1", b"x", b"", b"99999999999"])
def test_unknown_function_is_bad(wire: Wire, function: bytes, dialect: str) -> None:
    asked = request("sequence", wire.lmdb, dialect, function=function)
    check(wire, dialect, "whole", asked, reply("sequence", dialect, BAD))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", [b":x", b"cdb:", b"foo:bar", b"cdb:rel"])
def test_approved_name_of_no_table_is_retry_where_stock_may_die(
    wire: Wire, name: bytes, dialect: str, way: str
) -> None:
    asked = lookup(name, b"k", dialect, flags=LOCK)
    with wire.server.connect() as peer:
        opened = peer.ask(request("open", name, dialect))
        assert opened[0] == (b"status", b"0")  # any other status has the client ask again for ever
        peer.send(asked * 3)
        for _ in range(3):
            assert peer.reply() == reply("lookup", dialect, RETRY, LOCK)
    good, good_reply = wire.good(dialect)
    with wire.server.connect() as peer:
        assert peer.ask(good) == good_reply


@pytest.mark.parametrize("dialect", DIALECTS)
def test_empty_key_on_lmdb_is_nokey_where_stock_exits(wire: Wire, dialect: str) -> None:
    for flags in (0, TRY0, TRY1, TRY0 | TRY1):
        with wire.server.connect() as peer:
            asked = lookup(wire.lmdb, b"", dialect, flags=LOCK | flags)
            assert peer.ask(asked)[0] == (b"status", b"1")
            assert peer.ask(wire.good(dialect)[0]) == wire.good(dialect)[1]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_empty_key_of_cdb_is_found(wire: Wire, dialect: str) -> None:
    asked = lookup(wire.cdb, b"", dialect, flags=LOCK | TRY0)
    check(wire, dialect, "several", asked, reply("lookup", dialect, OK, LOCK | TRY0, value=b"empty"))


@pytest.mark.parametrize("way", ["whole", "several"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("size", [511, 512, BIG, 1_000_000])
def test_long_key_is_an_ordinary_one(wire: Wire, size: int, dialect: str, way: str) -> None:
    for table in (wire.cdb, wire.lmdb):
        asked = lookup(table, b"k" * size, dialect, flags=LOCK)
        check(wire, dialect, way, asked, reply("lookup", dialect, NOKEY, LOCK))


@pytest.mark.parametrize("way", WAYS)
def test_both_dialects_on_one_connection(wire: Wire, way: str) -> None:
    flags = LOCK | TRY0 | TRY1
    asked = lookup(wire.cdb, b"k", "3.11", flags=flags) + lookup(wire.cdb, b"nokey", "3.6")
    with wire.server.connect() as peer:
        if way == "bytes":
            peer.send_slowly(asked * 2)
        elif way == "whole":
            peer.send(asked * 2)
        else:
            peer.send(asked)
            peer.send(asked)
        for _ in range(2):
            assert peer.reply() == reply("lookup", "3.11", OK, LOCK | TRY0, value=b"v")
            assert peer.reply() == reply("lookup", "3.6", NOKEY)


def test_several_requests_in_one_piece_are_all_answered_where_stock_answers_the_first(wire: Wire) -> None:
    asked = b"".join(lookup(wire.cdb, b"%d" % i if i % 3 else b"k") for i in range(500))
    with wire.server.connect() as peer:
        peer.send(asked)
        for i in range(500):
            assert peer.reply() == reply("lookup", "3.6", NOKEY if i % 3 else OK, value=b"v")


@settings(max_examples=60, deadline=None)
@given(st.lists(mutated_requests(), min_size=1, max_size=8), st.lists(st.integers(0, 1000), max_size=8))
def test_random_requests_get_the_reply_that_the_oracle_foresees(
    wire: Wire, requests: list[Attributes], cuts: list[int]
) -> None:
    good, good_reply = wire.good("3.6")
    data = b"".join(map(encode, requests)) + good
    with wire.server.connect() as peer:
        for begin, end in pairwise([0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]):
            peer.send(data[begin:end])
        for attributes in requests:
            verdict, fields = parse(attributes)
            if verdict == "ok":
                expected = reply(fields["request"], fields["dialect"], OK)
                assert [name for name, _ in peer.reply()] == [name for name, _ in expected]
            elif verdict == "bad":
                kind = attributes[0][1].decode()
                # A change is refused on this service only if it is well-formed.
                assert peer.reply() == reply(kind, dialect_of(attributes), BAD)
            elif verdict == "unknown":
                assert peer.reply() == BARE_BAD
        assert peer.reply() == good_reply


# Flags in the 3.11 dialect


def ask_3_11(peer: Peer, table: bytes, key: bytes, flags: int) -> tuple[int, int]:
    """(status, flags) of a lookup."""
    answer = dict(peer.ask(lookup(table, key, "3.11", flags=flags)))
    return int(answer[b"status"]), int(answer[b"flags"])


def test_flags_of_3_11_are_echoed(wire: Wire) -> None:
    with wire.server.connect() as peer:
        for flags in (0, LOCK, LOCK | TRY0, 1 << 30, LOCK | FIXED | PATTERN | MULTI_WRITER | TRY1 | TRY0):
            assert ask_3_11(peer, wire.cdb, b"nokey", flags) == (NOKEY, flags)


@pytest.mark.parametrize(("table", "kept"), [("cdb", TRY0), ("nul_cdb", TRY1), ("lmdb", TRY1)])
def test_hit_clears_the_other_try_bit(wire: Wire, table: str, kept: int) -> None:
    name = getattr(wire, table)
    with wire.server.connect() as peer:
        flags = LOCK | TRY0 | TRY1
        assert ask_3_11(peer, name, b"nokey", flags) == (NOKEY, flags)
        assert ask_3_11(peer, name, b"k", flags) == (OK, LOCK | kept)
        assert ask_3_11(peer, name, b"k", LOCK | kept) == (OK, LOCK | kept)
        other = TRY0 | TRY1 ^ kept
        assert ask_3_11(peer, name, b"k", LOCK | other & ~kept) == (NOKEY, LOCK | other & ~kept)
        assert ask_3_11(peer, name, b"k", flags) == (
            OK,
            LOCK | kept,
        )  # one client's hit decides nothing for others


def test_flags_of_refused_requests_are_zero(wire: Wire) -> None:
    with wire.server.connect() as peer:
        assert ask_3_11(peer, UNAPPROVED, b"k", LOCK) == (DENY, 0)
        assert ask_3_11(peer, b"x", b"k", LOCK) == (BAD, 0)


def test_lookup_before_open_does_not_spoil_the_open_reply_of_others(wire: Wire) -> None:
    """A client that reconnects sends the flags of its latest reply, where a hit has cleared a try bit."""
    other = 1 << 21  # any instance bit that no other test sends
    with wire.server.connect() as peer:
        peer.send(
            lookup(wire.cdb, b"k", "3.11", flags=LOCK | TRY0 | FIXED | other, instance_flags=LOCK | other)
        )
        assert peer.reply() == reply("lookup", "3.11", OK, LOCK | TRY0 | FIXED | other, value=b"v")
        opened = peer.ask(request("open", wire.cdb, "3.11", instance_flags=LOCK | other))
        assert opened == reply("open", "3.11", OK, LOCK | TRY0 | TRY1 | FIXED | other)


# Greeting


@pytest.mark.parametrize(
    ("version", "own", "expected"),
    [
        ("3.5.25", {}, b""),
        ("3.6.0", {}, GREETING),
        ("3.12-20260821", {}, GREETING),
        ("3.5.25", {"greeting": "yes"}, GREETING),
        ("3.7.11", {"greeting": "no"}, b""),
    ],
)
def test_greeting_is_sent_as_configured(version: str, own: dict[str, str], expected: bytes) -> None:
    """main.cf's own mail_version decides nothing."""
    with ServerProcess({"mail_version": "3.3.2"}, own=own, greeted=False) as server:
        server.beside_postfix(version)
        table = server.cdb("c", {b"k": b"v"})
        server.start()
        with server.connect() as peer:
            answer = encode(reply("lookup", "3.6", OK, value=b"v"))
            peer.send(lookup(table, b"k"))
            assert peer.read_exactly(len(expected + answer)) == expected + answer


# The log lines that administrators search for


def test_it_serves_beside_postfix_3_11_and_what_may_come_after_it() -> None:
    """A default that has functions, one that we know and one that we do not."""
    with ServerProcess({"myhostname": "mail.test.example"}) as server:
        policy = "inline:{{${domain_to_ascii{$mydomain}}=opportunistic}}, enforce"
        server.beside_postfix("3.11.7", smtp_requiretls_policy=policy, later="${later{x}}")
        table = server.cdb("test.example", {b"k": b"v"})
        server.main["virtual_alias_maps"] = f"proxy:cdb:{server.dir}/$mydomain"
        server.main["proxy_read_maps"] = "$virtual_alias_maps $smtp_requiretls_policy $later"
        server.start()
        with server.connect() as peer:
            assert peer.ask(lookup(table, b"k")) == found(b"v")
        server.wait_log('parameter later: unknown function "later"; it counts as its default')


def test_log_has_the_words_that_administrators_search_for() -> None:
    with ServerProcess() as server:
        wire = Wire(server)
        missing = f"cdb:{server.dir}/missing"
        server.start()
        with server.connect() as peer:
            for asked in (
                lookup(b"proxy:" + UNAPPROVED, b"k"),
                lookup(b"cdb:a\x01\xff\nb", b"k"),
                request("update", b"proxy:" + wire.lmdb, key=b"k", value=b"v"),
                request("delete", wire.cdb, "3.11", key=b"k"),
                encode([(b"request", b"nonsense")]),
                encode([(b"request", b"open"), (b"table", b"t"), (b"foo", b"0")]),
                encode([(b"request", b"open")]),
                request("open", wire.cdb, flags=b"x64"),
                lookup(missing.encode(), b"k"),
                encode([*fields_of("open", wire.cdb, "3.6"), (b"extra", b"")]),
            ):
                peer.ask(asked)
            peer.send(b"\0")
            peer.ask(encode([(b"foo", b"bar")]) + wire.good("3.6")[0])
        assert server.stop() == 0
        lines = server.log_lines()
        advice = "warning: to approve this table for read-only access, list proxy:"
        no_file = f"open database {server.dir}/missing.cdb: No such file or directory"
        for line in (
            f'warning: request for unapproved table: "{UNAPPROVED.decode()}"',
            f"{advice}{UNAPPROVED.decode()} in main.cf:proxy_read_maps",
            'warning: request for unapproved table: "cdb:a???b"',
            f"warning: refusing proxy:{wire.lmdb.decode()} update request on non-proxywrite service",
            f"warning: refusing {wire.cdb.decode()} delete request on non-proxywrite service",
            'warning: unrecognized request: "nonsense", ignored',
            "warning: unexpected attribute foo from proxymap socket (expecting: flags)",
            "warning: missing attribute table in input from proxymap socket",
            "warning: malformed numerical data from proxymap socket while reading input attribute value: x64",
            "warning: missing attribute request in input from proxymap socket",
            "warning: unexpected attribute foo from proxymap socket (expecting: request)",
            "warning: unexpected attribute extra from proxymap socket (expecting: (list terminator))",
            f"error: {no_file}",
            f"warning: {missing} is unavailable. {no_file}",
        ):
            assert line in lines


def test_log_of_the_read_write_service_names_its_own_parameter() -> None:
    with ServerProcess() as server:
        server.start("-n", "proxywrite")
        with server.connect() as peer:
            assert peer.ask(request("update", UNAPPROVED, key=b"k", value=b"v")) == reply(
                "update", "3.6", DENY
            )
            peer.ask(encode([(b"request", b"open")]))
        assert server.stop() == 0
        name = UNAPPROVED.decode()
        advice = f"to approve this table for read-write access, list proxy:{name} in main.cf:proxy_write_maps"
        assert f"warning: {advice}" in server.log_lines()
        assert "warning: missing attribute table in input from proxywrite socket" in server.log_lines()
