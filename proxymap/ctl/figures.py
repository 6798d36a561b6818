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
from proxymap.metrics.metrics import METRICS, Metric
from proxymap.metrics.reading import Counted, Labels, read, samples
from proxymap.metrics.text import Value, text_of
from proxymap.server.control import ask_all


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
        for metric, labels, value in gauges(counted.service, socket):
            found[metric.name].append((labels, value))
    if not some:
        raise OSError(ENOENT, "no server has counted anything there", path_beside(sockets[0]))
    lines = [line for metric in METRICS for line in text_of(metric, found[metric.name])]
    return "".join(f"{line}\n" for line in lines)


def gauges(service: str, socket: str) -> Iterator[tuple[Metric, Labels, float]]:
    """gauges - what the running processes of a service say of themselves"""
    known = {metric.name: metric for metric in METRICS}
    answers = answers_of(socket, "servers")
    yield known["proxymap_up"], (service,), len(answers)


def answers_of(socket: str, do: str) -> list[Any]:
    """answers_of - what each process of that server says; of one that is gone or hangs, nothing"""
    with contextlib.suppress(OSError):
        return [reply["ok"] for _, reply in ask_all(socket, do=do) if "ok" in reply]
    return []
