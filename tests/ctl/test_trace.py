"""test_trace - proxymapctl trace: what is shown, who is followed, and tracers that are no good"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_ctl import HOME, run
from fix_server import LIMIT, NOT_FOUND, Peer, ServerProcess, found, lookup, wait_until

TABLE = {b"k": b"v"}
MANY = 100
CLIENTS = 300
ROUNDS = 5


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        server.cdb("t", TABLE)
        server.cdb("u", TABLE)
        yield server.start()


def tables(server: ServerProcess) -> tuple[bytes, bytes]:
    return f"cdb:{server.dir}/t".encode(), f"cdb:{server.dir}/u".encode()


class Trace:
    """proxymapctl trace as a process, which follows before this returns."""

    def __init__(self, server: ServerProcess, *arguments: str, **keywords: Any) -> None:
        command = [sys.executable, "-m", "proxymap.ctl", "--socket", server.path, "trace", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=HOME, text=True, **(pipes | keywords))
        assert self.note() == f"following process {server.pid}"

    def note(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline().removeprefix("proxymapctl: ").removesuffix("\n")

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().removesuffix("\n")

    def event(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.line())
        return told

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Exit status, and what it still printed."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, out, err

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *details: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def test_line_of_a_lookup(server: ServerProcess) -> None:
    with Trace(server) as trace, server.connect() as peer:
        peer.ask(lookup(tables(server)[0], b"k"))
        peer.ask(lookup(tables(server)[0], b"absent"))
        took = r" +\d+(\.\d+)? (us|ms|s)"
        name = re.escape(tables(server)[0].decode())
        for status, key in (("OK   ", "k"), ("NOKEY", "absent")):
            line = rf"\d\d:\d\d:\d\d\.\d{{3}} +{os.getpid()} {status}  table  {took}  {name}  {key}"
            assert re.fullmatch(line, trace.line())
        status, out, err = trace.end()
        assert (status, out, err) == (130, "", "proxymapctl: 2 lookups\n")


def test_filters_and_count(server: ServerProcess) -> None:
    first, second = tables(server)
    arguments = [f"proxy:{second.decode()}", "--key", "K", "--status", "OK", "--slow", "0ms", "--count", "2"]
    with Trace(server, "--json", *arguments) as trace, server.connect() as peer:
        for table, key in (
            (first, b"k"),
            (second, b"absent"),
            (second, b"k"),
            (second, b"x"),
            (second, b"k"),
        ):
            peer.ask(lookup(table, key))
        for _ in range(2):
            event = trace.event()
            assert event.pop("time") > 1.6e9
            assert 0 <= event.pop("took") < 600
            assert event == {
                "process": server.pid, "client": os.getpid(), "table": second.decode(), "key": "k",
                "status": "OK", "source": "table",
            }  # fmt: skip
        assert trace.process.wait(LIMIT) == 0


def test_lookup_that_is_refused(server: ServerProcess) -> None:
    with Trace(server, "--json", "--status", "DENY") as trace, server.connect() as peer:
        peer.ask(lookup(b"proxy:cdb:/no/such", b"k"))
        event = trace.event()
        assert (event["table"], event["key"], event["source"]) == ("cdb:/no/such", "k", "refused")


def test_no_control_character_reaches_the_terminal(server: ServerProcess) -> None:
    key = b"\x1b]0;evil\x07\x1b[31m\n\r\x9b2J\xff\xc2\x9b" + "é‮".encode()
    with Trace(server) as trace, server.connect() as peer:
        peer.ask(lookup(tables(server)[0], key))
        line = trace.line()
        assert line.isprintable()
        assert line.endswith("  ?]0;evil??[31m???2J??é?")
    with Trace(server, "--json") as trace, server.connect() as peer:
        peer.ask(lookup(tables(server)[0], key))
        line = trace.line()
        assert line.isascii()
        assert line.isprintable()
        assert os.fsencode(json.loads(line)["key"]) == key


def test_what_comes_too_fast_is_left_out_and_told(server: ServerProcess) -> None:
    count = 20_000
    with Trace(server, "--json") as trace, server.connect() as peer:
        for _ in range(count // 100):
            peer.send(lookup(tables(server)[0], b"k") * 100)
            for _ in range(100):
                peer.reply()
        lines = told = 0
        while lines + told < count:
            event = trace.event()
            told = event.get("left_out", told)
            lines += "key" in event
        assert lines + told == count
        assert trace.end()[2] == f"proxymapctl: {lines:,} lookups, {told:,} more were left out\n"


def test_reader_of_its_output_goes(server: ServerProcess) -> None:
    """It ends then, though there is nothing to print."""
    with Trace(server) as trace:
        assert trace.process.stdout is not None
        trace.process.stdout.close()
        assert trace.process.wait(LIMIT) == 141
        trace.process.stdout = None


def test_all_processes_are_followed_and_those_that_come_later(server: ServerProcess) -> None:
    with Trace(server, "--json") as trace:
        before = server.pid
        assert server.stop() == 0
        assert trace.note() == f"process {before} tells no more; waiting for another one"
        server.start()
        assert trace.note() == f"following process {server.pid}"
        with server.connect() as peer:
            peer.ask(lookup(tables(server)[0], b"k"))
        assert trace.event()["process"] == server.pid != before


def test_server_is_killed(server: ServerProcess) -> None:
    with Trace(server) as trace:
        server.stop(signal.SIGKILL)
        assert trace.note() == f"process {server.pid} tells no more; waiting for another one"
        assert trace.end()[0] == 130


def test_no_server(server: ServerProcess) -> None:
    server.stop()
    done = run("--socket", server.path, "trace")
    assert done.returncode == 69
    assert b"no running server has a control socket there" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--slow", "1x"], ["--slow", "-1"], ["--status", "X"], ["--count", "0"], ["name"]]
)
def test_wrong_usage(server: ServerProcess, arguments: list[str]) -> None:
    assert run("--socket", server.path, "trace", *arguments).returncode == 64


# Tracers that are no good


def asked(server: ServerProcess, **request: Any) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)  # blocking: the queue of the listener may be full
    peer.connect(f"{server.path}.{server.pid}.ctl")
    peer.settimeout(LIMIT)
    peer.sendall(json.dumps({"do": "trace", **request}).encode() + b"\n")
    return peer


def first_line(peer: socket.socket) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        line += peer.recv(1)
    told: dict[str, Any] = json.loads(line)
    return told


def test_many_tracers_and_the_control_socket_goes_on(server: ServerProcess) -> None:
    threads = server.threads()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(asked(server)) for _ in range(MANY)]
        replies = [first_line(peer) for peer in peers]
        assert [reply for reply in replies if "ok" in reply] == [{"ok": None}] * 4
        refusal = "as many traces as there may be are under way: end another one first"
        assert replies.count({"error": refusal}) == MANY - 4
        assert run("--socket", server.path, "tables").returncode == 0
        done = run("--socket", server.path, "trace")
        assert (done.returncode, done.stderr.decode()) == (
            78,
            f"proxymapctl: 0 lookups\nproxymapctl: process {server.pid}: {refusal}\n",
        )
    wait_until(lambda: server.threads() == threads, "the end of their threads")
    with asked(server) as peer:
        assert first_line(peer) == {"ok": None}


def test_tracer_that_never_reads_and_one_that_is_stopped(server: ServerProcess, tmp_path: Path) -> None:
    """They lose lines; another one does not, nor does anybody wait."""
    table, lines = tables(server)[0], tmp_path / "lines"
    with (
        lines.open("w") as out,
        asked(server),
        Trace(server, "--json") as stopped,
        Trace(server, "--json", stdout=out),
    ):
        stopped.process.send_signal(signal.SIGSTOP)
        with server.connect() as peer:
            for _ in range(30):
                ask_much(peer, table, 1000)
            assert run("--socket", server.path, "tables").returncode == 0
            wait_until(lambda: is_told(peer, table, lines), "the last key", pause=0.3)
        assert server.resident() < 200 << 20
        stopped.process.send_signal(signal.SIGCONT)
        assert "key" in stopped.event()
        stopped.process.kill()
    assert server.stop() == 0


def ask_much(peer: Peer, table: bytes, count: int) -> None:
    peer.send(lookup(table, b"k") * count)
    for _ in range(count):
        assert peer.reply() == found(b"v")


def is_told(peer: Peer, table: bytes, lines: Path) -> bool:
    """Is there a line of this key? It may have been left out."""
    assert peer.ask(lookup(table, b"last")) == NOT_FOUND
    return '"last"' in lines.read_text()


@pytest.mark.parametrize(
    "request_", [{"table": 5}, {"slow": "1"}, {"status": "X"}, {"what": 1}, {"key": ["k"]}]
)
def test_request_that_is_not_understood(server: ServerProcess, request_: dict[str, Any]) -> None:
    with asked(server, **request_) as peer:
        assert first_line(peer)["error"].startswith('expected "table", "key"')
    assert "error" not in server.log()


def test_server_ends_with_tracers_that_do_not_read(server: ServerProcess) -> None:
    with asked(server), server.connect() as peer:
        for _ in range(5):
            ask_much(peer, tables(server)[0], 1000)
        assert server.stop() == 0


def test_many_clients_and_those_who_watch_do_not_slow_each_other_down(server: ServerProcess) -> None:
    """The best of some rounds with a tracer that wants nothing, and without; beside many idle clients."""
    table = tables(server)[0]
    with contextlib.ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(server.connect())
        peer = stack.enter_context(server.connect())
        alone, watched = [], []
        for _ in range(ROUNDS):
            alone.append(seconds_of(peer, table))
            with asked(server, key="no such key") as tracer:
                assert first_line(tracer) == {"ok": None}
                watched.append(seconds_of(peer, table))
        assert min(watched) < 2 * min(alone)
        with Trace(server, "--json", "--key", "K", "--count", "1") as trace:
            ask_much(peer, table, 1)
            assert trace.event()["key"] == "k"


def seconds_of(peer: Peer, table: bytes) -> float:
    """What many lookups take; in pieces, so that the reader of the replies is hardly measured."""
    question, answer = lookup(table, b"k"), b"status\x000\0value\0v\0\0"
    began = time.perf_counter()
    for _ in range(20):
        peer.send(question * 500)
        assert peer.read_exactly(500 * len(answer)) == answer * 500
    return time.perf_counter() - began
