"""test_builtin - inline, static, randmap and fail: tables that are all in their names"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from contract import BOTH, FIXED, OK, RETRY, Contract, Records, found
from fix_postfix import release

from proxymap.tables._table import Table
from proxymap.tables.flags import FOLD_FIX, RHS_IS_FILE, UTF8_REQUEST
from proxymap.tables.opening import open_table

PATTERN = 1 << 5

needs_postmap = pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A main.cf that is old: Postfix waits while it is younger than a second."""
    directory = tmp_path_factory.mktemp("postmap")
    (directory / "main.cf").write_text("compatibility_level = 3.6\nsmtputf8_enable = yes\n")
    os.utime(directory / "main.cf", (1e9, 1e9))
    return directory


def stock(directory: Path, *arguments: bytes) -> tuple[bytes, str]:
    """What postmap prints, and what it says when it gives up."""
    command = [b"postmap", b"-c", bytes(directory), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    said = done.stderr.decode().removesuffix("\n")
    return done.stdout.removesuffix(b"\n"), said.partition("postmap: fatal: ")[2]


class TestInline(Contract):
    def make(self, records: Records) -> Table:
        if not records or any(set(key + value) & set(b' \t\n\v\f\r"\\={},\0') for key, value in records):
            pytest.skip("no name of a table has such records")
        items = b",".join(b"%s=%s" % record for record in records)
        return open_table(b"inline:{%s}" % items)


INLINE = [
    "{a=b, {c = d e f}, G=h}",
    "{a=1, A=2, a=3}",
    "{=b}",
    "{a={b c}}",
    "{a=b;c=d}",
    "{a=b,,c=d,}",
    "{{a = b = c  } { d=  e}}",
    '{"a"=b, {"c d" = e}, f"=g"=h}',
    "{a\\=b=c, d=e\\}",
    '{a="b c"}',
    "{Ä=b, ẞ=c, A=Ä}",
    *("x", "{", "{}", "{ }", "{,}", "{a}", "{a=b", "{a=b}x", "{a=b} ", " {a=b}", "{{a=b}", "{{a=b}x}"),
    *("{a = b}", "{{a}}", "{{}}", "{{ }}", "{a=b}}", "{{ { a=b } }}", '{"a=b}', "{{a b = c}}", "{a\\ =b}"),
]


@needs_postmap
@pytest.mark.parametrize("name", INLINE)
def test_inline_is_read_as_postmap_reads_it(directory: Path, name: str) -> None:
    type_name = f"inline:{name}".encode()
    table = open_table(type_name, FOLD_FIX | UTF8_REQUEST)
    records, why = stock(directory, b"-s", type_name)
    assert (table.reason or b"").decode() == why
    expected = [] if why else [tuple(line.split(b"\t")) for line in records.split(b"\n")]
    if release() >= (3, 11):  # it folds ASCII only while it loads, so that no folded key finds the others
        assert all(key == key.lower() for key, _ in expected)
        expected = [(key.decode().casefold().encode(), value) for key, value in expected]
    assert sorted(table.sequence()) == sorted(expected)


def test_inline_of_strange_bytes() -> None:
    name = b"inline:{\xff=\xfe}"
    assert found(open_table(name), b"\xff") == b"\xfe"
    reason = open_table(name, UTF8_REQUEST).reason
    assert reason == b'bad UTF-8 syntax: "%s"; need "inline:{name=value...}"' % name


def test_inline_keeps_its_case_unless_the_client_folds() -> None:
    assert open_table(b"inline:{Ab=Cd}").sequence() == [(b"Ab", b"Cd")]
    assert open_table(b"inline:{Ab=Cd}", FOLD_FIX).sequence() == [(b"ab", b"Cd")]


STATIC = ["text", " a b ", "{a}", "{ a b }", "{{a}}", "a}", "{a", "{a}b", "{ {a} } ", "{a}}", "{a, b}"]


@needs_postmap
@pytest.mark.parametrize("name", STATIC)
def test_static_is_read_as_postmap_reads_it(directory: Path, name: str) -> None:
    type_name = f"static:{name}".encode()
    table = open_table(type_name)
    value, why = stock(directory, b"-q", b"key", type_name)
    assert (table.reason or b"").decode() == why
    assert table.lookup(b"key")[::2] == ((RETRY, b"") if why else (OK, value))


@pytest.mark.parametrize("key", [b"", b"a", b"\xff" * 100_000])
def test_static_has_its_value_for_every_key(key: bytes) -> None:
    table = open_table(b"static:{ v }")
    assert table.flags == FIXED
    assert table.lookup(key, 540736) == (OK, 540736, b"v")
    assert open_table(b"static:{}").lookup(key) == (OK, BOTH, b"")


RANDMAP = ["x", "{", "{ }", "{,}", "{a", "{a}x", "{ {a }", "{ a} }", "{}"]


@needs_postmap
@pytest.mark.parametrize("name", [*RANDMAP, "{{}}", "{{a b}}", "{ {a b} }", "{ {a}b }", "{ b{a} }", "{a}"])
def test_randmap_is_read_as_postmap_reads_it(directory: Path, name: str) -> None:
    type_name = f"randmap:{name}".encode()
    table = open_table(type_name)
    value, why = stock(directory, b"-q", b"key", type_name)
    assert (table.reason or b"").decode() == why
    assert table.lookup(b"key")[::2] == ((RETRY, b"") if why else (OK, value))


def test_randmap_gives_each_item_about_as_often() -> None:
    table = open_table(b"randmap:{a, b c, {d e}}")
    assert table.flags == PATTERN
    answers = [found(table, b"key") for _ in range(4000)]
    assert {item: answers.count(item) > 800 for item in set(answers)} == dict.fromkeys(
        (b"a", b"b", b"c", b"{d e}"), True
    )
    pairs = set(itertools.pairwise(answers))
    assert len(pairs) == 16


def test_fail_is_retry() -> None:
    table = open_table(b"fail:whatever")
    assert table.flags == PATTERN
    assert table.reason is None
    assert table.lookup(b"a", 64) == (RETRY, 64, b"")
    assert table.sequence() == []


@pytest.mark.parametrize(
    ("form", "wanted"),
    [("inline:{{a={file}}}", "filename"), ("static:{file}", None), ("randmap:{{{file}}}", None)],
)
def test_values_that_name_files_are_their_contents(tmp_path: Path, form: str, wanted: str | None) -> None:
    (tmp_path / "f").write_bytes(b"1\n")
    name = form.format(file=tmp_path / "f").encode()
    assert found(open_table(name, RHS_IS_FILE), b"a") == b"MQo="
    assert found(open_table(name), b"a") == bytes(tmp_path / "f")
    name = form.format(file=tmp_path / "none").encode()
    reason = f"open {tmp_path}/none: No such file or directory"
    if wanted:
        reason += f': "{name.decode()}"; need "inline:{{name={wanted}...}}"'
    assert open_table(name, RHS_IS_FILE).reason == reason.encode()


@pytest.mark.parametrize("name", ["inline:{a=b}", "randmap:{a}", "texthash:/dev/null"])
def test_types_that_cannot_be_opened_for_updates(name: str) -> None:
    reason = f"{name} map requires O_RDONLY access mode"
    assert open_table(name.encode(), writes=True).reason == reason.encode()


@pytest.mark.parametrize("name", ["static:a", "fail:a", "environ:a", "internal:a"])
def test_types_that_can(name: str) -> None:
    assert open_table(name.encode(), writes=True).reason is None
