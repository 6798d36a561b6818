"""options - the command line that all commands share, and the configuration that it leads to"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, NoReturn

from proxymap.config.source import without_proxy
from proxymap.ctl.outcome import EX_USAGE

if TYPE_CHECKING:
    from proxymap.config.maincf import MainCf
    from proxymap.config.settings import Settings

TABLE = "for example cdb:/etc/postfix/virtual"

# For the commands that ask running processes.
ANSWERING = """\
Every process that serves the socket is asked; of proxywrite with --socket
$queue_directory/private/proxywrite. Only the user that it runs as and root may.
"""


class Parser(argparse.ArgumentParser):
    """argparse with sysexits.h's status for wrong usage, in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EX_USAGE, f'proxymapctl: {message}; "{self.prog} --help" tells more\n')


def common_options() -> Parser:
    """common_options - those that may stand before a command and behind it; there alone they have defaults"""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="JSON, one object a line")
    common.add_argument(
        "-c", metavar="DIR", dest="config", help="where main.cf is; default: $MAIL_CONFIG, or /etc/postfix"
    )
    common.add_argument(
        "--socket", metavar="PATH", help="the server; default: private/proxymap or private/proxywrite"
    )
    return common


def table_name(text: str) -> str:
    """table_name - TYPE:NAME, without the proxy: that main.cf puts before it"""
    text = os.fsdecode(without_proxy(os.fsencode(text)))
    if not all(text.partition(":")):
        raise argparse.ArgumentTypeError(f'"{text}" is not TYPE:NAME, for example cdb:/etc/postfix/virtual')
    return text


def duration(text: str) -> float:
    """duration - seconds, of a time such as 100ms, 2s, 1m; without a unit, seconds"""
    units = {"ms": 0.001, "s": 1, "m": 60, "": 1}
    number = text.rstrip("ms")
    try:
        if not number.replace(".", "", 1).isdecimal() or not number.isascii():
            raise ValueError
        return float(number) * units[text[len(number) :]]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f'"{text}" is not a time such as 100ms, 2s, 1m') from None


def directory_of(arguments: argparse.Namespace) -> str:
    """directory_of - where main.cf is"""
    return arguments.config or os.environ.get("MAIL_CONFIG") or "/etc/postfix"


def configuration_of(arguments: argparse.Namespace) -> tuple[Settings, MainCf] | None:
    """configuration_of - main.cf's parameters; None on a host without main.cf, unless one was asked for"""
    from proxymap.config import settings

    directory = directory_of(arguments)
    if not arguments.config and not os.path.exists(os.path.join(directory, "main.cf")):
        return None
    return settings.load(directory)


def settings_of(arguments: argparse.Namespace) -> Settings | None:
    """settings_of - the same, of which only the settings matter"""
    configuration = configuration_of(arguments)
    return configuration and configuration[0]


def socket_of(arguments: argparse.Namespace) -> str:
    """socket_of - the path of the server's socket"""
    if arguments.socket:
        return str(arguments.socket)
    settings = settings_of(arguments)
    directory = settings.queue_directory if settings else "/var/spool/postfix"
    return os.path.join(directory, "private", arguments.service)
