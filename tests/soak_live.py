"""soak_live - tables change without pause while clients ask without pause: `make soak-live`

    python tests/soak_live.py [--seconds N] [--rounds N] [--only NAME]

The clients are benchmarks/load.c with -g: each value says its generation several
times, and a client ends at the first answer that is not found, mixed, or older than
what was complete when it asked. So what is measured here is whether anybody noticed.
Half an hour in all; half of that is for files that are cut to every length.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fix_server import NOT_FOUND, ROOT, ServerProcess, found, lookup, wait_until
from oracle import reply

CLIENTS = 16
KEYS = [f"k{i}" for i in range(200)]
ENDLESS = 100_000_000  # requests; until SIGTERM
MILLION = 1_000_000
RETRY = reply("lookup", "3.6", 2)
CHANGES = 5  # a second
PARTS = 10  # of a soak, each with figures at its end


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
        if not keys.exists():
            keys.write_text("".join(f"{key}\n" for key in KEYS))
        checks = ["-g", str(generations.path)] if generations else []
        command = [str(ROOT / "build/load"), *checks, server.path, table, str(keys), str(clients)]
        self.process = subprocess.Popen(
            [*command, str(requests)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
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


WAYS = {"index": {}, "cache": {"cache_maptypes": "lmdb"}, "walks": {"lmdb_index_size": "0"}}  # of an lmdb


def lmdb_committed(rounds: int, way: str) -> dict[str, float]:
    """postmap -r -i, and each commit is 200 keys; at least a million lookups."""
    own = WAYS[way]
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


def cut_everywhere(maptype: str) -> dict[str, float]:
    """The file is cut to each length, asked, and written whole again: RETRY or right, and soon all right."""
    records = {b"k%d" % i: b"value%d" % i * 2 for i in range(20)}
    worst, retried = 0.0, 0
    with ServerProcess() as server, contextlib.ExitStack() as stack:
        table = (server.cdb if maptype == "cdb" else server.lmdb)("t", records)
        file = server.dir / f"t.{maptype}"
        whole = file.read_bytes()
        server.start()
        peer = stack.enter_context(server.connect())

        def is_right(key: bytes) -> bool:
            answer = peer.ask(lookup(table, key))
            expected = found(records[key]) if key in records else NOT_FOUND
            assert answer in (expected, RETRY), (key, answer)
            return answer == expected

        for length in range(len(whole)):
            with file.open("r+b") as opened:
                opened.truncate(length)
            retried += sum(not is_right(key) for key in (b"k1", b"k19", b"no key"))
            with file.open("r+b") as opened:
                opened.write(whole)
            began = time.monotonic()
            wait_until(lambda: all(is_right(key) for key in records), "right answers", 1, pause=0.001)
            worst = max(worst, time.monotonic() - began)
    return {"lengths": len(whole), "retried": retried, "longest_ms": round(worst * 1e3, 1)}


def rules(generation: int) -> str:
    return f"/^k/ {value(generation)}\n"


def renamed(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def in_place(file: Path, text: str) -> None:
    file.write_text(text)


def figures(server: ServerProcess) -> dict[str, int]:
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    return {
        "resident_kb": server.resident() // 1024,
        "descriptors": server.descriptors(),
        "mappings": maps.count("\n"),
        "mapped_tables": maps.count(str(server.dir)),
    }


def everything_changes(seconds: int) -> dict[str, int]:
    """Tables of all kinds, each changed five times a second; prints figures, and returns the last.

    The cache is small, so that it is full soon, and what grows then is a leak.
    """
    with ServerProcess(own={"cache_size": "1M"}) as server:
        folder = server.dir
        generations = Generations(folder)
        database = folder / "db"
        sqlite3.connect(database).close()

        def query(generation: int) -> str:
            return f"dbpath = {database}\nquery = select '{value(generation)}' where '%s' <> ''\n"

        texts: dict[str, Callable[[int], str]] = {
            "texthash": source, "regexp": rules, "pcre": rules, "sqlite": query,
        }  # fmt: skip
        indexed = {"cdb": ["postmap"], "lmdb": ["postmap", "-r", "-i"]}
        names = [f"{kind}:{folder}/{kind}" for kind in (*indexed, *texts)]
        names += [f"pipemap:{{texthash:{folder}/texthash}}", f"unionmap:{{cdb:{folder}/cdb}}"]
        server.approve(*names)

        def change(generation: int) -> None:
            for kind, command in indexed.items():
                file = folder / kind
                file.write_text(source(generation))
                with file.open() as records:
                    subprocess.run([*command, f"{kind}:{file}"], stdin=records, check=True)
            for kind, text in texts.items():
                (renamed if generation % 2 else in_place)(folder / kind, text(generation))

        change(0)
        server.start()
        loads = [Load(server, name, generations=generations, clients=1) for name in names]
        generation = 0
        start = time.monotonic()
        for part in range(PARTS + 1):
            while time.monotonic() < start + (5 if part == 0 else seconds * part / PARTS):
                generation += 1
                change(generation)
                if any(load.process.poll() is not None for load in loads):
                    break  # one has found something wrong
                time.sleep(max(0.0, start + generation / CHANGES - time.monotonic()))
                generations.complete(max(0, generation - 10))  # text tables wait until they are quiet
            now = {"seconds": round(time.monotonic() - start), "changes": generation, **figures(server)}
            print(json.dumps(now), flush=True)
        for load in loads:
            load.end()
        assert server.alive()
        return now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="that all tables change")
    parser.add_argument("--rounds", type=int, default=1000, help="of postmap for cdb, and for lmdb")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="cdb, lmdb, cut, or all: tables of all kinds"
    )
    options = parser.parse_args()
    parts: dict[str, Callable[[], object]] = {
        "cdb": partial(cdb_replaced, options.rounds),
        **{f"lmdb, {way}": partial(lmdb_committed, options.rounds, way) for way in WAYS},
        **{f"cut, {maptype}": partial(cut_everywhere, maptype) for maptype in ("cdb", "lmdb")},
        "all": partial(everything_changes, options.seconds),
    }
    chosen = [name for name in parts if name.startswith(options.only)]
    if not chosen:
        parser.error(f"--only {options.only}: expected {'; '.join(parts)}; or how one begins")
    for name in chosen:
        print(name, json.dumps(parts[name]()), flush=True)


if __name__ == "__main__":
    main()
