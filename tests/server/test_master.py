"""test_master - our daemon as a child of Postfix's own master(8), in a private instance

What stock does is the measure: reload, kill -9, max_use, max_idle, stop, the
privileges, the log. The executable lies in a folder of root's, as enable wants
it, and runs this checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_postfix import StockPostfix, unavailable

import proxymap
from proxymap.metrics import _counters as counters
from proxymap.metrics.files import path_beside
from proxymap.metrics.reading import read

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

ROOT = Path(__file__).resolve().parents[2]
Ended = tuple[bytes, bytes, int]  # standard output, standard error, exit status
LIMIT = 30.0  # seconds; for a machine that is very busy
RELOADS = 20
UPDATE = 3 * 8  # cells of the answers to updates
MASTER = """\
postlog    unix-dgram n - n - 1 postlogd
proxymap   unix  -  -  {chroot}  -  -  {command} {options}
proxywrite unix  -  -  n  -  1  {command}
"""


class Instance(StockPostfix):
    """A private Postfix whose proxymap is ours, with the tables cdb:$tables/t and lmdb:$tables/t."""

    def __init__(self, command: str, *, options: str = "", chroot: str = "n", **main: str) -> None:
        maps = "proxy:cdb:$tables/t proxy:lmdb:$tables/t proxy:cdb:t proxy:unix:passwd.byname"
        super().__init__(
            {"proxy_read_maps": maps, "proxy_write_maps": "proxy:lmdb:$data_directory/w", **main},
            MASTER.format(command=command, options=options, chroot=chroot),
        )
        (self.tables / "t").write_text("".join(f"key{i} value{i}\n" for i in range(1000)))
        for maptype in ("cdb", "lmdb"):
            assert self.postmap(f"{maptype}:{self.tables}/t").returncode == 0
            (self.tables / f"t.{maptype}").chmod(0o644)
        shutil.copy(self.tables / "t.cdb", self.queue_dir / "t.cdb")  # for a relative name, and for chroot

    def client(self, service: str = "proxymap") -> proxymap.Client:
        return proxymap.Client(self.socket(service), timeout=LIMIT)

    def ask(self, client: proxymap.Client, key: str = "key7") -> bytes | None:
        return client.lookup(f"cdb:{self.tables}/t", key)

    def pids(self, service: str = "proxymap") -> list[int]:
        """The children of master that run our code for that service."""
        assert self._master is not None
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes()
                ours = parent == self._master.pid and b"/proxymap" in command
                if ours and (b"\0-n\0proxywrite\0" in command) == (service == "proxywrite"):
                    found.append(int(folder.name))
        return sorted(found)

    def pid(self, service: str = "proxymap") -> int:
        (one,) = self.pids(service)
        return one

    def warnings(self) -> list[str]:
        return [
            line for line in self.log().splitlines() if re.search(r" (warning|error|fatal|panic): ", line)
        ]


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def status_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture
def instance(command: str) -> Iterator[Instance]:
    with Instance(command) as started:
        yield started


def test_answers_found_not_found_and_denied(instance: Instance) -> None:
    with instance.client() as client:
        assert instance.ask(client) == b"value7"
        assert instance.ask(client, "absent") is None
        assert client.lookup("cdb:t", "key7") == b"value7"  # relative to the queue directory
        with pytest.raises(proxymap.NotApproved):
            client.lookup("cdb:/elsewhere", "x")
    line = f'postfix/proxymap[{instance.pid()}]: warning: request for unapproved table: "cdb:/elsewhere"'
    wait_until(lambda: line in instance.log(), "the line in the mail log")


def test_runs_as_mail_owner_with_its_groups_and_no_root_is_left(instance: Instance) -> None:
    owner = pwd.getpwnam("postfix")
    with instance.client() as client:
        instance.ask(client)
        status = status_of(instance.pid())
    assert status["Uid"] == [str(owner.pw_uid)] * 4
    assert status["Gid"] == [str(owner.pw_gid)] * 4
    assert sorted(map(int, status["Groups"])) == sorted(os.getgrouplist("postfix", owner.pw_gid))
    assert status["CapEff"] == status["CapPrm"] == ["0" * 16]


def test_update_as_mail_owner(instance: Instance) -> None:
    """In a new file, as stock's proxywrite creates it, and stock's postmap finds it there."""
    table = f"lmdb:{instance.data_dir}/w"
    with instance.client("proxywrite") as client:
        client.update(table, "key", "value")
        assert client.lookup(table, "key") == b"value"
    status = (instance.data_dir / "w.lmdb").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (pwd.getpwnam("postfix").pw_uid, 0o600)
    assert instance.postmap("-q", "key", table).stdout == b"value\n"


def test_chroot(command: str) -> None:
    with Instance(command, chroot="y") as instance, instance.client() as client:
        assert client.lookup("cdb:t", "key7") == b"value7"
        with pytest.raises(proxymap.TableRetry):
            instance.ask(client)  # its absolute name is not there
        assert os.readlink(f"/proc/{instance.pid()}/root") == str(instance.queue_dir)


def test_proxywrite_leads_a_session_of_its_own(instance: Instance) -> None:
    with instance.client("proxywrite") as client:
        assert client.lookup(f"lmdb:{instance.data_dir}/w", "absent") is None
        pid = instance.pid("proxywrite")
        assert os.getsid(pid) == pid


def test_service_descriptors_are_closed_on_exec(instance: Instance) -> None:
    with instance.client() as client:
        instance.ask(client)
        folder = Path(f"/proc/{instance.pid()}/fdinfo")
        for fd in (int(name) for name in os.listdir(folder) if int(name) > 2):
            flags = re.search(r"flags:\s+(\d+)", (folder / str(fd)).read_text())
            assert flags is not None
            assert int(flags[1], 8) & os.O_CLOEXEC, fd


def test_one_process_serves_two_hundred_clients(instance: Instance) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(instance.client()) for _ in range(200)]
        assert [instance.ask(client, f"key{i}") for i, client in enumerate(clients)] == [
            b"value%d" % i for i in range(200)
        ]
        assert len(instance.pids()) == 1


def test_reload_ends_the_process_and_the_next_one_answers(instance: Instance) -> None:
    with instance.client() as client:
        instance.ask(client)
        first = instance.pid()
        instance.reload()
        wait_until(lambda: gone(first), "end of the old process")
    with instance.client() as client:
        assert instance.ask(client) == b"value7"
        assert instance.pid() != first
    assert not instance.warnings()


def test_edit_of_main_cf_counts_after_reload(instance: Instance) -> None:
    with instance.client() as client:
        instance.ask(client)
        first = instance.pid()
        instance.set(proxy_read_maps="proxy:lmdb:$tables/t")
        assert instance.ask(client) == b"value7"
        instance.reload()
        wait_until(lambda: gone(first), "end of the old process")
    with instance.client() as client, pytest.raises(proxymap.NotApproved):
        instance.ask(client)


def ctl(instance: Instance, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxymap.ctl", "-c", str(instance.config_dir), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=LIMIT, check=False)


def test_control_socket_is_mail_owners_and_goes_with_the_process(instance: Instance) -> None:
    with instance.client() as client:
        instance.ask(client)
        path = Path(f"{instance.socket()}.{instance.pid()}.ctl")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == pwd.getpwnam("postfix").pw_uid
        instance.reload()
        wait_until(lambda: not path.exists(), "the end of the control socket")


def test_tables_and_flush_work_for_both_services(instance: Instance) -> None:
    with instance.client() as client, instance.client("proxywrite") as writer:
        instance.ask(client)
        writer.update(f"lmdb:{instance.data_dir}/w", "key", "value")
        done = ctl(instance, "tables")
        assert f"cdb:{instance.tables}/t (Postfix 3.6, flags" in done.stdout
        assert f"process {instance.pid()}): open" in done.stdout
        done = ctl(instance, "--socket", instance.socket("proxywrite"), "tables")
        assert done.stdout.startswith(f"lmdb:{instance.data_dir}/w ")
        assert f"process {instance.pid('proxywrite')}): open" in done.stdout
        assert ctl(instance, "flush", f"cdb:{instance.tables}/t").returncode == 0
        assert ctl(instance, "flush", "cdb:/elsewhere").returncode == 1


def test_chrooted_process_has_a_control_socket(command: str) -> None:
    with Instance(command, chroot="y") as instance, instance.client() as client:
        client.lookup("cdb:t", "key7")
        assert ctl(instance, "tables").stdout.startswith("cdb:t ")
        assert 'use "postfix reload"' in ctl(instance, "reload").stderr


def test_reload_is_masters_business(instance: Instance) -> None:
    with instance.client() as client:
        instance.ask(client)
        done = ctl(instance, "reload")
        assert done.returncode == 78
        assert 'use "postfix reload"' in done.stderr
        assert instance.ask(client) == b"value7"


def test_killed_process_is_replaced_at_once(instance: Instance) -> None:
    """It has told TAKEN and AVAIL once, and so does not cost the throttle time of 60 s."""
    with instance.client() as client:
        instance.ask(client)
        instance.ask(client)  # in another turn of the loop than the first, whose end tells master
        os.kill(instance.pid(), signal.SIGKILL)
    with instance.client() as client:
        assert instance.ask(client) == b"value7"
    assert "throttling" not in instance.log()


@pytest.mark.parametrize("chroot", ["n", "y"])
def test_what_is_counted_survives_reloads_and_kill(command: str, chroot: str) -> None:
    """Of both services, in files of mail_owner's; a process says that it serves."""
    with Instance(command, chroot=chroot) as instance:
        for number in range(RELOADS + 1):
            with instance.client() as client, instance.client("proxywrite") as writer:
                for key in ("key7", "absent"):
                    client.lookup("cdb:t", key)
                writer.update(f"lmdb:{instance.data_dir}/w", "key", "value")
                pids = [instance.pid(), instance.pid("proxywrite")]
            if number == RELOADS // 2:
                os.kill(pids[0], signal.SIGKILL)
                wait_until(lambda pids=pids: gone(pids[0]), "its end")
            elif number < RELOADS:
                instance.reload()
                wait_until(lambda pids=pids: all(map(gone, pids)), "their end")
        reading = read(path_beside(instance.socket()))
        lookups = reading.of(counters.OF_TABLE, "cdb:t")[counters.LOOKUPS :][:2]
        assert lookups == [RELOADS + 1] * 2

        def updates() -> int:
            writing = read(path_beside(instance.socket("proxywrite")))
            return writing.of(counters.OF_TABLE, f"lmdb:{instance.data_dir}/w")[counters.REQUESTS + UPDATE]

        wait_until(lambda: updates() == RELOADS + 1, "the last one, counted after its reply was sent")
        assert reading.of(counters.OF_SERVICE)[counters.STARTS] == RELOADS + 1
        status = os.stat(path_beside(instance.socket()))
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (pwd.getpwnam("postfix").pw_uid, 0o600)
        line = f"serving private/proxymap for {instance.config_dir}/main.cf"
        wait_until(lambda: line in instance.log(), "the line in the mail log")


def test_max_idle_counts_while_no_client_is_connected(command: str) -> None:
    with Instance(command, max_idle="1s") as instance:
        with instance.client() as client:
            instance.ask(client)
            pid = instance.pid()
            time.sleep(2)
            assert not gone(pid)
        wait_until(lambda: gone(pid), "end after max_idle")
        assert not instance.warnings()


def test_max_use_counts_connections_and_waits_for_the_last(command: str) -> None:
    with Instance(command, max_use="2") as instance:
        with instance.client() as last:
            instance.ask(last)
            pid = instance.pid()
            for _ in range(3):
                with instance.client() as client:
                    assert instance.ask(client) == b"value7"
            assert instance.pid() == pid
        wait_until(lambda: gone(pid), "end after max_use")
        assert not instance.warnings()


def test_stop_leaves_no_process(command: str) -> None:
    instance = Instance(command)
    try:
        instance.start()
        with instance.client() as one, instance.client("proxywrite") as two:
            instance.ask(one)
            two.lookup(f"lmdb:{instance.data_dir}/w", "key7")
            pids = [instance.pid(), instance.pid("proxywrite")]
            assert instance._master is not None
            instance._master.terminate()
            instance._master.wait(LIMIT)
        wait_until(lambda: all(map(gone, pids)), "end of both children")
    finally:
        instance.remove()


def test_child_leaves_when_master_is_killed(command: str) -> None:
    with Instance(command) as instance, instance.client() as client:
        instance.ask(client)
        pid = instance.pid()
        assert instance._master is not None
        instance._master.kill()
        wait_until(lambda: gone(pid), "end of the child")


def test_fifty_reloads_under_load(command: str) -> None:
    """Twenty postmap clients ask without pause: no warning, no wrong answer, no lookup over a second."""
    keys = "".join(f"key{i % 1500}\n" for i in range(60_000)).encode()
    expected = b"".join(b"key%d\tvalue%d\n" % (i % 1500, i % 1500) for i in range(60_000) if i % 1500 < 1000)
    with Instance(command) as instance:
        asking = [
            subprocess.Popen(
                ["postmap", "-c", instance.config_dir, "-q", "-", f"proxy:cdb:{instance.tables}/t"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for _ in range(20)
        ]  # fmt: skip
        with contextlib.ExitStack() as stack:
            feeders = [stack.enter_context(feeding(process, keys)) for process in asking]
            for _ in range(50):
                time.sleep(0.12)
                instance.reload()
            done = [feeder() for feeder in feeders]
        for out, err, status in done:
            assert err == b""
            assert status == 0
            assert out == expected
        assert not instance.warnings()


@contextlib.contextmanager
def feeding(
    process: subprocess.Popen[bytes], keys: bytes
) -> Iterator[Callable[[], tuple[bytes, bytes, int]]]:
    """Feed keys to a process from a thread; the value tells its output when it has ended."""
    from threading import Thread

    result: list[tuple[bytes, bytes]] = []
    thread = Thread(target=lambda: result.append(process.communicate(keys)))
    thread.start()

    def end() -> Ended:
        thread.join()
        return (*result[0], process.returncode)

    try:
        yield end
    finally:
        thread.join()


class FakeMaster:
    """What master(8) gives a child: descriptors, environment, arguments; and the messages that it gets."""

    def __init__(self, folder: Path, arguments: list[str], *, queue: Path) -> None:
        self.status, theirs = socket.socketpair()
        self.path = str(folder / "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(100)
        listener.setblocking(False)
        flow = os.pipe()
        fds = [*flow, theirs.fileno(), listener.fileno()]
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
        launch = (
            "import os, sys\n"
            f"for i, fd in enumerate({copies}): os.dup2(fd, 3 + i)\n"
            "os.closerange(7, 200)\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'proxymap', *sys.argv[1:]])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", launch, *arguments],
            pass_fds=copies, cwd=queue, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"MAIL_CONFIG": str(folder), "GENERATION": "17", "LANG": "C", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        for fd in copies:
            os.close(fd)
        listener.close()
        theirs.close()

    def messages(self, count: int) -> list[tuple[int, int, int]]:
        data = b""
        self.status.settimeout(LIMIT)
        while len(data) < 12 * count:
            more = self.status.recv(12 * count - len(data))
            assert more, "the daemon has gone"
            data += more
        return list(struct.iter_unpack("=iIi", data))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., FakeMaster]]:
    folder = Path(tempfile.mkdtemp(prefix="pm-", dir="/tmp"))
    (folder / "main.cf").write_text(
        f"queue_directory = {folder}\nproxy_read_maps = proxy:cdb:{folder}/t proxy:sqlite:{folder}/hangs.cf\n"
    )
    (folder / "t").write_text("key value\n")
    subprocess.run(["postmap", "-c", folder, f"cdb:{folder}/t"], check=True)
    made: list[FakeMaster] = []

    def make(*arguments: str) -> FakeMaster:
        made.append(FakeMaster(folder, list(arguments), queue=folder))
        return made[-1]

    yield make
    for master in made:
        master.process.kill()
        master.process.wait()
    shutil.rmtree(folder)


def test_first_request_is_told_as_taken_and_avail_and_no_other(fake: Callable[..., FakeMaster]) -> None:
    master = fake("-t", "unix")
    table = f"cdb:{Path(master.path).parent}/t"
    with proxymap.Client(master.path, timeout=LIMIT) as client:
        for _ in range(100):
            assert client.lookup(table, "key") == b"value"
        assert master.messages(2) == [(master.process.pid, 0o17, 0), (master.process.pid, 0o17, 1)]
        master.status.setblocking(False)
        with pytest.raises(BlockingIOError):
            master.status.recv(12)


def test_request_whose_table_is_being_opened_is_not_told_yet(fake: Callable[..., FakeMaster]) -> None:
    """A process that a table kills as it is opened has to be throttled, or it is started all the time."""
    master = fake("-t", "unix")
    folder = Path(master.path).parent
    os.mkfifo(folder / "fifo")  # whose open(2) waits
    (folder / "hangs.cf").write_text(f"dbpath = {folder}/fifo\nquery = SELECT 1\n")
    request = f"request\0lookup\0table\0sqlite:{folder}/hangs.cf\0flags\x0064\0key\0key\0\0".encode()
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(master.path)
        waiting.sendall(request)
        master.status.settimeout(1)
        with pytest.raises(TimeoutError):
            master.status.recv(12)
        with proxymap.Client(master.path, timeout=LIMIT) as client:
            assert client.lookup(f"cdb:{folder}/t", "key") == b"value"
        assert [status for *_, status in master.messages(2)] == [0, 1]


def test_overload_is_told_as_taken_and_its_end_as_avail(fake: Callable[..., FakeMaster]) -> None:
    """Eighty connections (fewer than max_use) that all have requests waiting, turn after turn."""
    master = fake("-t", "unix")
    table = f"cdb:{Path(master.path).parent}/t"
    request = f"request\0lookup\0table\0{table}\0flags\x0064\0key\0key\0\0".encode()
    with contextlib.ExitStack() as stack:
        with proxymap.Client(master.path, timeout=LIMIT) as client:
            client.lookup(table, "key")
        assert len(master.messages(2)) == 2
        peers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(80)]
        for peer in peers:
            peer.connect(master.path)
            peer.setblocking(False)
        master.status.setblocking(False)
        deadline = time.monotonic() + LIMIT
        told, sent, many = b"", [0] * len(peers), request * 1000
        while not told:
            assert time.monotonic() < deadline, "TAKEN was not told"
            for i, peer in enumerate(peers):
                with contextlib.suppress(BlockingIOError):
                    sent[i] += peer.send(many[sent[i] % len(request) :])
                with contextlib.suppress(BlockingIOError):
                    peer.recv(1 << 20)
            with contextlib.suppress(BlockingIOError):
                told = master.status.recv(12)
        assert struct.unpack("=iIi", told)[2] == 0
    assert master.messages(1)[0][2] == 1


def test_end_of_the_status_channel_is_obeyed_and_the_request_in_flight_is_answered(
    fake: Callable[..., FakeMaster],
) -> None:
    master = fake("-t", "unix")
    table = f"cdb:{Path(master.path).parent}/t"
    request = f"request\0lookup\0table\0{table}\0flags\x0064\0key\0key\0\0".encode()
    with proxymap.Client(master.path, timeout=LIMIT) as client, socket.socket(socket.AF_UNIX) as peer:
        client.lookup(table, "key")
        peer.connect(master.path)
        assert peer.recv(100).startswith(b"protocol")
        os.kill(master.process.pid, signal.SIGSTOP)
        peer.send(request)
        master.status.close()
        os.kill(master.process.pid, signal.SIGCONT)
        peer.settimeout(LIMIT)
        assert peer.recv(100) == b"status\x000\0value\0value\0\0"
        assert peer.recv(100) == b""
    assert master.process.wait(LIMIT) == 0


def test_sigterm_ends_it_promptly(fake: Callable[..., FakeMaster]) -> None:
    master = fake("-t", "unix")
    with proxymap.Client(master.path, timeout=LIMIT) as client:
        client.open(f"cdb:{Path(master.path).parent}/t")
        master.process.terminate()
        assert master.process.wait(LIMIT) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-t", "unix", "-n", "other"], "service name"),
        (["-t", "unix-dgram"], "unix-dgram"),
        (["-t", "unix", "-o", "max_use"], "max_use"),
        (["-t", "unix", "-q"], "-q"),
        (["-t", "unix", "extra"], "unexpected command-line argument: extra"),
        (["-t", "unix", "-s", "0"], "-s"),
        (["-t", "unix", "-o", "mail_owner=nobody-here", "-u"], "mail_owner"),
        (["-t", "unix", "-o", "queue_directory=/nowhere"], "queue_directory"),
        (["-t", "unix", "-o", "cache_size=x"], "cache_size"),
    ],
)
def test_bad_start_is_one_fatal_line_exit_1_and_no_traceback(
    fake: Callable[..., FakeMaster], arguments: list[str], words: str
) -> None:
    master = fake(*arguments, "-V")
    assert master.process.stderr is not None
    said = master.process.stderr.read().decode()
    assert master.process.wait(LIMIT) == 1
    lines = [line for line in said.splitlines() if "fatal: " in line]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "max_use=0"], "max_use"),
        (["-m", "x"], "max_use"),
        (["-o", "proxy_read_maps=${virtual_alias_maps"], "proxy_read_maps"),
    ],
)
def test_value_that_is_not_understood_is_a_warning_and_stops_nothing(
    fake: Callable[..., FakeMaster], arguments: list[str], words: str
) -> None:
    master = fake("-t", "unix", *arguments, "-V")
    assert master.process.stderr is not None
    said = iter(master.process.stderr.readline, b"")
    assert any(words.encode() in line and b"warning: " in line for line in said)
    with contextlib.suppress(proxymap.NotApproved), proxymap.Client(master.path, timeout=LIMIT) as client:
        client.open(f"cdb:{Path(master.path).parent}/t")  # it serves
    master.process.terminate()
    assert master.process.wait(LIMIT) == 0


def test_unreadable_main_cf_is_one_fatal_line_in_the_mail_log(command: str) -> None:
    instance = Instance(command, service_throttle_time="1s")
    try:
        with instance:
            with instance.client() as client:
                instance.ask(client)
                pid = instance.pid()
            with (instance.config_dir / "main.cf").open("a") as file:
                file.write("this is no parameter\n")
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: gone(pid), "end of the first process")
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(instance.socket())
                wait_until(lambda: "fatal: " in instance.log(), "a fatal line")
                wait_until(lambda: "exit status 1" in instance.log(), "master's word of it")
            fatal = [line for line in instance.warnings() if "fatal: " in line and "postfix/proxymap" in line]
            assert all("main.cf, line" in line and "missing '='" in line for line in fatal)
            assert "Traceback" not in instance.log()
    finally:
        instance.remove()


def test_one_client_on_standard_input(tmp_path: Path, fake: Callable[..., FakeMaster]) -> None:
    """-S, as the original: no greeting, the reply, and the end with the client's."""
    folder = Path(fake("-t", "unix").path).parent
    ours, theirs = socket.socketpair()
    request = f"request\0lookup\0table\0cdb:{folder}/t\0flags\x0064\0key\0key\0\0".encode()
    environment = {"MAIL_CONFIG": str(folder), "PYTHONPATH": str(ROOT)}
    with ours, theirs:
        process = subprocess.Popen([sys.executable, "-m", "proxymap", "-S"], stdin=theirs, env=environment)
        theirs.close()
        ours.settimeout(LIMIT)
        ours.send(request)
        assert ours.recv(100) == b"status\x000\0value\0value\0\0"
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(100) == b""
        assert process.wait(LIMIT) == 0
