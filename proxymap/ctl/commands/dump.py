"""dump - print a whole table"""

from __future__ import annotations

import argparse

from proxymap.ctl.commands.query import asked_table
from proxymap.ctl.options import TABLE, Parser, table_name
from proxymap.ctl.outcome import EX_OK, TROUBLE, complain
from proxymap.ctl.terminal import printer


def add(parser: Parser) -> None:
    """add - the command's options"""
    parser.add_argument("--direct", action="store_true", help="open the table here, ask no server")
    parser.add_argument("table", metavar="TYPE:NAME", type=table_name, help=TABLE)


def run(arguments: argparse.Namespace) -> int:
    """run - print all keys and values"""
    show = printer(arguments.json, True)
    with asked_table(arguments) as table:
        try:
            for key, value in table.items():
                show(key, value, "OK", None)
        except tuple(TROUBLE) as error:
            return complain(table.trouble(error), TROUBLE[type(error)][0])
    return EX_OK
