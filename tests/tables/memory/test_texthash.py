"""test_texthash - source files in memory, against the stock postmap where it is installed"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from contract import Contract, Records, found
from fix_postfix import NUL_WARNING, release
from fix_server import LOCK, ServerProcess, lookup

from proxymap.tables import base
from proxymap.tables._table import Surrogate, Table
from proxymap.tables.flags import DUP_IGNORE, DUP_REPLACE, DUP_WARN, FOLD_FIX, RHS_IS_FILE, UTF8_REQUEST
from proxymap.tables.opening import open_table

needs_postmap = pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")


def opened(file: Path, flags: int = 0, utf8: bool = True, any_bytes: bool = False) -> tuple[Table, list[str]]:
    warnings: list[str] = []
    host = base.Host(utf8=utf8, warn=warnings.append)
    host.any_bytes = any_bytes
    table = open_table(b"texthash:" + bytes(file), flags, host=host)
    return table, [text.replace(str(file), "FILE") for text in warnings]


def written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


class TestTexthash(Contract):
    longest_key = 70_000

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.place = tmp_path
        self.count = 0

    def make(self, records: Records) -> Table:
        if any(bytes([byte]) in key for key, _ in records for byte in b' \t\n\v\f\r#"\\') or any(
            not key or not value or value.strip(b" \t\n\v\f\r") != value or b"\n" in value
            for key, value in records
        ):
            pytest.skip("no source text has such records")
        self.count += 1
        file = self.place / f"t{self.count}"
        file.write_bytes(b"".join(b"%s %s\n" % record for record in records))
        return opened(file)[0]


ODD = {
    "quotes": b'"a b" c\na"b c"d e\n"" f\n"g h\nok 1\n',
    "backslashes": b"a\\ b c\nd\\\\ e\n\\\nf\\\n g\n",
    "continued": b"  first\na 1\n 2\n#\n\n\t3\nb 4\n",
    "nul": b"a\0b c\nd e\0f\n\0\ng h\n",
    "not utf-8": b"\xff a\nb \xff\nc d\n\xc3\x84 \xc3\x84\n",
    "crlf": b"a b\r\nc d\r\n\r\n e\r\n",
    "colons": b"a: b\nc d\n",
    "no value": b"a\nb \nc d\n",
    "duplicates": b"a 1\nb 2\na 3\nA 4\n",
    "no newline": b"a b",
    "long": b"a " + b"x" * 100_000 + b"\n" + b"k" * 100_000 + b" v\n",
    "empty": b"",
    "comments": b"#\n  # a b\n#c d",
}


def stock(place: Path, file: Path, utf8: bool) -> tuple[list[bytes], list[str]]:
    (place / "main.cf").write_text(f"compatibility_level=3.6\nsmtputf8_enable={'yes' if utf8 else 'no'}\n")
    os.utime(place / "main.cf", (1e9, 1e9))
    command = ["postmap", "-c", str(place), "-s", f"texthash:{file}"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    said = [line.removeprefix("postmap: warning: ") for line in done.stderr.decode().splitlines()]
    shown = [text.replace(str(file), "FILE") for text in said if not text.endswith(NUL_WARNING)]
    return sorted(done.stdout.split(b"\n")), shown


@needs_postmap
@pytest.mark.parametrize("utf8", [True, False], ids=["utf8", "bytes"])
@pytest.mark.parametrize("name", ODD)
def test_odd_text_is_read_and_warned_of_as_postmap_does(tmp_path: Path, name: str, utf8: bool) -> None:
    file = written(tmp_path / "t", ODD[name])
    os.utime(file, (1e9, 1e9))  # Postfix waits while it is younger than a second
    flags = DUP_WARN | FOLD_FIX | (UTF8_REQUEST if utf8 else 0)
    table, warnings = opened(file, flags, utf8, any_bytes=release() >= (3, 11))
    lines = sorted([b"%s\t%s" % record for record in table.sequence()] + [b""])
    shown = ["".join(c if " " <= c < "\x7f" or "\xa0" <= c < "\ud800" else "?" for c in w) for w in warnings]
    expected = stock(tmp_path, file, utf8)
    if name == "not utf-8" and utf8 and release() >= (3, 11):
        # It folds ASCII only.
        assert expected == (sorted([b"\xff\ta", b"b\t\xff", b"c\td", b"\xc3\x84\t\xc3\x84", b""]), [])
        assert lines == sorted([b"\xff\ta", b"b\t\xff", b"c\td", b"\xc3\xa4\t\xc3\x84", b""])
    else:
        assert (lines, shown) == expected


@pytest.mark.parametrize(("version", "status"), [("3.10.13", b"1"), ("3.11.7", b"5")])
def test_value_that_is_not_utf8_defers_mail_beside_3_11_as_there(version: str, status: bytes) -> None:
    with ServerProcess() as server:
        written(server.dir / "t", b"key \xff\nother v\n")
        server.approve(table := f"texthash:{server.dir}/t".encode())
        server.beside_postfix(version)
        server.start()
        with server.connect() as peer:
            for dialect in ("3.6", "3.11"):
                utf8 = {"flags": LOCK | UTF8_REQUEST, "instance_flags": LOCK | UTF8_REQUEST}
                reply = peer.ask(lookup(table, b"key", dialect, **utf8))
                assert dict(reply)[b"status"] == status


@pytest.mark.parametrize(
    ("flags", "value", "warned"),
    [
        (DUP_WARN, b"1", True),
        (DUP_IGNORE, b"1", False),
        (DUP_REPLACE, b"3", False),
    ],
)
def test_duplicate_counts_as_the_first_client_says(
    tmp_path: Path, flags: int, value: bytes, warned: bool
) -> None:
    table, warnings = opened(written(tmp_path / "t", b"a 1\nb 2\na 3\n"), flags)
    assert found(table, b"a") == value
    assert found(table, b"b") == b"2"
    assert warnings == ['FILE, line 3: duplicate entry: "a"'] * warned


def test_duplicate_spoils_the_table_if_no_client_says_what_counts(tmp_path: Path) -> None:
    file = written(tmp_path / "t", b"a 1\nB 2\nb 3\n")
    assert opened(file)[0].reason is None
    table, warnings = opened(file, FOLD_FIX)
    assert isinstance(table, Surrogate)
    assert table.reason == b'%s, line 3: duplicate entry: "b"' % bytes(file)
    assert warnings == []


def test_keys_are_folded_at_load_if_the_client_says_so(tmp_path: Path) -> None:
    file = written(tmp_path / "t", b"KeY\xc3\x84 VaL\n")
    assert opened(file)[0].sequence() == [(b"KeY\xc3\x84", b"VaL")]
    assert opened(file, FOLD_FIX)[0].sequence() == [(b"key\xc3\x84", b"VaL")]


def test_values_that_name_files_are_their_contents(tmp_path: Path) -> None:
    written(tmp_path / "one", b"1")
    file = written(tmp_path / "t", b"a %s\nb /nowhere\n" % bytes(tmp_path / "one"))
    table, warnings = opened(file, RHS_IS_FILE)
    assert table.sequence() == [(b"a", b"MQ==")]
    assert warnings == ["FILE, line 2: open /nowhere: No such file or directory: skipping this entry"]
    assert opened(file)[0].sequence()[1] == (b"b", b"/nowhere")


@pytest.mark.parametrize("how", ["written", "replaced", "touched"])
def test_changed_file_is_another_table(tmp_path: Path, how: str) -> None:
    file = written(tmp_path / "t", b"a 1\n")
    old, _ = opened(file)
    assert opened(file)[0] is old
    if how == "written":
        written(file, b"a 12\n")
    elif how == "replaced":
        os.replace(written(tmp_path / "new", b"a 2\n"), file)
    else:
        os.utime(file, ns=(1, 1))
    assert old.changed == 1
    assert found(old, b"a") == b"1"
    new, _ = opened(file)
    assert new is not old
    assert new.reason is None


def test_removed_file_and_one_with_more_faults_leave_the_old_content(tmp_path: Path) -> None:
    file = written(tmp_path / "t", b"a 1\n")
    old, _ = opened(file)
    file.unlink()
    assert opened(file)[0] is old
    assert not old.changed
    written(file, b"a 2\nfaulty\n")
    assert old.changed
    assert opened(file)[0] is old
    assert opened(written(file, b"a 2\n"))[0] is not old


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "loop", "device"])
def test_what_is_no_file_is_a_surrogate(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "t"
    if kind == "directory":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)  # must not block
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    table, _ = opened(file)
    assert table.reason is not None
    assert table.reason.startswith(b"open database %s: " % bytes(file))


def test_file_that_is_written_to_while_it_is_read_is_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "t", b"a 1\n")
    honest, clock = os.fstat, iter(range(1, 1_000_000))

    def restless(fd: int) -> os.stat_result:
        os.utime(fd, ns=(next(clock), next(clock)))
        return honest(fd)

    monkeypatch.setattr(os, "fstat", restless)
    table, _ = opened(file)
    monkeypatch.undo()
    assert found(table, b"a") == b"1"
    assert table.changed


def test_explain_names_the_lines(tmp_path: Path) -> None:
    table, _ = opened(written(tmp_path / "t", b"# none\nKey one\n  two\n"), FOLD_FIX)
    assert table.explain(b"key") == [f"{tmp_path}/t, line 2: one  two"]
    assert table.explain(b"none") == []


def test_large_file_and_huge_line(tmp_path: Path) -> None:
    content = b"".join(b"user%d@example.com box%d\n" % (i, i) for i in range(100_000))
    table, _ = opened(written(tmp_path / "t", content + b"huge " + b"x" * (20 << 20)))
    assert found(table, b"user99999@example.com") == b"box99999"
    value = found(table, b"huge")
    assert value is not None
    assert len(value) == 20 << 20
    for i in range(0, 100_000, 100):
        assert found(table, b"user%d@example.com" % i) == b"box%d" % i
