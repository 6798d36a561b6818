"""connection - a table as the server has it, and what running processes say on their control sockets"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from proxymap.base._fold import fold
from proxymap.client import Client
from proxymap.ctl.options import directory_of, socket_of
from proxymap.ctl.outcome import advice_on, no_process, printable
from proxymap.errors import BadRequest, ConfigError, NotApproved, ProxymapError
from proxymap.tables.flags import FIXED


class Connection:
    """A connection to the server in the right dialect, with the table open."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.table: str = arguments.table
        self._service: str = arguments.service
        self._path = socket_of(arguments)

    def __enter__(self) -> Connection:
        """The request that opens the table tells the dialect: a server answers BAD to the other one."""
        try:
            self._client = Client(self._path, dialect="3.6")
            flags = self._client.open(self.table)
        except BadRequest:
            self._client.close()
            self._client = Client(self._path, dialect="3.11")
            self._client.open(self.table)
            flags = 0  # this server folds by itself
        self._folds = bool(flags & FIXED)
        return self

    def __exit__(self, *details: object) -> None:
        self._client.close()

    def lookup(self, key: bytes) -> bytes | None:
        """As a Postfix client asks: with the key folded where keys are, and never for an empty key."""
        if not key:
            return None
        return self._client.lookup(self.table, fold(key, True) if self._folds else key)

    def change(self, key: bytes, value: bytes | None) -> bytes | None:
        """Store a value, or delete the key if there is none; None if that left all as it was."""
        key = fold(key, True) if self._folds else key
        if value is None:
            return key if self._client.delete(self.table, key) else None
        return value if self._client.update(self.table, key, value) else None

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """Every record."""
        return self._client.items(self.table)

    def trouble(self, error: ProxymapError) -> str:
        """What to tell of an error that this table's requests have met. It was approved: it was opened."""
        if isinstance(error, NotApproved) and self._service == "proxywrite":
            return f"{self.table}: may only be read there; is {self._path} the socket of a proxywrite server?"
        return advice_on(error, self.table, self._service)[0]


def ask_processes(arguments: argparse.Namespace, **request: Any) -> Iterator[tuple[int, Any]]:
    """ask_processes - what each running process says: (process id, reply)

    ConfigError if one refuses, OSError if there is none.
    """
    from proxymap.server.control import ask_all

    path = socket_of(arguments)
    count = 0
    for pid, reply in ask_all(path, **request):
        count += 1
        if "error" in reply:
            raise ConfigError(f"process {pid}: {reply['error']}")
        yield pid, reply["ok"]
    if not count:
        raise no_process(path)


def print_known(
    arguments: argparse.Namespace,
    do: str,
    order: Sequence[str],
    lines_of: Callable[[int, dict[str, Any]], list[str]],
    times: str,
    about: int,
) -> None:
    """print_known - what each running process knows of its tables, servers: lines of each, or JSON

    times: the metric that p50_ms and p99_ms are of; about: the kind of its rows, see metrics.
    """
    import json

    from proxymap.ctl.figures import middle_and_most

    quantiles = middle_and_most(socket_of(arguments), times, about)
    for pid, known in ask_processes(arguments, do=do):
        try:
            known.sort(key=lambda one: [one[name] for name in order])
            for one in known:
                one["p50_ms"], one["p99_ms"] = quantiles.get(one[order[0]], (None, None))
            lines = [
                line
                for one in known
                for line in ([json.dumps({"process": pid, **one})] if arguments.json else lines_of(pid, one))
            ]
        except (TypeError, KeyError, ValueError, AttributeError):
            raise ConfigError(f"process {pid}: its answer is not understood") from None
        for line in lines:
            print(printable(line))


def processes(arguments: argparse.Namespace) -> list[int]:
    """processes - who serves the socket: our processes by their control sockets, or master's children"""
    from proxymap.ctl.instance import Instance, processes_of

    try:
        return [pid for pid, _ in ask_processes(arguments, do="tables")]
    except (ConfigError, OSError):
        if arguments.socket:
            return []
        instance = Instance(directory_of(arguments), strict=False)
        return [process.pid for process in processes_of(instance, arguments.service)]
