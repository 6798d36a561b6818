"""main - proxymapctl, the administrator's tool: from the command line to a command, and to its exit status

COMMANDS is the list. Each command is a file of commands/ that has `add`, which
gives the command its options, and `run`, which is given the parsed options and
returns an exit status; only the file of the command that runs is imported.
main() turns exceptions into one line on standard error and a status of
sysexits.h. Keys and values are bytes from end to end; only JSON needs text, in
which a byte that is not UTF-8 is a lone surrogate (\\udc80 to \\udcff), as
Python's "surrogateescape" has it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from proxymap import __version__
from proxymap.ctl.options import Parser, common_options
from proxymap.ctl.outcome import (
    EX_CONFIG,
    EX_INTERRUPT,
    EX_IOERR,
    EX_NOPERM,
    EX_PIPE,
    EX_UNAVAILABLE,
    advice_on,
    complain,
    no_answer,
)
from proxymap.errors import ConfigError, ProxymapError

# In the order of --help. The name is that of a file in commands/; the text says what it does.
COMMANDS = {
    "query": "look keys up",
    "dump": "print all keys and values of a table, key TAB value",
    "update": "store a value, or many from standard input, through proxywrite",
    "delete": "delete keys through proxywrite",
    "tables": "which tables a running server has open, and how they do",
    "servers": "which database servers a running server uses, and how they do",
    "metrics": "what the server counts and measures, for Prometheus",
    "trace": "follow lookups as a running server answers them",
    "top": "what a running server is asked most, on a screen that is drawn anew",
    "flush": "have a running server forget cached answers",
    "reload": "have a standalone server read main.cf and proxymap.cf anew",
    "build": "build FILE.cdb or FILE.lmdb from a text as postmap(1) does",
    "check": "verify tables, main.cf and master.cf, offline; status 78 if there is a fault",
    "enable": "let Postfix's master run this server",
    "disable": "let Postfix's master run what it ran before",
    "status": "which server master runs, and which one answers",
}

EPILOG = """\
examples:
  proxymapctl query cdb:/etc/postfix/virtual user@example.com
  proxymapctl query --explain regexp:/etc/postfix/access user@example.com
  cut -f1 keys | proxymapctl query lmdb:/etc/postfix/access - > answers
  proxymapctl dump lmdb:/etc/postfix/access
  proxymapctl update lmdb:/var/lib/postfix/verify user@example.com 0:0:0:
  proxymapctl build cdb:/etc/postfix/virtual
  proxymapctl check && proxymapctl enable && proxymapctl status
  proxymapctl disable
  proxymapctl tables
  proxymapctl servers
  proxymapctl trace --slow 100ms
  proxymapctl top
  proxymapctl metrics
  proxymapctl flush lmdb:/etc/postfix/access user@example.com
  proxymapctl --socket /run/proxymap/socket reload

exit status:
  0 found or done   1 not found      64 wrong usage      65 bad line, or source to build
  66 no such file   69 no server     73, 74 cannot write 75 table unavailable (RETRY)
  76 bad request    77 not approved (DENY), or not permitted
  78 wrong configuration (CONFIG)    with several keys: the highest of all
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, from arguments to exit status."""
    parsed = parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EX_INTERRUPT
    except BrokenPipeError:
        drop_output()
        return EX_PIPE
    except ConfigError as error:
        return complain(str(error), EX_CONFIG)
    except ProxymapError as error:
        return complain(*advice_on(error, parsed.table, parsed.service))
    except OSError as error:
        if error.filename is None:
            drop_output()
            return complain(error.strerror or str(error), EX_IOERR)
        if isinstance(error, PermissionError):
            return complain(f"{error.filename}: {error.strerror}; ask as root", EX_NOPERM)
        return complain(no_answer(error), EX_UNAVAILABLE)
    return status


def drop_output() -> None:
    """What is left for standard output cannot be written: the flush at exit is not to fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> Parser:
    """The options of proxymapctl itself, and a parser for each command."""
    main_parser = Parser(
        prog="proxymapctl",
        parents=[common_options()],
        description="Ask a proxymap server and tend it, build its tables, switch it on and off.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.add_argument("--version", action="version", version=f"proxymapctl {__version__}")
    main_parser.set_defaults(config=None, socket=None, json=False, service="proxymap")
    commands = main_parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=CommandParser
    )
    common: Any = common_options()  # typeshed wants a CommandParser
    for name, text in COMMANDS.items():
        sentence = text[0].upper() + text[1:]
        commands.add_parser(name, parents=[common], help=text, description=sentence).name = name
    return main_parser


class CommandParser(Parser):
    """The parser of one command. It has only the common options until it is the command's turn."""

    name = ""  # of the command

    def parse_known_args(self, *arguments: Any, **keywords: Any) -> Any:
        """What argparse calls when it has met the command's name."""
        self.load()
        return super().parse_known_args(*arguments, **keywords)

    def load(self) -> None:
        """Import the command, and have it add its options."""
        command = import_module(f"proxymap.ctl.commands.{self.name}")
        self.set_defaults(run=command.run)
        command.add(self)
        if self.epilog:
            self.formatter_class = argparse.RawDescriptionHelpFormatter


if __name__ == "__main__":
    sys.exit(main())
