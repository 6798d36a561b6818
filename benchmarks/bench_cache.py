"""bench_cache - does the cache pay for a table type? Decision on proxymap.cf: cache_maptypes

The same load on two servers, one with the cache on for cdb and lmdb and one
without, in alternating rounds; CPU per request of the server, medians.

With --hits: what a hit costs where answers age (sqlite, each key asked for before),
beside a lookup in a cdb table with the same keys; 32 clients, alternating rounds.

usage: bench_cache.py [--hits] [--entries N] [--rounds N] [--requests N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
from pathlib import Path

from servers import about_this_host, folder_for, keys, load, log, make_tables, ours, table

HIT = 1.1  # of the CPU of a cdb lookup, at most
CLIENTS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU per request with and without the cache")
    parser.add_argument("--hits", action="store_true", help="what a hit costs where answers age")
    parser.add_argument("--entries", type=int, help="default: 1,000,000; of --hits: 10,000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=400_000)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    options.entries = options.entries or (10_000 if options.hits else 1_000_000)
    figures = hits(options) if options.hits else on_and_off(options)
    if options.json:
        options.json.write_text(json.dumps({"host": about_this_host(), "cpu_us": figures}, indent=1) + "\n")


def on_and_off(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    figures: dict[str, dict[str, list[float]]] = {}
    with (
        folder_for(make_tables([options.entries])) as folder,
        ours(folder, "-o", "cache_maptypes=") as off,
        ours(folder, "-o", "cache_maptypes=cdb lmdb") as on,
    ):
        for number in range(options.rounds):
            log(f"round {number + 1} of {options.rounds}")
            for maptype in ("cdb", "lmdb"):
                for kind in ("zipf", "found", "absent"):
                    for name, server in (("off", off), ("on", on)):
                        asked = keys(kind, options.entries)
                        measured = load(server, table(maptype, options.entries), asked, 8, options.requests)
                        case = figures.setdefault(f"{maptype} {kind}", {})
                        case.setdefault(name, []).append(measured["cpu_us"])
    print(f"CPU µs per request, {options.entries:,} entries, 8 clients, median of {options.rounds}")
    print("table keys   without  with the cache")
    for case, by_name in figures.items():
        print(f"{case:11} {statistics.median(by_name['off']):8.2f} {statistics.median(by_name['on']):15.2f}")
    return figures


def hits(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Each round: cdb where nothing is kept, cdb beside answers that are, and those answers."""
    figures: dict[str, list[float]] = {"alone": [], "cdb": [], "hit": []}
    make_tables([options.entries])
    file_table, asked = table("cdb", options.entries), keys("zipf", options.entries)
    with folder_for([file_table]) as folder:
        slow_table = sqlite_table(folder, asked)
        (folder / "main.cf").open("a").write(f"proxy_read_maps = proxy:{file_table} proxy:{slow_table}\n")
        with (
            ours(folder, "-o", "sqlite_cache_ttl=1d") as server,
            ours(folder, "-o", "cache_size=0") as without,
        ):
            load(server, slow_table, asked, CLIENTS, sum(1 for _ in asked.open()))
            for number in range(options.rounds):
                log(f"round {number + 1} of {options.rounds}")
                for name, of, one in (
                    ("alone", without, file_table), ("cdb", server, file_table), ("hit", server, slow_table)
                ):  # fmt: skip
                    figures[name].append(load(of, one, asked, CLIENTS, options.requests)["cpu_us"])
    print(f"CPU µs per request, {CLIENTS} clients, zipf keys of {options.entries:,} entries")
    print(f"a hit beside cdb: {ratio(figures, 'hit', 'cdb')} (at most {HIT})")
    print(f"cdb beside cdb without any cache: {ratio(figures, 'cdb', 'alone')}")
    return {"zipf": figures}


def ratio(figures: dict[str, list[float]], one: str, other: str) -> str:
    pairs = zip(figures[one], figures[other], strict=True)
    return (
        f"{statistics.median(figures[one]):.2f} to {statistics.median(figures[other]):.2f},"
        f" median of the ratios {statistics.median(mine / its for mine, its in pairs):.2f}"
    )


def sqlite_table(folder: Path, asked: Path) -> str:
    """With all keys of that file, and values as long as those of the cdb table."""
    with sqlite3.connect(folder / "t.db") as database:
        database.execute("CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT)")
        found = set(asked.read_text().split())
        database.executemany("INSERT INTO t VALUES (?, ?)", [(key, f"box{key}.net") for key in found])
    database.close()
    (folder / "t.db").chmod(0o644)
    (folder / "t.cf").write_text(f"dbpath = {folder}/t.db\nquery = SELECT v FROM t WHERE k = '%s'\n")
    return f"sqlite:{folder}/t.cf"


if __name__ == "__main__":
    main()
