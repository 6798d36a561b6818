"""metrics - what the server counts and measures, as Prometheus reads it"""

from __future__ import annotations

import argparse
import sys

from proxymap.ctl.figures import metrics_text
from proxymap.ctl.options import Parser
from proxymap.ctl.outcome import EX_OK

EPILOG = """\
Counters are there whether or not a server runs; gauges come from running processes.
Of the services proxymap and proxywrite, or with --socket of that server alone.
Only the user that the server runs as and root may read them.
"""


def add(parser: Parser) -> None:
    """add - the command has no options of its own yet"""
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """run - the text on standard output"""
    sys.stdout.write(metrics_text(arguments))
    return EX_OK
