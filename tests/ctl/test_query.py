"""test_query - proxymapctl query: what it prints, its exit status, and what it says about trouble"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fix_ctl import HOME, ask, run
from fix_postfix import StockPostfix
from fix_server import write_cdb
from test_client import Request, ScriptedServer, answer_new, attribute_list


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
    assert err.count("\n") == 2  # each kind of trouble is shown once


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


# --direct, --explain


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


# The stock server


def test_explain_finds_what_mail_owner_may_not_read(stock_postfix: StockPostfix) -> None:
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
def test_query_answers_as_postmap(stock_postfix: StockPostfix) -> None:
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
