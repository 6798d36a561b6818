"""reload - have a standalone server read its configuration anew"""

from __future__ import annotations

import argparse
import json

from proxymap.ctl.connection import ask_processes
from proxymap.ctl.options import Parser
from proxymap.ctl.outcome import EX_OK

EPILOG = """\
For a server that runs by itself: newly approved tables are served, others are
not any more, and limits change, on open connections as well. If main.cf or
proxymap.cf cannot be used, the server goes on as before, and the status is 78.
SIGHUP does the same. Where Postfix's master runs the server: postfix reload.
"""


def add(parser: Parser) -> None:
    """add - the command has no options of its own"""
    parser.description = f"{parser.description}; no client notices"
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """run - one line for each process that has done it"""
    for pid, _ in ask_processes(arguments, do="reload"):
        print(json.dumps({"process": pid}) if arguments.json else f"process {pid}: configuration read anew")
    return EX_OK
