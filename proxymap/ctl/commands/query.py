"""query - look keys up, on the server or in a table opened here, and explain the answers"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from proxymap.ctl.connection import Connection, processes
from proxymap.ctl.memory import kept
from proxymap.ctl.options import TABLE, Parser, configuration_of, table_name
from proxymap.ctl.outcome import EX_OK, EX_UNAVAILABLE, TROUBLE, Answer, advice_on, ask, complain, no_answer
from proxymap.ctl.terminal import Show, printer
from proxymap.errors import ProxymapError

if TYPE_CHECKING:
    from proxymap.ctl.direct import Direct

EPILOG = """\
--direct opens the table in this process, as postmap -q does: as who calls, in
the working directory, approved or not. The server runs as mail_owner, in
queue_directory, perhaps in a chroot jail.

--explain tells which rule, row or member gave the answer. Without --direct it
asks the server first, whose answer is printed, then opens the table here as
well, and says when the two differ, and what that means. As root, it says too
when the server sees another file by that name (container, chroot jail).
"""


def add(parser: Parser) -> None:
    """add - the command's options"""
    parser.description = (
        "Look keys up. One KEY: print its value; several, or from standard input: key TAB value."
    )
    parser.epilog = EPILOG
    parser.add_argument("--direct", action="store_true", help="open the table here, ask no server")
    parser.add_argument(
        "--explain", action="store_true", help="say on standard error where the answer comes from"
    )
    parser.add_argument("table", metavar="TYPE:NAME", type=table_name, help=TABLE)
    parser.add_argument("keys", metavar="KEY", nargs="+", help='"-": one a line from standard input')


def run(arguments: argparse.Namespace) -> int:
    """run - look keys up, and go on after a failure; the exit status is the highest"""
    several = arguments.keys == ["-"] or len(arguments.keys) > 1
    keys = _stdin_keys() if arguments.keys == ["-"] else map(os.fsencode, arguments.keys)
    show = printer(arguments.json, several)
    if arguments.explain:
        return _query(keys, show, Explainer(arguments).ask)
    with asked_table(arguments) as table:
        return _query(keys, show, lambda key: (ask(table, key), None))


def asked_table(arguments: argparse.Namespace) -> Connection | Direct:
    """asked_table - the table on the server; with --direct, opened here"""
    return direct_table(arguments) if arguments.direct else Connection(arguments)


def direct_table(arguments: argparse.Namespace) -> Direct:
    """direct_table - the table, opened in this process"""
    from proxymap.ctl.direct import Direct

    def warn(text: str) -> None:
        complain(f"warning: {text}", EX_OK)

    return Direct(arguments.table, configuration_of(arguments), warn)


def _stdin_keys() -> Iterable[bytes]:
    return (line.removesuffix(b"\n") for line in sys.stdin.buffer)


def _query(keys: Iterable[bytes], show: Show, ask: Callable[[bytes], tuple[Answer, list[str] | None]]) -> int:
    """Each key, its answer, and the lines that explain it."""
    worst = EX_OK
    told = set()
    for key in keys:
        answer, lines = ask(key)
        if answer.trouble and answer.trouble not in told:
            told.add(answer.trouble)
            complain(answer.trouble, answer.status)
        show(key, answer.value, answer.name, lines)
        worst = max(worst, answer.status)
    return worst


class Explainer:
    """Asks the server, and the table opened here, or that alone; tells where answers come from."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._here = direct_table(arguments)
        self._sight: list[str] | None = None

    def ask(self, key: bytes) -> tuple[Answer, list[str]]:
        """The answer to a key, and the lines that explain it."""
        memory = [] if self._arguments.direct else kept(self._arguments, key)
        here = ask(self._here, key)
        lines = ["  " + line for line in self._here.explain(key)]
        if self._arguments.direct:
            return here, [str(here), *lines]
        server = self._ask_server(key)
        lines = [f"the server: {server}", *memory, f"the table itself: {here.trouble or here}", *lines]
        if server.name and server[1:3] != here[1:3] and (server.is_reply or here.is_reply):
            lines.append(f"they differ: {self._difference(server, here)}")
        lines += self._elsewhere()
        return server, lines

    def _ask_server(self, key: bytes) -> Answer:
        """On a connection of its own: whatever goes wrong is an answer; without a name, if there was none."""
        try:
            with Connection(self._arguments) as server:
                return ask(server, key)
        except ProxymapError as error:
            text, status = advice_on(error, self._arguments.table, self._arguments.service)
            name = TROUBLE[type(error)][1] if type(error) in TROUBLE else ""
            return Answer(status, name, None, text)
        except OSError as error:
            return Answer(EX_UNAVAILABLE, "", None, no_answer(error))

    def _elsewhere(self) -> list[str]:
        """What the server's processes see as other files than we do."""
        from proxymap.ctl.sight import differences

        if self._sight is None:
            with contextlib.suppress(OSError):
                self._sight = list(differences(processes(self._arguments), self._here.files))
        return self._sight or []

    def _difference(self, server: Answer, here: Answer) -> str:
        """What it means that they do."""
        if server.name == "DENY":
            return "the table is there, but main.cf does not let this server open it"
        if not server.is_reply:
            why = self._here.why_not_there()
            return f'the server cannot use the table; {why}; its log and "proxymapctl check" tell more'
        if not here.is_reply:
            return "the server can use the table, this process cannot; perhaps the server opened it earlier"
        return (
            "the server has opened the table earlier, or another one (see -c and --socket); "
            'after "postfix reload" it opens all of them anew'
        )
