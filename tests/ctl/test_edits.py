"""test_edits - proxymapctl update and delete, by way of a proxywrite of ours"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_ctl import run
from fix_server import ServerProcess


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        server.approve(f"lmdb:{server.dir}/w")
        yield server.start("-n", "proxywrite")


def change(server: ServerProcess, command: str, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    done = run("--socket", server.path, command, f"lmdb:{server.dir}/w", *arguments, stdin=stdin)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def dumped(server: ServerProcess) -> bytes:
    return run("--socket", server.path, "dump", f"lmdb:{server.dir}/w").stdout


def test_update_and_delete(writing: ServerProcess) -> None:
    assert change(writing, "update", "a", "1") == (0, "", "")
    assert change(writing, "update", "É", "2  2") == (0, "", "")
    assert dumped(writing) == "a\t1\né\t2  2\n".encode()
    assert change(writing, "delete", "A", "é") == (0, "", "")
    assert dumped(writing) == b""


def test_delete_of_an_absent_key_is_status_1(writing: ServerProcess) -> None:
    change(writing, "update", "a", "1")
    assert change(writing, "delete", "b", "a") == (1, "", "")
    assert dumped(writing) == b""


def test_updates_from_standard_input(writing: ServerProcess) -> None:
    text = b"a 1\nb c\td e \n\nc   3 3  \nd\t\n"
    assert change(writing, "update", "-", stdin=text) == (0, "", "")
    assert dumped(writing) == b"a\t1\nb c\td e \nc\t3 3\nd\t\n"
    assert change(writing, "update", "-", stdin=dumped(writing)) == (0, "", "")
    assert change(writing, "delete", "-", stdin=b"a\nb c\n\nc\nd\n") == (0, "", "")
    assert dumped(writing) == b""


def test_bad_lines_are_told_with_their_number_and_skipped(writing: ServerProcess) -> None:
    code, out, err = change(writing, "update", "-", stdin=b"a 1\nb\n\tx\nc\0 1\nd 4\n")
    assert (code, out) == (65, "")
    assert err.splitlines() == [
        "proxymapctl: line 2: expected KEY TAB VALUE: skipped",
        "proxymapctl: line 3: expected KEY TAB VALUE: skipped",
        "proxymapctl: line 4: a key contains a NUL byte: skipped",
    ]
    assert dumped(writing) == b"a\t1\nd\t4\n"


def test_many_updates_of_a_key_are_made_in_order(writing: ServerProcess) -> None:
    lines = [b"%b%d %d" % (b"kK"[i % 2 : i % 2 + 1], i % 7, i) for i in range(3000)]
    assert change(writing, "update", "-", stdin=b"\n".join(lines)) == (0, "", "")
    last = {i % 7: i for i in range(3000)}
    assert dumped(writing) == b"".join(b"k%d\t%d\n" % item for item in sorted(last.items()))


def test_changes_in_json_are_in_the_order_of_the_lines(writing: ServerProcess) -> None:
    keys = [f"k{i}" for i in range(100)]
    _, out, _ = change(writing, "update", "--json", "-", stdin="".join(f"{k} v\n" for k in keys).encode())
    assert [json.loads(line) for line in out.splitlines()] == [{"key": k, "status": "OK"} for k in keys]
    _, out, _ = change(writing, "delete", "--json", "k1", "k1")
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["OK", "NOKEY"]


def test_update_that_is_not_approved_names_the_parameter(writing: ServerProcess) -> None:
    done = run("--socket", writing.path, "update", "lmdb:/tmp/other", "a", "1")
    assert done.returncode == 77
    assert b'"proxy:lmdb:/tmp/other" in proxy_write_maps' in done.stderr


@pytest.mark.parametrize("command", [["update", "a", "1"], ["delete", "a"]])
def test_change_asked_of_a_read_only_server_says_so(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "t").write_text("a 1\n")
    with ServerProcess() as server:
        server.approve(f"texthash:{tmp_path}/t")
        server.start()
        done = run("--socket", server.path, command[0], f"texthash:{tmp_path}/t", *command[1:])
    assert done.returncode == 77
    told = f"may only be read there; is {server.path} the socket of a proxywrite server?"
    assert done.stderr.decode() == f"proxymapctl: texthash:{tmp_path}/t: {told}\n"


def test_update_of_a_table_that_cannot_is_status_75(writing: ServerProcess) -> None:
    with ServerProcess() as server:
        table = server.cdb("c", {b"k": b"v"})
        server.start("-n", "proxywrite")
        assert run("--socket", server.path, "update", table.decode(), "a", "1").returncode == 75


@pytest.mark.parametrize(
    ("words", "told"),
    [(["k"], b'expected KEY and VALUE, or "-"'), (["k", "v", "w"], b"unrecognized arguments: w")],
)
def test_update_with_other_than_key_and_value_is_wrong_usage(words: list[str], told: bytes) -> None:
    done = run("update", "t:x", *words)
    assert done.returncode == 64
    assert told in done.stderr


def test_usage_of_update_names_one_key_and_one_value() -> None:
    assert b" TYPE:NAME KEY [VALUE]\n" in run("update", "--help").stdout


def test_update_goes_to_proxywrite(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text(f"queue_directory = {tmp_path}/q\n")
    done = run("-c", tmp_path, "update", "t:x", "a", "1")
    assert done.returncode == 69
    assert f"no answer from {tmp_path}/q/private/proxywrite".encode() in done.stderr
