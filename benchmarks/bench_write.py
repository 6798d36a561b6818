"""bench_write - updates per second of proxywrite, ours and Postfix's, synced, in alternating rounds

usage: bench_write.py [--rounds N] [--seconds S] [--json FILE]

The tables lie in /tmp, so what counts is the disk that /tmp is on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from servers import Measured, about_this_host, both_writing, load, log

CLIENTS = (1, 4, 16, 64)
KEYS = 10_000  # the tables begin with that many entries, both with the same file
TRIAL = 200  # updates, to find out how many take `seconds`


def file_of(table: str) -> Path:
    return Path(table.removeprefix("lmdb:") + ".lmdb")


def main() -> None:
    parser = argparse.ArgumentParser(description="updates per second, each on disk before it is answered")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    options = parser.parse_args()
    runs: dict[str, list[Measured]] = {}
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys, both_writing() as servers:
        keys.writelines(f"user{i}@example.com\n" for i in range(KEYS))
        keys.flush()
        log("filling")
        server, filled = servers["proxymap"]
        load(server, filled, Path(keys.name), 64, 2 * KEYS, updates=True)
        for _, table in servers.values():
            if table != filled:  # where free pages lie in a file makes a difference, and lasts
                shutil.copy(file_of(filled), file_of(table))
                owner = file_of(table).parent.stat()
                os.chown(file_of(table), owner.st_uid, owner.st_gid)
        for number in range(options.rounds):
            log(f"round {number + 1} of {options.rounds}")
            for clients in CLIENTS:
                turns = list(servers.items())
                for name, (server, table) in reversed(turns) if number % 2 else turns:
                    speed = load(server, table, Path(keys.name), clients, TRIAL, updates=True)["per_second"]
                    count = max(TRIAL, int(speed * options.seconds))
                    measured = load(server, table, Path(keys.name), clients, count, updates=True)
                    assert measured["ok"] == count, measured
                    runs.setdefault(f"{clients:7} {name}", []).append(measured)
    print("clients server    updates/s  CPU µs   p50 µs   p99 µs  (medians)")
    for case, measured_runs in runs.items():
        columns = [
            statistics.median(run[name] for run in measured_runs)
            for name in ("per_second", "cpu_us", "p50_us", "p99_us")
        ]
        print(f"{case:17} {columns[0]:10,.0f} {columns[1]:7.1f} {columns[2]:8.0f} {columns[3]:8.0f}")
    if options.json:
        options.json.write_text(json.dumps({"host": about_this_host(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
