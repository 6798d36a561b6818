"""text - Prometheus' text format, 0.0.4: what it looks like

Source: prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from proxymap.metrics.metrics import Metric, bounds_of, labels_of
from proxymap.metrics.reading import Histogram, Labels

Value = int | float | Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_IN_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def text_of(metric: Metric, values: Iterable[tuple[Labels, Value]]) -> Iterator[str]:
    """text_of - the lines of a metric; none if there is no value"""
    first = True
    names = labels_of(metric)
    for labels, value in values:
        if first:
            yield f"# HELP {metric.name} {metric.help.translate(_IN_HELP)}"
            yield f"# TYPE {metric.name} {metric.kind}"
            first = False
        pairs = [f'{name}="{_shown(label)}"' for name, label in zip(names, labels, strict=True)]
        if isinstance(value, Histogram):
            yield from _histogram(metric, pairs, value)
        else:
            yield f"{metric.name}{_braces(pairs)} {_number(value)}"


def _histogram(metric: Metric, pairs: list[str], value: Histogram) -> Iterator[str]:
    for bound, count in zip([*bounds_of(metric), float("inf")], [*value.counts, value.total], strict=True):
        limit = f'le="{_number(bound)}"' if bound != float("inf") else 'le="+Inf"'
        yield f"{metric.name}_bucket{_braces([*pairs, limit])} {count}"
    yield f"{metric.name}_sum{_braces(pairs)} {_number(value.sum)}"
    yield f"{metric.name}_count{_braces(pairs)} {value.total}"


def _shown(label: str) -> str:
    """A byte that is not UTF-8 is a lone surrogate, which has no place in the text."""
    return label.encode(errors="surrogateescape").decode(errors="replace").translate(_IN_LABEL)


def _braces(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"
