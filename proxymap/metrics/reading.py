"""reading - the counters of a service as a file has them, read while processes count; and what they say

`read` gives the rows, `samples` what each metric of the list has to say of them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from proxymap.metrics import _counters as c
from proxymap.metrics.files import HEADER, MAGIC
from proxymap.metrics.metrics import COUNTER, HISTOGRAM, Metric, bounds_of, metrics_of

ROW = Struct("=IIQI")  # state, kind, hash, length of the name
CELLS = (c.ROW_SIZE - c.CELLS_AT) // 8

Labels = tuple[str, ...]
Key = tuple[int, str]  # kind of row, name


class Counted(NamedTuple):
    """What the processes of a service have counted."""

    service: str
    since: float  # when the file was begun, in seconds of the wall clock
    rows: dict[Key, list[int]]

    def of(self, kind: int, name: str = "") -> list[int]:
        """The cells of a row; all 0 where there is none."""
        return self.rows.get((kind, name)) or [0] * CELLS


def read(path: str) -> Counted:
    """read - the counters in that file; OSError, or ValueError if it is none of ours"""
    data = _content(path)
    try:
        magic, layout, since, name = HEADER.unpack_from(data)
    except Exception:
        raise ValueError(f"{path}: too short for counters") from None
    if magic != MAGIC or layout != c.LAYOUT or len(data) != c.FILE_SIZE:
        raise ValueError(f"{path}: damaged, or of another release")
    rows: dict[Key, list[int]] = {}
    for at in range(c.HEADER_SIZE, c.FILE_SIZE, c.ROW_SIZE):
        state, kind, _, length = ROW.unpack_from(data, at)
        if state != c.READY:
            continue
        start = at + c.NAME_AT
        row = kind, os.fsdecode(data[start : min(start + length, at + c.CELLS_AT)])
        cells = memoryview(data)[at + c.CELLS_AT : at + c.ROW_SIZE].cast("Q").tolist()
        before = rows.get(row)
        rows[row] = [a + b for a, b in zip(before, cells, strict=True)] if before else cells
    return Counted(name.rstrip(b"\0").decode(errors="replace"), since / 1e9, rows)


def _content(path: str) -> bytes:
    """The file's bytes. Others may have put a file there: root's, ours and the folder's owner's is read."""
    trusted = {0, os.geteuid()}
    with contextlib.suppress(OSError):
        trusted.add(os.stat(os.path.dirname(path) or ".").st_uid)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in trusted:
            raise ValueError(f"{path}: a stranger's file")
        return os.read(fd, c.FILE_SIZE + 1)
    finally:
        os.close(fd)


class Histogram(NamedTuple):
    """How many values there were up to each bound, one behind another, how many in all, and their sum."""

    counts: list[int]
    total: int
    sum: float


def histogram(metric: Metric, cells: list[int]) -> Histogram:
    """histogram - what cells of a row say of a metric"""
    counts, total = [], 0
    for count in cells[metric.first : metric.first + c.BUCKETS]:
        total += count
        counts.append(total)
    return Histogram(counts[:-1], total, cells[metric.first + c.BUCKETS] / metric.unit)


def quantile(metric: Metric, counts: list[int], total: int, share: float) -> float | None:
    """quantile - below which value that share of all lies, as Prometheus reckons; None if there are none"""
    if not total:
        return None
    bounds = bounds_of(metric)
    rank = share * total
    for at, count in enumerate(counts):
        if count >= rank:
            low, below = (bounds[at - 1], counts[at - 1]) if at else (0.0, 0)
            return low + (bounds[at] - low) * (rank - below) / max(count - below, 1)
    return bounds[-1]


def samples(metric: Metric, counted: Counted) -> Iterator[tuple[Labels, int | Histogram]]:
    """samples - (values of the labels, what was counted) of each row that has to do with the metric"""
    for (kind, name), cells in sorted(counted.rows.items()):
        if kind != metric.row:
            continue
        about = (counted.service, name)[: 1 if kind == c.OF_SERVICE else 2]
        if metric.kind == HISTOGRAM:
            shown = histogram(metric, cells)
            if shown.total or kind == c.OF_SERVICE:
                yield about, shown
            continue
        groups = {labels[1:] for labels, cell in metric.cells.items() if cells[cell]}
        for labels, cell in metric.cells.items():
            if cells[cell] or labels[1:] in groups or len(labels) < 2:
                yield (*about, *labels), cells[cell]


def counters() -> Iterator[Metric]:
    """counters - the metrics that a file of counters has"""
    yield from metrics_of(COUNTER)
    yield from metrics_of(HISTOGRAM)
