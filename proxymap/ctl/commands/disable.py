"""disable - let Postfix's master run what it ran before"""

from __future__ import annotations

import argparse

from proxymap.ctl import switch, takeover
from proxymap.ctl.options import Parser


def add(parser: Parser) -> None:
    """add - the command's options"""
    switch.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """run - put master.cf back, or say why not"""
    return switch.run(arguments, takeover.disable)
