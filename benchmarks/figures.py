"""figures - what was measured, as benchmarks/results/ keeps it: medians, ratios and spreads

A ratio is taken round by round, between neighbours in time; the median of the
rounds counts, the least and the most are its spread.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent / "results"
MILLION = 1_000_000
SERVERS = ("stock", "ours", "floor")
NAMES = {"stock": "Postfix's own", "ours": "this one", "floor": "the floor"}

Columns = dict[str, dict[str, list[float]]]  # by server, by metric: a figure for each round


class Case(NamedTuple):
    maptype: str
    entries: int
    keys: str
    clients: int

    def __str__(self) -> str:
        return f"{self.maptype}, {short(self.entries)} entries, {self.keys}, {count(self.clients, 'client')}"


class Figures:
    """bench.json, and micro.json if it is there."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self.bench: dict[str, Any] = json.loads((folder / "bench.json").read_text())
        self.load: dict[Case, Columns] = {
            Case(*(entry[name] for name in Case._fields)): entry["servers"]
            for entry in self.bench.get("load", [])
        }
        self.micro = micro(folder / "micro.json")

    def cases(self, **wanted: Any) -> list[Case]:
        """The results whose fields are as wanted: one value, or one of several."""

        def fits(case: Case) -> bool:
            return all(getattr(case, name) in several(value) for name, value in wanted.items())

        return [case for case in self.load if fits(case)]

    def values(self, case: Case, server: str, metric: str) -> list[float]:
        """A figure for each round; none if that was not measured."""
        return self.load.get(case, {}).get(server, {}).get(metric, [])

    def median(self, case: Case, server: str, metric: str) -> float | None:
        values = self.values(case, server, metric)
        return statistics.median(values) if values else None

    def clients(self) -> dict[str, Columns]:
        """postmap and mail."""
        cases: dict[str, Columns] = self.bench.get("clients", {}).get("cases", {})
        return cases


def micro(path: Path) -> dict[str, Any]:
    """pyperf's benchmarks by name."""
    if not path.exists():
        return {}
    import pyperf

    return {one.get_name(): one for one in pyperf.BenchmarkSuite.load(str(path)).get_benchmarks()}


def ratios(values: Iterable[float], by: Iterable[float]) -> list[float]:
    """Round by round."""
    return [one / other for one, other in zip(values, by, strict=True)]


def several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def short(number: int) -> str:
    return f"{number // MILLION} million" if number >= MILLION else f"{number:,}"


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """In Markdown; numbers to the right, but for the first column."""
    names = list(head)
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *([str(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
