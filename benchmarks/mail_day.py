"""mail_day - what mail_trace.py found, as a table and a plot for docs/performance.md"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from figures import table
from mail_trace import ATTACK, OUTAGE, STEP

NAME = "mail_day.json"
COUNTS = {"lookups": "lookups", "questions": "questions", "hits": "hits", "joined": "joined",
          "stale": "old values", "deferred": "deferred"}  # fmt: skip
NOT_MEASURED = "Not measured.\n"


def load(results: Path) -> dict[str, Any]:
    """By policy: its counts, and the questions of each STEP; or none."""
    path = results / NAME
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return known


def day_words(results: Path) -> str:
    head = ["values kept for", *COUNTS.values(), "questions of lookups"]
    rows = []
    for name, one in load(results).items():
        counts = one["counts"]
        share = counts["questions"] / counts["lookups"]
        rows.append([name, *(f"{counts.get(each, 0):,}" for each in COUNTS), f"{share:.0%}"])
    if not rows:
        return NOT_MEASURED
    return f"{table(head, rows)}\n![Questions to the database over the day](performance/mail_day.svg)\n"


def day_plot(results: Path, pyplot: Any, width: float) -> Any:
    """Questions a second. None: no figures."""
    known = load(results)
    if not known:
        return None
    figure, axes = pyplot.subplots(figsize=(width, 3.6))
    for name, one in known.items():
        hours = [number * STEP / 3600 for number in range(len(one["steps"]))]
        axes.plot(hours, [max(asked / STEP, 0.01) for asked in one["steps"]], label=name, lw=1.2)
    for at, text in ((ATTACK[0], "attack"), (OUTAGE[0], "outage")):
        axes.annotate(text, (at / 3600, 1), xycoords=("data", "axes fraction"), ha="center", va="top")
    axes.set(xlabel="hour", ylabel="questions a second", yscale="log", xlim=(0, 24))
    axes.legend(ncols=2, fontsize=8, loc="lower right")
    figure.tight_layout()
    return figure
