"""flush - have the running processes forget cached answers"""

from __future__ import annotations

import argparse
import os
from typing import Any

from proxymap.base._fold import fold
from proxymap.ctl.connection import ask_processes
from proxymap.ctl.options import ANSWERING, TABLE, Parser, table_name
from proxymap.ctl.outcome import EX_NOTFOUND, EX_OK, complain

EPILOG = f"""\
Hardly ever needed: what has changed is forgotten by itself, and tables are not
opened anew. Status 1: no client has asked for that table yet.

{ANSWERING}"""


def add(parser: Parser) -> None:
    """add - the command's options"""
    parser.description = f"{parser.description}: all, those of a table, or that to one key"
    parser.epilog = EPILOG
    parser.add_argument("table", metavar="TYPE:NAME", type=table_name, nargs="?", help=TABLE)
    parser.add_argument("key", metavar="KEY", nargs="?", help="as for query")


def run(arguments: argparse.Namespace) -> int:
    """run - forget answers; EX_NOTFOUND if no process has the table open"""
    what: dict[str, Any] = {}
    if arguments.table:
        what["table"] = arguments.table
    if arguments.key is not None:  # the cache has it as the table was asked for it: folded or not
        what["keys"] = sorted({arguments.key, os.fsdecode(fold(os.fsencode(arguments.key), True))})
    counts = [count for _, count in ask_processes(arguments, do="flush", **what)]
    if arguments.table and not any(counts):
        return complain(f"{arguments.table}: no running server has it open", EX_NOTFOUND)
    return EX_OK
