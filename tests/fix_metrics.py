"""fix_metrics - what `proxymapctl metrics` says, as numbers

prometheus-client parses it: what Prometheus would not read fails there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest
from fix_server import environment

parser = pytest.importorskip("prometheus_client.parser")

Series = Mapping[tuple[str, ...], float]


def metrics_text(*arguments: str) -> str:
    """What proxymapctl prints."""
    command = [sys.executable, "-m", "proxymap.ctl", "metrics", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    return done.stdout


def parsed(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Name of each sample -> values of its labels, in their order in the text -> number."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def nonzero(series: Series) -> dict[tuple[str, ...], int]:
    return {labels: int(value) for labels, value in series.items() if value}
