"""enable - let Postfix's master run this server"""

from __future__ import annotations

import argparse

from proxymap.ctl import switch, takeover
from proxymap.ctl.instance import Instance
from proxymap.ctl.options import Parser, directory_of


def add(parser: Parser) -> None:
    """add - the command's options"""
    switch.add(parser, "proxymap")
    text = "even if tables that are answered now would not be any more"
    parser.add_argument("--force", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    """run - change master.cf, or say why not"""
    instance = Instance(directory_of(arguments))
    services = switch.SERVICES[arguments.service]
    return switch.run(takeover.enable(instance, services, arguments.dry_run, arguments.force))
