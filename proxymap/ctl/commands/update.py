"""update - store values through proxywrite"""

from __future__ import annotations

import argparse
import os

from proxymap.ctl.edits import Edit, make_edits, updates_in
from proxymap.ctl.options import Parser, table_name
from proxymap.ctl.terminal import Input


def add(parser: Parser) -> None:
    """add - the command's options"""
    parser.add_argument("table", metavar="TYPE:NAME", type=table_name)
    parser.add_argument("key", metavar="KEY", help='"-": one KEY TAB VALUE a line from standard input')
    parser.add_argument("value", metavar="VALUE", nargs="?")
    parser.set_defaults(service="proxywrite", wrong=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """run - store values, and go on after a failure; the exit status is the highest"""
    if arguments.value is None:
        if arguments.key != "-":
            arguments.wrong('expected KEY and VALUE, or "-"')
        lines = Input()
        return make_edits(arguments, updates_in(lines), lines.bar)
    return make_edits(arguments, [Edit(os.fsencode(arguments.key), os.fsencode(arguments.value))])
