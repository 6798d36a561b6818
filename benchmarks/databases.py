"""databases - what bench_databases.py measured, as a table, verdicts and a plot for docs/performance.md"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from beside import Case, middle, ratio
from figures import table

NAME = "databases.json"
CPU_SHARE = {"mysql": 0.5, "pgsql": 0.5, "ldap": 0.6}  # of stock's, with 8 clients and more
RATE_SHARE = 1.0  # of stock's, with 32 clients and more,
FULL_RATE_SHARE = 0.9  # in MariaDB without a delay, where the CPU is full
ONE_CLIENT = 1.25  # times stock's time
NOT_MEASURED = "Not measured.\n"


def load(results: Path) -> dict[str, Any]:
    """The figures, or none."""
    path = results / NAME
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cases": []}
    return known


def shown(case: Case) -> str:
    clients = "1 client" if case["clients"] == 1 else f"{case['clients']} clients"
    return f"{case['maptype']}, {case['delay_ms']} ms, {clients}"


def database_words(results: Path) -> str:
    """A table of all cases, what was wanted, and whether it holds."""
    known = load(results)
    if not known["cases"]:
        return NOT_MEASURED
    head = ["table, time in the server, clients"]
    head += ["lookups/s", "stock's", "ratio", "CPU µs", "stock's", "ratio"]
    head += ["p50 µs", "stock's", "connections", "stock's"]
    rows = [row(case) for case in known["cases"]]
    rounds = min(len(case["ours"]) for case in known["cases"])
    words = f"{known['rows']:,} rows, {rounds} rounds of {known['seconds']:g} s; medians.\n"
    limits = table(["", "wanted", "is", "held"], wanted(known["cases"]))
    note = f"{known['note']}\n" if "note" in known else ""
    picture = "![Lookups in databases](performance/databases.svg)\n"
    return f"{words}{note}\n{table(head, rows)}\n{limits}\n{picture}"


def row(case: Case) -> list[str]:
    cells = [shown(case)]
    for metric, digits in (("per_second", 0), ("cpu_us", 1), ("p50_us", 0), ("connections", 0)):
        cells += [f"{middle(case[server], metric):,.{digits}f}" for server in ("ours", "stock")]
        if metric in ("per_second", "cpu_us"):
            cells.append(f"{ratio(case, metric):.2f}")
    return cells


def wanted(cases: list[Case]) -> Iterator[list[str]]:
    """Each limit with the figure of each case."""
    for case in cases:
        rate, cpu = ratio(case, "per_second"), ratio(case, "cpu_us")
        if case["clients"] == 1:
            yield limit(case, "time", 1 / rate, ONE_CLIENT, 1 / rate <= ONE_CLIENT, "at most")
            continue
        if case["delay_ms"] == 0:
            share = CPU_SHARE[case["maptype"]]
            yield limit(case, "CPU", cpu, share, cpu <= share, "at most")
        if case["clients"] >= 32:
            full = case["maptype"] == "mysql" and case["delay_ms"] == 0
            least = FULL_RATE_SHARE if full else RATE_SHARE
            yield limit(case, "lookups/s", rate, least, rate >= least, "at least")


def limit(case: Case, what: str, figure: float, bound: float, held: bool, word: str) -> list[str]:
    return [
        f"{shown(case)}: {what}",
        f"{word} {bound:g} of stock's",
        f"{figure:.2f}",
        "yes" if held else "**no**",
    ]


def database_plot(results: Path, pyplot: Any, colours: dict[str, str]) -> Any:
    """Lookups per second and CPU for each, by case; bars of both servers side by side. None: no figures."""
    cases = load(results)["cases"]
    if not cases:
        return None
    figure, all_axes = pyplot.subplots(1, 2, figsize=(9.0, 4.6), sharey=True, layout="constrained")
    panels = (
        ("per_second", "lookups per second (more is better)"),
        ("cpu_us", "CPU µs for each (less is better)"),
    )
    for axes, (metric, title) in zip(all_axes, panels, strict=True):
        for place, server in enumerate(("ours", "stock")):
            at = [i + (place - 0.5) * 0.4 for i in range(len(cases))]
            values = [[one[metric] for one in case[server]] for case in cases]
            middles = [statistics.median(each) for each in values]
            spread = [[m - min(v) for m, v in zip(middles, values, strict=True)],
                      [max(v) - m for m, v in zip(middles, values, strict=True)]]  # fmt: skip
            label = "proxymap (this one)" if server == "ours" else "Postfix's own"
            axes.barh(at, middles, 0.38, xerr=spread, color=colours[server], label=label,
                      error_kw={"linewidth": 0.8})  # fmt: skip
        axes.set_yticks(range(len(cases)), [shown(case) for case in cases])
        axes.set_title(title)
        axes.grid(axis="y", visible=False)
    all_axes[0].invert_yaxis()
    all_axes[1].legend()
    return figure
