"""bench_cache - does the cache pay for a table type? Decision on proxymap.cf: cache_maptypes

The same load on two servers, one with the cache on for cdb and lmdb and one
without, in alternating rounds; CPU per request of the server, medians.

usage: bench_cache.py [--entries N] [--rounds N] [--requests N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from servers import about_this_host, folder_for, keys, load, log, make_tables, ours, table


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU per request with and without the cache")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=400_000)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
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
    if options.json:
        options.json.write_text(json.dumps({"host": about_this_host(), "cpu_us": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
