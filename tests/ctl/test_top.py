"""test_top - proxymapctl top: what a frame has, and that it leaves every terminal as it was"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest
from fix_ctl import HOME, run
from fix_server import LIMIT, LOCK, TRY0, TRY1, ServerProcess, environment, lookup, wait_until

from proxymap.ctl.commands.top import frame_lines
from proxymap.ctl.live.watched import KEYS_MAX, HotKeys, Row

EVIL = b"\x1b]0;evil\x07\x1b[2J"
COUNT = 200


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess(own={"cache_maptypes": "cdb"}) as server:
        server.cdb("t", {b"k": b"v"})
        yield server.start()


def table_of(server: ServerProcess) -> bytes:
    return f"cdb:{server.dir}/t".encode()


def ask(server: ServerProcess, count: int, key: bytes = b"k") -> None:
    with server.connect() as peer:
        for _ in range(count):
            peer.ask(lookup(table_of(server), key, flags=LOCK | TRY0 | TRY1))


def frames(server: ServerProcess) -> Iterator[Row]:
    """Frames as JSON; questions are asked meanwhile by the caller."""
    command = [sys.executable, "-m", "proxymap.ctl", "--socket", server.path, "--json", "top"]
    with subprocess.Popen([*command, "--interval", "300ms"], cwd=HOME, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
        finally:
            process.kill()


# Frames


def test_every_lookup_is_in_one_frame(server: ServerProcess) -> None:
    ask(server, 5)
    with contextlib.closing(frames(server)) as told:
        assert next(told)["tables"][0]["lookups"] == 0
        ask(server, COUNT)
        lookups = hits = 0
        keys: list[Row] = []
        while lookups < COUNT or not keys:
            frame = next(told)
            (table,) = frame["tables"]
            lookups += table["lookups"]
            hits += table["sources"]["cache"]
            keys = frame["keys"] or keys
        assert (lookups, hits, frame["processes"]) == (COUNT, COUNT, 1)
        assert (table["table"], keys[0]["key"]) == (table_of(server).decode(), "k")


def test_frames_go_on_without_the_server(server: ServerProcess) -> None:
    ask(server, 5)
    with contextlib.closing(frames(server)) as told:
        next(told)
        server.stop(signal.SIGKILL)
        wait_until(lambda: next(told)["processes"] == 0, "the end")
        server.start()
        wait_until(lambda: next(told)["processes"] == 1, "the next process")
        ask(server, COUNT)
        wait_until(lambda: next(told)["tables"][0]["lookups"], "its lookups")


def test_into_a_pipe_it_prints_one_frame(server: ServerProcess) -> None:
    ask(server, 5)
    done = run("--socket", server.path, "top", "--interval", "100ms")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert re.match(r"proxymapctl top  \d\d:\d\d:\d\d   processes: 1   lookups: 0/s   over 0\.\d s\n\n", text)
    assert "LOOKUPS/s" in text


def test_only_counters_are_left(server: ServerProcess) -> None:
    ask(server, 1)
    server.stop()
    done = run("--socket", server.path, "top", "--once", "--interval", "300ms")
    assert done.returncode == 0
    assert b"\n  none: no running server has a control socket there (Postfix's own has none)\n" in done.stdout


def test_no_server(server: ServerProcess) -> None:
    server.stop()
    assert run("--socket", f"{server.dir}/other", "top", "--once").returncode == 69


@pytest.mark.parametrize("arguments", [["--interval", "0"], ["--interval", "x"], ["cdb:/x"]])
def test_wrong_usage(server: ServerProcess, arguments: list[str]) -> None:
    assert run("--socket", server.path, "top", *arguments).returncode == 64


def a_frame(tables: int = 3) -> Row:
    table = {
        "rate": 123456.7, "hits": 0.5, "errors": 12345, "p50": 0.0005, "p99": 12.5, "service": "proxymap",
    }  # fmt: skip
    server = {
        "process": 1, "server": "inet:" + "db" * 80, "state": "down", "open": None, "limit": 32, "busy": 1,
        "waiting": 2000, "mean_ms": 12.3, "answers_rate": 1.5, "late_rate": 0, "shed_rate": 0,
    }  # fmt: skip
    return {
        "time": 1.6e9, "seconds": 2.0, "processes": 2, "rate": 370370.1,
        "tables": [{**table, "table": f"cdb:/{'x' * 200}/{i}"} for i in range(tables)],
        "servers": [server], "keys_trouble": None,
        "keys": [{"key": "\x1b[31m" + "k" * 300, "table": "cdb:/t", "share": 0.25}],
    }  # fmt: skip


@pytest.mark.parametrize(("columns", "height"), [(80, 24), (80, 10), (40, 5), (20, 2), (200, 60), (80, None)])
def test_frame_fits(columns: int, height: int | None) -> None:
    lines, headings = frame_lines(a_frame(tables=50), columns, height)
    assert all(len(line) <= columns and line.isprintable() for line in lines)
    assert all("/s" in lines[at] or "SHARE" in lines[at] for at in headings)
    if height == 24:
        assert len(lines) <= height
        assert any("?[31mkkkk" in line for line in lines)


def test_frequent_keys_are_found_among_many() -> None:
    hot = HotKeys()
    for i in range(5 * KEYS_MAX):
        hot.add("t", f"rare{i}")
        for key in ("often", "most"):
            hot.add("t", key)
        hot.add("t", "most")
    assert [row["key"] for row in hot.most(2)] == ["most", "often"]


# The terminal


class Terminal:
    """proxymapctl top on a terminal of its own, of 80 columns and 24 lines."""

    def __init__(self, server: ServerProcess, **more: str) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (24, 80))
        self.before = termios.tcgetattr(self.slave)
        command = [
            sys.executable,
            "-m",
            "proxymap.ctl",
            "--socket",
            server.path,
            "top",
            "--interval",
            "200ms",
        ]
        streams = {"stdin": self.slave, "stdout": self.slave, "stderr": self.slave}
        env = environment(TERM="xterm", **more)
        self.process = subprocess.Popen(command, cwd=HOME, env=env, start_new_session=True, **streams)
        self.seen = b""

    def read_until(self, text: bytes) -> bytes:
        """What it has written by then, since the last call."""
        until = time.monotonic() + LIMIT
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)
        seen, _, self.seen = self.seen.partition(text)
        return seen + text

    def ended(self) -> int:
        """Its status, once the terminal is as it was."""
        self.read_until(b"\x1b[?25h\x1b[?1049l")
        status = self.process.wait(LIMIT)
        assert termios.tcgetattr(self.slave) == self.before
        return status

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *details: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def test_screen_is_taken_and_given_back(server: ServerProcess) -> None:
    with Terminal(server) as terminal:
        assert terminal.read_until(b"LOOKUPS/s").startswith(b"\x1b[?1049h\x1b[?25l\x1b[Hproxymapctl top")
        os.write(terminal.master, b"q")
        assert terminal.ended() == 0


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_terminal_is_as_it_was_after_a_signal(server: ServerProcess, number: int, status: int) -> None:
    with Terminal(server) as terminal:
        terminal.read_until(b"LOOKUPS/s")
        terminal.process.send_signal(number)
        assert terminal.ended() == status


def test_it_can_be_stopped_and_goes_on(server: ServerProcess) -> None:
    with Terminal(server) as terminal:
        terminal.read_until(b"LOOKUPS/s")
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.read_until(b"\x1b[?25h\x1b[?1049l")
        wait_until(lambda: state_of(terminal.process.pid) == "T", "the stop")
        assert termios.tcgetattr(terminal.slave) == terminal.before
        terminal.process.send_signal(signal.SIGCONT)
        terminal.read_until(b"\x1b[?1049h")
        terminal.read_until(b"LOOKUPS/s")
        os.write(terminal.master, b"q")
        assert terminal.ended() == 0


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_new_size_counts_at_once(server: ServerProcess) -> None:
    ask(server, 5)
    with Terminal(server) as terminal:
        terminal.read_until(b"LOOKUPS/s")
        termios.tcsetwinsize(terminal.slave, (24, 40))
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.read_until(b"\x1b[J")
        shown = terminal.read_until(b"\x1b[J").decode()
        lines = re.sub(r"\x1b\[[0-9?]*\w", "", shown.replace("\r", "")).split("\n")
        assert max(map(len, lines)) <= 40


def test_no_color(server: ServerProcess) -> None:
    with Terminal(server, NO_COLOR="1") as terminal:
        assert b"\x1b[7m" not in terminal.read_until(b"LOOKUPS/s")
    with Terminal(server) as terminal:
        assert b"\x1b[7m" in terminal.read_until(b"LOOKUPS/s")


def test_keys_cannot_write_on_the_terminal(server: ServerProcess) -> None:
    with Terminal(server) as terminal:
        terminal.read_until(b"LOOKUPS/s")
        ask(server, COUNT, EVIL)
        shown = terminal.read_until(b"?]0;evil??[2J")
        assert EVIL[:4] not in shown


def test_terminal_that_is_not_read_gets_the_frame_of_the_day(server: ServerProcess) -> None:
    """Frames do not queue up; and it can be ended meanwhile."""
    with Terminal(server) as terminal:
        first = terminal.read_until(b"LOOKUPS/s")
        time.sleep(2)
        waiting = b""
        while select.select([terminal.master], [], [], 0)[0] and len(waiting) < 1 << 16:
            waiting += os.read(terminal.master, 65536)
        assert len(first) < 1000
        assert len(waiting) < 1 << 16
        terminal.seen = b""
        terminal.read_until(b"LOOKUPS/s")
        time.sleep(1)
        terminal.process.terminate()
        assert terminal.ended() == 143
