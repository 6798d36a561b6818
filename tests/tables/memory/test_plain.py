"""test_plain - the plain lines of a source text, beside a reader of all of it"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymap.config.source import RecordError, logical_lines, split_record
from proxymap.tables import base
from proxymap.tables._table import Surrogate
from proxymap.tables.flags import DUP_IGNORE, DUP_REPLACE, DUP_WARN, FOLD_FIX, UTF8_REQUEST
from proxymap.tables.memory import texthash
from proxymap.tables.memory._plain import PlainLines
from proxymap.tables.memory._records import Records, RecordsTable

PIECES = [*b"ab1 \t\n\n:#\r", *b'"\\\0', b"\xc3\x84", b"K v\n", b"k w\n", b"\n \n", b"# c\n", b"long 1\n"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map(
    lambda pieces: b"".join(bytes([p]) if isinstance(p, int) else p for p in pieces)
)


def as_source_reads(text: bytes, number: int = 1) -> list[tuple[Any, ...]]:
    """Records with their line numbers, and what is to be warned of."""
    told: list[tuple[Any, ...]] = []
    for first, line in logical_lines(io.BytesIO(text), "t", lambda warning: told.append((warning,)), number):
        try:
            told.append((first, *split_record(line)))
        except RecordError as error:
            told.append((first, str(error)))
    return told


def read(text: bytes, **how: Any) -> tuple[list[tuple[bytes, bytes]], list[tuple[int, bytes]]]:
    """The records, in their order, and the parts that were not plain."""
    held = Records()
    odd = list(PlainLines(text, held, **how))
    return list(RecordsTable(b"texthash", held).sequence()), odd


@given(TEXTS)
def test_nothing_is_lost_and_nothing_read_twice(text: bytes) -> None:
    records, odd = read(text)
    told = [what for number, part in odd for what in as_source_reads(part, number)]
    expected = as_source_reads(text)
    assert not Counter(told) - Counter(expected)  # with their numbers
    rest = Counter(expected) - Counter(told)
    assert sorted(records) == sorted(what[1:] for what in rest.elements())
    assert not any(key.endswith(b":") or not (key + value).isascii() for key, value in records)


@given(
    TEXTS,
    st.sampled_from([0, DUP_WARN, DUP_IGNORE, DUP_REPLACE]),
    st.booleans(),
    st.booleans(),
)
def test_a_texthash_is_the_same_as_without(text: bytes, duplicates: int, fold: bool, utf8: bool) -> None:
    def loaded() -> tuple[object, list[str]]:
        warnings: list[str] = []
        host = base.Host(utf8=utf8, warn=warnings.append)
        flags = duplicates | UTF8_REQUEST * utf8 | FOLD_FIX * fold
        opening = base.Opening(flags, False, host, lambda name: Surrogate(name, b"no members"))
        with tempfile.NamedTemporaryFile() as file:
            file.write(text)
            file.flush()
            try:
                table = texthash.open_table(b"texthash", file.name.encode(), opening)
            except ValueError as error:
                return str(error).replace(file.name, ""), [line.replace(file.name, "") for line in warnings]
            return table.sequence(), [line.replace(file.name, "") for line in warnings]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texthash, "PlainLines", lambda content, held, **how: [(1, content)])
        expected = loaded()
    assert loaded() == expected


def test_what_is_plain() -> None:
    text = (
        b'# c\n\nA\tb c \r\n"q" 1\nd 2\n# c\n\n 3\n\n  # c\ne 4\nf: 5\ng 6\n\xc3\x84 7\nh\n\ti 8\nA 9\nj 10'
    )
    records, odd = read(text)
    assert records == [(b"A", b"b c"), (b"e", b"4"), (b"g", b"6"), (b"j", b"10")]
    assert odd == [
        (4, b'"q" 1\nd 2\n# c\n\n 3\n\n  # c\n'),
        (12, b"f: 5\n"),
        (14, b"\xc3\x84 7\nh\n\ti 8\n"),
        (17, b"A 9\n"),
    ]


@pytest.mark.parametrize(
    ("how", "kept", "left"),
    [
        ({}, b"1", [(2, b"a 2\n")]),
        ({"duplicates": True}, b"1", []),
        ({"duplicates": True, "replace": True}, b"2", []),
        ({"fold": True}, b"1", [(2, b"a 2\n"), (3, b"A 3\n")]),
    ],
)
def test_duplicates(how: dict[str, bool], kept: bytes, left: list[tuple[int, bytes]]) -> None:
    records, odd = read(b"a 1\na 2\nA 3\n", **how)
    assert (dict(records)[b"a"], odd) == (kept, left)


@pytest.mark.parametrize("patience", [0, 60])
def test_a_long_text_is_read_to_its_end(patience: int) -> None:
    """In the background, and by the caller when that has no time left."""
    lines = [b"user%d@example.com box%d\n" % (n, n) for n in range(20_000)]
    lines[7_000] = b'"an odd" line\n'
    lines[15_000] = b"User1@example.com again\n"
    records, odd = read(b"".join(lines), fold=True, patience=patience)
    assert odd == [(7_001, lines[7_000]), (15_001, lines[15_000])]
    assert len(records) == 19_998
    assert records[-1] == (b"user19999@example.com", b"box19999")
