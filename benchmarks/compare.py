"""compare - our server beside the floor and Postfix's own, in one run, in alternating rounds

usage: compare.py [--entries N] [--rounds N] [--requests N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from servers import Measured, about_this_host, floor, load, log, ours, stock, tables

CLIENTS = (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description="requests per second, latency and CPU, side by side")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--requests", type=int, default=200_000, help="for each figure; the stock server gets a quarter"
    )
    parser.add_argument("--json", type=Path, help="write all figures there too")
    options = parser.parse_args()
    runs: dict[str, list[Measured]] = {}
    with (
        tables(options.entries) as folder,
        floor(folder) as least,
        ours(folder) as server,
        stock(folder) as original,
    ):
        for number in range(options.rounds):
            log(f"round {number + 1} of {options.rounds}")
            for maptype in ("cdb", "lmdb"):
                for clients in CLIENTS:
                    for name, one in (("floor", least), ("proxymap", server), ("stock", original)):
                        if one is None:
                            continue
                        requests = options.requests // 4 if name == "stock" else options.requests
                        measured = load(one, f"{maptype}:{folder}/T", folder / "keys-half", clients, requests)
                        runs.setdefault(f"{maptype:5} {clients:7} {name}", []).append(measured)
    print("table clients server        req/s  CPU µs   p50 µs   p99 µs  (medians)")
    for case, measured_runs in runs.items():
        columns = [
            statistics.median(run[name] for run in measured_runs)
            for name in ("per_second", "cpu_us", "p50_us", "p99_us")
        ]
        print(f"{case:22} {columns[0]:10,.0f} {columns[1]:7.2f} {columns[2]:8.1f} {columns[3]:8.1f}")
    if options.json:
        options.json.write_text(json.dumps({"host": about_this_host(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
