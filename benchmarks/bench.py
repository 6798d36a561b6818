"""bench - our server beside the floor and Postfix's own, in one run, in alternating rounds

Parts: load (requests per second, latency and CPU, for tables, keys and numbers
of clients of all kinds), clients (postmap and incoming mail), start (exec to
first reply), memory. Tables are kept in build/bench-tables. Progress goes to
standard error, a table to standard output, everything to the JSON file, from
which `make report` makes plots and docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import sys
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import servers
from servers import KEY_KINDS, ROOT, Measured, Server, about_this_host, log

PARTS = ("load", "clients", "start", "memory")
SERVERS = ("floor", "ours", "stock")
CLIENTS = (1, 2, 8, 32, 64, 500, 5000)
SIZES = (1000, 1_000_000, 10_000_000)
METRICS = (
    "per_second",
    "cpu_us",
    "p50_us",
    "p90_us",
    "p99_us",
    "p999_us",
    "max_us",
    "processes",
    "master_cpu_us",
    "others",
)
RESULTS = ROOT / "benchmarks" / "results" / "bench.json"
INSTANCES = 8  # of the floor and of ours, in turn: a process may be lucky with where its memory lies
WARM_TABLE = 2.5  # seconds of each table before the first figure: its file is mapped and in memory
BETWEEN = 0.1  # seconds that a figure costs beside

Case = tuple[str, int, str, int]  # maptype, entries, keys, clients

QUICK = {"sizes": [1_000_000], "clients": [1, 8, 32], "keys": ["found"], "seconds": 0.5, "rounds": 5,
         "part": ["load"], "json": None}  # fmt: skip


def main() -> int:
    options = parse()
    if "stock" in options.servers and (reason := servers.no_stock()):
        log(f"without the stock server and Postfix's clients: {reason}")
        options.servers.remove("stock")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by the doors, so that what was started ends too
    servers.many_files()
    began = time.monotonic()
    maps = servers.make_tables(options.sizes, options.tables)
    if "stock" in options.servers:
        reachable(options.tables)
    run = Run(options, maps)
    result: dict[str, Any] = {"host": about_this_host(), "options": run.settings()}
    for part in PARTS:
        if part in options.part and (figures := getattr(run, part)()) is not None:
            result[part] = figures
    result["took_seconds"] = round(time.monotonic() - began)
    if "load" in result:
        print_load(result["load"])
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        if options.update:
            result = updated(json.loads(options.json.read_text()), result)
        options.json.write_text(to_json(result))
        log(f"written: {options.json}; `make report` draws it")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2] if __doc__ else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="tables of a million, few clients, under two minutes"
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="only these parts")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument(
        "--before", type=Path, metavar="DIR",
        help="a checkout of another commit, built in place: its load is measured beside ours",
    )  # fmt: skip
    parser.add_argument("--maptypes", nargs="+", choices=("cdb", "lmdb"), default=["cdb", "lmdb"])
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=list(SIZES), metavar="N", help="entries of tables"
    )
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS), metavar="N")
    parser.add_argument("--keys", nargs="+", choices=KEY_KINDS, default=list(KEY_KINDS))
    parser.add_argument(
        "--rounds", type=int, default=6, help="of each figure; the median counts (default: 6)"
    )
    parser.add_argument("--seconds", type=float, default=0.4, help="for each figure of load (default: 0.4)")
    parser.add_argument(
        "--warm-up", type=float, default=0.2, metavar="SECONDS",
        help="before each figure, not counted: a new stock process opens its tables (default: 0.2)",
    )  # fmt: skip
    parser.add_argument("--postmap-keys", type=int, default=100_000, metavar="N")
    parser.add_argument("--messages", type=int, default=2000, metavar="N", help="sent in a round")
    parser.add_argument("--silent-clients", type=int, default=5000, metavar="N", help="for the memory of one")
    parser.add_argument(
        "--tables", type=Path, default=servers.TABLES, metavar="DIR",
        help=f"where they are kept; mail_owner must be able to read them (default: {servers.TABLES})",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS}")
    parser.add_argument(
        "--update", action="store_true", help="replace what is measured, and keep what else the file has"
    )
    parser.add_argument("--no-json", dest="json", action="store_const", const=None, help="write no file")
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    options = parser.parse_args()
    if options.before:
        options.before = options.before.resolve(strict=True)
        options.servers.append("before")
    return options


def reachable(folder: Path) -> None:
    """mail_owner, as whom the stock server runs, has to get there."""
    for path in (folder.resolve(), *folder.resolve().parents):
        if not path.stat().st_mode & 0o001:
            raise SystemExit(f"{path} is closed to mail_owner; say --tables DIR for another place")


class Progress:
    """Lines that say what is done and how long the rest will take. Weights are guesses in seconds."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.began, self.said = total, 0.0, time.monotonic(), 0.0

    def did(self, weight: float, text: str) -> None:
        self.done = min(self.done + weight, self.total)
        now = time.monotonic()
        if now - self.said < 2:
            return
        self.said = now
        rest = (now - self.began) * (self.total / self.done - 1)
        log(f"{100 * self.done / self.total:3.0f} %, {rest / 60:4.1f} min left   {text}")


class Run:
    def __init__(self, options: argparse.Namespace, maps: list[str]) -> None:
        self.o, self.maps = options, maps
        self.cases = list(product(options.maptypes, options.sizes, options.keys, options.clients))
        self.both = {"ours", "stock"} <= set(options.servers)  # for the real clients
        self.each = options.seconds + options.warm_up + BETWEEN  # seconds
        weights = {
            "load": len(self.cases) * options.rounds * len(options.servers) * self.each
            + len(self.to_warm()) * WARM_TABLE,
            "clients": self.both * (options.rounds + 1) * 2 * (2 * 4 + 5),
            "start": 3 * options.rounds * 0.2,
            "memory": len(options.servers) * (len(options.sizes) * 2 * 2.5 + 3) + 15,
        }
        self.progress = Progress(sum(weights[part] for part in options.part))

    def settings(self) -> dict[str, Any]:
        others = "json", "tables", "quick", "before"
        return {name: value for name, value in vars(self.o).items() if name not in others}

    def load(self) -> list[dict[str, Any]]:
        figures: dict[Case, dict[str, dict[str, list[float]]]] = {}
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(servers.folder_for(self.maps))
            start = {
                "floor": lambda: servers.floor(folder),
                "ours": lambda: servers.ours(folder),
                "before": lambda: servers.ours(folder, tree=self.o.before),
                "stock": lambda: servers.stock(self.maps),
            }
            running = {
                name: [stack.enter_context(start[name]()) for _ in range(self.instances(name))]
                for name in self.o.servers
            }
            self.warm(running)
            for number in range(self.o.rounds):
                for case in self.cases:
                    for name in in_turn(self.o.servers, number):
                        measured = self.one(running[name][number % len(running[name])], case, name)
                        columns = figures.setdefault(case, {}).setdefault(name, {})
                        for metric in METRICS:
                            columns.setdefault(metric, []).append(float(f"{measured[metric]:.5g}"))
                        text = "{}, {:,} entries, {} keys, {:,} clients".format(*case)
                        self.progress.did(self.each, f"round {number + 1}: {text}: {name}")
        names = ("maptype", "entries", "keys", "clients")
        return [
            dict(zip(names, case, strict=True)) | {"servers": columns} for case, columns in figures.items()
        ]

    def instances(self, name: str) -> int:
        return 1 if name == "stock" else min(INSTANCES, self.o.rounds)

    def to_warm(self) -> list[tuple[str, int, Case]]:
        """Server, which of its instances, and case."""
        kinds = list(product(self.o.maptypes, self.o.sizes, self.o.keys, [8]))
        return [
            (name, n, case)
            for name in self.o.servers
            if name != "floor"
            for n in range(self.instances(name))
            for case in kinds
        ]

    def warm(self, running: dict[str, list[Server]]) -> None:
        for name, n, case in self.to_warm():
            self.one(running[name][n], case, name, min(WARM_TABLE, case[1] / 1000))
            self.progress.did(
                WARM_TABLE, "warming {}, {:,} entries, {} keys: ".format(*case[:3]) + f"{name} {n + 1}"
            )

    def one(self, server: Server, case: Case, name: str, seconds: float = 0.0) -> Measured:
        maptype, entries, kind, clients = case
        table = servers.table(maptype, entries, self.o.tables)
        keys = servers.keys(kind, entries, self.o.tables)
        measured = servers.load(
            server, table, keys, clients, seconds=seconds or self.o.seconds, warm_up=self.o.warm_up
        )
        right = "nokey" if kind == "absent" and name != "floor" else "ok"
        if measured[right] != measured["requests"]:
            raise SystemExit(f"{name} gave wrong answers for {kind} keys of {table}: {measured}")
        return measured

    def clients(self) -> dict[str, Any] | None:
        if not self.both:
            return None
        import real_clients

        return real_clients.measure(
            middle(self.o.sizes), self.maps, self.o.tables,
            self.o.postmap_keys, self.o.messages, self.o.rounds,
            lambda text: self.progress.did(13 / 3, text),
        )  # fmt: skip

    def start(self) -> dict[str, list[float]] | None:
        if servers.no_stock():
            return None  # it needs root, as master has it
        import start

        return start.measure(max(self.o.rounds, 3) * 3, lambda text: self.progress.did(0.07, text))

    def memory(self) -> dict[str, Any]:
        import memory

        names = [name for name in self.o.servers if name in ("ours", "stock")]
        return memory.measure(
            self.o.sizes, self.maps, self.o.tables, self.o.silent_clients, names,
            lambda text: self.progress.did(2.5, text),
        )  # fmt: skip


def updated(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What is known of an earlier run of the same machine, and in place of its figures the new ones."""

    def case(one: dict[str, Any]) -> list[Any]:
        return [value for name, value in one.items() if name != "servers"]

    again = {str(case(one)): one for one in new.get("load", [])}
    load = [again.get(str(case(one)), one) for one in known.get("load", [])]
    parts = {part: new[part] for part in PARTS if part in new}
    return {**known, **parts, "load": load, "host": new["host"]}


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """Each round begins with another one, so that none always follows the same."""
    order = list(names)
    first = number % len(order)
    return order[first:] + order[:first]


def middle(sizes: list[int]) -> int:
    """A million, of those that are usual."""
    return max(size for size in sizes if size <= max(1_000_000, min(sizes)))


def print_load(cases: list[dict[str, Any]]) -> None:
    print("medians:")
    print("table        entries keys   clients server        req/s  CPU µs    p50 µs    p99 µs  p99.9 µs")
    for case in cases:
        for name, columns in case["servers"].items():
            medians = {metric: statistics.median(values) for metric, values in columns.items()}
            print(
                f"{case['maptype']:8} {case['entries']:11,} {case['keys']:6} {case['clients']:7,} {name:8}"
                f" {medians['per_second']:10,.0f} {medians['cpu_us']:7.2f} {medians['p50_us']:9.1f}"
                f" {medians['p99_us']:9.1f} {medians['p999_us']:9.1f}"
            )


def to_json(result: dict[str, Any]) -> str:
    """Indented, but a list of figures on one line."""
    text = json.dumps(result, indent=1)
    parts = []
    for piece in text.split("["):
        inside, bracket, rest = piece.partition("]")
        if bracket and "{" not in inside:
            inside = " ".join(inside.split())
        parts.append(inside + bracket + rest)
    return "[".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
