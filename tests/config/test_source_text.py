"""source: logical lines and records, against the stock postmap where it is installed"""

import base64
import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fix_postfix import NUL_WARNING
from hypothesis import given, settings
from hypothesis import strategies as st

from proxymap.config.source import (
    RecordError,
    base64_of_files,
    logical_lines,
    split_braced,
    split_list,
    split_record,
    unbraced,
)

needs_postmap = pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")


def lines_of(text: bytes) -> tuple[list[tuple[int, bytes]], list[str]]:
    warnings: list[str] = []
    return list(logical_lines(io.BytesIO(text), "src", warnings.append)), warnings


def test_continuation_keeps_its_leading_blanks() -> None:
    assert lines_of(b"b\n  c\n") == ([(1, b"b  c")], [])


def test_comments_and_empty_lines_do_not_end_a_logical_line() -> None:
    assert lines_of(b"k v\n# c\n\n   \n  # d\n\tw\nx y") == ([(1, b"k v\tw"), (7, b"x y")], [])


def test_number_is_that_of_the_first_line() -> None:
    assert lines_of(b"#\n\nk v\n w\n#\nk v\n")[0] == [(3, b"k v w"), (6, b"k v")]


def test_continuation_of_nothing_is_dropped_with_one_warning() -> None:
    assert lines_of(b"#\n  a\n  b\nk v\n") == (
        [(4, b"k v")],
        ['src: logical line must not start with whitespace: "  a  b"'],
    )


def test_long_text_is_cut_in_the_warning() -> None:
    assert lines_of(b" " + b"x" * 99)[1] == [
        'src: logical line must not start with whitespace: " ' + "x" * 29 + '..."'
    ]


def test_text_behind_a_nul_is_not_there() -> None:
    assert lines_of(b"a\0b c\n d\nk v")[0] == [(1, b"a"), (3, b"k v")]


@pytest.mark.parametrize(
    ("line", "record"),
    [
        (b"k v", (b"k", b"v")),
        (b"k \t v w # x \t\r", (b"k", b"v w # x")),
        (b'"a b" v', (b'"a b"', b"v")),
        (b'"a"b"c d" v', (b'"a"b"c d"', b"v")),
        (b'"a\\"b c" v', (b'"a\\"b c"', b"v")),
        (b"a\\ b v", (b"a\\ b", b"v")),
        (b"a\\\\ b", (b"a\\\\", b"b")),
        (b'x\\"y z', (b'x\\"y', b"z")),
        (b'a b "c', (b"a", b'b "c')),
        (b'"" v', (b'""', b"v")),
        (b"\xff \xfe", (b"\xff", b"\xfe")),
    ],
)
def test_record(line: bytes, record: tuple[bytes, bytes]) -> None:
    assert split_record(line) == record


@pytest.mark.parametrize("line", [b"k", b"k  ", b"", b"\\", b"\\ ", b'"a b"'])
def test_record_without_value_is_refused(line: bytes) -> None:
    with pytest.raises(RecordError, match=r"^expected format: key whitespace value$"):
        split_record(line)


@pytest.mark.parametrize("line", [b'"a b v', b'a"b', b'"a\\" v'])
def test_unbalanced_quote_is_refused(line: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        split_record(line)
    assert str(caught.value) == f"unbalanced '\"' in '{line.decode()}'"


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (b"", []),
        (b" ,\t\r\n,", []),
        (b"a, b c", [b"a", b"b", b"c"]),
        (b"{a, b}, c={d, {e f}} g", [b"{a, b}", b"c={d, {e f}}", b"g"]),
        (b"{a}b c} d {", [b"{a}b", b"c}", b"d", b"{"]),
        (b"a {b, c", [b"a", b"{b, c"]),
        (b"a\vb", [b"a\vb"]),
    ],
)
def test_list_ends_items_at_commas_and_blanks_outside_braces(text: bytes, items: list[bytes]) -> None:
    assert list(split_list(text)) == items


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", """no '{' at start of text in \"\""""),
        (b" {a}", """no '{' at start of text in " {a}\""""),
        (b"{", """missing '}' in "{\""""),
        (b"{a {b}", """missing '}' in "{a {b}\""""),
        (b"{a} ", """syntax error after '}' in "{a} \""""),
        (b"{a}}", """syntax error after '}' in "{a}}\""""),
    ],
)
def test_braces_that_do_not_enclose_the_text(text: bytes, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        unbraced(text)
    assert str(caught.value) == why


def test_braces_come_off_once() -> None:
    assert unbraced(b"{ {a} }") == b" {a} "
    assert split_braced(b"{ {a b}, c }") == [b"{a b}", b"c"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A main.cf that is old: Postfix waits while it is younger than a second."""
    directory = tmp_path_factory.mktemp("postmap")
    (directory / "main.cf").write_text("compatibility_level = 3.6\nsmtputf8_enable = no\n")
    os.utime(directory / "main.cf", (1e9, 1e9))
    return directory


def stock(directory: Path, text: bytes) -> tuple[dict[bytes, bytes], list[str]]:
    """What postmap stores and what it says."""
    (directory / "src").write_bytes(text)
    (directory / "src.lmdb").unlink(missing_ok=True)
    command = ["postmap", "-c", str(directory), "-f"]
    said = subprocess.run([*command, "lmdb:src"], cwd=directory, capture_output=True, check=False).stderr
    dump = subprocess.run([*command, "-s", "lmdb:src"], cwd=directory, capture_output=True, check=True).stdout
    pairs = dict(tuple(line.split(b"\t", 1)) for line in dump.split(b"\n") if line)
    lines = [line.removeprefix("postmap: warning: ") for line in said.decode().splitlines()]
    return pairs, [line for line in lines if not line.endswith(NUL_WARNING)]


def ours(text: bytes) -> tuple[dict[bytes, bytes], list[str]]:
    warnings: list[str] = []
    records: dict[bytes, bytes] = {}
    for number, line in logical_lines(io.BytesIO(text), "src", warnings.append):
        try:
            key, value = split_record(line)
        except RecordError as trouble:
            ignored = " -- ignoring this line" if "unbalanced" in str(trouble) else ""
            warnings.append(f"src, line {number}: {trouble}{ignored}")
            continue
        if key.endswith(b":"):
            warnings.append(f'src, line {number}: record is in "key: value" format; is this an alias file?')
        if key in records:
            warnings.append(f'lmdb:src: duplicate entry: "{key.decode()}"')
        else:
            records[key] = value
    return records, ["".join(c if c >= " " else "?" for c in text) for text in warnings]


pieces = st.sampled_from([*'\n ab:#"\\\r\v\f\0', "\n", "\n ", "k v\n", '"a b" '])


@needs_postmap
@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=25).map("".join))
def test_postmap_stores_and_warns_the_same(directory: Path, text: str) -> None:
    assert ours(text.encode()) == stock(directory, text.encode())


# Values that are names of files


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("named")
    for name, content in {"line": b"one\n", "bare": b"two", "empty": b"", "nul": b"a\0b\xff"}.items():
        (place / name).write_bytes(content)
    os.mkfifo(place / "pipe")
    return place


LISTS = ["line", "line, bare", "bare\tline", "empty", "empty,empty", "nul", "line missing", "missing"]


@pytest.mark.parametrize("names", LISTS)
def test_values_that_name_files_become_base64_of_their_contents(named: Path, names: str) -> None:
    value = re.sub(r"\w+", lambda name: f"{named}/{name[0]}", names).encode()
    try:
        contents = [(named / name).read_bytes() for name in re.findall(r"\w+", names)]
    except OSError:
        with pytest.raises(ValueError, match=r"^open /.*/missing: No such file or directory$"):
            base64_of_files(value)
    else:
        assert base64_of_files(value) == base64.b64encode(b"\n".join(contents))


@needs_postmap
@pytest.mark.parametrize("names", LISTS)
def test_postmap_stores_the_same_base64(directory: Path, named: Path, names: str) -> None:
    value = re.sub(r"\w+", lambda name: f"{named}/{name[0]}", names).encode()
    (directory / "files").write_bytes(b"key " + value)
    command = ["postmap", "-c", str(directory)]
    said = subprocess.run([*command, "-F", "cdb:files"], cwd=directory, capture_output=True).stderr
    stored = subprocess.run([*command, "-q", "key", "cdb:files"], cwd=directory, capture_output=True).stdout
    try:
        encoded, trouble = base64_of_files(value), ""
    except ValueError as error:
        encoded, trouble = b"", f"postmap: warning: files, line 1: {error}: skipping this entry\n"
    assert (stored.removesuffix(b"\n"), said.decode()) == (encoded, trouble)


@pytest.mark.parametrize("value", [b"", b" , ,"])
def test_list_of_no_files_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"^empty pathname list: >>.*<<'$"):
        base64_of_files(value)


@pytest.mark.parametrize("name", ["/", "pipe", "/dev/zero", "line/x", "x" * 5000])
def test_file_that_cannot_be_read_whole_is_refused(named: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"^open "):
        base64_of_files(bytes(named / name))
