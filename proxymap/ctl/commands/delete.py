"""delete - delete keys through proxywrite; one that is not there is status 1"""

from __future__ import annotations

import argparse
import os

from proxymap.ctl.edits import Edit, deletes_in, make_edits
from proxymap.ctl.options import Parser, table_name
from proxymap.ctl.terminal import Input


def add(parser: Parser) -> None:
    """add - the command's options"""
    parser.add_argument("table", metavar="TYPE:NAME", type=table_name)
    parser.add_argument("keys", metavar="KEY", nargs="+", help='"-": one a line from standard input')
    parser.set_defaults(service="proxywrite")


def run(arguments: argparse.Namespace) -> int:
    """run - delete keys, and go on after a failure; the exit status is the highest"""
    if arguments.keys == ["-"]:
        lines = Input()
        return make_edits(arguments, deletes_in(lines), lines.bar)
    return make_edits(arguments, (Edit(os.fsencode(key), None) for key in arguments.keys))
