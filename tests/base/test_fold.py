"""test_fold - folding against str.casefold and bytes.lower, UTF-8 checks against strict decoding"""

from __future__ import annotations

import itertools
import random
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxymap.base import _fold
from proxymap.base._fold import fold, is_utf8

SURROGATES = range(0xD800, 0xE000)
CODES = [code for code in range(sys.maxunicode + 1) if code not in SURROGATES]


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    _fold.load()


def decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_mapping_is_complete_and_loads_once() -> None:
    expected = sum(chr(code).casefold() != chr(code) for code in CODES if code >= 0x80)
    assert _fold.load() == expected
    assert _fold.load() == expected


def test_every_code_point_folds_as_casefold_does() -> None:
    for code in CODES:
        text = chr(code)
        if text != text.casefold() or code < 0x3000:
            assert fold(text.encode(), True) == text.casefold().encode(), hex(code)
    for start in range(0, len(CODES), 500):
        text = "".join(map(chr, CODES[start : start + 500]))
        assert fold(text.encode(), True) == text.casefold().encode(), hex(CODES[start])


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("STRASSE ß ẞ ﬃ İ \u0131 ΐ Ꮖ ꭰ")
@example("A" * 300 + "É")
@example("é" + "A" * 300)
@example("ΐ" * 200)  # three code points each
def test_text_folds_as_casefold_does(text: str) -> None:
    assert fold(text.encode(), True) == text.casefold().encode()


@settings(max_examples=300, deadline=None)
@given(st.binary())
def test_without_the_layer_only_ascii_folds(key: bytes) -> None:
    assert fold(key, False) == key.lower()


def test_every_byte_and_neighbours_without_the_layer() -> None:
    for pair in itertools.product(range(256), repeat=2):
        assert fold(bytes(pair), False) == bytes(pair).lower()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.binary(max_size=20))
def test_invalid_text_does_no_harm(text: str, rest: bytes) -> None:
    """The caller checks first; without that check the key comes back as it was, or folded."""
    key = text.encode() + rest
    folded = fold(key, True)
    if decodes(key):
        assert folded == key.decode().casefold().encode()
    else:
        assert folded == key or key.isascii()


def test_long_keys() -> None:
    rng = random.Random(13)
    for size in (255, 256, 257, 1000, 100_000):
        text = "".join(chr(rng.choice((65, 97, 0xC9, 0xDF, 0x1E9E, 0x10400))) for _ in range(size))
        assert fold(text.encode(), True) == text.casefold().encode()
        assert fold(b"Ab" * size, False) == b"ab" * size
        assert fold(b"ab" * size, True) == b"ab" * size


def test_folding_is_stable() -> None:
    for code in CODES:
        if code < 0x20000:
            once = fold(chr(code).encode(), True)
            assert fold(once, True) == once, hex(code)


# UTF-8


def test_every_code_point_is_utf8() -> None:
    for start in range(0, len(CODES), 1000):
        assert is_utf8("".join(map(chr, CODES[start : start + 1000])).encode())


def test_no_surrogate_is_utf8() -> None:
    for code in SURROGATES:
        assert not is_utf8(chr(code).encode(errors="surrogatepass"))


def encoded(code: int, size: int) -> bytes:
    """In so many bytes, too long or not, whether there is such a code point or not."""
    tail = bytes(0x80 | code >> 6 * i & 0x3F for i in reversed(range(size - 1)))
    lead = (0, 0, 0xC0, 0xE0, 0xF0, 0xF8, 0xFC)[size]
    return bytes([lead | code >> 6 * (size - 1)]) + tail


def test_no_overlong_form_is_utf8() -> None:
    for size, least in ((2, 0x80), (3, 0x800), (4, 0x10000)):
        for code in [*range(min(least, 0x900)), *range(least - 50, least)]:
            assert not is_utf8(encoded(code, size)), (size, hex(code))
        assert is_utf8(encoded(least, size))


def test_nothing_above_unicode_is_utf8() -> None:
    assert is_utf8(encoded(0x10FFFF, 4))
    for code in (0x110000, 0x110001, 0x13FFFF, 0x140000, 0x1FFFFF):
        assert not is_utf8(encoded(code, 4)), hex(code)
    for size in (5, 6):
        assert not is_utf8(encoded(0x41, size))
        assert not is_utf8(encoded(0x10FFFF, size))


def test_no_part_of_a_character_is_utf8() -> None:
    for char in "é€𐐀\u07ff\uffff\U0010ffff":
        whole = char.encode()
        for size in range(1, len(whole)):
            part = whole[:size]
            for text in (part, whole[size:], b"a" + part, part + b"a", part + whole):
                assert not is_utf8(text), text
        assert is_utf8(whole * 3)


def test_a_character_may_end_the_text_and_nothing_behind_it_counts() -> None:
    for size in range(200):
        assert is_utf8(b"a" * size + "é".encode())
        assert not is_utf8(b"a" * size + b"\xc3")


EDGES = bytes(
    [
        0x00,
        0x41,
        0x7F,
        0x80,
        0x8F,
        0x90,
        0x9F,
        0xA0,
        0xBF,
        0xC0,
        0xC1,
        0xC2,
        0xDF,
        0xE0,
        0xE1,
        0xEC,
        0xED,
        0xEE,
        0xEF,
        0xF0,
        0xF1,
        0xF3,
        0xF4,
        0xF5,
        0xF8,
        0xFF,
    ]
)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4])
def test_all_sequences_of_edge_bytes(size: int) -> None:
    for text in map(bytes, itertools.product(EDGES, repeat=size)):
        assert is_utf8(text) == decodes(text), text


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=50) | st.lists(st.sampled_from(EDGES), max_size=30).map(bytes))
def test_random_bytes(text: bytes) -> None:
    assert is_utf8(text) == decodes(text)


def test_damaged_text() -> None:
    rng = random.Random(14)
    for _ in range(30_000):
        text = bytearray("".join(chr(rng.choice(CODES)) for _ in range(4)).encode())
        text[rng.randrange(len(text))] = rng.choice(EDGES)
        assert is_utf8(bytes(text)) == decodes(bytes(text)), bytes(text)
