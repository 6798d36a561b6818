"""test_codec - _codec against the plain-Python oracle, on random requests of both dialects"""

from __future__ import annotations

import oracle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracle import FIELDS, Attributes, encode

from proxymap import _codec

KINDS = sorted(FIELDS["3.6"])
NAMES = [b"request", b"table", b"instance_flags", b"flags", b"key", b"value", b"function", b"foo", b"Request"]
STRING = st.one_of(st.sampled_from([b"", b"k", b"cdb:/t", *NAMES]), st.binary(max_size=40)).map(
    lambda text: text.replace(b"\0", b"?")
)
NUMBER = st.one_of(
    st.integers(-10, 2**33).map(lambda n: b"%d" % n),
    st.sampled_from(
        b",+, 64,+64,\t+64,+ 64,064,64 ,x64,0x40,1.5,--1,-0,2147483647,2147483648,\xb2".split(b",")
    ),
    st.sampled_from([b"4294967296", b"99999999999", b"9" * 30, b"0" * 30 + b"7"]),
)


@st.composite
def valid_requests(draw: st.DrawFn) -> Attributes:
    dialect, kind = draw(st.sampled_from(["3.6", "3.11"])), draw(st.sampled_from(KINDS))
    attributes = [(b"request", kind.encode()), (b"table", draw(STRING))]
    for name in FIELDS[dialect][kind]:
        if name.endswith("flags"):
            value = b"%d" % draw(st.integers(0, oracle.INT_MAX))
        elif name == "function":
            value = b"%d" % draw(st.integers(0, 1))
        else:
            value = draw(STRING)
        attributes.append((name.encode(), value))
    return attributes


@st.composite
def mutated_requests(draw: st.DrawFn) -> Attributes:
    """A valid request, then up to three changes."""
    attributes = list(draw(valid_requests()))
    for _ in range(draw(st.integers(0, 3))):
        change = draw(st.sampled_from(["drop", "double", "swap", "rename", "number", "string", "insert"]))
        at = draw(st.integers(0, max(len(attributes) - 1, 0)))
        if change == "insert" or not attributes:
            attributes.insert(at, (draw(st.sampled_from(NAMES)), draw(STRING)))
        elif change == "drop":
            del attributes[at]
        elif change == "double":
            attributes.insert(draw(st.integers(0, len(attributes))), attributes[at])
        elif change == "swap":
            attributes[at], attributes[0] = attributes[0], attributes[at]
        elif change == "rename":
            attributes[at] = draw(st.sampled_from(NAMES)), attributes[at][1]
        else:
            attributes[at] = attributes[at][0], draw(NUMBER if change == "number" else STRING)
    return attributes


ATTRIBUTE_LISTS = st.lists(st.tuples(STRING.filter(len), STRING), max_size=20)


@given(valid_requests())
def test_valid_request_is_parsed_as_by_the_oracle(attributes: Attributes) -> None:
    verdict, fields = oracle.parse(attributes)
    assert verdict == "ok"
    assert _codec.parse(encode(attributes)) == ("ok", fields)


@given(mutated_requests())
@example([])
@example([(b"request", b"open")])
@example([(b"request", b"lookup"), (b"table", b""), (b"flags", b"2147483647"), (b"key", b"")])
@example([(b"request", b"open"), (b"table", b"t"), (b"flags", b"0"), (b"instance_flags", b"0")])
@example(
    [(b"request", b"open"), (b"table", b"t"), (b"flags", b"0"), *[(b"x", b"")] * 4, (b"instance_flags", b"0")]
)
def test_any_request_is_parsed_as_by_the_oracle(attributes: Attributes) -> None:
    assert _codec.parse(encode(attributes)) == oracle.parse(attributes)


@given(ATTRIBUTE_LISTS)
def test_any_attribute_list_is_parsed_as_by_the_oracle(attributes: Attributes) -> None:
    assert _codec.parse(encode(attributes)) == oracle.parse(attributes)


@given(NUMBER)
def test_number_is_read_as_by_the_oracle(text: bytes) -> None:
    verdict, fields = _codec.parse(encode([(b"request", b"open"), (b"table", b"t"), (b"flags", text)]))
    assert (fields["flags"] if verdict == "ok" else None) == oracle.number(text)


@pytest.mark.parametrize("text", [b" 64", b"+64", b"\v\f\r\t\n +64", b"064", b"00000000000000000000064"])
def test_number_may_have_blanks_and_a_plus_in_front(text: bytes) -> None:
    assert _codec.parse(encode([(b"request", b"open"), (b"table", b"t"), (b"flags", text)]))[1]["flags"] == 64


@given(st.lists(st.one_of(mutated_requests(), ATTRIBUTE_LISTS), max_size=4), st.binary(max_size=30))
def test_list_ends_where_the_oracle_says(lists: list[Attributes], rest: bytes) -> None:
    """Of several lists in one piece, and whatever follows them."""
    data = b"".join(map(encode, lists)) + rest
    while (taken := oracle.take_list(data)) is not None:
        assert _codec.scan_list(data) == len(data) - len(taken[1])
        data = taken[1]
    assert _codec.scan_list(data) == 0


@given(mutated_requests())
def test_list_is_found_with_every_cut(attributes: Attributes) -> None:
    data = encode(attributes)
    for cut in range(len(data)):
        assert _codec.scan_list(data[:cut]) == 0
        assert _codec.scan_list(data, (cut,)) == len(data)
    assert _codec.scan_list(data, tuple(range(len(data)))) == len(data)


@given(mutated_requests(), st.data())
def test_list_is_found_with_several_cuts_and_followers(attributes: Attributes, data: st.DataObject) -> None:
    first = encode(attributes)
    both = first + first
    cuts = data.draw(st.lists(st.integers(0, len(first) - 1), max_size=6).map(sorted))
    assert _codec.scan_list(both, tuple(cuts)) == len(first)


def test_list_of_more_attributes_than_any_request_has() -> None:
    attributes = [(b"n%d" % i, b"v") for i in range(1000)]
    assert _codec.scan_list(encode(attributes)) == len(encode(attributes))
    request = [(b"request", b"open"), (b"table", b"t"), (b"flags", b"0"), *attributes]
    assert _codec.parse(encode(request))[0] == "ok"


@given(
    st.sampled_from(KINDS),
    st.sampled_from(["3.6", "3.11"]),
    st.integers(0, 5),
    st.integers(-(2**31), 2**31 - 1),
    STRING,
    st.one_of(STRING, st.integers(0, 5000).map(lambda n: b"v" * n)),
)
@example("open", "3.6", 0, -(2**31), b"", b"")
@example("sequence", "3.11", 0, 2**31 - 1, b"k", b"v")
def test_reply_is_that_of_the_oracle(
    kind: str, dialect: str, status: int, flags: int, key: bytes, value: bytes
) -> None:
    expected = encode(oracle.reply(kind, dialect, status, flags, key, value))
    assert _codec.reply(kind, dialect, status, flags, key, value) == expected


@pytest.mark.parametrize("dialect", ["3.6", "3.11"])
@pytest.mark.parametrize("kind", KINDS)
def test_strings_of_a_reply_that_is_not_ok_are_empty_but_present(kind: str, dialect: str) -> None:
    refused = _codec.reply(kind, dialect, 2, 0, b"key", b"value")
    taken = oracle.take_list(refused)
    assert taken is not None
    assert [name.decode() for name, _ in taken[0]] == ["status", *oracle.REPLIES[dialect][kind]]
    assert not any(value for name, value in taken[0] if name in (b"key", b"value"))


def test_example_of_the_protocol_byte_for_byte() -> None:
    request = b"request\0lookup\0table\0cdb:/etc/postfix/v\0flags\00064\0key\0user5@example.com\0\0"
    assert _codec.parse(request)[1]["key"] == b"user5@example.com"
    reply = b"status\x000\0value\0box5@store5.example.net\0\0"
    assert _codec.reply("lookup", "3.6", 0, 0, b"", b"box5@store5.example.net") == reply
