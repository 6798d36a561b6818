"""test_control - the control socket: tables, flush, reload; through proxymapctl and by hand

Of a server under master(8): see test_master.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_server import (
    BARE_BAD,
    LIMIT,
    NOT_FOUND,
    OWN,
    Peer,
    ServerProcess,
    environment,
    found,
    give,
    lookup,
    wait_until,
    write_cdb,
    write_lmdb,
)
from oracle import Attributes, reply

from proxymap.base._listen import PATH_MAX
from proxymap.ctl import main as ctl
from proxymap.server import control
from proxymap.server.control import LINE_MAX, ask_all

RETRY, DENY = 2, 4
TABLE = {b"k": b"v", b"l": b"w"}
PROTOCOL = (
    b'{"error": "expected {\\"do\\": one of tables servers known flush reload trace figures sandbox}"}\n'
)


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """The cache is on for lmdb."""
    with ServerProcess(own={"cache_maptypes": "lmdb"}) as server:
        yield server


class Ctl:
    """proxymapctl in this process: statuses, and what it printed."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self.captured = captured
        self.out = self.err = ""

    def __call__(self, server: ServerProcess, *arguments: str) -> int:
        status = ctl.main(["--socket", server.path, *arguments])
        self.out, self.err = self.captured.readouterr()
        return status

    def tables(self, server: ServerProcess) -> dict[str, Any]:
        """The tables by name, each of which the clients must have asked for in one way only."""
        assert self(server, "tables", "--json") == 0
        known = [json.loads(line) for line in self.out.splitlines()]
        by_name = {table["table"]: table for table in known}
        assert len(by_name) == len(known)
        return by_name


@pytest.fixture
def proxymapctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(capsys)


def control_path(server: ServerProcess) -> str:
    return f"{server.path}.{server.pid}.ctl"


def connected(server: ServerProcess) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(LIMIT)
    peer.connect(control_path(server))
    return peer


def said(server: ServerProcess, request: bytes) -> bytes:
    """The reply to a request, however wrong it is."""
    with connected(server) as peer:
        peer.sendall(request)
        return peer.makefile("rb").readline()


# The socket


def test_socket_is_for_its_owner_alone(server: ServerProcess) -> None:
    server.start(umask=0)
    status = os.stat(control_path(server))
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_socket_is_gone_after_a_normal_stop(server: ServerProcess, number: int) -> None:
    server.start()
    assert server.stop(number) == 0
    assert list(server.dir.glob("s*")) == [server.dir / "s.metrics"]  # counters stay


def test_socket_of_a_killed_process_is_removed(server: ServerProcess, proxymapctl: Ctl) -> None:
    table = server.cdb("t", TABLE)
    server.start()
    server.stop(signal.SIGKILL)
    assert proxymapctl(server, "tables") == ctl.EX_UNAVAILABLE
    assert "no running server has a control socket there" in proxymapctl.err
    stale, old = control_path(server), os.stat(server.path).st_ino
    server.start(wait=False)
    wait_until(lambda: os.stat(server.path).st_ino != old, "a socket of its own")
    with server.connect() as peer:
        assert peer.ask(lookup(table, b"k")) == found(b"v")
    assert list(proxymapctl.tables(server)) == [table.decode()]
    wait_until(lambda: not os.path.exists(stale), "the stale socket's end")


def test_only_sockets_of_dead_processes_of_our_own_are_removed(server: ServerProcess) -> None:
    nobodys = 1 << 22  # PID_MAX_LIMIT
    kept = [server.path + name for name in (f".{nobodys}.ctl.old", f"x.{nobodys}.ctl", ".99999999999999.ctl")]
    kept += [f"{server.path}.{number}.ctl" for number in (nobodys + 1, nobodys + 2, os.getpid())]
    stale = [f"{server.path}.{number}.ctl" for number in (nobodys, nobodys + 9)]
    with contextlib.ExitStack() as open_sockets:
        for path in (*kept, *stale):
            one = open_sockets.enter_context(socket.socket(socket.AF_UNIX))
            one.bind(path)
            give(path)
    os.unlink(kept[4])
    Path(kept[4]).write_text("no socket")
    with socket.socket(socket.AF_UNIX) as alive:
        os.unlink(kept[3])
        alive.bind(kept[3])
        give(kept[3])
        alive.listen()  # of a process that has another number where it lives
        if os.geteuid() == 0:
            kept.append(f"{server.path}.{nobodys + 3}.ctl")
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(kept[-1])
            os.chown(kept[-1], 3, 3)
        server.start()
        wait_until(lambda: not any(map(os.path.exists, stale)), "the end of what is stale")
        assert said(server, b'{"do": "tables"}\n')  # comes after all that
        assert [path for path in kept if not os.path.exists(path)] == []


def test_stale_socket_of_the_same_number_is_replaced(server: ServerProcess, proxymapctl: Ctl) -> None:
    table = server.cdb("t", TABLE)
    program = (
        "import os, socket, sys; socket.socket(socket.AF_UNIX).bind(f'{sys.argv[1]}.{os.getpid()}.ctl');"
        " os.execv(sys.argv[2], sys.argv[2:])"
    )
    command = [sys.executable, "-c", program, server.path, *server.command()]
    server.command = lambda *arguments: command  # type: ignore[method-assign]
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(table, b"k")) == found(b"v")
    assert list(proxymapctl.tables(server)) == [table.decode()]
    assert "no control socket" not in server.log()


def test_other_files_of_a_similar_name_are_passed_over(server: ServerProcess, proxymapctl: Ctl) -> None:
    server.start()
    for name in ("s.ctl", "s.x.ctl", "s.1.ctl.old", "s-fast.1.ctl", "s.fast.1.ctl"):
        (server.dir / name).write_text("no socket")
    assert proxymapctl(server, "tables") == 0


def test_path_too_long_for_a_second_socket_is_a_warning(server: ServerProcess) -> None:
    table = server.cdb("t", TABLE)
    server.path += "x" * (PATH_MAX - len(server.path))
    server.start()
    server.wait_log("warning: no control socket")
    with server.connect() as peer:
        assert peer.ask(lookup(table, b"k")) == found(b"v")
    assert server.stop() == 0


def test_folder_that_may_not_be_read_is_no_permission(
    server: ServerProcess, proxymapctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: str) -> list[str]:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("proxymap.server.control.os.listdir", refuse)
    assert proxymapctl(server, "tables") == ctl.EX_NOPERM
    assert proxymapctl.err == f"proxymapctl: {server.dir}: Permission denied; ask as root\n"


@pytest.mark.parametrize("answer", [b"", b'{"ok": [', None])
def test_process_that_ends_before_it_has_answered_is_passed_over(
    tmp_path: Path, answer: bytes | None
) -> None:
    """None: it does not even take the request."""
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + ".1.ctl")
        listener.listen()

        def end() -> None:
            asker, _ = listener.accept()
            with asker:
                if answer is not None:
                    asker.recv(LINE_MAX)
                    asker.sendall(answer)

        thread = threading.Thread(target=end)
        thread.start()
        assert list(ask_all(path, do="tables")) == []
        thread.join()


# tables


def test_tables_tells_what_was_asked_for(server: ServerProcess, proxymapctl: Ctl) -> None:
    cdb, lmdb = server.cdb("c", TABLE).decode(), server.lmdb("l", TABLE).decode()
    missing = f"cdb:{server.dir}/missing"
    server.approve(missing)
    server.cdb("unasked", TABLE)
    server.start()
    assert proxymapctl.tables(server) == {}
    with server.connect() as peer:
        for name in (cdb, lmdb, missing):
            for key in (b"l", b"k", b"k", b"absent"):
                peer.ask(lookup(name.encode(), key))
    known = proxymapctl.tables(server)
    assert sorted(known) == sorted([cdb, lmdb, missing])
    assert {
        name: (table["state"], table["lookups"], table["cache_hits"], table["errors"])
        for name, table in known.items()
    } == {cdb: ("open", 4, 0, 0), lmdb: ("open", 4, 1, 0), missing: ("unavailable", 4, 0, 4)}
    assert known[cdb]["process"] == server.pid
    assert known[cdb]["files"] == [f"{server.dir}/c.cdb"]
    assert known[lmdb]["entries"] == len(TABLE)
    assert known[cdb]["trouble"] is None
    assert [known[cdb][name] for name in ("p50_ms", "p99_ms")] == [None, None]  # answered at once
    trouble = f"open database {server.dir}/missing.cdb: No such file or directory"
    assert known[missing]["trouble"] == trouble
    assert proxymapctl(server, "tables") == 0
    line = next(line for line in proxymapctl.out.splitlines() if line.startswith(missing))
    assert f"process {server.pid}): unavailable" in line
    assert line.endswith(f"; {trouble}")


def test_name_that_is_not_utf8_is_told(server: ServerProcess, proxymapctl: Ctl) -> None:
    table = os.fsencode(f"cdb:{server.dir}/t") + b"\xff"
    write_cdb(server.dir / os.fsdecode(b"t\xff.cdb"), TABLE)
    server.approve(table)
    server.start()
    with server.connect() as peer:
        peer.ask(lookup(table, b"k"))
    assert list(proxymapctl.tables(server)) == [os.fsdecode(table)]


# flush


def hits(proxymapctl: Ctl, server: ServerProcess, table: bytes) -> int:
    count: int = proxymapctl.tables(server)[table.decode()]["cache_hits"]
    return count


def settle(peer: Peer, table: bytes) -> None:
    """The first answer tells whether keys end with a NUL, which the next lookups then know."""
    peer.ask(lookup(table, b"k"))


@pytest.mark.parametrize("what", ["all", "table", "key", "key in upper case"])
def test_flush_forgets_answers(server: ServerProcess, proxymapctl: Ctl, what: str) -> None:
    table = server.lmdb("t", TABLE)
    name = table.decode()
    arguments = {"all": [], "table": [name], "key": [name, "k"], "key in upper case": [f"proxy:{name}", "K"]}
    server.start()
    with server.connect() as peer:
        settle(peer, table)
        for key in (b"k", b"l", b"k", b"l"):
            assert peer.ask(lookup(table, key)) == found(TABLE[key])
        assert hits(proxymapctl, server, table) == 2
        assert proxymapctl(server, "flush", *arguments[what]) == 0
        assert peer.ask(lookup(table, b"k")) == found(b"v")
        assert hits(proxymapctl, server, table) == 2
        assert peer.ask(lookup(table, b"l")) == found(b"w")
        assert hits(proxymapctl, server, table) == (3 if what.startswith("key") else 2)
        assert peer.ask(lookup(table, b"k")) == found(b"v")
        assert hits(proxymapctl, server, table) == (4 if what.startswith("key") else 3)


def test_flush_of_another_table_forgets_nothing(server: ServerProcess, proxymapctl: Ctl) -> None:
    table, other = server.lmdb("t", TABLE), server.lmdb("other", TABLE)
    server.start()
    with server.connect() as peer:
        for name in (table, other):
            settle(peer, name)
            peer.ask(lookup(name, b"k"))
        assert proxymapctl(server, "flush", other.decode()) == 0
        peer.ask(lookup(table, b"k"))
        assert hits(proxymapctl, server, table) == 1


def test_flush_of_a_table_that_nobody_has_asked_for_is_status_1(
    server: ServerProcess, proxymapctl: Ctl
) -> None:
    server.start()
    assert proxymapctl(server, "flush", "lmdb:/nowhere") == 1
    assert proxymapctl.err == "proxymapctl: lmdb:/nowhere: no running server has it open\n"
    assert proxymapctl(server, "flush") == 0


# Sockets that others have put there

FORGED = b'{"ok": [{"table": "\\u001b[31mforged", "dialect": "3.6", "flags": 0, "state": "open"}]}\n'


@contextlib.contextmanager
def answering(path: str, answer: bytes, uid: int | None = None) -> Iterator[None]:
    """A control socket at path that gives everybody that answer; of that user, in a process of its own."""
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException), socket.socket(socket.AF_UNIX) as listener:
            if uid is not None:
                os.setuid(uid)
            listener.bind(path)
            listener.listen()
            os.write(told, b"1")
            while True:
                with listener.accept()[0] as asker, contextlib.suppress(OSError):
                    asker.sendall(answer)
                    while not answer.endswith(b"\n"):  # it has no end
                        asker.sendall(answer)
                    asker.recv(LINE_MAX)
        os._exit(1)
    os.close(told)
    try:
        assert os.read(ready, 1) == b"1"
        yield
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_socket_of_another_user_is_not_asked(server: ServerProcess, proxymapctl: Ctl) -> None:
    """The file's owner counts, the process that listens counts, and a link is nobody's socket."""
    server.dir.chmod(0o1777)
    table = server.cdb("t", TABLE)
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(table, b"k")) == found(b"v")
    given, strange, elsewhere = (f"{server.path}.{name}" for name in ("4.ctl", "5.ctl", "elsewhere"))
    with (
        answering(f"{server.path}.3.ctl", FORGED, 3),
        answering(given, FORGED, 3),
        answering(strange, FORGED),
        answering(elsewhere, FORGED),
    ):
        give(given)
        os.chown(strange, 3, 3)
        os.symlink(elsewhere, f"{server.path}.6.ctl")
        assert list(proxymapctl.tables(server)) == [table.decode()]


def test_file_in_the_way_of_the_control_socket_is_told(server: ServerProcess) -> None:
    program = (
        "import os, sys; os.mkdir(f'{sys.argv[1]}.{os.getpid()}.ctl'); os.execv(sys.argv[2], sys.argv[2:])"
    )
    command = [sys.executable, "-c", program, server.path, *server.command()]
    server.command = lambda *arguments: command  # type: ignore[method-assign]
    server.start()
    server.wait_log("another user's file is in the way")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"no json\n", "is not understood"),
        (b'["ok"]\n', "is not understood"),
        (b'{"ok": [{"table": 3}]}\n', "is not understood"),
        (b'{"error": "\\u001b[31mno\\nline"}\n', "?[31mno?line"),
        (b"x" * 100_000, "more than 10000 bytes"),
    ],
)
def test_answer_is_limited_checked_and_printable(
    server: ServerProcess, proxymapctl: Ctl, monkeypatch: pytest.MonkeyPatch, answer: bytes, said: str
) -> None:
    monkeypatch.setattr(control, "ANSWER_MAX", 10_000)
    with answering(f"{server.path}.3.ctl", answer):
        assert proxymapctl(server, "tables") == ctl.EX_CONFIG
    assert said in proxymapctl.err
    assert proxymapctl.err.count("\n") == 1


def test_name_of_a_table_is_printable(server: ServerProcess, proxymapctl: Ctl) -> None:
    name = "cdb:/\x1b[31mred\u202e"
    server.approve(name)
    server.start()
    with server.connect() as peer:
        peer.ask(lookup(name.encode(), b"k"))
    assert proxymapctl(server, "tables") == 0
    assert proxymapctl.out.startswith("cdb:/?[31mred? ")


def test_size_of_an_lmdb_table_is_that_of_its_file(server: ServerProcess, proxymapctl: Ctl) -> None:
    table = server.lmdb("t", TABLE)
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(table, b"k")) == found(b"v")
        write_lmdb(server.dir / "t.lmdb", {b"new%d" % i: b"v" * 1000 for i in range(1000)})
        size = (server.dir / "t.lmdb").stat().st_size
        assert size > 1_000_000
        assert proxymapctl.tables(server)[table.decode()]["bytes"] == size


# reload


def reload(server: ServerProcess, proxymapctl: Ctl, how: str) -> None:
    """Write the configuration and have it read; with success."""
    server.write_config()
    if how == "SIGHUP":
        times = server.log().count("configuration read anew")
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: server.log().count("configuration read anew") > times, "the reload")
    else:
        assert proxymapctl(server, "reload") == 0
        assert proxymapctl.out == f"process {server.pid}: configuration read anew\n"


@pytest.mark.parametrize("how", ["SIGHUP", "proxymapctl"])
def test_reload_changes_what_is_approved_on_open_connections(
    server: ServerProcess, proxymapctl: Ctl, how: str
) -> None:
    old, both = server.cdb("old", TABLE), server.cdb("both", TABLE)
    server.start()
    new = server.cdb("new", TABLE)
    denied: Attributes = reply("lookup", "3.6", DENY)
    with server.connect() as peer:
        assert peer.ask(lookup(old, b"k")) == found(b"v")
        assert peer.ask(lookup(new, b"k")) == denied
        server.approved.remove(old.decode())
        reload(server, proxymapctl, how)
        assert peer.ask(lookup(old, b"k")) == denied
        assert peer.ask(lookup(new, b"k")) == found(b"v")
        assert peer.ask(lookup(both, b"k")) == found(b"v")
        assert proxymapctl(server, "tables") == 0
        assert f"process {server.pid}): not approved" in proxymapctl.out
        server.approve(old)
        reload(server, proxymapctl, how)
        assert peer.ask(lookup(old, b"k")) == found(b"v")


def test_reload_changes_limits_on_open_connections(server: ServerProcess, proxymapctl: Ctl) -> None:
    table = server.cdb("t", TABLE)
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(table, b"x" * 100_000)) == NOT_FOUND
        server.own["request_size_limit"] = "1K"
        reload(server, proxymapctl, "proxymapctl")
        assert peer.ask(lookup(table, b"x" * 100_000)) == BARE_BAD


def test_reload_turns_the_cache_off_and_on(server: ServerProcess, proxymapctl: Ctl) -> None:
    table = server.lmdb("t", TABLE)
    server.start()
    with server.connect() as peer:
        settle(peer, table)
        before = 0
        for size, more in (("64K", 1), ("0", 0), ("1M", 1)):
            server.own["cache_size"] = size
            reload(server, proxymapctl, "proxymapctl")
            for _ in range(2):
                assert peer.ask(lookup(table, b"k")) == found(b"v")
            before += more
            assert hits(proxymapctl, server, table) == before


@pytest.mark.parametrize("file", ["main.cf", "proxymap.cf"])
def test_bad_configuration_leaves_the_old_one_in_force(
    server: ServerProcess, proxymapctl: Ctl, file: str
) -> None:
    old = server.cdb("old", TABLE)
    server.start()
    server.approved.clear()
    new = server.cdb("new", TABLE)
    server.write_config()
    with (server.dir / file).open("a") as opened:
        opened.write("cache_size = nonsense\n" if file == "proxymap.cf" else "what is this\n")
    with server.connect() as peer:
        assert peer.ask(lookup(old, b"k")) == found(b"v")
        assert proxymapctl(server, "reload") == ctl.EX_CONFIG
        assert f"process {server.pid}: {server.dir}/{file}, line" in proxymapctl.err
        assert "expected" in proxymapctl.err
        assert "the previous configuration stays in force" in proxymapctl.err
        os.kill(server.pid, signal.SIGHUP)
        goes_on = "going on with the previous configuration"
        wait_until(lambda: server.log().count(goes_on) == 2, "what it says of both")
        assert peer.ask(lookup(old, b"k")) == found(b"v")
        assert peer.ask(lookup(new, b"k")) == reply("lookup", "3.6", DENY)
        reload(server, proxymapctl, "SIGHUP")
        assert peer.ask(lookup(new, b"k")) == found(b"v")


def test_value_of_main_cf_that_is_not_understood_stops_nothing_else(
    server: ServerProcess, proxymapctl: Ctl
) -> None:
    server.cdb("old", TABLE)
    server.start()
    new = server.cdb("new", TABLE)
    server.main["smtputf8_enable"] = "perhaps"
    server.write_config()
    reload(server, proxymapctl, "proxymapctl")
    server.wait_log(
        'parameter smtputf8_enable: bad value "perhaps", expected yes or no; it counts as its default'
    )
    with server.connect() as peer:
        assert peer.ask(lookup(new, b"k")) == found(b"v")


def test_reload_finds_a_relative_config_directory_again(server: ServerProcess, proxymapctl: Ctl) -> None:
    """The server works in queue_directory by then."""
    (server.dir / "q").mkdir()
    server.main["queue_directory"] = str(server.dir / "q")
    server.start("--config-directory", ".", cwd=server.dir, env=environment())
    reload(server, proxymapctl, "proxymapctl")


@pytest.mark.skipif(OWN.get("sandbox") == "yes", reason="in a sandbox no program is run")
def test_storm_of_sighups_is_one_reload_and_one_more(server: ServerProcess, proxymapctl: Ctl) -> None:
    """A reload asks postconf for defaults, which lasts as long as nobody writes to a pipe."""
    table = server.cdb("t", TABLE)
    server.beside_postfix("3.7.11")
    hold = server.dir / "hold"
    (server.dir / "postconf").write_text(
        f"#!/bin/sh\ntest -p {hold} && cat {hold}\ncat {server.dir}/defaults\n"
    )
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(table, b"k")) == found(b"v")
        before = server.threads()
        os.mkfifo(hold)
        os.kill(server.pid, signal.SIGHUP)
        with hold.open("w"):  # waits until a reload has begun, and has it wait
            for _ in range(40):
                os.kill(server.pid, signal.SIGHUP)
                assert peer.ask(lookup(table, b"k")) == found(b"v")
            assert server.threads() == before
        server.wait_log("configuration read anew")
        hold.write_text("")  # and one for all the others
        hold.unlink()
        server.approve("cdb:/nowhere")
        reload(server, proxymapctl, "proxymapctl")
        assert peer.ask(lookup(b"cdb:/nowhere", b"k"))[0] == (b"status", b"2")
        assert server.threads() <= before + 1  # an asker of the new table


def test_many_reloads_at_once_disturb_nobody(server: ServerProcess, proxymapctl: Ctl) -> None:
    """Through the socket and by signal, while clients ask and tables come and go."""
    always, sometimes = server.lmdb("always", TABLE), server.cdb("sometimes", TABLE)
    answers = (found(b"v"), reply("lookup", "3.6", DENY))
    server.start()
    wrong: list[object] = []
    ending = threading.Event()

    def ask() -> None:
        try:
            with server.connect() as peer:
                while not ending.is_set():
                    if (answer := peer.ask(lookup(always, b"k"))) != found(b"v"):
                        wrong.append(answer)
                    if (answer := peer.ask(lookup(sometimes, b"k"))) not in answers:
                        wrong.append(answer)
        except BaseException as error:  # a lost connection
            wrong.append(error)

    def reload_by_signal() -> None:
        while not ending.wait(0.2):
            os.kill(server.pid, signal.SIGHUP)

    threads = [threading.Thread(target=ask) for _ in range(8)] + [threading.Thread(target=reload_by_signal)]
    for thread in threads:
        thread.start()
    try:
        for step in range(20):
            server.own["cache_size"] = str(step % 3 << 20)
            server.approved = [os.fsdecode(name) for name in (always, sometimes)[: 1 + step % 2]]
            write_whole(server)
            assert proxymapctl(server, "reload") == 0
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert server.stop() == 0
    assert "unexpected" not in server.log()


def write_whole(server: ServerProcess) -> None:
    """The configuration, in such a way that nobody reads half of it."""
    folder = server.dir
    server.dir = folder / "next"
    server.dir.mkdir(exist_ok=True)
    server.write_config()
    server.dir = folder
    for name in ("main.cf", "proxymap.cf"):
        (folder / "next" / name).rename(folder / name)


# Nonsense


@pytest.mark.parametrize(
    "request_",
    [
        b"garbage\n",
        b"\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"{}\n",
        b"5\n",
        b'{"do": "nothing"}\n',
        b'{"do": []}\n',
        b"[" * (LINE_MAX - 1) + b"\n",
        b"1" * 10000 + b"\n",
    ],
)
def test_nonsense_is_answered(server: ServerProcess, request_: bytes) -> None:
    server.start()
    assert said(server, request_) == PROTOCOL
    assert said(server, b'{"do": "tables"}\n') == b'{"ok": []}\n'
    assert server.log_lines()[1:] == []


@pytest.mark.parametrize(
    "more", [b'"table": 5', b'"keys": 5', b'"keys": [5]', b'"table": "\\ud800"', b'"table": null']
)
def test_flush_of_nonsense_is_refused(server: ServerProcess, more: bytes) -> None:
    server.start()
    assert b"error" in said(server, b'{"do": "flush", %b}\n' % more)
    assert said(server, b'{"do": "tables"}\n') == b'{"ok": []}\n'
    assert server.log_lines()[1:] == []


def test_bad_manners_hurt_nobody(server: ServerProcess, proxymapctl: Ctl) -> None:
    """Half a line, a megabyte, a hundred connections, and who hangs up: lookups go on all the time."""
    table = server.cdb("t", TABLE)
    server.start()
    with server.connect() as peer, contextlib.ExitStack() as stack:
        assert peer.ask(lookup(table, b"k")) == found(b"v")
        before = server.descriptors()
        half = stack.enter_context(connected(server))
        half.sendall(b'{"do": ')
        assert peer.ask(lookup(table, b"k")) == found(b"v")
        large = stack.enter_context(connected(server))
        thread = threading.Thread(target=send_all_that_is_taken, args=(large, b"x" * (1 << 20)))
        thread.start()
        refused = 0
        for _ in range(100):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.setblocking(False)
            refused += one.connect_ex(control_path(server)) != 0
            assert peer.ask(lookup(table, b"k")) == found(b"v")
        assert refused
        thread.join()
        stack.pop_all().close()
        assert peer.ask(lookup(table, b"k")) == found(b"v")
        wait_until(lambda: proxymapctl(server, "tables") == 0, "the control socket")
        assert list(proxymapctl.tables(server)) == [table.decode()]
        wait_until(lambda: server.descriptors() <= before, "the end of those connections")
    assert server.stop() == 0


def send_all_that_is_taken(peer: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        peer.sendall(data)


def test_server_without_descriptors_is_not_taken_for_one_that_is_not_there(
    server: ServerProcess, proxymapctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ASKER_PATIENCE", 0.5)
    server.start()
    server.limit(nofile=3)
    with connected(server) as first:
        first_byte(first)
        assert proxymapctl(server, "tables") == ctl.EX_UNAVAILABLE
    assert "it is there but does not answer" in proxymapctl.err
    assert "start Postfix" not in proxymapctl.err


def test_descriptors_that_have_run_out_do_not_end_it(server: ServerProcess, proxymapctl: Ctl) -> None:
    server.start()
    server.limit(nofile=3)
    with connected(server) as first, connected(server) as peer:
        first_byte(first)  # a descriptor was kept for it
        peer.settimeout(0.5)
        with pytest.raises((TimeoutError, ConnectionError)):  # as the kernel has it
            first_byte(peer)
        server.limit(nofile=1024)
    wait_until(lambda: proxymapctl(server, "tables") == 0, "the control socket")


def first_byte(peer: socket.socket) -> bytes:
    peer.sendall(b'{"do": "tables"}\n')
    return peer.recv(1)
