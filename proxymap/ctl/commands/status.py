"""status - which server master runs for each service, and which one answers"""

from __future__ import annotations

import argparse
import json

from proxymap.ctl import instance
from proxymap.ctl.options import Parser, directory_of
from proxymap.ctl.outcome import EX_OK


def add(parser: Parser) -> None:
    """add - the command has no options of its own"""


def run(arguments: argparse.Namespace) -> int:
    """run - one line for each service"""
    for state in instance.status(instance.Instance(directory_of(arguments))):
        print(json.dumps(state) if arguments.json else instance.status_line(state))
    return EX_OK
