"""flush - have the running processes forget cached answers"""

from __future__ import annotations

import argparse
from typing import Any

from proxymap.ctl.connection import ask_processes
from proxymap.ctl.memory import both
from proxymap.ctl.options import ANSWERING, TABLE, Parser, table_name
from proxymap.ctl.outcome import EX_NOTFOUND, EX_OK, complain

EPILOG = f"""\
For tables whose answers age (cache_ttl in proxymap.cf), so that a change in the
database counts at once: flush the key as the last step of "create user". Files that
change need no flush. Says how many answers are forgotten. Without KEY and --negative,
tables are opened anew as well. Status 1: no client has asked for that table yet.

  proxymapctl flush mysql:/etc/postfix/virtual.cf joe@example.com
  proxymapctl flush --negative             # only what says "no such key"

{ANSWERING}"""


def add(parser: Parser) -> None:
    """add - the command's options"""
    parser.description = f"{parser.description}: all, those of a table, or those to some keys"
    parser.epilog = EPILOG
    parser.add_argument("table", metavar="TYPE:NAME", type=table_name, nargs="?", help=TABLE)
    parser.add_argument("keys", metavar="KEY", nargs="*", help="as for query")
    parser.add_argument("--negative", action="store_true", help="only answers that say no such key")


def run(arguments: argparse.Namespace) -> int:
    """run - forget answers; EX_NOTFOUND if no process has the table open"""
    what: dict[str, Any] = {}
    if arguments.table:
        what["table"] = arguments.table
    if arguments.keys:  # the cache has it as the table was asked for it: folded or not
        what["keys"] = both(arguments.keys)
    if arguments.negative:
        what["negative"] = True
    counts = [count for _, count in ask_processes(arguments, do="flush", **what)]
    if arguments.table and not any(count["tables"] for count in counts):
        return complain(f"{arguments.table}: no running server has it open", EX_NOTFOUND)
    print(f"{sum(count['answers'] for count in counts)} answers forgotten")
    return EX_OK
