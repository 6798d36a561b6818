"""verdicts - what this server has to reach, and by how much it does

One line each, the worst case of all that it is about. A line is about ratios
of one run, not about times of one machine, but for memory and the parser.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from figures import MILLION, Case, Figures, ratios

MB = 1e6


@dataclass(frozen=True)
class Limit:
    """at_least, or at most; strict: and not equal."""

    value: float
    at_least: bool = False
    strict: bool = False
    unit: str = ""

    def holds(self, figure: float) -> bool:
        if figure == self.value:
            return not self.strict
        return (figure > self.value) == self.at_least

    def __str__(self) -> str:
        sign = {(True, False): "≥", (True, True): ">", (False, False): "≤", (False, True): "<"}
        return f"{sign[self.at_least, self.strict]} {self.value:.4g}{self.unit}"


@dataclass(frozen=True)
class Verdict:
    """figures: of the worst case, one a round; none: not measured."""

    what: str
    limit: Limit
    figures: list[float]
    where: str = ""

    @property
    def figure(self) -> float:
        return statistics.median(self.figures)

    @property
    def held(self) -> bool | None:
        return self.limit.holds(self.figure) if self.figures else None

    @property
    def word(self) -> str:
        return {True: "yes", False: "**no**", None: "not measured"}[self.held]

    def __str__(self) -> str:
        if not self.figures:
            return "-"
        spread = f" ({min(self.figures):.3g} to {max(self.figures):.3g})" if len(self.figures) > 1 else ""
        return f"{self.figure:.3g}{self.limit.unit}{spread}"


Candidates = Iterable[tuple[str, list[float]]]  # where, and the figures of all rounds


def worst(what: str, limit: Limit, candidates: Candidates) -> Verdict:
    """The verdict on the candidate that is farthest on the wrong side."""
    measured = [(where, figures) for where, figures in candidates if figures]
    if not measured:
        return Verdict(what, limit, [])
    choose = min if limit.at_least else max
    where, figures = choose(measured, key=lambda one: statistics.median(one[1]))
    return Verdict(what, limit, figures, where)


def judge(figures: Figures) -> list[Verdict]:
    return [*load(figures), *growth(figures), *clients(figures), *parts(figures), *memory(figures)]


def load(figures: Figures) -> Iterator[Verdict]:
    def beside(other: str, metric: str, clients: tuple[int, ...]) -> Candidates:
        for case in figures.cases(entries=MILLION, clients=clients):
            ours, theirs = (figures.values(case, name, metric) for name in ("ours", other))
            if ours and theirs:
                yield str(case), ratios(ours, theirs)

    few = (8, 32)
    yield worst("requests per second, of the floor's", Limit(0.95, True), beside("floor", "per_second", few))
    yield worst("CPU per request, of the floor's", Limit(1.15), beside("floor", "cpu_us", few))
    yield worst(
        "requests per second, of the stock server's", Limit(3, True), beside("stock", "per_second", few)
    )
    yield worst(
        "CPU per request, of the stock server's", Limit(1 / 3, strict=True), beside("stock", "cpu_us", few)
    )
    for number in (8, 64, 500):
        yield worst(
            f"p99 at {number} clients, of the stock server's", Limit(1, strict=True),
            beside("stock", "p99_us", (number,)),
        )  # fmt: skip


def growth(figures: Figures) -> Iterator[Verdict]:
    def grown(case: Case, other: Case, server: str) -> list[float]:
        before, after = (figures.values(one, server, "cpu_us") for one in (case, other))
        if len(before) != len(after) and before:  # other rounds
            before = [statistics.median(before)] * len(after)
        return ratios(after, before) if before and after else []

    def cpu(change: Callable[[Case], Case], cases: list[Case]) -> Candidates:
        for case in cases:
            floor = grown(case, change(case), "floor")
            beside = f"; the floor's: {statistics.median(floor):.3g}" if floor else ""
            yield f"{case}{beside}", grown(case, change(case), "ours")

    yield worst(
        "CPU per request at 10 million entries, of that at 1,000", Limit(1.3),
        cpu(lambda case: case._replace(entries=10 * MILLION), figures.cases(entries=1000, clients=(8, 32))),
    )  # fmt: skip
    yield worst(
        "CPU per request at 5,000 clients, of that at 32", Limit(1.3),
        cpu(lambda case: case._replace(clients=5000), figures.cases(entries=MILLION, clients=32)),
    )  # fmt: skip


def clients(figures: Figures) -> Iterator[Verdict]:
    def seconds(*names: str) -> Candidates:
        for name in names:
            columns = figures.clients().get(name)
            if columns:
                yield name, ratios(columns["ours"]["seconds"], columns["stock"]["seconds"])

    yield worst(
        "time of `postmap -q -`, of that with the stock server",
        Limit(1),
        seconds("postmap cdb", "postmap lmdb"),
    )
    yield worst("time to take mail by smtpd, of that with the stock server", Limit(1), seconds("mail"))


def parts(figures: Figures) -> Iterator[Verdict]:
    def beside(maptype: str, other: str) -> Candidates:
        for kind in ("found", "absent"):
            ours, theirs = (figures.micro.get(f"{maptype} {kind}, {name}") for name in ("proxymap", other))
            if ours and theirs:
                yield kind, [ours.median() / theirs.median()]

    yield worst("cdb lookup from Python, of cdbx's", Limit(1, strict=True), beside("cdb", "cdbx"))
    yield worst("lmdb lookup from Python, of py-lmdb's", Limit(1, strict=True), beside("lmdb", "py-lmdb"))
    parsing = [(name, one) for name, one in figures.micro.items() if name.startswith("parse ")]
    yield worst(
        "parsing a request", Limit(100, strict=True, unit=" ns"),
        [(name, [value * 1e9 for value in one.get_values()]) for name, one in parsing],
    )  # fmt: skip


def memory(figures: Figures) -> Iterator[Verdict]:
    known = figures.bench.get("memory", {})
    ours = known.get("ours", {})

    def one(what: str, limit: Limit, figure: float | None) -> Verdict:
        return Verdict(what, limit, [] if figure is None else [figure])

    idle, silent = ours.get("idle"), ours.get("per_client", {}).get("silent")
    yield one("resident when idle", Limit(30, strict=True, unit=" MB"), idle and idle["resident"] / MB)
    yield one("for each idle client", Limit(2000, strict=True, unit=" bytes"), silent)
    cache = known.get("cache")
    yield one(
        "memory that a full cache took, of its limit", Limit(1), cache and cache["grown"] / cache["limit"]
    )
