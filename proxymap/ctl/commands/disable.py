"""disable - let Postfix's master run what it ran before"""

from __future__ import annotations

import argparse

from proxymap.ctl import switch, takeover
from proxymap.ctl.instance import Instance
from proxymap.ctl.options import Parser, directory_of


def add(parser: Parser) -> None:
    """add - the command's options"""
    switch.add(parser, "")


def run(arguments: argparse.Namespace) -> int:
    """run - put master.cf back, or say why not; works with a broken main.cf or a broken package, too"""
    instance = Instance(directory_of(arguments), strict=False)
    services = switch.SERVICES[arguments.service]
    return switch.run(takeover.disable(instance, services, arguments.dry_run))
