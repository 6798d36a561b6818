"""test_metrics_command - proxymapctl metrics: on standard output, into a file, over HTTP; health"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_ctl import run
from fix_metrics import metrics_text, parsed
from fix_server import LIMIT, ServerProcess, environment, found, lookup, wait_until

from proxymap.ctl.commands.metrics import put
from proxymap.metrics.metrics import METRICS
from proxymap.metrics.text import text_of

Page = tuple[int, str]


@pytest.fixture
def own() -> Iterator[ServerProcess]:
    """A server that has answered one lookup."""
    with ServerProcess() as server:
        table = server.cdb("t", {b"k": b"v"})
        server.approve(gone())
        server.start()
        with server.connect() as peer:
            assert peer.ask(lookup(table, b"k")) == found(b"v")
        yield server


def gone() -> str:
    """A table whose server nobody runs."""
    return "socketmap:unix:/nowhere/socket:x"


@contextlib.contextmanager
def exporter(server: ServerProcess) -> Iterator[str]:
    """The exporter of that server, on a UNIX socket; gives its path."""
    path = f"{server.path}.http"
    command = [sys.executable, "-m", "proxymap.ctl", "--socket", server.path, "-c", str(server.dir)]
    with subprocess.Popen(
        [*command, "metrics", "--listen", f"unix:{path}"], stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stderr is not None
        assert b"serving /metrics" in process.stderr.readline()
        try:
            yield path
        finally:
            process.terminate()
            assert process.wait(LIMIT) == 0


def page(path: str, name: str) -> Page:
    connection = http.client.HTTPConnection("localhost", timeout=LIMIT)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(LIMIT)
    connection.sock.connect(path)
    connection.request("GET", name)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text


def test_every_metric_of_the_list_is_there_or_has_nothing_to_tell(own: ServerProcess) -> None:
    text = metrics_text("--socket", own.path)
    assert parsed(text)["proxymap_lookups_total"]["proxymap", f"cdb:{own.dir}/t", "found", "table"] == 1
    assert parsed(text)["proxymap_up"] == {("proxymap",): 1}
    assert parsed(text)["proxymap_table_open"] == {("proxymap", f"cdb:{own.dir}/t"): 1}
    named = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert named <= {metric.name for metric in METRICS}
    of_service = {metric.name for metric in METRICS if metric.row == METRICS[-1].row}
    assert named >= of_service & {"proxymap_starts_total", "proxymap_turn_seconds"}


def test_label_is_escaped() -> None:
    metric = next(metric for metric in METRICS if metric.name == "proxymap_table_entries")
    name = 'inline:{ a\\b="x"\n}'
    lines = "".join(f"{line}\n" for line in text_of(metric, [(("proxymap", name), 3)]))
    assert parsed(lines) == {"proxymap_table_entries": {("proxymap", name): 3}}


def test_without_a_server_that_has_ever_run_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "proxymap.ctl", "--socket", str(tmp_path / "s"), "metrics"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stdout) == (69, "")
    assert "no server has counted anything there" in done.stderr


def test_textfile_is_replaced_at_once(own: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "proxymap.prom"
    file.write_text("old")
    with file.open() as reader:
        assert metrics_text("--socket", own.path, "--textfile", str(file)) == ""
        assert reader.read() == "old"
    assert "proxymap_lookups_total" in parsed(file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["proxymap.prom"]


def test_textfile_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError):
        put(str(tmp_path / "f"), "text")
    assert os.listdir(tmp_path) == ["f"]


def test_textfile_that_cannot_be_written_is_told_as_such(own: ServerProcess, tmp_path: Path) -> None:
    file = str(tmp_path / "none/f")
    done = run("--socket", own.path, "metrics", "--textfile", file)
    said = f"proxymapctl: {file}: No such file or directory\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (73, b"", said)


def test_text_is_utf_8_in_any_locale(own: ServerProcess) -> None:
    table = f"cdb:{own.dir}/\u4e00"
    own.approve(table)
    own.stop()
    own.start()
    with own.connect() as peer:
        peer.ask(lookup(table.encode(), b"k"))
    done = run("--socket", own.path, "metrics", env=environment(PYTHONIOENCODING="ascii"))
    assert parsed(done.stdout.decode())["proxymap_table_open"]["proxymap", table] == 0


def test_folder_in_place_of_the_counters_is_told(tmp_path: Path) -> None:
    (tmp_path / "s.metrics").mkdir()
    done = run("--socket", str(tmp_path / "s"), "metrics")
    assert (done.returncode, b"s.metrics: a stranger's file" in done.stderr) == (78, True)


def test_pages_of_a_server_that_is_well(own: ServerProcess) -> None:
    with exporter(own) as path:
        assert page(path, "/health") == page(path, "/live") == (200, "lookups are answered\n")
        status, text = page(path, "/metrics")
        assert status == 200
        assert parsed(text)["proxymap_up"] == {("proxymap",): 1}
        assert page(path, "/other")[0] == 404
    assert not os.path.exists(path)


def test_server_that_was_stopped_is_told(own: ServerProcess) -> None:
    with exporter(own) as path:
        own.stop()
        for name in ("/health", "/live"):
            status, text = page(path, name)
            assert (status, "no server answers at" in text) == (503, True)
        assert page(path, "/metrics")[0] == 200  # what was counted stays


def test_loop_that_hangs_is_told(own: ServerProcess) -> None:
    with exporter(own) as path:
        assert own.process is not None
        own.process.send_signal(signal.SIGSTOP)
        try:
            for name in ("/health", "/live"):
                status, text = page(path, name)
                assert (status, "its loop hangs" in text) == (503, True)
            status, text = page(path, "/metrics")
            assert parsed(text)["proxymap_up"] == {("proxymap",): 0}
        finally:
            own.process.send_signal(signal.SIGCONT)
        wait_until(lambda: page(path, "/health")[0] == 200, "the server is well again")


def test_database_that_is_down_is_told_and_the_server_lives(own: ServerProcess) -> None:
    with exporter(own) as path, own.connect() as peer:
        assert dict(peer.ask(lookup(gone().encode(), b"k")))[b"status"] == b"2"
        wait_until(lambda: page(path, "/health")[0] == 503, "the word of it")
        text = page(path, "/health")[1]
        assert text.startswith("s: socketmap ")
        assert "is down, used by 1 table" in text
        assert page(path, "/live") == (200, text)
        up = parsed(page(path, "/metrics")[1])["proxymap_server_up"]
        assert list(up.values()) == [0]


def test_clients_that_say_nothing_hold_up_nobody_for_long(own: ServerProcess) -> None:
    """Of more than there is room for, the last are hung up on; when the first are, there is room again."""
    with exporter(own) as path:
        idle = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        try:
            for peer in idle:
                peer.settimeout(LIMIT)
                peer.connect(path)
            assert idle[-1].recv(1) == b""
            assert idle[0].recv(1) == b""
            assert page(path, "/live")[0] == 200
        finally:
            for peer in idle:
                peer.close()


def test_client_that_dawdles_has_no_more_time(own: ServerProcess) -> None:
    """A byte now and then is no request."""
    with exporter(own) as path, socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        until = time.monotonic() + LIMIT
        while not select.select([peer], [], [], 0.2)[0]:
            assert time.monotonic() < until
            with contextlib.suppress(BrokenPipeError):
                peer.sendall(b"G")
        assert b"400" in peer.recv(4096)


@pytest.mark.parametrize("where", ["nonsense", ":9154", "127.0.0.1:99999", "unix:/nowhere/s"])
def test_place_that_cannot_be_is_refused(own: ServerProcess, where: str) -> None:
    command = [sys.executable, "-m", "proxymap.ctl", "--socket", own.path, "metrics", "--listen", where]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, f"--listen {where}" in done.stderr.replace('"', "")) == (78, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_as_root_it_becomes_mail_owner(own: ServerProcess) -> None:
    with exporter(own) as path:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            pid = int.from_bytes(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
        assert Path(f"/proc/{pid}").stat().st_uid == own.dir.stat().st_uid != 0
