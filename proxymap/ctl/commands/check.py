"""check - what is wrong with the configuration, one line for each fault"""

from __future__ import annotations

import argparse
import json

from proxymap.ctl import checks
from proxymap.ctl.options import Parser, directory_of
from proxymap.ctl.outcome import EX_CONFIG, EX_OK


def add(parser: Parser) -> None:
    """add - the command's options"""
    parser.add_argument(
        "--connect",
        action="store_true",
        help="log in to the servers of database tables, and try the queries",
    )


def run(arguments: argparse.Namespace) -> int:
    """run - print all faults; EX_CONFIG if one is more than a warning"""
    faults = checks.check(directory_of(arguments), connect=arguments.connect)
    for fault in faults:
        print(json.dumps(checks.as_json(fault)) if arguments.json else fault.line())
    return EX_OK if all(fault.warning for fault in faults) else EX_CONFIG
