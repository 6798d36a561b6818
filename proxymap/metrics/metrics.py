"""metrics - THE list of all that is counted or measured: name, kind, labels, help

The text that Prometheus reads, the tables of proxymapctl-metrics and docs/metrics.md
and the panels of the dashboard are made from it, or checked against it. A counter's
numbers lie in cells of a row of the service's counters (_counters); a gauge is what the
running processes say of themselves at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

from proxymap.metrics import _counters as c

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

STATUSES = {"found": 0, "notfound": 1, "retry": 2, "bad": 3, "deny": 4, "config": 5}  # as in the protocol
RESULTS = ("found", "notfound", "retry", "config")  # what may come of a lookup
SOURCES = {
    "table": c.FROM_TABLE, "server": c.FROM_SERVER, "cache": c.FROM_CACHE, "joined": c.FROM_JOINED,
    "stale": c.FROM_STALE, "shed": c.FROM_SHED,
}  # fmt: skip
REQUESTS = {"open": 1, "update": 3, "delete": 4, "sequence": 5}  # as in the protocol
CELLS_OF_A_STATUS = 8


class Metric(NamedTuple):
    """One metric. Of a gauge, `row` says only what it is about; it has no cells."""

    name: str
    kind: str
    row: int  # OF_*: what it is about, which gives it the first labels
    labels: tuple[str, ...]  # the others
    help: str
    cells: dict[tuple[str, ...], int] = {}  # of a counter: values of the labels -> cell
    first: int = 0  # of a histogram: the first cell,
    shift: int = 0  # where the first bucket ends, as a power of two,
    unit: float = 1  # and by what a value is to be divided


ABOUT = {c.OF_SERVICE: ("service",), c.OF_TABLE: ("service", "table"), c.OF_SERVER: ("service", "server")}


def _of_each(first: int, label: dict[str, int]) -> dict[tuple[str, ...], int]:
    return {(name,): first + number for name, number in label.items()}


def _requests() -> dict[tuple[str, ...], int]:
    return {
        (request, result): c.REQUESTS + number * CELLS_OF_A_STATUS + STATUSES[result]
        for (request, number), result in product(REQUESTS.items(), RESULTS)
    }


def _lookups() -> dict[tuple[str, ...], int]:
    return {
        (result, source): c.LOOKUPS + number * CELLS_OF_A_STATUS + STATUSES[result]
        for (source, number), result in product(SOURCES.items(), RESULTS)
    }


REFUSALS = {
    "unapproved": c.REFUSED_UNAPPROVED, "read_only": c.REFUSED_READ_ONLY, "bad": c.REFUSED_BAD,
    "too_long": c.REFUSED_TOO_LONG, "memory": c.REFUSED_MEMORY,
}  # fmt: skip

METRICS = (
    Metric(
        "proxymap_lookups_total", COUNTER, c.OF_TABLE, ("result", "source"),
        "Lookups answered: found, notfound, retry (the table is unavailable) or config (it is configured"
        " wrongly); by the table at once, by a worker or database server, from the cache, joined to the same"
        " question of another client, with a stale answer, or shed without asking.",
        _lookups(),
    ),
    Metric(
        "proxymap_lookup_seconds", HISTOGRAM, c.OF_TABLE, (),
        "How long clients waited for lookups that were not answered at once.",
        first=c.LOOKUP_SECONDS, shift=c.SLOWER, unit=1e9,
    ),
    Metric(
        "proxymap_requests_total", COUNTER, c.OF_TABLE, ("request", "result"),
        "Requests other than lookups: open, update, delete, sequence.", _requests(),
    ),
    Metric(
        "proxymap_openings_total", COUNTER, c.OF_TABLE, ("outcome",),
        "Tables opened, at first or anew: done, or failed.",
        _of_each(c.OPENINGS, {"done": c.OPENED, "failed": c.OPEN_FAILED}),
    ),
    Metric(
        "proxymap_server_answers_total", COUNTER, c.OF_SERVER, (), "Questions that the server has answered.",
        {(): c.ANSWERS},
    ),
    Metric(
        "proxymap_server_errors_total", COUNTER, c.OF_SERVER, ("kind",),
        "What went wrong with a server: failed (a connection, or a probe of a host that is down), late (no"
        " answer in time), down (a host has gone down).",
        {("failed",): c.ERRORS + c.ERROR_FAILED, ("late",): c.LATE, ("down",): c.ERRORS + c.ERROR_DOWN},
    ),
    Metric(
        "proxymap_server_shed_total", COUNTER, c.OF_SERVER, (),
        "Lookups answered RETRY at once, since an answer would have come too late.", {(): c.SHED},
    ),
    Metric(
        "proxymap_server_retries_total", COUNTER, c.OF_SERVER, (),
        "Questions asked once more, since a connection broke or another host has the key.",
        {(): c.RETRIES},
    ),
    Metric(
        "proxymap_server_probes_total", COUNTER, c.OF_SERVER, (), "Probes of hosts that are down.",
        {(): c.PROBES},
    ),
    Metric(
        "proxymap_server_queue_seconds", HISTOGRAM, c.OF_SERVER, (),
        "How long questions waited for a connection; mysql, pgsql and ldap without referrals.",
        first=c.QUEUE_SECONDS, shift=c.SLOWER, unit=1e9,
    ),
    Metric(
        "proxymap_refused_total", COUNTER, c.OF_SERVICE, ("reason",),
        "Requests refused: for a table that main.cf does not approve, a change asked of the read-only"
        " service, a bad request, one over request_size_limit, or for want of memory.",
        _of_each(c.REFUSED, REFUSALS),
    ),
    Metric(
        "proxymap_connections_total", COUNTER, c.OF_SERVICE, (), "Connections accepted.",
        {(): c.CONNECTIONS},
    ),
    Metric(
        "proxymap_hangups_total", COUNTER, c.OF_SERVICE, (),
        "Clients hung up on, since all together had buffer_size_limit.", {(): c.HANGUPS},
    ),
    Metric(
        "proxymap_accept_pauses_total", COUNTER, c.OF_SERVICE, (),
        "Times that no connection could be accepted for a moment: descriptors or memory had run out.",
        {(): c.PAUSES},
    ),
    Metric(
        "proxymap_starts_total", COUNTER, c.OF_SERVICE, (), "Processes that have begun to serve.",
        {(): c.STARTS},
    ),
    Metric(
        "proxymap_reloads_total", COUNTER, c.OF_SERVICE, (), "Times that a process read main.cf anew.",
        {(): c.RELOADS},
    ),
    Metric(
        "proxymap_log_lines_lost_total", COUNTER, c.OF_SERVICE, (),
        "Lines that did not get into the log, since they came too fast.", {(): c.LOG_LOST},
    ),
    Metric(
        "proxymap_turn_seconds", HISTOGRAM, c.OF_SERVICE, (),
        "Time that a turn of the loop takes, without waiting; one turn in 64 is measured.",
        first=c.TURN_SECONDS, shift=c.FASTER, unit=1e9,
    ),
    Metric(
        "proxymap_turn_clients", HISTOGRAM, c.OF_SERVICE, (),
        "Clients that were ready in a turn of the loop; one turn in 64 is measured.",
        first=c.TURN_CLIENTS,
    ),
    Metric(
        "proxymap_up", GAUGE, c.OF_SERVICE, (), "Processes whose loop answers; 0: none.",
    ),
    Metric(
        "proxymap_clients", GAUGE, c.OF_SERVICE, (), "Connections that are open.",
    ),
    Metric(
        "proxymap_buffered_bytes", GAUGE, c.OF_SERVICE, (),
        "Unfinished requests and unread replies; buffer_size_limit bounds them.",
    ),
    Metric(
        "proxymap_cache_bytes", GAUGE, c.OF_SERVICE, ("kind",),
        "Answers kept, with all that belongs to them: found, or absent.",
    ),
    Metric(
        "proxymap_cache_evictions_total", COUNTER, c.OF_SERVICE, (),
        "Answers that made room for others in the cache.", {(): c.EVICTIONS},
    ),
    Metric(
        "proxymap_stale_age_seconds_max", GAUGE, c.OF_SERVICE, (),
        "Age of the oldest answer that a running process has had stand in.",
    ),
    Metric(
        "proxymap_table_open", GAUGE, c.OF_TABLE, (),
        "Is the table open (1), or can it not be opened (0)? Only of tables asked for since the start.",
    ),
    Metric(
        "proxymap_table_entries", GAUGE, c.OF_TABLE, (), "Entries of the table, where that is known.",
    ),
    Metric(
        "proxymap_server_up", GAUGE, c.OF_SERVER, (), "Is a host of the server up (1), or none (0)?",
    ),
    Metric(
        "proxymap_server_connections", GAUGE, c.OF_SERVER, ("state",),
        "Connections to the server: busy, idle or opening.",
    ),
    Metric(
        "proxymap_server_queue", GAUGE, c.OF_SERVER, (), "Questions that wait for a connection.",
    ),
)  # fmt: skip


def bounds_of(metric: Metric) -> list[float]:
    """bounds_of - where the buckets of a histogram end; behind the last there is one without an end"""
    return [2 ** (metric.shift + bucket) / metric.unit for bucket in range(c.BUCKETS - 1)]


def labels_of(metric: Metric) -> tuple[str, ...]:
    """labels_of - the names of all its labels"""
    return ABOUT[metric.row] + metric.labels


def metrics_of(kind: str) -> Iterator[Metric]:
    """metrics_of - those of one kind"""
    return (metric for metric in METRICS if metric.kind == kind)


def named(names: Iterable[str]) -> list[Metric]:
    """named - those of these names"""
    known = {metric.name: metric for metric in METRICS}
    return [known[name] for name in names]
