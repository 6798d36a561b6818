"""tables - which tables the running processes have open, and how these do"""

from __future__ import annotations

import argparse
from typing import Any

from proxymap.ctl.connection import print_known
from proxymap.ctl.options import ANSWERING, Parser
from proxymap.ctl.outcome import EX_OK
from proxymap.metrics._counters import OF_TABLE

EPILOG = f"""\
A line for each table that was asked for since the process started: its state,
entries and bytes, lookups, answers from the cache, errors, and what went wrong
last. A table appears once for each dialect and each set of flags of its clients.

{ANSWERING}"""


def add(parser: Parser) -> None:
    """add - the command has no options of its own"""
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """run - one line for each table of each process"""
    print_known(
        arguments, "tables", ("table", "dialect", "flags"), lambda pid, table: [_table_line(pid, table)],
        "proxymap_lookup_seconds", OF_TABLE,
    )  # fmt: skip
    return EX_OK


POLICY = {
    "cache_ttl": "values",
    "cache_negative_ttl": '"no"',
    "cache_error_ttl": "refusals",
    "cache_stale_ttl": "old values",
    "cache_stale_negative_ttl": 'old "no"',
}


def _policy(keeps: dict[str, float]) -> str:
    """How long answers are kept."""
    times = [f"{what} {keeps[name]:g} s" for name, what in POLICY.items() if keeps[name]]
    return f"keeps {', '.join(times)}"


def _table_line(pid: int, table: dict[str, Any]) -> str:
    sizes = [f"{table[what]:,} {what}" for what in ("entries", "bytes") if table.get(what) is not None]
    line = (
        f"{table['table']} (Postfix {table['dialect']}, flags {table['flags']}, process {pid}):"
        f" {', '.join([table['state'] if table['approved'] else 'not approved', *sizes])};"
        f" {table['lookups']:,} lookups,"
        f" {table['cache_hits']:,} from the cache, {table['errors']:,} errors"
    )
    if table.get("seconds"):
        line += f", {table['lookups'] / table['seconds']:,.1f} lookups/s"
    if table["p99_ms"] is not None:
        line += (
            f", p50 {table['p50_ms']:.1f} ms and p99 {table['p99_ms']:.1f} ms of those not answered at once"
        )
    if table.get("keeps"):
        line += f", {table['stale']:,} old ones; {_policy(table['keeps'])}"
    if "age_seconds" in table:
        line += f"; opened {table['age_seconds']:,} s ago"
    return line + (f"; {table['trouble']}" if table.get("trouble") else "")
