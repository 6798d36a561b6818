"""figures - what there is to tell of a host's services: counters from their files, gauges from processes"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from errno import ENOENT
from typing import Any

from proxymap.ctl.options import socket_of
from proxymap.errors import ConfigError
from proxymap.metrics.files import path_beside
from proxymap.metrics.metrics import METRICS, named
from proxymap.metrics.reading import Counted, Labels, histogram, quantile, read, samples
from proxymap.metrics.text import Value, text_of
from proxymap.server.control import ask_all

PATIENCE = 2.0  # seconds for what a process says; one whose loop hangs says nothing


def sockets_of(arguments: argparse.Namespace) -> list[str]:
    """sockets_of - the served sockets that are meant: both services', or the one of --socket"""
    first = socket_of(arguments)
    if arguments.socket:
        return [first]
    folder = os.path.dirname(first)
    return [first, os.path.join(folder, "proxywrite")]


def counted_at(socket: str) -> Counted | None:
    """counted_at - the counters of that server; None if it has never run. OSError, ConfigError."""
    try:
        return read(path_beside(socket))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def middle_and_most(socket: str, name: str, about: int) -> dict[str, tuple[float, float]]:
    """middle_and_most - p50 and p99 of a histogram, in ms, for each table or server that has values"""
    metric = named([name])[0]
    found = {}
    with contextlib.suppress(OSError, ConfigError):
        counted = counted_at(socket)
        for (kind, row), cells in counted.rows.items() if counted else ():
            shown = histogram(metric, cells)
            middle, most = (quantile(metric, shown.counts, shown.total, share) for share in (0.5, 0.99))
            if kind == about and middle is not None and most is not None:
                found[row] = middle * 1000, most * 1000
    return found


def metrics_text(arguments: argparse.Namespace) -> str:
    """metrics_text - all metrics. OSError with the path if there are none."""
    found: dict[str, list[tuple[Labels, Value]]] = {metric.name: [] for metric in METRICS}
    sockets = sockets_of(arguments)
    some = False
    for socket in sockets:
        counted = counted_at(socket)
        if counted is None:
            continue
        some = True
        for metric in METRICS:
            found[metric.name] += samples(metric, counted)
        for name, labels, value in gauges(counted.service, socket):
            found[name].append((labels, value))
    if not some:
        raise OSError(ENOENT, "no server has counted anything there", path_beside(sockets[0]))
    lines = [line for metric in METRICS for line in text_of(metric, found[metric.name])]
    return "".join(f"{line}\n" for line in lines)


Gauge = tuple[str, Labels, float]  # name of the metric, values of its labels but the service


def gauges(service: str, socket: str) -> Iterator[Gauge]:
    """gauges - what the running processes of a service say of themselves, added up"""
    processes = answers_of(socket, "figures")
    yield "proxymap_up", (service,), len(processes)
    if not processes:
        return
    yield "proxymap_clients", (service,), sum(one["clients"] for one in processes)
    yield "proxymap_buffered_bytes", (service,), sum(one["buffered_bytes"] for one in processes)
    for at, kind in enumerate(("found", "absent")):
        yield "proxymap_cache_bytes", (service, kind), sum(one["cache_bytes"][at] for one in processes)
    yield "proxymap_stale_age_seconds_max", (service,), max(one["stale_age"] for one in processes)
    yield from _of_tables(service, answers_of(socket, "tables"))
    yield from _of_servers(service, answers_of(socket, "servers"))


def _of_tables(service: str, processes: list[list[dict[str, Any]]]) -> Iterator[Gauge]:
    """A table has an instance for each kind of client."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for table in (table for process in processes for table in process if table["approved"]):
        tables.setdefault(table["table"], []).append(table)
    for name, instances in tables.items():
        if states := [one["state"] for one in instances if one["state"] != "being opened"]:
            yield "proxymap_table_open", (service, name), int("unavailable" not in states)
        if entries := [one["entries"] for one in instances if one.get("entries") is not None]:
            yield "proxymap_table_entries", (service, name), max(entries)


def _of_servers(service: str, processes: list[list[dict[str, Any]]]) -> Iterator[Gauge]:
    """Several logins at the same hosts count together."""
    servers: dict[str, list[dict[str, Any]]] = {}
    for server in (server for process in processes for server in process):
        servers.setdefault(server["server"], []).append(server)
    for name, some in servers.items():
        yield "proxymap_server_up", (service, name), int(all(one["state"] != "down" for one in some))
        busy, opening = (sum(one.get(what) or 0 for one in some) for what in ("busy", "opening"))
        held = sum(one["open"] or 0 for one in some)
        for state, count in (("busy", busy), ("idle", max(held - busy, 0)), ("opening", opening)):
            yield "proxymap_server_connections", (service, name, state), count
        yield "proxymap_server_queue", (service, name), sum(one["waiting"] for one in some)


def answers_of(socket: str, do: str) -> list[Any]:
    """answers_of - what each process of that server says; of one that is gone or hangs, nothing"""
    replies = []
    with contextlib.suppress(OSError):
        for _, reply in ask_all(socket, PATIENCE, do=do):
            if "ok" in reply:
                replies.append(reply["ok"])
    return replies
