"""plots - the figures as pictures, SVG and PNG; equal figures give equal files"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from databases import database_plot
from figures import MILLION, Case, Figures, short
from mail_day import day_plot
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

COLOURS = {"ours": "#0b66c3", "stock": "#d9630a", "floor": "#8a8a8a"}
LINES = {"ours": "-", "stock": "-", "floor": "--"}
MARKS = {"ours": "o", "stock": "s", "floor": "^"}
LABELS = {"ours": "proxymap (this one)", "stock": "Postfix's own", "floor": "floor: epoll alone"}
ORDER = ("floor", "ours", "stock")
WIDTH = 9.0  # inches; README shows about 800 pixels of it
PNG_DPI = 110

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "proxymap",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
)


def draw(figures: Figures, folder: Path) -> list[str]:
    """All pictures for which there are figures; their names without suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, picture in (
        ("throughput", throughput), ("latency", latency), ("cpu", cpu), ("size", size),
        ("databases", databases), ("mail_day", mail_day),
    ):  # fmt: skip
        figure = picture(figures)
        if figure is not None:
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=PNG_DPI, metadata={"Software": None})
            pyplot.close(figure)
            drawn.append(name)
    return drawn


def throughput(figures: Figures) -> Any:
    figure = against(figures, "per_second", "clients", figures.cases(entries=MILLION, keys="found"))
    if figure is not None:
        figure.suptitle("Requests per second, a million entries (more is better)")
        for axes in figure.axes:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value / 1000:,.0f}k" if value else "0")
            )
    return figure


def latency(figures: Figures) -> Any:
    figure = against(figures, "p99_us", "clients", figures.cases(entries=MILLION, keys="found"))
    if figure is not None:
        figure.suptitle(
            "99 of 100 requests are answered within this time, a million entries (less is better)"
        )
        for axes in figure.axes:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
            axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def size(figures: Figures) -> Any:
    cases = figures.cases(keys="found", clients=8)
    figure = (
        against(figures, "cpu_us", "entries", cases) if len({case.entries for case in cases}) > 1 else None
    )
    if figure is not None:
        figure.suptitle("CPU time for each request as the table grows, 8 clients (less is better)")
        for axes in figure.axes:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} µs"))
    return figure


def against(figures: Figures, metric: str, field: str, cases: list[Case]) -> Any:
    """A line for each server, with the spread of its rounds; cdb and lmdb side by side."""
    maptypes = sorted({case.maptype for case in cases})
    if not maptypes:
        return None
    figure, all_axes = pyplot.subplots(
        1, len(maptypes), figsize=(WIDTH, 3.7), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, maptype in zip(all_axes[0], maptypes, strict=True):
        mine = sorted(
            (case for case in cases if case.maptype == maptype), key=lambda case: getattr(case, field)
        )
        for server in ORDER:
            known = [(getattr(case, field), figures.values(case, server, metric)) for case in mine]
            line(axes, server, [(x, values) for x, values in known if values])
        label: Callable[[int], str] = short if field == "entries" else lambda number: f"{number:,}"
        axes.set_xscale("log")
        axes.set_xticks(
            [getattr(case, field) for case in mine], [label(getattr(case, field)) for case in mine]
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("entries in the table" if field == "entries" else "clients")
        axes.set_title(maptype)
    all_axes[0][0].legend()
    return figure


def line(axes: Any, server: str, known: list[tuple[int, list[float]]]) -> None:
    x = [number for number, _ in known]
    axes.fill_between(
        x, [min(values) for _, values in known], [max(values) for _, values in known],
        color=COLOURS[server], alpha=0.15, linewidth=0,
    )  # fmt: skip
    axes.plot(
        x, [statistics.median(values) for _, values in known], LINES[server] + MARKS[server],
        color=COLOURS[server], label=LABELS[server], markersize=4.5, linewidth=1.8,
    )  # fmt: skip


def cpu(figures: Figures) -> Any:
    """Bars; what the stock server's master spends for it stands on top."""
    cases = figures.cases(entries=MILLION, keys="found", clients=(8, 32))
    if not cases:
        return None
    figure, axes = pyplot.subplots(figsize=(WIDTH, 3.7), layout="constrained")
    width = 0.26
    for place, server in enumerate(ORDER):
        known = [(i, figures.median(case, server, "cpu_us")) for i, case in enumerate(cases)]
        at = [i + (place - 1) * width for i, value in known if value is not None]
        heights = [value for _, value in known if value is not None]
        bars = axes.bar(at, heights, width * 0.92, color=COLOURS[server], label=LABELS[server])
        axes.bar_label(bars, fmt="%.1f", padding=2, color="white" if server == "stock" else "black",
                       label_type="center" if server == "stock" else "edge")  # fmt: skip
        if server == "stock" and heights:
            master = [figures.median(case, server, "master_cpu_us") or 0.0 for case in cases]
            top = axes.bar(
                at, master, width * 0.92, bottom=heights, color="white", edgecolor=COLOURS[server],
                hatch="///", linewidth=0.8, label="master, for Postfix's own",
            )  # fmt: skip
            axes.bar_label(top, [f"{value:.1f}" for value in master], label_type="center",
                           bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axes.set_xticks(range(len(cases)), [f"{case.maptype}, {case.clients} clients" for case in cases])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("µs")
    axes.set_title("CPU time for each request, a million entries (less is better)")
    axes.legend(ncols=2)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.25)
    return figure


def databases(figures: Figures) -> Any:
    return database_plot(figures.folder, pyplot, COLOURS)


def mail_day(figures: Figures) -> Any:
    return day_plot(figures.folder, pyplot, WIDTH)


def duration(microseconds: float) -> str:
    if microseconds >= 1_000_000:
        return f"{microseconds / 1_000_000:g} s"
    if microseconds >= 1000:
        return f"{microseconds / 1000:g} ms"
    return f"{microseconds:g} µs"
