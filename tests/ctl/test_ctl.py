"""test_ctl - proxymapctl: what it prints, its exit status, and what it says about trouble"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_postfix import StockPostfix, stock_postfix  # noqa: F401
from fix_server import ServerProcess, write_cdb
from test_client import Request, ScriptedServer, answer_new, attribute_list

from proxymap.ctl import main as ctl

HOME = Path(ctl.__file__).parents[2]
TABLE = {b"a": b"1", b"b c": b"2\t2", "é".encode(): b"\xff", b"many": b"v" * 200}
TROUBLE = {b"retry": b"2", b"deny": b"4", b"config": b"5", b"bad": b"3"}


def answer(request: Request) -> bytes | None:
    """TABLE, and keys that get the status they are named after; `gone` hangs up."""
    fields = dict(request)
    if fields[b"request"] == b"open":
        status = b"4" if fields[b"table"] == b"t:denied" else b"0"
        return attribute_list(b"status", status, b"flags", b"28" if fields[b"table"] != b"t:raw" else b"32")
    if fields[b"request"] == b"sequence":
        return None
    key = fields[b"key"]
    if key == b"gone":
        return None
    status = TROUBLE.get(key, b"0" if key in TABLE else b"1")
    return attribute_list(b"status", status, b"value", TABLE.get(key, b""))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    with ScriptedServer(str(tmp_path / "s"), answer) as running:
        yield running


def run(*arguments: Any, stdin: bytes = b"", **keywords: Any) -> subprocess.CompletedProcess[bytes]:
    """proxymapctl in a process of its own."""
    command = [sys.executable, "-m", "proxymap.ctl", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=HOME, timeout=60, **keywords)


def ask(server: ScriptedServer, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    done = run("--socket", server.path, *arguments, stdin=stdin)
    return done.returncode, done.stdout, done.stderr.decode()


# query


def test_single_key_prints_the_value(server: ScriptedServer) -> None:
    assert ask(server, "query", "t:x", "b c") == (0, b"2\t2\n", "")


def test_absent_key_is_status_1(server: ScriptedServer) -> None:
    assert ask(server, "query", "t:x", "absent") == (1, b"", "")


def test_empty_key_is_not_sent(server: ScriptedServer) -> None:
    assert ask(server, "query", "t:x", "") == (1, b"", "")
    assert len(server.requests) == 1


def test_several_keys_print_key_and_value(server: ScriptedServer) -> None:
    assert ask(server, "query", "t:x", "a", "absent", "é") == (1, "a\t1\né\t".encode() + b"\xff\n", "")


def test_keys_are_folded_as_postfix_does(server: ScriptedServer) -> None:
    assert ask(server, "query", "t:x", "A", "É") == (0, "A\t1\nÉ\t".encode() + b"\xff\n", "")


def test_keys_of_a_pattern_table_are_not_folded(server: ScriptedServer) -> None:
    assert ask(server, "query", "t:raw", "A")[0] == 1


def test_proxy_prefix_is_taken_away(server: ScriptedServer) -> None:
    assert ask(server, "query", "proxy:t:x", "a")[0] == 0
    assert (b"table", b"t:x") in server.requests[0]


def test_keys_from_standard_input(server: ScriptedServer) -> None:
    assert ask(server, "query", "t:x", "-", stdin=b"a\n\nb c\nabsent\nmany") == (
        1,
        b"a\t1\nb c\t2\t2\nmany\t" + b"v" * 200 + b"\n",
        "",
    )


@pytest.mark.parametrize(("key", "status"), [("retry", 75), ("deny", 77), ("config", 78), ("bad", 76)])
def test_trouble_has_its_status_and_one_line(server: ScriptedServer, key: str, status: int) -> None:
    code, out, err = ask(server, "query", "t:x", key)
    assert (code, out) == (status, b"")
    assert err.startswith("proxymapctl: t:x: ")
    assert err.count("\n") == 1


def test_query_goes_on_after_trouble_and_keeps_the_highest_status(server: ScriptedServer) -> None:
    code, out, err = ask(server, "query", "t:x", "-", stdin=b"retry\nconfig\nx\nretry\na\n")
    assert (code, out) == (78, b"a\t1\n")
    assert err.count("\n") == 2  # each kind of trouble is told once


def test_denied_table_names_the_parameter(server: ScriptedServer) -> None:
    code, _, err = ask(server, "query", "t:denied", "a")
    assert code == 77
    assert '"proxy:t:denied" in proxy_read_maps' in err


def test_hang_up_ends_the_query(server: ScriptedServer) -> None:
    code, out, err = ask(server, "query", "t:x", "a", "gone", "a")
    assert (code, out) == (69, b"a\t1\n")
    assert "hung up" in err


def test_no_server_is_status_69_and_says_where(tmp_path: Path) -> None:
    done = run("--socket", tmp_path / "none", "query", "t:x", "a")
    assert done.returncode == 69
    assert done.stderr.decode() == (
        f"proxymapctl: no answer from {tmp_path}/none: No such file or directory; "
        "start Postfix, or name another socket with --socket\n"
    )


def test_key_with_nul_is_skipped(server: ScriptedServer) -> None:
    code, out, err = ask(server, "query", "t:x", "-", stdin=b"x\0y\na\n")
    assert (code, out) == (64, b"a\t1\n")
    assert "NUL" in err


def test_json_has_every_key(server: ScriptedServer) -> None:
    _, out, _ = ask(server, "query", "--json", "t:x", "a", "absent", "é", "retry")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"key": "a", "value": "1", "status": "OK"},
        {"key": "absent", "value": None, "status": "NOKEY"},
        {"key": "é", "value": "\udcff", "status": "OK"},
        {"key": "retry", "value": None, "status": "RETRY"},
    ]


def test_new_dialect_is_found_out(tmp_path: Path) -> None:
    def new_only(request: Request) -> bytes:
        if b"instance_flags" not in dict(request):
            return attribute_list(b"status", b"3", b"flags", b"0")
        return answer_new(request)

    with ScriptedServer(str(tmp_path / "s"), new_only) as server:
        assert ask(server, "query", "t:x", "a") == (0, b"1\n", "")


def test_closed_pipe_is_quiet(server: ScriptedServer) -> None:
    command = [sys.executable, "-m", "proxymap.ctl", "--socket", server.path, "query", "t:x", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=HOME
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(b"many\n" * 2000, timeout=60)
    assert (process.returncode, err) == (141, b"")


def test_interrupt_is_quiet(tmp_path: Path) -> None:
    with ScriptedServer(str(tmp_path / "s"), lambda _: b"") as server:
        command = [sys.executable, "-m", "proxymap.ctl", "--socket", server.path, "query", "t:x", "a"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=HOME) as process:
            while not server.requests:  # it waits for the reply from here on
                time.sleep(0.01)
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


@pytest.mark.parametrize(
    "arguments", [[], ["query"], ["query", "t:x"], ["query", "nocolon", "a"], ["nothing"], ["--bad"]]
)
def test_wrong_usage_is_status_64_and_one_line(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (64, b"")
    assert done.stderr.startswith(b"proxymapctl: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("command", [[], ["query"], ["dump"], ["build"]])
def test_help(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert b"TYPE:" in done.stdout or b"examples:" in done.stdout


def test_socket_is_in_the_queue_directory(tmp_path: Path) -> None:
    (tmp_path / "q" / "private").mkdir(parents=True)
    (tmp_path / "main.cf").write_text(f"queue_directory = {tmp_path}/q\n")
    with ScriptedServer(str(tmp_path / "q/private/proxymap"), answer):
        for done in (
            run("-c", tmp_path, "query", "t:x", "a"),
            run("query", "-c", tmp_path, "t:x", "a"),
            run("query", "t:x", "a", env={**os.environ, "MAIL_CONFIG": str(tmp_path)}),
        ):
            assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n", b"")


def test_missing_configuration_is_status_78(tmp_path: Path) -> None:
    done = run("-c", tmp_path, "query", "t:x", "a")
    assert done.returncode == 78
    assert b"main.cf" in done.stderr


# query --direct, --explain


@pytest.fixture
def cdb(tmp_path: Path) -> str:
    write_cdb(tmp_path / "t.cdb", {b"a": b"1", b"b": b"", "é".encode(): b"2", b"raw": b"\xff"})
    return f"cdb:{tmp_path}/t"


def direct(*arguments: Any, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """On a host where there is no main.cf and no server."""
    done = run(
        "query", "--direct", *arguments, stdin=stdin, env={**os.environ, "MAIL_CONFIG": "/nonexistent"}
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_direct_query_needs_no_server(cdb: str) -> None:
    assert direct(cdb, "a") == (0, b"1\n", "")
    assert direct(f"proxy:{cdb}", "A", "b", "É", "none") == (1, "A\t1\nb\t\nÉ\t2\n".encode(), "")
    assert direct(cdb, "-", stdin=b"a\nx\0y\nnone\n") == (
        64,
        b"a\t1\n",
        "proxymapctl: a key contains a NUL byte: skipped\n",
    )


def test_direct_query_says_why_a_table_does_not_open(tmp_path: Path) -> None:
    reason = f"open database {tmp_path}/no.cdb: No such file or directory"
    text = f"proxymapctl: cdb:{tmp_path}/no: {reason}\n"
    assert direct(f"cdb:{tmp_path}/no", "a", "b") == (75, b"", text)
    assert direct("nosuch:x", "a") == (
        75,
        b"",
        "proxymapctl: nosuch:x: unsupported dictionary type: nosuch\n",
    )


def test_direct_query_goes_by_main_cf(cdb: str, tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text("smtputf8_enable = no\n")
    assert run("-c", tmp_path, "query", "--direct", cdb, "raw").stdout == b"\xff\n"
    assert run("-c", tmp_path, "query", "--direct", cdb, "É").returncode == 1
    (tmp_path / "main.cf").write_text("smtputf8_enable = yes\n")
    assert run("-c", tmp_path, "query", "--direct", cdb, "raw").returncode == 78
    assert run("-c", tmp_path, "query", "--direct", cdb, "É").stdout == b"2\n"
    assert run("-c", tmp_path / "none", "query", "--direct", cdb, "a").returncode == 78


def test_explain_goes_to_standard_error(cdb: str) -> None:
    table = f"pipemap:{{{cdb}, {cdb}}}"
    told = f"a: not found\na:   {cdb}: 1\na:   {cdb}: not found\n"
    assert direct("--explain", table, "a") == (1, b"", told)
    assert direct("--explain", cdb, "a") == (0, b"1\n", 'a: "1"\n')


def test_explain_in_json_is_a_list(cdb: str) -> None:
    _, out, err = direct("--explain", "--json", f"unionmap:{{{cdb}}}", "a")
    assert err == ""
    assert json.loads(out) == {"key": "a", "value": "1", "status": "OK", "explain": ['"1"', f"  {cdb}: 1"]}


def explained(server: ScriptedServer, *arguments: str) -> tuple[int, bytes, list[str]]:
    code, out, err = ask(server, "query", "--explain", *arguments)
    return code, out, [line for line in err.splitlines() if not line.startswith("proxymapctl: ")]


def test_explain_asks_server_and_table(cdb: str, server: ScriptedServer) -> None:
    told = ['a: the server: "1"', 'a: the table itself: "1"']
    assert explained(server, cdb, "a") == (0, b"1\n", told)
    told = ["no: the server: not found", "no: the table itself: not found"]
    assert explained(server, cdb, "no") == (1, b"", told)


@pytest.mark.parametrize(
    ("key", "status", "said", "meaning"),
    [
        ("retry", 75, "RETRY", "the server cannot use the table"),
        ("deny", 77, "DENY", "main.cf does not let this server open it"),
        ("many", 0, '"' + "v" * 200 + '"', "opened the table earlier"),
    ],
)
def test_explain_says_when_they_differ(
    cdb: str, server: ScriptedServer, key: str, status: int, said: str, meaning: str
) -> None:
    code, _, lines = explained(server, cdb, key)
    assert code == status
    assert lines[:2] == [f"{key}: the server: {said}", f"{key}: the table itself: not found"]
    assert lines[2].startswith(f"{key}: they differ: ")
    assert meaning in lines[2]


def test_explain_when_only_the_server_can_open_it(server: ScriptedServer, tmp_path: Path) -> None:
    code, out, lines = explained(server, f"cdb:{tmp_path}/none", "a")
    assert (code, out) == (0, b"1\n")
    assert "No such file" in lines[1]
    assert "this process cannot" in lines[2]


def test_explain_without_a_server_tells_the_table(cdb: str, tmp_path: Path) -> None:
    done = run("--socket", tmp_path / "none", "query", "--explain", cdb, "a")
    assert (done.returncode, done.stdout) == (69, b"")
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith(f"proxymapctl: no answer from {tmp_path}/none")
    assert lines[1:] == ["a: the server: no answer", 'a: the table itself: "1"']


# dump


def test_dump(tmp_path: Path) -> None:
    items = iter([b"a", b"1", b"b", b"\xff"])

    def walk(request: Request) -> bytes:
        if (b"request", b"open") in request:
            return attribute_list(b"status", b"0", b"flags", b"28")
        key = next(items, None)
        if key is None:
            return attribute_list(b"status", b"1", b"key", b"", b"value", b"")
        return attribute_list(b"status", b"0", b"key", key, b"value", next(items))

    with ScriptedServer(str(tmp_path / "s"), walk) as server:
        assert ask(server, "dump", "t:x") == (0, b"a\t1\nb\t\xff\n", "")
        assert ask(server, "dump", "t:x") == (0, b"", "")


def test_dump_of_a_table_that_cannot_is_status_69(server: ScriptedServer) -> None:
    """The stock server dies of it."""
    code, out, err = ask(server, "dump", "t:x")
    assert (code, out) == (69, b"")
    assert "hung up" in err


def test_direct_dump(cdb: str) -> None:
    done = run("dump", "--direct", cdb)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == "a\t1\nb\t\né\t2\nraw\t".encode() + b"\xff\n"


@pytest.mark.parametrize(
    ("table", "status", "text"),
    [("unix:passwd.byname", 78, "cannot be listed"), ("cdb:/none/t", 75, "open database /none/t.cdb")],
)
def test_direct_dump_of_what_cannot_be_listed(table: str, status: int, text: str) -> None:
    done = run("dump", "--direct", table)
    assert (done.returncode, done.stdout) == (status, b"")
    assert text in done.stderr.decode()


# update, delete: by way of a proxywrite of ours


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


def test_update_of_a_table_that_cannot_is_status_75(writing: ServerProcess) -> None:
    with ServerProcess() as server:
        table = server.cdb("c", {b"k": b"v"})
        server.start("-n", "proxywrite")
        assert run("--socket", server.path, "update", table.decode(), "a", "1").returncode == 75


@pytest.mark.parametrize("words", [["k"], ["k", "v", "w"]])
def test_update_with_other_than_key_and_value_is_wrong_usage(words: list[str]) -> None:
    done = run("update", "t:x", *words)
    assert done.returncode == 64
    assert b"expected KEY and VALUE" in done.stderr


def test_update_goes_to_proxywrite(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text(f"queue_directory = {tmp_path}/q\n")
    done = run("-c", tmp_path, "update", "t:x", "a", "1")
    assert done.returncode == 69
    assert f"no answer from {tmp_path}/q/private/proxywrite".encode() in done.stderr


# build


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "v"
    path.write_text("a 1\nA 2\n")
    return path


@pytest.mark.parametrize("maptype", ["cdb", "lmdb"])
def test_build(source: Path, maptype: str) -> None:
    pytest.importorskip("cdbx" if maptype == "cdb" else "lmdb")
    done = run("build", f"{maptype}:{source}")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"proxymapctl: warning: ")
    assert done.stderr.endswith(b': duplicate entry: "a"\n')
    assert os.path.exists(f"{source}.{maptype}")


def test_build_tells_records_and_warnings_in_json(source: Path) -> None:
    pytest.importorskip("cdbx")
    done = run("build", "--json", f"cdb:{source}")
    warning = f'{source}: duplicate entry: "a"'
    assert json.loads(done.stdout) == {"table": f"cdb:{source}", "records": 1, "warnings": [warning]}


def test_build_takes_postmaps_options(source: Path) -> None:
    cdbx = pytest.importorskip("cdbx")
    run("build", "-fN", f"cdb:{source}.out", source, check=True)
    table = cdbx.CDB(f"{source}.out.cdb")
    assert list(table.items(all=True)) == [(b"a\0", b"1\0"), (b"A\0", b"2\0")]


@pytest.mark.parametrize(
    ("table", "status"), [("cdb:{}/none", 66), ("lmdb:{}/none", 66), ("hash:{}/v", 65), ("cdb:{}", 73)]
)
def test_build_failure_is_one_line(source: Path, table: str, status: int) -> None:
    done = run("build", table.format(source.parent))
    assert done.returncode == status
    assert done.stderr.startswith(b"proxymapctl: ")
    assert done.stderr.count(b"\n") == 1


def test_bar_is_for_terminals_only(source: Path) -> None:
    pytest.importorskip("cdbx")
    terminal, other_end = pty.openpty()
    command = [sys.executable, "-m", "proxymap.ctl", "build", f"cdb:{source}"]
    with subprocess.Popen(command, stderr=other_end, cwd=HOME) as process:
        os.close(other_end)
        shown = os.read(terminal, 10000)
        while True:
            try:
                shown += os.read(terminal, 10000)
            except OSError:  # EIO: the other end is closed
                break
    os.close(terminal)
    assert process.returncode == 0
    assert b"100 %" in shown
    assert b"\r" not in run("build", f"cdb:{source}").stderr


# The stock server


def test_explain_finds_what_mail_owner_may_not_read(stock_postfix: StockPostfix) -> None:  # noqa: F811
    """postmap -q works, as root, but Postfix does not."""
    file = stock_postfix.tables / "closed"
    write_cdb(file.with_suffix(".cdb"), {b"a": b"1"})
    file.with_suffix(".cdb").chmod(0o600)
    stock_postfix.set(proxy_read_maps=f"proxy:cdb:{file}")
    stock_postfix.stop()
    stock_postfix.start()
    done = run("-c", stock_postfix.config_dir, "query", "--explain", f"cdb:{file}", "a")
    assert (done.returncode, done.stdout) == (75, b"")
    assert f"open database {file}.cdb: Permission denied" in done.stderr.decode().splitlines()[-1]


@pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")
def test_query_answers_as_postmap(stock_postfix: StockPostfix) -> None:  # noqa: F811
    file = stock_postfix.tables / "many"
    file.write_text("".join(f"key{i} value {i}\n" for i in range(2000)) + "ÉCOLE x\n")
    stock_postfix.postmap(f"lmdb:{file}", check=True)
    stock_postfix.set(proxy_read_maps=f"proxy:lmdb:{file}")
    stock_postfix.stop()
    stock_postfix.start()
    keys = "".join(f"Key{i}\n" for i in range(1500, 2500)).encode() + "École\nabsent\n".encode()
    wanted = stock_postfix.postmap("-q", "-", f"proxy:lmdb:{file}", input=keys).stdout
    done = run("-c", stock_postfix.config_dir, "query", f"lmdb:{file}", "-", stdin=keys)
    assert (done.returncode, done.stdout, done.stderr) == (1, wanted, b"")
    assert wanted.count(b"\n") == 501
    done = run("-c", stock_postfix.config_dir, "dump", f"lmdb:{file}")
    assert done.stdout == stock_postfix.postmap("-s", f"lmdb:{file}").stdout
