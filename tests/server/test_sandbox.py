"""test_sandbox - what the server gives up: an attack by its own code fails, and all else goes on as before"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from fix_postfix import StockPostfix, complaints, unavailable
from fix_server import NOT_FOUND, USER, ServerProcess, found, lookup, wait_until, write_cdb

from proxymap.client import Client
from proxymap.config.settings import Settings, load
from proxymap.server.control import ask_all
from proxymap.server.log import Log
from proxymap.server.sandbox import _landlock, entering, policy
from proxymap.server.sandbox.confine import confine
from proxymap.server.sandbox.entering import Sandbox
from proxymap.server.sandbox.needs import Needs, folders_of, port_of
from proxymap.server.sandbox.policy import READ, TIDY, WRITE_TABLES, Policy

RETRY = [(b"status", b"2"), (b"value", b"")]


def known_abi() -> int:
    try:
        return _landlock.abi()
    except OSError:
        return 0


ABI = known_abi()
with_landlock = pytest.mark.skipif(not ABI, reason="this kernel has no Landlock, or it is switched off")

ATTACKER = """
import ctypes, os, socket, subprocess, threading
from proxymap.tables import SlowTable

class Table(SlowTable):
    def lookup(self, key):
        what, _, path = key.decode().partition(" ")
        try:
            getattr(self, what)(path)
        except OSError as error:
            return os.strerror(error.errno).encode()
        return b"done"

    def read(self, path):
        open(path).read()

    def list(self, path):
        os.listdir(path)

    def write(self, path):
        open(path, "w").write("mine")

    def cut(self, path):
        os.truncate(path, 0)

    def remove(self, path):
        os.unlink(path)

    def move(self, path):
        os.rename(path, path + ".moved")

    def link(self, path):
        os.link(path, self.inside + "/link")
        open(self.inside + "/link").read()

    def execute(self, path):
        subprocess.run([path, "-c", "exit 0"], check=True)

    def spawn(self, path):
        os.waitpid(os.posix_spawn(path, [path, "-c", "exit 0"], {}), 0)

    def elsewhere(self, path):
        trouble = []
        def run():
            try:
                open(path).read()
            except OSError as error:
                trouble.append(error)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if trouble:
            raise trouble[0]

    def through(self, path):
        os.listdir(f"/proc/self/fd/{os.open(path, os.O_PATH)}")

    def kill(self, pid):
        os.kill(int(pid), 0)
"""


class Attacked(ServerProcess):
    """A server whose plug-in does what its keys say; `outside` is a folder that no table names."""

    def __init__(self, **own: str) -> None:
        super().__init__(own=own)
        self.plugins, self.outside = (Path(tempfile.mkdtemp(prefix="pm-", dir="/tmp")) for _ in range(2))
        self.plugins.chmod(0o755)
        self.outside.chmod(0o777)
        (self.outside / "secret").write_text("secret")
        (self.outside / "secret").chmod(0o666)
        (self.plugins / "attacker.py").write_text(ATTACKER.replace("self.inside", repr(str(self.dir))))
        (self.plugins / "attacker.cf").write_text(f"module = {self.plugins}/attacker.py\n")
        self.table = f"python:{self.plugins}/attacker.cf".encode()
        self.approve(self.table)

    def tries(self, what: str, path: Path | str) -> str:
        reply = dict(self.connect().ask(lookup(self.table, f"{what} {path}".encode())))
        assert reply[b"status"] == b"0", self.log()
        return reply[b"value"].decode()

    def remove(self) -> None:
        super().remove()
        for folder in (self.plugins, self.outside):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def attacked() -> Iterator[Attacked]:
    with Attacked(sandbox="yes") as server:
        yield server.start()


REFUSED = os.strerror(13)


@with_landlock
@pytest.mark.parametrize("what", ["read", "list", "write", "cut", "remove", "move", "elsewhere"])
def test_code_in_the_server_gets_at_nothing_outside(attacked: Attacked, what: str) -> None:
    """Although the modes of the file and of its folder let everybody do it."""
    target = attacked.outside if what == "list" else attacked.outside / "secret"
    if what == "cut" and ABI < 3:
        pytest.skip("this kernel's Landlock withholds no right to cut a file")
    assert attacked.tries(what, target) == REFUSED
    assert (attacked.outside / "secret").read_text() == "secret"
    assert os.listdir(attacked.outside) == ["secret"]


@with_landlock
def test_code_in_the_server_makes_no_file_outside_and_does_not_move_one_in(attacked: Attacked) -> None:
    assert attacked.tries("write", attacked.outside / "new") == REFUSED
    assert attacked.tries("link", attacked.outside / "secret") != "done"
    assert not (attacked.dir / "link").exists()


@with_landlock
@pytest.mark.parametrize("what", ["execute", "spawn"])
def test_code_in_the_server_runs_no_program(attacked: Attacked, what: str) -> None:
    for program in ("/bin/sh", "/usr/bin/env"):
        assert attacked.tries(what, program) == REFUSED


@with_landlock
def test_code_in_the_server_reads_no_mail_no_home_and_no_password(attacked: Attacked) -> None:
    for path in ("/etc/shadow", "/root", "/home", "/var/spool/postfix", "/var/mail", "/tmp", "/"):
        if os.path.exists(path):
            what = "list" if os.path.isdir(path) else "read"
            assert attacked.tries(what, path) == REFUSED, path
    assert attacked.tries("read", "/etc/hosts") == "done"


@with_landlock
def test_no_way_around_by_links_and_descriptors(attacked: Attacked) -> None:
    (attacked.dir / "link").symlink_to(attacked.outside / "secret")
    assert attacked.tries("read", attacked.dir / "link") == REFUSED
    assert attacked.tries("read", attacked.dir / ".." / attacked.outside.name / "secret") == REFUSED
    assert attacked.tries("read", f"/proc/self/root{attacked.outside}/secret") == REFUSED
    assert attacked.tries("through", attacked.outside) == REFUSED


@with_landlock
def test_code_in_the_server_looks_into_no_other_process(attacked: Attacked) -> None:
    with neighbour() as pid:
        for name in ("mem", "environ", "maps"):
            assert attacked.tries("read", f"/proc/{pid}/{name}") == REFUSED
        for name in ("root", "cwd"):
            assert attacked.tries("list", f"/proc/{pid}/{name}") == REFUSED
    assert attacked.tries("list", "/proc/1/root") == REFUSED


@with_landlock
@pytest.mark.skipif(ABI < 6, reason="this kernel's Landlock withholds no signals")
def test_code_in_the_server_sends_no_signal_to_others(attacked: Attacked) -> None:
    with neighbour() as pid:
        assert attacked.tries("kill", str(pid)) == os.strerror(1)
        assert attacked.tries("kill", str(attacked.pid)) == "done"


@contextlib.contextmanager
def neighbour() -> Iterator[int]:
    """The number of another process of the server's user."""
    identity = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if USER else []
    child = subprocess.Popen(["setpriv", *identity, "sleep", "60"])
    try:
        wait_until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n", "the program's start")
        yield child.pid
    finally:
        child.kill()
        child.wait()


def test_without_the_sandbox_the_same_code_may_do_all_that() -> None:
    """So it is the sandbox that refuses, not a mode."""
    with Attacked(sandbox="no") as server:
        server.start()
        for what in ("read", "elsewhere", "write", "cut", "move"):
            assert server.tries(what, server.outside / "secret") == "done"
        assert server.tries("through", server.outside) == "done"
        with neighbour() as pid:
            assert server.tries("read", f"/proc/{pid}/environ") == "done"
        assert server.tries("execute", "/bin/sh") == "done"
        assert "sandbox" not in server.log()


# What goes on


@with_landlock
def test_tables_are_served_replaced_and_reloaded_in_the_sandbox() -> None:
    with ServerProcess(own={"sandbox": "yes"}) as server:
        table = server.cdb("t", {b"k": b"v"})
        server.start()
        peer = server.connect()
        assert peer.ask(lookup(table, b"k")) == found(b"v")
        write_cdb(server.dir / "t.cdb", {b"k": b"new"})
        assert peer.ask(lookup(table, b"k")) == found(b"new")
        other = server.cdb("later", {b"k": b"later"})
        server.write_config()
        server.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        server.wait_log("configuration read anew")
        assert peer.ask(lookup(other, b"k")) == found(b"later")
        told = [reply["ok"] for _, reply in ask_all(server.path, do="sandbox")]
        assert told == [re.findall(r"sandbox: (.*)", server.log())[0]]
        assert told[0].startswith(f"Landlock ABI {ABI}; writes in ")
        assert server.stop() == 0
        assert not [name for name in os.listdir(server.dir) if name == "s" or name.endswith(".ctl")]


@with_landlock
def test_defaults_of_postfix_count_after_a_reload_although_no_program_can_be_run() -> None:
    """A Postfix up to 3.5 has servers that do not greet; without postconf's word they would."""
    with ServerProcess(own={"sandbox": "yes"}, greeted=False) as server:
        table = server.cdb("t", {b"k": b"v"})
        server.beside_postfix("3.4.0")
        server.start()
        server.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        server.wait_log("configuration read anew")
        assert server.connect().ask(lookup(table, b"k")) == found(b"v")


@with_landlock
def test_a_table_outside_is_refused_with_the_reason_and_an_old_one_stays() -> None:
    """What came after the start: a folder that no table had, and a link to another folder."""
    with Attacked(sandbox="yes") as server:
        (server.dir / "real").mkdir()
        (server.dir / "tables").symlink_to(server.dir / "real")
        write_cdb(server.dir / "real/t.cdb", {b"k": b"old"})
        linked = f"cdb:{server.dir}/tables/t".encode()
        server.approve(linked)
        server.start()
        peer = server.connect()
        assert peer.ask(lookup(linked, b"k")) == found(b"old")
        write_cdb(server.outside / "t.cdb", {b"k": b"new"})
        (server.outside / "t.cdb").chmod(0o644)
        outside = f"cdb:{server.outside}/t".encode()
        server.approve(outside)
        server.write_config()
        (server.dir / "link").symlink_to(server.outside)
        (server.dir / "link").rename(server.dir / "tables")
        server.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        server.wait_log("configuration read anew")
        assert peer.ask(lookup(outside, b"k")) == RETRY
        server.wait_log(f"it needs {server.outside}, which the sandbox of this process does not allow")
        server.wait_log("see sandbox in proxymap.cf(5), and restart the server; going on with the previous")
        assert peer.ask(lookup(linked, b"k")) == found(b"old")


@with_landlock
def test_folders_of_the_administrator_are_allowed() -> None:
    with Attacked(sandbox="yes") as server:
        server.own["sandbox_reads"] = str(server.outside)
        server.own["sandbox_writes"] = f"{server.outside}, {server.dir}"
        server.start()
        assert server.tries("read", server.outside / "secret") == "done"
        assert server.tries("write", server.outside / "new") == "done"


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_under_master_both_services_do_their_work_in_the_sandbox(command: str) -> None:
    """Counters, control socket, updates, a new process after a reload; and the mail queue is out of reach."""
    main = {
        "proxy_read_maps": "proxy:cdb:$tables/t proxy:hash:$tables/h",
        "proxy_write_maps": "proxy:lmdb:$data_directory/w proxy:hash:$data_directory/w",
    }
    master = f"postlog unix-dgram n - n - 1 postlogd\nproxymap unix - - n - - {command}\n"
    postfix = StockPostfix(main, f"{master}proxywrite unix - - n - 1 {command}\n")
    (postfix.config_dir / "proxymap.cf").write_text("sandbox = yes\n")
    write_cdb(postfix.tables / "t.cdb", {b"k": b"v"})
    (postfix.tables / "h").write_text("k v\n")
    with postfix:
        assert postfix.postmap(f"hash:{postfix.tables}/h").returncode == 0
        (postfix.tables / "h.db").chmod(0o644)
        for _ in range(2):
            with Client(postfix.socket("proxymap")) as client, Client(postfix.socket("proxywrite")) as writer:
                assert client.lookup(f"cdb:{postfix.tables}/t", "k") == b"v"
                assert client.lookup(f"hash:{postfix.tables}/h", "k") == b"v"
                for table in (f"lmdb:{postfix.data_dir}/w", f"hash:{postfix.data_dir}/w"):
                    assert writer.update(table, "k", "v")
                    assert writer.lookup(table, "k") == b"v"
                told = dict(ask_all(postfix.socket("proxywrite"), do="sandbox"))
                assert [f"writes in {postfix.data_dir};" in reply["ok"] for reply in told.values()] == [True]
                pids = [*told, *(pid for pid, _ in ask_all(postfix.socket("proxymap"), do="sandbox"))]
                postfix.reload()
            wait_until(lambda pids=pids: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "their end")
        assert not [line for line in complaints(postfix.log().encode()) if b"warning" in line]
        assert not [name for name in os.listdir(postfix.queue_dir / "private") if name.endswith(".ctl")]


@with_landlock
@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_in_a_chroot_the_sandbox_is_entered_too(command: str) -> None:
    """No module can be imported there any more, and libdb's verifier has no program to run."""
    master = f"postlog unix-dgram n - n - 1 postlogd\nproxymap unix - - y - - {command}\n"
    postfix = StockPostfix({"proxy_read_maps": "proxy:cdb:t/c proxy:hash:t/h"}, master)
    (postfix.config_dir / "proxymap.cf").write_text("sandbox = yes\n")
    folder = postfix.queue_dir / "t"
    folder.mkdir()
    write_cdb(folder / "c.cdb", {b"k": b"v"})
    (folder / "h").write_text("k v\n")
    assert postfix.postmap(f"hash:{folder}/h").returncode == 0
    (folder / "h.db").chmod(0o644)
    with postfix, Client(postfix.socket("proxymap")) as client:
        assert [client.lookup(table, "k") for table in ("cdb:t/c", "hash:t/h")] == [b"v", b"v"]
        assert f"sandbox: Landlock ABI {ABI}; writes in no folder;" in postfix.log()
        assert not [line for line in complaints(postfix.log().encode()) if b"warning" in line]


def test_trouble_with_the_sandbox_stops_no_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*details: object, **more: object) -> None:
        raise ValueError("unforeseen")

    lines: list[str] = []

    class Server:
        approved: tuple[bytes, ...] = ()
        writes, sandbox, log = False, None, Log([lambda level, line: lines.append(line)])

        def settle(self) -> None:
            pass

    class Configured:
        sandbox = core_dumps = True

    monkeypatch.setattr(policy, "Policy", fail)
    monkeypatch.setattr(_landlock, "no_new_privileges", lambda: None)
    confine(Server(), Configured(), None, socket=None)  # type: ignore[arg-type]
    assert lines[0].startswith("error: sandbox = yes, and going on without: ValueError: unforeseen")


# What is given up in any case


def test_no_new_privileges_and_no_core_dump() -> None:
    for core_dumps in ("no", "yes"):
        with ServerProcess(own={"core_dumps": core_dumps}) as server:
            server.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (4096, 4096)))
            assert "NoNewPrivs:\t1" in Path(f"/proc/{server.pid}/status").read_text()
            limits = Path(f"/proc/{server.pid}/limits").read_text()
            dumps = int(re.findall(r"Max core file size +(\d+)", limits)[0])
            assert dumps == (0 if core_dumps == "no" else 4096)
            if core_dumps == "no":  # what is in memory belongs to root alone
                assert os.stat(f"/proc/{server.pid}/mem").st_uid == 0


# What is allowed, without a kernel


class Kernel:
    """Records what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, abi: int) -> None:
        self.created: list[tuple[int, int, int]] = []
        self.paths: dict[str, int] = {}
        self.ports: list[int] = []
        self.flags: list[int] = []
        monkeypatch.setattr(_landlock, "abi", lambda: abi)
        monkeypatch.setattr(_landlock, "create", self.create)
        monkeypatch.setattr(_landlock, "allow_beneath", self.allow)
        monkeypatch.setattr(_landlock, "allow_port", lambda ruleset, port, access: self.ports.append(port))
        monkeypatch.setattr(_landlock, "restrict", lambda ruleset, flags: self.flags.append(flags))

    def create(self, *rights: int) -> int:
        self.created.append(rights)  # type: ignore[arg-type]
        return os.open("/dev/null", os.O_RDONLY)

    def allow(self, ruleset: int, parent: int, access: int) -> None:
        self.paths[os.readlink(f"/proc/self/fd/{parent}")] = access


def policy_of(
    folder: Path, main: str, approved: list[bytes], *, writes: bool = False, own: str = ""
) -> Policy:
    (folder / "main.cf").write_text(f"compatibility_level = 3.6\ndata_directory = {folder}\n{main}")
    (folder / "proxymap.cf").write_text(f"sandbox = yes\n{own}\n")
    settings, main_cf = load(str(folder))
    return Policy(settings, main_cf, approved, writes=writes)


@pytest.mark.parametrize(
    ("abi", "rights", "net", "scoped", "flags"),
    [(1, 0x1FFF, 0, 0, 0), (3, 0x7FFF, 0, 0, 0), (4, 0x7FFF, 3, 0, 0), (5, 0xFFFF, 3, 0, 0),
     (7, 0xFFFF, 3, 3, 0), (8, 0xFFFF, 3, 3, 8), (99, 0xFFFF, 3, 3, 8)],
)  # fmt: skip
def test_each_kernel_is_asked_for_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abi: int, rights: int, net: int, scoped: int, flags: int
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    kernel = Kernel(monkeypatch, abi)
    sandbox = Sandbox(policy_of(tmp_path, "", [b"cdb:/etc/x"]), updates=False)
    sandbox.enter(Log([]))
    assert sandbox.entered
    assert kernel.created == [(rights, net, scoped)]
    assert kernel.flags == [flags]
    assert all(access & ~rights == 0 for access in kernel.paths.values())
    assert kernel.paths["/etc"] == READ
    assert kernel.ports == ([53] if abi >= 4 else [])


def test_a_kernel_without_landlock_is_told_and_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> int:
        raise OSError(38, "Function not implemented")

    lines: list[str] = []
    monkeypatch.setattr(_landlock, "abi", absent)
    sandbox = Sandbox(policy_of(tmp_path, "", []), updates=False)
    sandbox.enter(Log([lambda level, line: lines.append(line)]))
    assert not sandbox.entered
    assert "no Landlock for us (Function not implemented)" in lines[0]
    assert sandbox.outside(b"cdb:/nowhere/x", lambda name: "") == ""


def test_a_server_that_writes_is_not_shut_in_by_the_first_abi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under that no file can be moved out of the folder that it was made in."""
    kernel = Kernel(monkeypatch, 1)
    sandbox = Sandbox(policy_of(tmp_path, "", [], writes=True), updates=True)
    sandbox.enter(Log([]))
    assert not sandbox.entered
    assert not kernel.created


def test_only_the_service_for_updates_writes_and_only_where_its_tables_are(tmp_path: Path) -> None:
    for name in ("a", "b", "data"):
        (tmp_path / name).mkdir()
    tables = [f"lmdb:{tmp_path}/a/t".encode(), f"cdb:{tmp_path}/b/t".encode()]
    main = f"data_directory = {tmp_path}/data\n"
    reader, writer = (policy_of(tmp_path, main, tables, writes=writes) for writes in (False, True))
    folders = [os.path.realpath(tmp_path / name) for name in ("a", "b", "data")]
    assert [reader.rights[folder] for folder in folders] == [READ, READ, READ]
    assert [writer.rights[folder] for folder in folders] == [WRITE_TABLES, READ, WRITE_TABLES]


def test_beside_a_socket_of_masters_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    reader = policy_of(tmp_path, "", [])
    reader.beside(f"{tmp_path}/private/proxymap", publishes=False)
    assert reader.rights[os.path.realpath(tmp_path / "private")] == TIDY


def test_a_home_or_the_root_is_no_folder_of_the_system(tmp_path: Path) -> None:
    rights = policy_of(tmp_path, "", [b"cdb:/etc/postfix/x"]).rights
    assert not {"/", "/home", "/root", "/var", "/var/spool", "/var/mail", "/tmp"} & rights.keys()


@pytest.mark.parametrize(
    ("table", "parameters", "ports", "any_port"),
    [
        ("mysql", "hosts = inet:db1:3307 db2 unix:/run/x", {3306, 3307}, False),
        ("mysql", "hosts = db1\noption_file = /etc/my.cnf", {3306}, True),
        ("pgsql", "hosts = postgresql://u:pw@db1:5433/mail?sslrootcert=/etc/ca.pem", {5432, 5433, 88}, False),
        ("ldap", "server_host = ldaps://a:1636 b:ldap\nserver_port = 3890", {389, 636, 1636, 3890}, False),
        ("ldap", "server_host = a\nchase_referrals = yes", {389, 636}, True),
        ("http", "url = https://api.test:8443/%s", {80, 443, 8443}, False),
        ("memcache", "memcache = inet:cache:11311", {11211, 11311}, False),
        ("redis", "uri = redis://a:6379/0", {6379}, True),
        ("mongodb", "uri = mongodb://a", set(), True),
        ("python", "module = x", set(), True),
    ],
)
def test_ports_of_servers(
    tmp_path: Path, table: str, parameters: str, ports: set[int], any_port: bool
) -> None:
    (tmp_path / "t.cf").write_text(f"{parameters}\nquery = SELECT '/root/%s' FROM x WHERE a:99\n")
    needs = Needs(lambda name: "", updates=False)
    needs.tables(f"{table}:{tmp_path}/t.cf")
    assert needs.ports >= ports
    assert needs.ports - ports <= {6379}
    assert bool(needs.any_port) == any_port
    assert "/root" not in needs.reads


def test_ports_in_names_and_in_main_cf() -> None:
    main_cf = {"users_hosts": "inet:db:3310", "users_tls_CAfile": "/etc/ssl/ca.pem"}
    needs = Needs(lambda name: main_cf.get(name, ""), updates=False)
    needs.tables("pipemap:{proxy:tcp:[::1]:2527, socketmap:inet:host:smtp:name} mysql:users")
    assert needs.ports >= {2527, 25, 3306, 3310}
    assert not needs.any_port
    assert os.path.realpath("/etc/ssl") in needs.reads


def test_files_that_parameters_name_are_read(tmp_path: Path) -> None:
    for name in ("tls", "lists", "tables", "members", "db"):
        (tmp_path / name).mkdir()
    (tmp_path / "lists/domains").write_text(f"a.test, !b.test\n# no:thing\ncdb:{tmp_path}/members/m\n")
    (tmp_path / "tables/t.cf").write_text(
        f"hosts = x\ntls_key_file = {tmp_path}/tls/key\ndomain = {tmp_path}/lists/domains\n"
    )
    (tmp_path / "tables/s.cf").write_text(f"dbpath = {tmp_path}/db/x.sqlite\n")
    needs = Needs(lambda name: "", updates=False)
    needs.tables(f"unionmap:{{mysql:{tmp_path}/tables/t.cf, sqlite:{tmp_path}/tables/s.cf}}")
    expected = {os.path.realpath(tmp_path / name) for name in ("tls", "lists", "tables", "members", "db")}
    assert expected <= needs.reads
    assert os.path.realpath(tmp_path / "db") in needs.scratch  # where a database in WAL mode has files


def test_patterns_and_texts_in_braces_name_no_files() -> None:
    needs = Needs(lambda name: "", updates=False)
    needs.tables("pcre:{{/root/ OK}} inline:{{a=/root/x}} static:{/root/x y} regexp:{{/home/ REJECT}}")
    assert not {path for path in needs.reads if path.startswith(("/root", "/home"))}


def test_a_link_is_followed_and_its_own_folder_counts_too(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "here/t.cdb").symlink_to(tmp_path / "there/real.cdb")
    real = os.path.realpath(tmp_path)
    assert folders_of(f"{tmp_path}/here/t.cdb") == [f"{real}/here", f"{real}/there"]
    assert folders_of("") == []


def test_port_of() -> None:
    expected = {"25": 25, "smtp": 25, "0": None, "65536": None, "no-such-service": None}
    assert {word: port_of(word) for word in expected} == expected


def test_what_is_outside_is_named_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Kernel(monkeypatch, 7)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    folder, out = tmp_path / "in", tmp_path / "out"
    sandbox = Sandbox(policy_of(folder, "", [f"cdb:{folder}/t".encode()]), updates=False)
    sandbox.enter(Log([]))
    assert sandbox.outside(f"cdb:{folder}/other".encode(), lambda name: "") == ""
    assert f"it needs {os.path.realpath(out)}, which" in sandbox.outside(
        f"cdb:{out}/t".encode(), lambda name: ""
    )
    (folder / "sql.cf").write_text("hosts = db:3310\n")
    told = sandbox.outside(f"mysql:{folder}/sql.cf".encode(), lambda name: "")
    assert told.startswith("it needs port 3306, port 3310, which the sandbox")
    assert sandbox.outside(f"cdb:{out}/missing/t".encode(), lambda name: "") == ""  # as its table says


@pytest.mark.parametrize(
    ("loaded", "package", "told"),
    [
        (True, True, ""),
        (False, True, "it needs a process that verifies its file, which"),
        (False, False, ""),  # the table says what to install: a restart would not help
    ],
)
def test_hash_tables_that_come_when_their_verifier_cannot_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: bool, package: bool, told: str
) -> None:
    Kernel(monkeypatch, 7)
    monkeypatch.setattr(entering, "find_spec", lambda name: object() if package else None)
    if loaded:
        monkeypatch.setitem(sys.modules, "proxymap.tables.indexed.bdb", ModuleType("bdb"))
    else:
        monkeypatch.delitem(sys.modules, "proxymap.tables.indexed.bdb", raising=False)
    sandbox = Sandbox(policy_of(tmp_path, "", []), updates=False)
    sandbox.enter(Log([]))
    outside = sandbox.outside(f"hash:{tmp_path}/h".encode(), lambda name: "")
    assert outside.startswith(told)
    assert bool(outside) == bool(told)


@with_landlock
def test_a_hash_table_whose_package_is_missing_says_so_in_the_sandbox() -> None:
    with ServerProcess(own={"sandbox": "yes"}) as server:
        (server.dir / "sitecustomize.py").write_text("import sys\nsys.modules['berkeleydb'] = None\n")
        server.env["PYTHONPATH"] = str(server.dir)
        table = f"hash:{server.dir}/h".encode()
        server.approve(table)
        server.start()
        assert server.connect().ask(lookup(table, b"k")) == RETRY
        server.wait_log("pip install 'berkeleydb>=")


def test_a_folder_that_was_made_anew_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, 7)
    folder, maps = tmp_path / "etc", tmp_path / "maps"
    folder.mkdir()
    maps.mkdir()
    name = f"cdb:{maps}/t".encode()
    sandbox = Sandbox(policy_of(folder, "", [name]), updates=False)
    sandbox.enter(Log([]))
    assert sandbox.outside(name, lambda name: "") == ""
    maps.rename(tmp_path / "old")
    maps.mkdir()
    assert "it needs" in sandbox.outside(name, lambda name: "")


def test_not_found_is_answered_in_the_sandbox_as_ever() -> None:
    with ServerProcess(own={"sandbox": "yes"}) as server:
        table = server.cdb("t", {b"k": b"v"})
        server.start()
        assert server.connect().ask(lookup(table, b"none")) == NOT_FOUND


def test_sandbox_ports_may_be_any(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "", [b"tcp:127.0.0.1:2525"], own="sandbox_ports = any")
    assert (policy.ports, policy.any_port) == (None, "sandbox_ports")


def test_the_default_is_no_sandbox(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text("")
    settings: Settings = load(str(tmp_path))[0]
    assert (settings.sandbox, settings.core_dumps, settings.sandbox_ports) == (False, False, ())
    assert entering.NEEDED_TO_WRITE == 2
