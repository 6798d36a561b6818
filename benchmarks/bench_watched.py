"""bench_watched - cdb lookups while somebody follows them, in turn with rounds in which nobody does

A tracer that wants nothing, one that wants all and never reads, and a top; with few
clients and with many. Beside it, how long top and trace take to show something then.
usage: bench_watched.py [--rounds N] [--seconds S] [--clients N ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from servers import ROOT, Measured, Server, load, log

CTL = [sys.executable, "-m", "proxymap.ctl", "--socket"]


@contextlib.contextmanager
def tracer(one: Server, **wanted: str) -> Iterator[None]:
    """One that reads nothing but that it was accepted."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(f"{one.path}.{one.pid}.ctl")
        peer.sendall(json.dumps({"do": "trace", **wanted}).encode() + b"\n")
        assert peer.recv(1) == b"{"
        yield


@contextlib.contextmanager
def top(one: Server) -> Iterator[None]:
    command = [*CTL, str(one.path), "--json", "top", "--interval", "500ms"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


WATCHERS: dict[str, Callable[[Server], contextlib.AbstractContextManager[None]]] = {
    "nobody": lambda one: contextlib.nullcontext(),
    "a tracer that wants nothing": lambda one: tracer(one, key="no such key"),
    "a tracer of all, unread": tracer,
    "top": top,
}


def first_word(one: Server, *command: str) -> float:
    """Seconds until proxymapctl has shown something."""
    began = time.monotonic()
    subprocess.run([*CTL, str(one.path), *command], cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="what it costs to be watched")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 5000])
    options = parser.parse_args()
    import fix_server  # in tests/, where servers.py leads to

    with tempfile.TemporaryDirectory(prefix="pm-bench-") as name, fix_server.ServerProcess() as server:
        fix_server.give(name)
        table = server.cdb("t", {b"user%d" % i: b"box%d" % i for i in range(100_000)}).decode()
        keys = Path(name) / "keys"
        keys.write_text("".join(f"user{i}\n" for i in range(0, 200_000, 7)))
        server.start()
        one = Server(Path(server.path), server.pid)
        for clients in options.clients:
            found: dict[str, list[Measured]] = {who: [] for who in WATCHERS}
            words: list[float] = []

            def ask_top(words: list[float] = words) -> None:
                words.append(first_word(one, "top", "--once", "--interval", "100ms"))

            for number in range(options.rounds):
                log(f"{clients} clients, round {number + 1} of {options.rounds}")
                for who, watcher in WATCHERS.items():
                    with watcher(one):
                        figures = load(one, table, keys, clients, seconds=options.seconds, warm_up=0.3)
                        found[who].append(figures)
                load(one, table, keys, clients, seconds=0.1, look=ask_top)
            show(clients, found)
            print(f"   top --once beside them (0.1 s are its interval): {statistics.median(words):.2f} s")


def show(clients: int, found: dict[str, list[Measured]]) -> None:
    alone = found["nobody"]
    for who, rounds in found.items():
        shares = {
            name: statistics.median(b[name] / a[name] for a, b in zip(alone, rounds, strict=True))
            for name in ("per_second", "cpu_us", "p99_us")
        }
        rate = statistics.median(one["per_second"] for one in rounds)
        print(
            f"{clients:>5} clients, {who:<28} {rate:>9,.0f} lookups/s; to nobody: rate"
            f" {shares['per_second']:.3f}, CPU {shares['cpu_us']:.3f}, p99 {shares['p99_us']:.2f}"
        )


if __name__ == "__main__":
    main()
