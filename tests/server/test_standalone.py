"""test_standalone - the life without master: socket, signals, systemd, options, fatal errors"""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_memcached import write_cf
from fix_scripted import Scripted
from fix_server import (
    LIMIT,
    LOCK,
    NOT_FOUND,
    ROOT,
    USER,
    Peer,
    ServerProcess,
    environment,
    found,
    give,
    lookup,
    request,
    wait_until,
    write_parameters,
)
from oracle import Attributes, encode, reply

from proxymap.errors import ConfigError
from proxymap.server import sockets

PATH_MAX = 107
BIG_VALUE = 300_000
BACKLOG_FILL = 200  # requests that are pending when the signal comes


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        server.cdb("t", {b"k": b"v", b"big": b"x" * BIG_VALUE})
        yield server


def table_of(server: ServerProcess) -> bytes:
    return f"cdb:{server.dir}/t".encode()


def assert_serves(server: ServerProcess) -> None:
    with server.connect() as peer:
        assert peer.ask(lookup(table_of(server), b"k")) == found(b"v")


def assert_fatal(server: ServerProcess, text: str, *arguments: str) -> None:
    """It ends with status 1 and one line, which has the text."""
    server.start(*arguments, wait=False)
    assert server.process is not None
    assert server.process.wait(LIMIT) == 1
    lines = server.log_lines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fatal: ")
    assert text in lines[0]


def run_fatal(*arguments: str, text: str) -> str:
    """The same for a command line of its own; returns the line."""
    done = subprocess.run(
        [sys.executable, "-m", "proxymap", *arguments],
        env=environment(), capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("postfix/proxymap[")
    assert "]: fatal: " in done.stderr
    assert text in done.stderr
    return done.stderr


# The socket


def test_stale_socket_is_replaced(server: ServerProcess) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(server.path)
        give(server.path)
    old = os.stat(server.path).st_ino
    server.start(wait=False)
    wait_until(lambda: os.stat(server.path).st_ino != old, "a socket of its own")
    assert_serves(server)
    assert server.stop() == 0


def test_socket_that_somebody_serves_is_left_alone(server: ServerProcess) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(server.path)
        give(server.path)
        other.listen()
        inode = os.stat(server.path).st_ino
        assert_fatal(server, "another server is listening there")
        assert os.stat(server.path).st_ino == inode


def test_socket_whose_backlog_is_full_is_left_alone(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        other.bind(server.path)
        give(server.path)
        other.listen(0)
        for _ in range(5):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(server.path)
        assert_fatal(server, "another server is listening there")
        assert os.path.exists(server.path)


def test_file_that_is_no_socket_is_left_alone(server: ServerProcess) -> None:
    Path(server.path).write_text("precious")
    assert_fatal(server, "no socket")
    assert Path(server.path).read_text() == "precious"


def test_longest_path_that_a_client_can_connect_to_is_served(server: ServerProcess) -> None:
    server.path += "x" * (PATH_MAX - len(server.path))
    server.start()
    assert_serves(server)
    assert server.stop() == 0
    assert not os.path.exists(server.path)


def test_path_that_no_client_can_connect_to_is_refused(server: ServerProcess) -> None:
    server.path += "x" * (PATH_MAX + 1 - len(server.path))
    assert_fatal(server, f"at most {PATH_MAX} bytes")
    assert not os.path.exists(server.path)


def test_missing_directory_is_fatal(server: ServerProcess) -> None:
    server.path = str(server.dir / "no" / "s")
    assert_fatal(server, "No such file or directory")


@pytest.mark.parametrize("listen", ["inet:127.0.0.1:1234", "unix:", "/tmp/x", ""])
def test_listen_that_is_no_unix_path_is_fatal(server: ServerProcess, listen: str) -> None:
    server.write_config()
    run_fatal("--listen", listen, "--config-directory", str(server.dir), text="unix:PATH")


def test_anybody_may_connect_if_the_folder_lets_them(server: ServerProcess) -> None:
    server.start(umask=0o077)
    assert os.stat(server.path).st_mode & 0o777 == 0o666


def test_it_serves_as_soon_as_the_socket_exists(server: ServerProcess) -> None:
    """Connecting again and again from before the start: either no file, or an answer."""
    for _ in range(5):
        server.start(wait=False)
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                peer = Peer(server.path)
                break
            except FileNotFoundError:  # ConnectionRefusedError fails the test
                assert time.monotonic() < deadline
                assert server.alive(), server.log()
        with peer:
            assert peer.ask(lookup(table_of(server), b"k")) == found(b"v")
        assert server.stop() == 0


def test_no_client_is_refused_while_a_stale_socket_is_replaced(server: ServerProcess) -> None:
    server.start()
    server.wait_log("serving unix:")  # or the line is lost with the process
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    server.start(wait=False)
    wait_until(lambda: "serving unix:" in server.log().rpartition("serving unix:")[0], "the second start")
    assert_serves(server)
    assert server.stop() == 0


def test_of_servers_that_start_at_the_same_time_one_lives(server: ServerProcess) -> None:
    """The others end with status 1, and clients find the one."""
    server.write_config()
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(subprocess.Popen(server.command(), env=environment(), stderr=subprocess.PIPE))
            for _ in range(4)
        ]
        try:
            wait_until(lambda: [one.poll() for one in started].count(1) == 3, "three that give up")
            assert_serves(server)
        finally:
            for one in started:
                one.terminate()
        assert sorted(one.wait(LIMIT) for one in started) == [0, 1, 1, 1]
    assert sorted(os.listdir(server.dir)) == ["main.cf", "proxymap.cf", "s.metrics", "t.cdb"]


def test_path_where_another_server_is_starting_is_refused(server: ServerProcess) -> None:
    with sockets.own_socket(f"unix:{server.path}") as first:
        with pytest.raises(ConfigError, match="another server is starting there"):
            sockets.OwnSocket(server.path)
        first.publish()
        with pytest.raises(ConfigError, match="another server is listening there"):
            sockets.OwnSocket(server.path)
    assert os.listdir(server.dir) == ["t.cdb"]


def test_link_in_the_place_of_the_new_socket_changes_no_other_file(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's owner puts it there as soon as the name appears."""
    precious = server.dir / "precious"
    precious.touch(0o600)

    class Watched(socket.socket):
        def bind(self, path: str) -> None:  # type: ignore[override]
            super().bind(path)
            os.unlink(path)
            os.symlink(precious, path)

    monkeypatch.setattr(socket, "socket", Watched)
    with sockets.own_socket(f"unix:{server.path}"):
        assert oct(precious.stat().st_mode & 0o777) == "0o600"


def test_file_in_the_way_of_the_new_socket_is_named(server: ServerProcess) -> None:
    in_the_way = server.dir / f".{os.getpid()}"
    in_the_way.symlink_to("/nowhere")
    with pytest.raises(ConfigError, match=f"{in_the_way} is in the way"):
        sockets.OwnSocket(server.path)
    assert in_the_way.is_symlink()


# Whose process it is

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def ids(server: ServerProcess) -> dict[str, set[int]]:
    """All user, group and supplementary group numbers that the process has."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: {int(number) for number in fields[name].split()} for name in ("Uid", "Gid", "Groups")}


@needs_root
@pytest.mark.parametrize("how", ["mail_owner", "--user"])
def test_root_is_given_up_for_good_before_the_socket_is_made(server: ServerProcess, how: str) -> None:
    """The type of a table that main.cf approves later is there, too, though its file may not be readable."""
    user = pwd.getpwnam("daemon")
    if how == "--user":
        del server.main["mail_owner"]
    server.start(*(["--user", "daemon"] if how == "--user" else []))
    mine = ids(server)
    assert (mine["Uid"], mine["Gid"]) == ({user.pw_uid}, {user.pw_gid})
    assert mine["Groups"] <= {user.pw_gid}
    assert os.stat(server.path).st_uid == user.pw_uid
    assert_serves(server)
    server.approve("static:v")
    server.write_config()
    os.kill(server.pid, signal.SIGHUP)
    server.wait_log("configuration read anew")
    with server.connect() as peer:
        assert peer.ask(lookup(b"static:v", b"k")) == found(b"v")
    assert server.stop() == 0


@needs_root
@pytest.mark.parametrize("arguments", [[], ["--user", "root"]])
def test_it_does_not_serve_as_root(server: ServerProcess, arguments: list[str]) -> None:
    server.main["mail_owner"] = "root"
    where = "--user" if arguments else "parameter mail_owner"
    assert_fatal(server, f"{where}: root is privileged", *arguments)
    assert not os.path.exists(server.path)


@needs_root
def test_folder_of_another_user_is_named_with_what_to_do(server: ServerProcess) -> None:
    os.chown(server.dir, 0, 0)
    os.chmod(server.dir, 0o755)
    assert_fatal(
        server, f"Permission denied; daemon needs a folder of its own: install -d -o daemon {server.dir}"
    )


# Values that are names of files

RHS_IS_FILE = 1 << 21


def asked_for_a_file(server: ServerProcess, table: str) -> Attributes:
    with server.connect() as peer:
        return peer.ask(lookup(table.encode(), b"k", flags=LOCK | RHS_IS_FILE))


@pytest.mark.parametrize(("setting", "folder", "served"), [
    ("auto", 0o711, False), ("auto", 0o700, True), ("yes", 0o711, True), ("no", 0o700, False),
])  # fmt: skip
def test_file_that_a_value_names_is_read_on_a_private_socket(
    server: ServerProcess, setting: str, folder: int, served: bool
) -> None:
    """By default; of a table in tls_server_sni_maps, as Postfix's clients ask for it."""
    (server.dir / "key").write_text("content")
    table = f"inline:{{k={server.dir}/key}}"
    server.approve(table)
    server.main["tls_server_sni_maps"] = f"proxy:{table}"
    server.own["src_rhs_is_file"] = setting
    server.dir.chmod(folder)
    server.start()
    content = base64.b64encode(b"content")
    assert asked_for_a_file(server, table) == (found(content) if served else reply("lookup", "3.6", 2))
    if not served:
        server.wait_log("see src_rhs_is_file in proxymap.cf(5)")
    with server.connect() as peer:  # what all others ask for
        assert peer.ask(lookup(table.encode(), b"k")) == found(f"{server.dir}/key".encode())


def test_file_that_a_value_of_any_other_table_names_is_not_read(server: ServerProcess) -> None:
    """Also as a member; the table of tls_server_sni_maps has the other's name in its own."""
    (server.dir / "key").write_text("content")
    (server.dir / "t").write_text(f"k {server.dir}/key\n")
    tables = [f"texthash:{server.dir}/t", f"unionmap:{{texthash:{server.dir}/t}}"]
    server.approve(*tables)
    server.main["tls_server_sni_maps"] = f"proxy:{tables[0]}2, proxy:{tables[0]}/3"
    server.start()
    for table in tables:
        assert asked_for_a_file(server, table) == reply("lookup", "3.6", 2)


def test_file_that_only_the_server_may_read_is_not_given_to_clients(server: ServerProcess) -> None:
    for mode in (0o600, 0o604, 0o640):
        path = server.dir / f"key{mode:o}"
        path.write_text("content")
        give(path)
        path.chmod(mode)
        if USER:
            os.chown(path, -1, pwd.getpwnam(USER).pw_gid)
        table = f"inline:{{k={path}}}"
        server.approve(table)
    server.main["tls_server_sni_maps"] = " ".join(f"proxy:{table}" for table in server.approved[1:])
    server.start()
    content = found(base64.b64encode(b"content"))
    answers = [asked_for_a_file(server, table) for table in server.approved[1:]]
    assert answers == [reply("lookup", "3.6", 2), content, content]
    server.wait_log("only its owner may read it")


# An upgrade in place


@pytest.fixture
def installed(server: ServerProcess) -> Path:
    """A copy of the package for that server alone."""
    copy = server.dir / "lib"
    shutil.copytree(ROOT / "proxymap", copy / "proxymap", ignore=shutil.ignore_patterns("*.pyx", "*.pxd"))
    server.env["PYTHONPATH"] = str(copy)
    return copy / "proxymap"


def test_types_that_main_cf_names_are_loaded_at_the_start(server: ServerProcess, installed: Path) -> None:
    server.start(cwd=installed.parent)
    for module in installed.glob("tables/indexed/cdb*"):
        module.unlink()
    assert_serves(server)


def test_type_with_a_large_library_is_loaded_while_root_can_do_so(
    server: ServerProcess, installed: Path
) -> None:
    """The server's user may not read the package; only types that main.cf names are worth the memory."""
    with Scripted("memcache", {b"k": b"v"}) as memcached:
        table = write_cf(server.dir / "t.cf", memcache=memcached.endpoint)
        server.approve(table)
        installed.chmod(0o700)
        with server.start(cwd=installed.parent).connect() as peer:
            assert peer.ask(lookup(table, b"k")) == found(b"v")


def test_changed_installation_is_told_once(server: ServerProcess, installed: Path) -> None:
    server.approve("static:v", "static:w")
    server.start(cwd=installed.parent)
    assert_serves(server)
    assert "has changed" not in server.log()
    (module,) = installed.glob("server/_loop*.so")
    shutil.copy(module, f"{module}.new")
    os.rename(f"{module}.new", module)
    with server.connect() as peer:
        for name in (b"v", b"w"):
            assert peer.ask(lookup(b"static:" + name, b"k")) == found(name)
    server.wait_log(f"the installation in {installed} has changed")
    assert server.log().count("has changed") == 1


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_status_0_and_removes_the_socket(server: ServerProcess, number: int) -> None:
    server.start()
    assert_serves(server)
    assert server.stop(number) == 0
    assert not os.path.exists(server.path)
    assert sorted(os.listdir(server.dir)) == ["log", "main.cf", "proxymap.cf", "s.metrics", "t.cdb"]
    assert len(server.log_lines()) == 1


def test_signal_with_idle_clients_hangs_up_on_them(server: ServerProcess) -> None:
    server.start()
    with server.connect() as peer:
        assert server.stop() == 0
        assert peer.rest() == b""


def test_signal_lets_half_a_request_go(server: ServerProcess) -> None:
    server.start()
    with server.connect() as peer:
        peer.send(lookup(table_of(server), b"k")[:-1])
        assert server.stop() == 0
        assert peer.rest() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("key", [b"k", b"big"])
@pytest.mark.parametrize("signals", [1, 2])
def test_pending_requests_are_answered_before_the_end(
    server: ServerProcess, signals: int, key: bytes, number: int
) -> None:
    """The client reads only after the signal; a second signal changes nothing."""
    asked = lookup(table_of(server), key) * BACKLOG_FILL
    expected = encode(found(b"v" if key == b"k" else b"x" * BIG_VALUE)) * BACKLOG_FILL
    server.start()
    assert server.process is not None
    with server.connect() as peer, server.connect() as other:
        peer.send(asked)
        other.send(lookup(table_of(server), b"k"))
        for _ in range(signals):
            server.process.send_signal(number)
            time.sleep(0.2)
        assert peer.rest() == expected
        assert other.rest() == encode(found(b"v"))
    assert server.process.wait(LIMIT) == 0


def test_requests_for_a_table_not_yet_open_are_answered_before_the_end(server: ServerProcess) -> None:
    server.start()
    assert server.process is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with Peer(server.path, greeted=False) as peer:
            # Accepted or not when the signal comes: both are there before it.
            peer.send(lookup(table_of(server), b"k") * 3)
            server.process.send_signal(signal.SIGTERM)
            os.kill(server.pid, signal.SIGCONT)
            answer = peer.rest()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert answer.endswith(encode(found(b"v")) * 3)
    assert server.process.wait(LIMIT) == 0


def test_client_that_takes_nothing_is_given_up_at_drain_time_limit(server: ServerProcess) -> None:
    server.own["drain_time_limit"] = "1s"
    server.start()
    with server.connect() as peer:
        peer.send(lookup(table_of(server), b"big") * 20)
        assert server.stop() == 0
        assert len(peer.rest()) < 20 * BIG_VALUE


def test_socket_of_somebody_else_is_not_removed(server: ServerProcess) -> None:
    server.start()
    os.unlink(server.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(server.path)
        assert server.stop() == 0
        assert os.path.exists(server.path)


def test_socket_removed_by_somebody_else_is_no_trouble(server: ServerProcess) -> None:
    server.start()
    os.unlink(server.path)
    assert server.stop() == 0


# systemd

ACTIVATE = """\
import os, sys
listener = int(sys.argv[1])
if listener != 3:
    os.dup2(listener, 3)
os.set_inheritable(3, True)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[2]))
os.environ["LISTEN_FDS"] = sys.argv[3]
os.execv(sys.executable, [sys.executable, "-m", "proxymap", *sys.argv[4:]])
"""


def activate(server: ServerProcess, listener: socket.socket, *, pid: int = 0, count: str = "1") -> None:
    """Start as systemd does, with the socket as descriptor 3. pid: how far LISTEN_PID is off."""
    server.write_config()
    command = [sys.executable, "-c", ACTIVATE, str(listener.fileno()), str(pid), count]
    with server.log_file.open("ab") as log:
        server.process = subprocess.Popen(
            [*command, "--config-directory", str(server.dir)],
            env=environment(), stderr=log, pass_fds=[listener.fileno()],
        )  # fmt: skip


def test_socket_of_systemd_is_served_and_left_in_place(server: ServerProcess) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(server.path)
        listener.listen()
        with Peer(server.path, greeted=False) as early:  # before there is anybody to accept
            early.send(lookup(table_of(server), b"k"))
            activate(server, listener)
            assert early.reply() == [(b"protocol", b"proxymap_protocol")]
            assert early.reply() == found(b"v")
        assert server.stop() == 0
        assert os.path.exists(server.path)
        # The next start goes on with the same socket.
        activate(server, listener)
        assert_serves(server)
        assert server.stop() == 0


@pytest.mark.parametrize(("pid", "count"), [(1, "1"), (0, "0"), (0, ""), (0, "x")])
def test_socket_that_is_not_for_us_is_not_taken(server: ServerProcess, pid: int, count: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(server.path)
        listener.listen()
        activate(server, listener, pid=pid, count=count)
        assert server.process is not None
        assert server.process.wait(LIMIT) == 1
        assert "fatal: no socket to serve" in server.log()


def test_without_listen_and_without_systemd_it_is_fatal(server: ServerProcess) -> None:
    server.write_config()
    run_fatal("--config-directory", str(server.dir), text="no socket to serve")


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_of_start_and_stop(server: ServerProcess, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"@{server.dir}/n" if abstract else f"{server.dir}/n"
        manager.bind(name.replace("@", "\0"))
        if not abstract:
            os.chmod(name, 0o777)
        manager.settimeout(LIMIT)
        server.start(wait=False, env=environment(NOTIFY_SOCKET=name))
        assert manager.recv(100).decode().splitlines()[0] == "READY=1"
        assert_serves(server)  # at once: READY=1 is a promise
        assert server.stop() == 0
        assert manager.recv(100).decode().splitlines()[0] == "STOPPING=1"


def test_systemd_that_has_gone_is_no_trouble(server: ServerProcess) -> None:
    server.start(env=environment(NOTIFY_SOCKET=f"{server.dir}/gone"))
    assert_serves(server)
    assert server.stop() == 0


# Configuration


def test_relative_table_name_is_relative_to_queue_directory() -> None:
    with ServerProcess() as server:
        server.cdb("rel", {b"k": b"v"})
        server.approve("cdb:rel")
        server.start(cwd="/")
        with server.connect() as peer:
            assert peer.ask(lookup(b"cdb:rel", b"k")) == found(b"v")


def test_missing_queue_directory_is_told(server: ServerProcess) -> None:
    server.main["queue_directory"] = "/no/such/directory"
    server.start()
    assert_serves(server)
    assert any("/no/such/directory" in line and line.startswith("warning: ") for line in server.log_lines())


def test_mail_config_names_the_directory(server: ServerProcess) -> None:
    server.write_config()
    with server.log_file.open("ab") as log:
        server.process = subprocess.Popen(
            [sys.executable, "-m", "proxymap", "--listen", f"unix:{server.path}"],
            env=environment(MAIL_CONFIG=str(server.dir)), stderr=log,
        )  # fmt: skip
    wait_until(lambda: os.path.exists(server.path), "the socket")
    assert_serves(server)


def test_config_directory_goes_before_mail_config(server: ServerProcess) -> None:
    server.start(env=environment(MAIL_CONFIG="/no/such/directory"))
    assert_serves(server)


def test_option_o_overrides_both_files(server: ServerProcess) -> None:
    server.main["proxy_read_maps"] = ""
    server.own["greeting"] = "yes"
    server.greeted = False
    server.start("-o", f"proxy_read_maps=proxy:{table_of(server).decode()}", "-o", "greeting=no")
    assert_serves(server)


def test_read_service_approves_by_proxy_read_maps_and_write_service_by_proxy_write_maps() -> None:
    with ServerProcess() as server:
        read, write = server.cdb("r", {b"k": b"v"}), server.cdb("w", {b"k": b"v"})
        server.main["proxy_read_maps"] = f"proxy:{read.decode()}"
        server.main["proxy_write_maps"] = f"proxy:{write.decode()}"
        for service, approved, other in (("proxymap", read, write), ("proxywrite", write, read)):
            server.start("-n", service)
            with server.connect() as peer:
                assert peer.ask(request("open", approved))[0] == (b"status", b"0")
                assert peer.ask(request("open", other)) == reply("open", "3.6", 4)
            assert server.stop() == 0


def test_name_approved_without_proxy_in_front_is_not_approved() -> None:
    with ServerProcess() as server:
        table = server.cdb("t", {b"k": b"v"})
        server.main["proxy_read_maps"] = table.decode()
        server.start()
        with server.connect() as peer:
            assert peer.ask(lookup(table, b"k")) == reply("lookup", "3.6", 4)


def test_tables_of_other_parameters_are_approved_by_default() -> None:
    with ServerProcess() as server:
        table = server.cdb("t", {b"k": b"v"})
        server.main |= {
            "virtual_alias_maps": f"proxy:{table.decode()}",
            "proxy_read_maps": "$virtual_alias_maps",
        }
        server.start()
        with server.connect() as peer:
            assert peer.ask(lookup(table, b"no")) == NOT_FOUND


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--no-such-option"], "--no-such-option"),
        (["-Z"], "-Z"),
        (["-n"], "-n"),
        (["-n", "virtual"], "virtual"),
        (["-o", "nothing"], "nothing"),
        (["--log-to", "nowhere"], "nowhere"),
        (["stray"], "stray"),
    ],
)
def test_bad_option_is_fatal(server: ServerProcess, arguments: list[str], text: str) -> None:
    assert_fatal(server, text, *arguments)
    assert not os.path.exists(server.path)


def test_log_file_is_made_by_postlogd_alone(server: ServerProcess) -> None:
    """So maillog_file_permissions is its business."""
    file = server.dir / "mail.log"
    server.main |= {"maillog_file": str(file), "maillog_file_prefixes": "/", "maillog_file_permissions": "x"}
    table = server.cdb("t", {b"k": b"v"})
    with server.start("--log-to", "mail").connect() as peer:
        assert peer.ask(lookup(table, b"k")) == found(b"v")
    assert not file.exists()


def test_missing_main_cf_is_fatal(tmp_path: Path) -> None:
    run_fatal("--listen", f"unix:{tmp_path}/s", "--config-directory", str(tmp_path), text="main.cf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("worker_count", "0"),
        ("request_size_limit", "1"),
    ],
)
def test_bad_value_of_ours_is_fatal_and_the_line_says_where(tmp_path: Path, name: str, value: str) -> None:
    write_parameters(tmp_path / "main.cf", {"compatibility_level": "3.6"})
    write_parameters(tmp_path / "proxymap.cf", {name: value})
    line = run_fatal("--listen", f"unix:{tmp_path}/s", "--config-directory", str(tmp_path), text=name)
    assert str(tmp_path / "proxymap.cf") in line
    assert f'"{value}"' in line


@pytest.mark.parametrize(("option", "text"), [("--help", "usage: proxymap"), ("--version", "proxymap ")])
def test_help_and_version(option: str, text: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxymap", option],
        env=environment(), capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(text)


def test_open_reply_shows_the_utf8_layer_only_with_smtputf8(server: ServerProcess) -> None:
    utf8_request, utf8_active = 1 << 19, 1 << 20
    for value, expected in (("yes", utf8_active), ("no", 0)):
        server.main["smtputf8_enable"] = value
        server.start()
        with server.connect() as peer:
            asked = request("open", table_of(server), "3.11", instance_flags=LOCK | utf8_request)
            assert int(dict(peer.ask(asked))[b"flags"]) & utf8_active == expected
        assert server.stop() == 0
