"""enable - let Postfix's master run this server"""

from __future__ import annotations

import argparse

from proxymap.ctl import switch, takeover
from proxymap.ctl.options import Parser


def add(parser: Parser) -> None:
    """add - the command's options"""
    switch.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """run - change master.cf, or say why not"""
    return switch.run(arguments, takeover.enable)
