"""bench_patterns - cidr, regexp and pcre, with few rules and with many, beside Postfix's own server

usage: bench_patterns.py [--rounds N] [--requests N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import random
import statistics
import tempfile
from pathlib import Path

from servers import Measured, about_this_host, folder_for, load, log, no_stock, ours, stock

RULES = {"cidr": (100, 100_000), "regexp": (5, 5000), "pcre": (5, 5000)}
KEYS = 400
CLIENTS = 8


def rule(maptype: str, number: int) -> str:
    if maptype == "cidr":
        return f"{ipaddress.ip_address((number * 40503 + 1) << 8 & 0xFFFFFFFF)}/24 REJECT rule {number}\n"
    return f"/^user{number}\\.[a-z]+@(example|invalid)\\.(com|net)$/ REJECT rule {number}\n"


def key(maptype: str, number: int) -> str:
    if maptype == "cidr":
        return f"{ipaddress.ip_address(((number * 40503 + 1) << 8 & 0xFFFFFFFF) + 7)}\n"
    return f"user{number}.name@example.com\n"


def write_tables(folder: Path) -> dict[str, Path]:
    """Table -> file of keys; half of them are found."""
    rng = random.Random(1)
    tables = {}
    for maptype, sizes in RULES.items():
        for size in sizes:
            file = folder / f"{maptype}{size}"
            file.write_text("".join(rule(maptype, number) for number in range(size)))
            keys = folder / f"{maptype}{size}.keys"
            keys.write_text("".join(key(maptype, rng.randrange(2 * size)) for _ in range(KEYS)))
            tables[f"{maptype}:{file}"] = keys
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description="rules: requests per second, latency and CPU, side by side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=10_000, help="for each figure")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    options = parser.parse_args()
    runs: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory(prefix="pm-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        tables = write_tables(folder)
        with contextlib.ExitStack() as stack:
            ours_in = stack.enter_context(folder_for(tables))
            servers = {"proxymap": stack.enter_context(ours(ours_in, "-o", "cache_size=0"))}
            if reason := no_stock():
                log(f"without the stock server: {reason}")
            else:
                servers["stock"] = stack.enter_context(stock(tables))
            for number in range(options.rounds):
                log(f"round {number + 1} of {options.rounds}")
                for table, keys in tables.items():
                    for label, server in servers.items():
                        measured = load(server, table, keys, CLIENTS, options.requests)
                        runs.setdefault(f"{Path(table).name:10} {label}", []).append(measured)
    print("rules      server        req/s  CPU µs   p50 µs   p99 µs  (medians)")
    for case, measured_runs in runs.items():
        columns = [
            statistics.median(run[name] for run in measured_runs)
            for name in ("per_second", "cpu_us", "p50_us", "p99_us")
        ]
        print(f"{case:19} {columns[0]:10,.0f} {columns[1]:7.2f} {columns[2]:8.1f} {columns[3]:8.1f}")
    if options.json:
        options.json.write_text(json.dumps({"host": about_this_host(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
