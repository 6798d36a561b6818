"""switch - what the commands enable and disable share: options, and how their end is told"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

from proxymap.ctl import takeover
from proxymap.ctl.instance import Instance
from proxymap.ctl.options import Parser, directory_of
from proxymap.ctl.outcome import EX_NOPERM, EX_OK, EX_UNAVAILABLE, complain


def add(parser: Parser) -> None:
    """add - the options"""
    parser.description = f"{parser.description}: master.cf, reload, and a lookup to see that it works."
    parser.add_argument("--dry-run", action="store_true", help="print the commands, change nothing")
    parser.add_argument(
        "--service", choices=["proxymap", "proxywrite", "both"], default="proxymap", help="default: proxymap"
    )


def run(arguments: argparse.Namespace, turn: Callable[[Instance, Sequence[str], bool], Iterator[str]]) -> int:
    """run - takeover's enable or disable, line by line"""
    services = ["proxymap", "proxywrite"] if arguments.service == "both" else [arguments.service]
    try:
        for line in turn(Instance(directory_of(arguments)), services, arguments.dry_run):
            print(line, flush=True)
    except takeover.Refused as refusal:
        for fault in refusal.faults:
            complain(f"refused: {fault.line()}", EX_NOPERM)
        return EX_NOPERM
    except takeover.Failed as failure:
        return complain(str(failure), EX_UNAVAILABLE)
    return EX_OK
