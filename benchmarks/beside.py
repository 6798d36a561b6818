"""beside - what bench_databases and bench_memcache share: options, figures of each round, columns"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from servers import Measured, log

Case = dict[str, Any]  # "ours", "stock": the figures of each round
HEAD = "lookups/s     ours    stock  ratio | CPU µs  ours stock  ratio | p50 µs  ours   stock"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    parser.add_argument("--warm-up", type=float, default=0.7, metavar="S", help="before it (default: 0.7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="few records, one short round")


def parsed(parser: argparse.ArgumentParser, records: str) -> argparse.Namespace:
    """records: the option that says how many there are."""
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.warm_up = 1, 0.5, 0.2
        setattr(options, records, 10_000)
    return options


def write(path: Path | None, result: dict[str, Any]) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        log(f"written: {path}")


def in_turn(number: int) -> tuple[str, str]:
    """Which server is measured first in this round."""
    return ("ours", "stock") if number % 2 == 0 else ("stock", "ours")


def warn_of_failures(what: str, measured: Measured) -> None:
    if measured["retry"] or measured["nokey"]:
        log(f"{what}: {measured['retry']:.0f} deferred, {measured['nokey']:.0f} not found")


def middle(figures: list[Measured], metric: str) -> float:
    return statistics.median(one[metric] for one in figures)


def ratio(case: Case, metric: str) -> float:
    """Ours to stock's: the median of the rounds' ratios."""
    pairs = zip(case["ours"], case["stock"], strict=True)
    return statistics.median(ours[metric] / stock[metric] for ours, stock in pairs)


def columns(case: Case) -> str:
    """Those of HEAD."""
    ours, stock = case["ours"], case["stock"]
    return (
        f"{middle(ours, 'per_second'):18,.0f} {middle(stock, 'per_second'):8,.0f}"
        f" {ratio(case, 'per_second'):6.2f} | {middle(ours, 'cpu_us'):12.1f}"
        f" {middle(stock, 'cpu_us'):5.1f} {ratio(case, 'cpu_us'):6.2f} |"
        f" {middle(ours, 'p50_us'):12,.0f} {middle(stock, 'p50_us'):7,.0f}"
    )
