"""servers - the database servers that the running processes use, and how these do"""

from __future__ import annotations

import argparse
from typing import Any

from proxymap.ctl.connection import print_known
from proxymap.ctl.options import ANSWERING, Parser
from proxymap.ctl.outcome import EX_OK
from proxymap.metrics._counters import OF_SERVER

EPILOG = f"""\
A line for each database server (hosts and login) of each process: its state, and
connections that are open of those there may be, busy ones, lookups that wait, and
how many were answered (and on average each second), too late, or deferred at once
since they would have been too late. Then a line for each host: its state, since
when, and the latest trouble.

{ANSWERING}"""


def add(parser: Parser) -> None:
    """add - the command has no options of its own"""
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """run - some lines for each server of each process"""
    print_known(
        arguments, "servers", ("server", "tables"), _server_lines, "proxymap_server_queue_seconds", OF_SERVER
    )
    return EX_OK


def _server_lines(pid: int, server: dict[str, Any]) -> list[str]:
    tables = len(server["tables"])
    of = "" if server["limit"] is None else f" of {server['limit']}"
    open_now = "" if server["open"] is None else f" {server['open']}{of} connections,"
    line = (
        f"{server['server']} (process {pid}, {tables} table{'s' if tables != 1 else ''}): {server['state']};"
        f"{open_now} {server['busy']} busy,"
        f" {server['waiting']:,} waiting, {server['mean_ms']:.1f} ms each;"
        f" {server['answers']:,} answers{_rate(server)}, {server['late']:,} late,"
        f" {server['shed']:,} deferred at once"
    )
    if server["p99_ms"] is not None:
        line += f"; p50 {server['p50_ms']:.1f} ms and p99 {server['p99_ms']:.1f} ms in the queue"
    return [line, *map(_host_line, server["hosts"])]


def _rate(server: dict[str, Any]) -> str:
    """On average since it was asked first."""
    seconds = server.get("seconds")
    return f" ({server['answers'] / seconds:,.1f}/s)" if seconds else ""


def _host_line(host: dict[str, Any]) -> str:
    since = "" if host["seconds"] is None else f" for {host['seconds']:,} s"
    error = f"; last error: {host['last_error']}" if host["last_error"] else ""
    return f"  {host['host']}: {host['state']}{since}{error}"
