"""soak_live - tables change without pause while clients ask without pause: `make soak-live`

    python tests/soak_live.py [--seconds N] [--rounds N] [--only NAME]

The clients are benchmarks/load.c with -g: each value says its generation several
times, and a client ends at the first answer that is not found, mixed, or older than
what was complete when it asked. So what is measured here is whether anybody noticed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fix_server import ROOT, ServerProcess, found, lookup, wait_until, write_cdb

CLIENTS = 16
KEYS = [f"k{i}" for i in range(200)]
ENDLESS = 100_000_000  # requests; until SIGTERM
MILLION = 1_000_000


class Generations:
    """The number of the generation that is complete, in a file that the clients map."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "oldest"
        self.path.write_bytes(bytes(8))
        with self.path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), 8)

    def complete(self, number: int) -> None:
        self.map[:] = number.to_bytes(8, sys.byteorder)


def value(generation: int) -> str:
    return " ".join([str(generation)] * (1 + generation % 13))


def source(generation: int) -> str:
    return "".join(f"{key} {value(generation)}\n" for key in KEYS)


class Load:
    """benchmarks/load.c on one table, until `end`."""

    def __init__(
        self, server: ServerProcess, table: str, *, generations: Generations | None = None,
        clients: int = CLIENTS, requests: int = ENDLESS,
    ) -> None:  # fmt: skip
        self.table = table
        keys = server.dir / "keys"
        keys.write_text("".join(f"{key}\n" for key in KEYS))
        checks = ["-g", str(generations.path)] if generations else []
        command = [str(ROOT / "build/load"), *checks, server.path, table, str(keys), str(clients)]
        self.process = subprocess.Popen(
            [*command, str(requests), str(server.pid)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self, early: bool = True) -> dict[str, float]:
        """What it measured. AssertionError: an answer was wrong, or a connection lost."""
        if early:
            self.process.send_signal(signal.SIGTERM)
        out, errors = self.process.communicate()
        assert self.process.returncode == 0, f"{self.table}: {errors}"
        result: dict[str, float] = json.loads(out)
        return result


def postmap(type_name: str, *arguments: str, text: str | None = None) -> None:
    subprocess.run(["postmap", *arguments, type_name], input=text, text=True, check=True)


def cdb_replaced(rounds: int) -> dict[str, float]:
    """postmap cdb: again and again."""
    with ServerProcess() as server:
        file = server.dir / "t"
        generations = Generations(server.dir)
        server.approve(f"cdb:{file}")
        file.write_text(source(0))
        postmap(f"cdb:{file}")
        server.start()
        load = Load(server, f"cdb:{file}", generations=generations)
        for generation in range(1, rounds + 1):
            file.write_text(source(generation))
            postmap(f"cdb:{file}")
            generations.complete(generation)
        return {"rounds": rounds, **load.end()}


def lmdb_committed(rounds: int, cached: bool) -> dict[str, float]:
    """postmap -r -i, and each commit is 200 keys; at least a million lookups."""
    own = {} if cached else {"cache_size": "0"}
    with ServerProcess(own=own) as server:
        file = server.dir / "t"
        generations = Generations(server.dir)
        server.approve(f"lmdb:{file}")
        file.write_text(source(0))
        postmap(f"lmdb:{file}")
        server.start()
        load = Load(server, f"lmdb:{file}", generations=generations)
        million = Load(server, f"lmdb:{file}", generations=generations, clients=4, requests=MILLION)
        generation = 0
        while generation < rounds or million.process.poll() is None:
            generation += 1
            postmap(f"lmdb:{file}", "-r", "-i", text=source(generation))
            generations.complete(generation)
        assert load.end()["retry"] == 0
        return {"rounds": generation, **million.end(early=False)}


if __name__ == "__main__":
    what = sys.argv[1]
    if what == "cdb": print(cdb_replaced(int(sys.argv[2])))
    if what == "lmdb": print(lmdb_committed(int(sys.argv[2]), True))
    if what == "lmdb0": print(lmdb_committed(int(sys.argv[2]), False))
