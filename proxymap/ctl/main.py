"""ctl - proxymapctl, the administrator's tool: query, dump, update, delete, build; tables, flush, enable, ...

Each subcommand is one function that is given the parsed arguments and returns
an exit status; main() turns exceptions into one line on standard error and a
status of sysexits.h. Keys and values are bytes from end to end; only JSON
needs text, in which a byte that is not UTF-8 is a lone surrogate (\\udc80 to
\\udcff), as Python's "surrogateescape" has it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from errno import ENOENT
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from proxymap import __version__
from proxymap.base._fold import fold
from proxymap.client import Client
from proxymap.errors import BadRequest, ConfigError, NotApproved, ProxymapError, TableConfig, TableRetry

if TYPE_CHECKING:
    from proxymap.config.maincf import MainCf
    from proxymap.config.settings import Settings
    from proxymap.ctl.changes import BadLine, Change
    from proxymap.ctl.direct import Direct

EX_OK, EX_NOTFOUND = 0, 1
EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE = 64, 65, 66, 69
EX_CANTCREAT, EX_IOERR, EX_TEMPFAIL, EX_PROTOCOL, EX_NOPERM, EX_CONFIG = 73, 74, 75, 76, 77, 78
EX_INTERRUPT, EX_PIPE = 128 + 2, 128 + 13

FLAG_FIXED = 1 << 4  # in the reply to open: keys are looked up whole, hence folded
BAR_WIDTH = 40  # characters

# What a reply means to the administrator: exit status, its name on the wire, what to do.
TROUBLE: dict[type[ProxymapError], tuple[int, str, str]] = {
    TableRetry: (EX_TEMPFAIL, "RETRY", "the table is unavailable for now; the server's log says why"),
    NotApproved: (
        EX_NOPERM,
        "DENY",
        'not approved; list "proxy:{table}" in {parameter} of main.cf, then run "postfix reload"',
    ),
    TableConfig: (
        EX_CONFIG,
        "CONFIG",
        "the table is configured wrongly, or cannot do that; the server's log says why",
    ),
    BadRequest: (EX_PROTOCOL, "BAD", "the server does not accept the request; is this name a table's?"),
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
  proxymapctl flush lmdb:/etc/postfix/access user@example.com
  proxymapctl --socket /run/proxymap.sock reload

exit status:
  0 found or done   1 not found      64 wrong usage      65 bad line, or source to build
  66 no such file   69 no server     73, 74 cannot write 75 table unavailable (RETRY)
  76 bad request    77 not approved (DENY), or not permitted
  78 wrong configuration (CONFIG)    with several keys: the highest of all
"""

TABLE = "for example cdb:/etc/postfix/virtual"

ANSWERING = """\
Every process that serves the socket is asked; of proxywrite with --socket
$queue_directory/private/proxywrite. Only the user that it runs as and root may.
"""

TABLES = f"""\
A line for each table that was asked for since the process started: its state,
entries and bytes, lookups, answers from the cache, errors, and what went wrong
last. A table appears once for each dialect and each set of flags of its clients.

{ANSWERING}"""

FLUSH = f"""\
Hardly ever needed: what has changed is forgotten by itself, and tables are not
opened anew. Status 1: no client has asked for that table yet.

{ANSWERING}"""

RELOAD = """\
For a server that runs by itself: newly approved tables are served, others are
not any more, and limits change, on open connections as well. If main.cf or
proxymap.cf cannot be used, the server goes on as before, and the status is 78.
SIGHUP does the same. Where Postfix's master runs the server: postfix reload.
"""

DIRECT = """\
--direct opens the table in this process, as postmap -q does: as who calls, in
the working directory, approved or not. The server runs as mail_owner, in
queue_directory, perhaps in a chroot jail.

--explain tells which rule, row or member gave the answer. Without --direct it
asks the server first, whose answer is printed, then opens the table here as
well, and says when the two differ, and what that means.
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return EX_PIPE
    except ConfigError as error:
        return complain(str(error), EX_CONFIG)
    except ProxymapError as error:
        return complain(*explain(error, parsed.table, parsed.service))
    except OSError as error:
        if error.filename is None:
            return complain(str(error), EX_IOERR)
        if isinstance(error, PermissionError):
            return complain(f"{error.filename}: {error.strerror}; ask as root", EX_NOPERM)
        return complain(no_answer(error), EX_UNAVAILABLE)
    return status


def complain(text: str, status: int) -> int:
    """One line on standard error; returns the status."""
    print(f"proxymapctl: {text}", file=sys.stderr)
    return status


def no_answer(error: OSError) -> str:
    """What to tell of a server that cannot be reached."""
    advice = "start Postfix, or name another socket with --socket"
    return f"no answer from {error.filename}: {error.strerror}; {advice}"


def explain(error: ProxymapError, table: str, service: str) -> tuple[str, int]:
    """What to tell the administrator, and the exit status."""
    if type(error) not in TROUBLE:
        return f"{error}; the server's log may say why", EX_UNAVAILABLE
    status, _, advice = TROUBLE[type(error)]
    parameter = "proxy_write_maps" if service == "proxywrite" else "proxy_read_maps"
    return f"{table}: {advice.format(table=table, parameter=parameter)}", status


# Command line


class Parser(argparse.ArgumentParser):
    """argparse with sysexits.h's status for wrong usage, in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EX_USAGE, f'proxymapctl: {message}; "{self.prog} --help" tells more\n')


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Parser]


def parser() -> Parser:
    """All options of all subcommands; -c, --socket and --json may stand anywhere."""
    main_parser = Parser(
        prog="proxymapctl",
        parents=[_common()],
        description="Ask a proxymap server and tend it, build its tables, switch it on and off.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.add_argument("--version", action="version", version=f"proxymapctl {__version__}")
    main_parser.set_defaults(config=None, socket=None, json=False, service="proxymap")
    commands = main_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_query(commands, _common())
    _add_dump(commands, _common())
    _add_update(commands, _common())
    _add_delete(commands, _common())
    _add_tables(commands, _common())
    _add_flush(commands, _common())
    _add_reload(commands, _common())
    _add_build(commands, _common())
    _add_check(commands, _common())
    _add_switch(commands, _common(), "enable", "let Postfix's master run this server")
    _add_switch(commands, _common(), "disable", "let Postfix's master run what it ran before")
    _add_status(commands, _common())
    return main_parser


def _common() -> Parser:
    """Options of every subcommand that may stand before it as well; there alone they have defaults."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="JSON, one object a line")
    common.add_argument(
        "-c", metavar="DIR", dest="config", help="where main.cf is; default: $MAIL_CONFIG, or /etc/postfix"
    )
    common.add_argument(
        "--socket", metavar="PATH", help="the server; default: private/proxymap or private/proxywrite"
    )
    return common


def _add_query(commands: Commands, common: Parser) -> None:
    query_parser = commands.add_parser(
        "query",
        parents=[common],
        help="look keys up",
        description="Look keys up. One KEY: print its value; several, or from standard input: key TAB value.",
        epilog=DIRECT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = query_parser.add_argument
    add("--direct", action="store_true", help="open the table here, ask no server")
    add("--explain", action="store_true", help="say on standard error where the answer comes from")
    query_parser.add_argument("table", metavar="TYPE:NAME", type=table_name, help=TABLE)
    query_parser.add_argument("keys", metavar="KEY", nargs="+", help='"-": one a line from standard input')
    query_parser.set_defaults(run=query)


def _add_dump(commands: Commands, common: Parser) -> None:
    text = "print all keys and values of a table, key TAB value"
    dump_parser = commands.add_parser("dump", parents=[common], help=text, description=sentence(text))
    dump_parser.add_argument("--direct", action="store_true", help="open the table here, ask no server")
    dump_parser.add_argument("table", metavar="TYPE:NAME", type=table_name, help=TABLE)
    dump_parser.set_defaults(run=dump)


def _add_update(commands: Commands, common: Parser) -> None:
    text = "store a value, or many from standard input, by way of proxywrite"
    update_parser = commands.add_parser("update", parents=[common], help=text, description=text.capitalize())
    update_parser.add_argument("table", metavar="TYPE:NAME", type=table_name)
    update_parser.add_argument(
        "change", metavar="KEY VALUE", nargs="+", help='"-": one KEY TAB VALUE a line from standard input'
    )
    update_parser.set_defaults(run=update, service="proxywrite", wrong=update_parser.error)


def _add_delete(commands: Commands, common: Parser) -> None:
    text = "delete keys by way of proxywrite"
    delete_parser = commands.add_parser("delete", parents=[common], help=text, description=text.capitalize())
    delete_parser.add_argument("table", metavar="TYPE:NAME", type=table_name)
    delete_parser.add_argument("keys", metavar="KEY", nargs="+", help='"-": one a line from standard input')
    delete_parser.set_defaults(run=delete, service="proxywrite")


def _add_build(commands: Commands, common: Parser) -> None:
    text = "build FILE.cdb or FILE.lmdb from a text as postmap(1) does"
    build_parser = commands.add_parser("build", parents=[common], help=text, description=sentence(text))
    build_parser.add_argument("table", metavar="TYPE:FILE", type=table_name, help="TYPE is cdb or lmdb")
    build_parser.add_argument("source", metavar="SOURCE", nargs="?", help="the text; default: FILE")
    add = build_parser.add_argument
    add("-f", dest="fold", action="store_false", help="do not fold keys to lower case")
    add("-u", dest="utf8", action="store_false", help="no UTF-8 checks; fold ASCII only")
    add("-r", dest="duplicates", action="store_const", const="replace", help="duplicate keys: the last wins")
    add("-w", dest="duplicates", action="store_const", const="ignore", help="duplicate keys: do not warn")
    add("-n", dest="trailing_nul", action="store_false", help="no NUL byte after keys and values (cdb)")
    add("-N", dest="trailing_nul", action="store_true", help="a NUL byte after keys and values (lmdb)")
    add("-o", dest="keep_root", action="store_true", help="stay root, do not become SOURCE's owner")
    add("-p", dest="inherit_mode", action="store_false", help="new files have mode 0644, not SOURCE's")
    build_parser.set_defaults(run=build, duplicates="warn", trailing_nul=None)


def _add_switch(commands: Commands, common: Parser, name: str, text: str) -> None:
    description = f"{text}: master.cf, reload, and a lookup to see that it works."
    switch_parser = commands.add_parser(name, parents=[common], help=text, description=sentence(description))
    switch_parser.add_argument("--dry-run", action="store_true", help="print the commands, change nothing")
    switch_parser.add_argument(
        "--service", choices=["proxymap", "proxywrite", "both"], default="proxymap", help="default: proxymap"
    )
    switch_parser.set_defaults(run=switch, on=name == "enable")


def _add_status(commands: Commands, common: Parser) -> None:
    text = "which server master runs, and which one answers"
    status_parser = commands.add_parser("status", parents=[common], help=text, description=sentence(text))
    status_parser.set_defaults(run=status)


def _add_check(commands: Commands, common: Parser) -> None:
    text = "verify tables, main.cf and master.cf, offline; status 78 if there is a fault"
    check_parser = commands.add_parser("check", parents=[common], help=text, description=sentence(text))
    check_parser.set_defaults(run=check)


def _add_tables(commands: Commands, common: Parser) -> None:
    text = "which tables a running server has open, and how they do"
    tables_parser = commands.add_parser(
        "tables",
        parents=[common],
        help=text,
        description=sentence(text),
        epilog=TABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables_parser.set_defaults(run=tables)


def _add_flush(commands: Commands, common: Parser) -> None:
    text = "have a running server forget cached answers"
    flush_parser = commands.add_parser(
        "flush",
        parents=[common],
        help=text,
        description=sentence(f"{text}: all, those of a table, or that to one key"),
        epilog=FLUSH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flush_parser.add_argument("table", metavar="TYPE:NAME", type=table_name, nargs="?", help=TABLE)
    flush_parser.add_argument("key", metavar="KEY", nargs="?", help="as for query")
    flush_parser.set_defaults(run=flush)


def _add_reload(commands: Commands, common: Parser) -> None:
    text = "have a standalone server read main.cf and proxymap.cf anew"
    reload_parser = commands.add_parser(
        "reload",
        parents=[common],
        help=text,
        description=sentence(f"{text}; no client notices"),
        epilog=RELOAD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reload_parser.set_defaults(run=reload)


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def table_name(text: str) -> str:
    """TYPE:NAME, without the proxy: that main.cf puts before it."""
    while text.startswith("proxy:"):
        text = text.removeprefix("proxy:")
    if not all(text.partition(":")):
        raise argparse.ArgumentTypeError(f'"{text}" is not TYPE:NAME, for example cdb:/etc/postfix/virtual')
    return text


# Subcommands


def query(arguments: argparse.Namespace) -> int:
    """Look keys up, and go on after a failure; the exit status is the highest."""
    several = arguments.keys == ["-"] or len(arguments.keys) > 1
    keys = _stdin_keys() if arguments.keys == ["-"] else map(os.fsencode, arguments.keys)
    show = _printer(arguments.json, several)
    if arguments.explain:
        return _query(keys, show, Explainer(arguments).ask)
    with _asked(arguments) as table:
        return _query(keys, show, lambda key: (ask(table, key), None))


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


def dump(arguments: argparse.Namespace) -> int:
    """Print a whole table."""
    show = _printer(arguments.json, True)
    with _asked(arguments) as table:
        try:
            for key, value in table.items():
                show(key, value, "OK", None)
        except tuple(TROUBLE) as error:
            return complain(table.trouble(error), TROUBLE[type(error)][0])
    return EX_OK


def update(arguments: argparse.Namespace) -> int:
    """Store values, and go on after a failure; the exit status is the highest."""
    from proxymap.ctl.changes import Change, updates_in

    if arguments.change == ["-"]:
        lines = _Input()
        return _change(arguments, updates_in(lines), lines.bar)
    if len(arguments.change) != 2:
        arguments.wrong('expected KEY and VALUE, or "-"')
    key, value = arguments.change
    return _change(arguments, [Change(os.fsencode(key), os.fsencode(value))])


def delete(arguments: argparse.Namespace) -> int:
    """Delete keys in the same way; one that is not there is status 1."""
    from proxymap.ctl.changes import Change, deletes_in

    if arguments.keys == ["-"]:
        lines = _Input()
        return _change(arguments, deletes_in(lines), lines.bar)
    return _change(arguments, (Change(os.fsencode(key), None) for key in arguments.keys))


def _change(
    arguments: argparse.Namespace, changes: Iterable[Change | BadLine], bar: Bar | None = None
) -> int:
    """Make the changes, tell of each trouble once."""
    from proxymap.ctl.changes import BadLine, spread

    def connect(stack: ExitStack) -> Callable[[Change], Answer]:
        server = stack.enter_context(Server(arguments))
        return lambda change: answer_of(server, lambda: server.change(change.key, change.value))

    worst = EX_OK
    told = {""}
    for change, answer in spread(changes, connect, partial(fold, utf8=True)):
        if isinstance(change, BadLine):
            status, trouble = EX_DATAERR, "expected KEY TAB VALUE: skipped"
        else:
            assert answer is not None
            status, trouble = answer.status, answer.trouble
            if arguments.json:
                print(json.dumps({"key": _text(change.key), "status": answer.name}))
        if trouble not in told or status in (EX_DATAERR, EX_USAGE):
            told.add(trouble)
            if bar:
                bar.clear()
            complain(change.where + trouble, status)
        worst = max(worst, status)
    if bar:
        bar.clear()
    return worst


class _Input:
    """The lines of standard input. `bar`: shows on a terminal how much of a file is read."""

    def __init__(self) -> None:
        self._size = os.fstat(sys.stdin.fileno()).st_size  # 0: a pipe or a terminal
        self.bar = Bar() if self._size and sys.stderr.isatty() else None

    def __iter__(self) -> Iterator[bytes]:
        done = 0
        for line in sys.stdin.buffer:
            yield line
            done += len(line)
            if self.bar:
                self.bar.show(done, self._size)


def build(arguments: argparse.Namespace) -> int:
    """Build a table's file."""
    from proxymap.ctl import build as builder

    maptype, _, file = arguments.table.partition(":")
    settings = _settings(arguments)
    warnings: list[str] = []
    bar = Bar() if sys.stderr.isatty() else None

    def warn(text: str) -> None:
        warnings.append(text)
        if bar:
            bar.clear()
        complain(f"warning: {text}", EX_OK)

    options = builder.Options(
        fold=arguments.fold,
        utf8=arguments.utf8 and (settings is None or settings.smtputf8_enable),
        duplicates=arguments.duplicates,
        trailing_nul=arguments.trailing_nul,
        inherit_mode=arguments.inherit_mode,
        keep_root=arguments.keep_root,
        map_size=settings.lmdb_map_size if settings else builder.MAP_SIZE,
        warn=warn,
        progress=bar.show if bar else lambda done, total: None,
    )
    try:
        records = builder.build(maptype, file, arguments.source, options)
    except builder.BuildError as error:
        return complain(str(error), EX_DATAERR)
    except OSError as error:
        return complain(*_file_trouble(error))
    finally:
        if bar:
            bar.clear()
    if arguments.json:
        print(json.dumps({"table": arguments.table, "records": records, "warnings": warnings}))
    return EX_OK


def switch(arguments: argparse.Namespace) -> int:
    """enable and disable."""
    from proxymap.ctl import serving, takeover

    services = ["proxymap", "proxywrite"] if arguments.service == "both" else [arguments.service]
    turn = takeover.enable if arguments.on else takeover.disable
    try:
        for line in turn(serving.Instance(_directory(arguments)), services, arguments.dry_run):
            print(line, flush=True)
    except takeover.Refused as refusal:
        for fault in refusal.faults:
            complain(f"refused: {fault.line()}", EX_NOPERM)
        return EX_NOPERM
    except takeover.Failed as failure:
        return complain(str(failure), EX_UNAVAILABLE)
    return EX_OK


def status(arguments: argparse.Namespace) -> int:
    """One line for each service."""
    from proxymap.ctl import serving

    for state in serving.status(serving.Instance(_directory(arguments))):
        print(json.dumps(state) if arguments.json else serving.status_line(state))
    return EX_OK


def check(arguments: argparse.Namespace) -> int:
    """One line for each fault."""
    from proxymap.ctl.check import as_json
    from proxymap.ctl.check import check as faults_of

    faults = faults_of(_directory(arguments))
    for fault in faults:
        print(json.dumps(as_json(fault)) if arguments.json else fault.line())
    return EX_OK if all(fault.warning for fault in faults) else EX_CONFIG


def tables(arguments: argparse.Namespace) -> int:
    """One line for each table of each process."""
    for pid, known in _ask_processes(arguments, do="tables"):
        for table in sorted(known, key=lambda one: (one["table"], one["dialect"], one["flags"])):
            print(json.dumps({"process": pid, **table}) if arguments.json else _table_line(pid, table))
    return EX_OK


def _table_line(pid: int, table: dict[str, Any]) -> str:
    sizes = [f"{table[what]:,} {what}" for what in ("entries", "bytes") if table.get(what) is not None]
    line = (
        f"{table['table']} (Postfix {table['dialect']}, flags {table['flags']}, process {pid}):"
        f" {', '.join([table['state'] if table['approved'] else 'not approved', *sizes])};"
        f" {table['lookups']:,} lookups,"
        f" {table['cache_hits']:,} from the cache, {table['errors']:,} errors"
    )
    if "age_seconds" in table:
        line += f"; opened {table['age_seconds']:,} s ago"
    return line + (f"; {table['trouble']}" if table.get("trouble") else "")


def flush(arguments: argparse.Namespace) -> int:
    """Forget answers."""
    what: dict[str, Any] = {}
    if arguments.table:
        what["table"] = arguments.table
    if arguments.key is not None:  # the cache has it as the table was asked for it: folded or not
        what["keys"] = sorted({arguments.key, os.fsdecode(fold(os.fsencode(arguments.key), True))})
    counts = [count for _, count in _ask_processes(arguments, do="flush", **what)]
    if arguments.table and not any(counts):
        return complain(f"{arguments.table}: no running server has it open", EX_NOTFOUND)
    return EX_OK


def reload(arguments: argparse.Namespace) -> int:
    """Read the configuration anew."""
    for pid, _ in _ask_processes(arguments, do="reload"):
        print(json.dumps({"process": pid}) if arguments.json else f"process {pid}: configuration read anew")
    return EX_OK


def _ask_processes(arguments: argparse.Namespace, **request: Any) -> Iterator[tuple[int, Any]]:
    """What each running process says; ConfigError if one refuses, OSError if there is none."""
    from proxymap.server.control import ask_all

    path: str = arguments.socket or _socket_path(arguments)
    count = 0
    for pid, reply in ask_all(path, **request):
        count += 1
        if "error" in reply:
            raise ConfigError(f"process {pid}: {reply['error']}")
        yield pid, reply["ok"]
    if not count:
        raise OSError(ENOENT, "no running server has a control socket there", f"{path}.*.ctl")


def _file_trouble(error: OSError) -> tuple[str, int]:
    status = {FileNotFoundError: EX_NOINPUT, PermissionError: EX_NOPERM}.get(type(error), EX_CANTCREAT)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error), status


# Parts


class Answer(NamedTuple):
    """What became of a key: exit status, the reply's name on the wire, the value, what there is to say."""

    status: int
    name: str
    value: bytes | None = None
    trouble: str = ""

    @property
    def is_reply(self) -> bool:
        """The table itself said so."""
        return self.name in ("OK", "NOKEY")

    def __str__(self) -> str:
        if self.value is not None:
            return f'"{_text(self.value)}"'
        return "not found" if self.is_reply else self.name or "no answer"


def ask(table: Server | Direct, key: bytes) -> Answer:
    return answer_of(table, lambda: table.lookup(key))


def answer_of(table: Server | Direct, request: Callable[[], bytes | None]) -> Answer:
    try:
        value = request()
    except ValueError:
        return Answer(EX_USAGE, "NOKEY", None, "a key contains a NUL byte: skipped")
    except tuple(TROUBLE) as error:
        status, name, _ = TROUBLE[type(error)]
        return Answer(status, name, None, table.trouble(error))
    return Answer(EX_NOTFOUND, "NOKEY") if value is None else Answer(EX_OK, "OK", value)


def _asked(arguments: argparse.Namespace) -> Server | Direct:
    return _direct(arguments) if arguments.direct else Server(arguments)


def _direct(arguments: argparse.Namespace) -> Direct:
    from proxymap.ctl.direct import Direct

    def warn(text: str) -> None:
        complain(f"warning: {text}", EX_OK)

    return Direct(arguments.table, _configuration(arguments), warn)


class Explainer:
    """Asks the server, and the table opened here, or that alone; tells where answers come from."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._here = _direct(arguments)

    def ask(self, key: bytes) -> tuple[Answer, list[str]]:
        here = ask(self._here, key)
        lines = ["  " + line for line in self._here.explain(key)]
        if self._arguments.direct:
            return here, [str(here), *lines]
        server = self._ask_server(key)
        lines = [f"the server: {server}", f"the table itself: {here.trouble or here}", *lines]
        if server.name and server[1:3] != here[1:3] and (server.is_reply or here.is_reply):
            lines.append(f"they differ: {self._difference(server, here)}")
        return server, lines

    def _ask_server(self, key: bytes) -> Answer:
        """On a connection of its own: whatever goes wrong is an answer; without a name, if there was none."""
        try:
            with Server(self._arguments) as server:
                return ask(server, key)
        except tuple(TROUBLE) as error:
            text, status = explain(error, self._arguments.table, self._arguments.service)
            return Answer(status, TROUBLE[type(error)][1], None, text)
        except ProxymapError as error:
            return Answer(
                EX_UNAVAILABLE, "", None, explain(error, self._arguments.table, self._arguments.service)[0]
            )
        except OSError as error:
            return Answer(EX_UNAVAILABLE, "", None, no_answer(error))

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


class Server:
    """The table on the server: a Client in the right dialect, with the table open."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.table: str = arguments.table
        self._service: str = arguments.service
        self._path: str = arguments.socket or _socket_path(arguments)

    def __enter__(self) -> Server:
        """The request that opens the table tells the dialect: a server answers BAD to the other one."""
        try:
            self._client = Client(self._path, dialect="3.6")
            flags = self._client.open(self.table)
        except BadRequest:
            self._client.close()
            self._client = Client(self._path, dialect="3.11")
            self._client.open(self.table)
            flags = 0  # this server folds by itself
        self._folds = bool(flags & FLAG_FIXED)
        return self

    def __exit__(self, *details: object) -> None:
        self._client.close()

    def lookup(self, key: bytes) -> bytes | None:
        """As a Postfix client asks: with the key folded where keys are, and never for an empty key."""
        if not key:
            return None
        return self._client.lookup(self.table, fold(key, True) if self._folds else key)

    def change(self, key: bytes, value: bytes | None) -> bytes | None:
        """Store a value, or delete the key if there is none; None if that left all as it was."""
        key = fold(key, True) if self._folds else key
        if value is None:
            return key if self._client.delete(self.table, key) else None
        return value if self._client.update(self.table, key, value) else None

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return self._client.items(self.table)

    def trouble(self, error: ProxymapError) -> str:
        return explain(error, self.table, self._service)[0]


def _socket_path(arguments: argparse.Namespace) -> str:
    settings = _settings(arguments)
    directory = settings.queue_directory if settings else "/var/spool/postfix"
    return os.path.join(directory, "private", arguments.service)


def _settings(arguments: argparse.Namespace) -> Settings | None:
    configuration = _configuration(arguments)
    return configuration and configuration[0]


def _configuration(arguments: argparse.Namespace) -> tuple[Settings, MainCf] | None:
    """main.cf's parameters; None on a host without main.cf, unless one was asked for."""
    from proxymap.config import settings

    directory = _directory(arguments)
    if not arguments.config and not os.path.exists(os.path.join(directory, "main.cf")):
        return None
    return settings.load(directory)


def _directory(arguments: argparse.Namespace) -> str:
    return arguments.config or os.environ.get("MAIL_CONFIG") or "/etc/postfix"


def _stdin_keys() -> Iterable[bytes]:
    return (line.removesuffix(b"\n") for line in sys.stdin.buffer)


Show = Callable[[bytes, bytes | None, str, list[str] | None], None]


def _printer(as_json: bool, with_key: bool) -> Show:
    """How to print an answer: key, value, the status's name, and lines that explain it, or None."""
    write = sys.stdout.buffer.write
    flush = sys.stdout.buffer.flush if sys.stdout.isatty() else lambda: None

    def show_json(key: bytes, value: bytes | None, name: str, lines: list[str] | None) -> None:
        answer: dict[str, Any] = {
            "key": _text(key),
            "value": None if value is None else _text(value),
            "status": name,
        }
        if lines is not None:
            answer["explain"] = lines
        write(json.dumps(answer).encode() + b"\n")
        flush()

    def show(key: bytes, value: bytes | None, name: str, lines: list[str] | None) -> None:
        if value is not None:
            write(b"%b\t%b\n" % (key, value) if with_key else value + b"\n")
            flush()
        for line in lines or ():
            print(f"{_text(key)}: {line}", file=sys.stderr)

    return show_json if as_json else show


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


class Bar:
    """A progress bar on standard error."""

    def __init__(self) -> None:
        self._percent = -1

    def show(self, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent != self._percent:
            self._percent = percent
            filled = BAR_WIDTH * percent // 100
            print(f"\r[{'#' * filled:{BAR_WIDTH}}] {percent:3} %", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        print(f"\r{'':{BAR_WIDTH + 8}}\r", end="", file=sys.stderr, flush=True)
        self._percent = -1


if __name__ == "__main__":
    sys.exit(main())
