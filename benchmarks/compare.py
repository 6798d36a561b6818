"""compare - has a part become slower? Two results of bench_micro.py, judged by pyperf

A part is slower if pyperf's t-test says that the two differ, and by more than
the limit: between two runs of the same code on a shared machine there may well
be a few percent. Exit status 1 if one is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from figures import micro, table
from pyperf import Benchmark
from pyperf._compare import CompareData, CompareResult

LIMIT = 10.0  # percent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="JSON as it was")
    parser.add_argument("new", type=Path, metavar="NEW", help="and as it is")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="PERCENT", help=f"default: {LIMIT:g}")
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")
    options = parser.parse_args()
    for path in (options.base, options.new):
        if not path.exists():
            parser.error(f"{path} is not there: `make bench-micro` makes one")  # exit status 2
    base, new = micro(options.base), micro(options.new)
    if machine(base) != machine(new):
        print(f"not the same machine: {machine(base)}, now {machine(new)}", file=sys.stderr)
    found = {name: judge(base[name], new[name], options.limit) for name in base if name in new}
    for name in base.keys() ^ new.keys():
        print(f"only in one of the two: {name}", file=sys.stderr)
    slower = [name for name, (_, word) in found.items() if word == "slower"]
    if options.json:
        print(
            json.dumps(
                {name: {"ratio": ratio, "is": word} for name, (ratio, word) in found.items()}, indent=1
            )
        )
    else:
        rows = (
            [name, ns(base[name]), ns(new[name]), f"{found[name][0]:.2f}", found[name][1]] for name in found
        )
        print(table(["", "ns before", "now", "ratio", ""], rows), end="")
        print(f"slower by more than {options.limit:g} %: {', '.join(slower) or 'nothing'}")
    return int(bool(slower))


def judge(base: Benchmark, new: Benchmark, limit: float) -> tuple[float, str]:
    """New by old, and a word for it."""
    result = CompareResult(CompareData("base", base), CompareData("new", new), limit)
    ratio = result.norm_mean
    if not result.significant:
        return ratio, "same"
    return ratio, "slower" if ratio > 1 else "faster"


def ns(benchmark: Benchmark) -> str:
    return f"{benchmark.mean() * 1e9:.1f}"


def machine(benchmarks: dict[str, Benchmark]) -> str:
    metadata = next(iter(benchmarks.values())).get_metadata()
    return f"{metadata.get('cpu_model_name')}, Python {metadata.get('python_version')}"


if __name__ == "__main__":
    sys.exit(main())
