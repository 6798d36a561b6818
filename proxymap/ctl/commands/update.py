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
    parser.add_argument(
        "change", metavar="KEY VALUE", nargs="+", help='"-": one KEY TAB VALUE a line from standard input'
    )
    parser.set_defaults(service="proxywrite", wrong=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """run - store values, and go on after a failure; the exit status is the highest"""
    if arguments.change == ["-"]:
        lines = Input()
        return make_edits(arguments, updates_in(lines), lines.bar)
    if len(arguments.change) != 2:
        arguments.wrong('expected KEY and VALUE, or "-"')
    key, value = arguments.change
    return make_edits(arguments, [Edit(os.fsencode(key), os.fsencode(value))])
