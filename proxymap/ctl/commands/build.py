"""build - build a table's file from a text, as postmap(1) does"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from proxymap.ctl import builder
from proxymap.ctl.options import Parser, settings_of, table_name
from proxymap.ctl.outcome import EX_CANTCREAT, EX_DATAERR, EX_NOINPUT, EX_NOPERM, EX_OK, complain
from proxymap.ctl.terminal import Bar


def add(parser: Parser) -> None:
    """add - the command's options"""
    parser.add_argument("table", metavar="TYPE:FILE", type=table_name, help="TYPE is cdb or lmdb")
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="the text; default: FILE")
    option = parser.add_argument
    option("-f", dest="fold", action="store_false", help="do not fold keys to lower case")
    option("-u", dest="utf8", action="store_false", help="no UTF-8 checks; fold ASCII only")
    option(
        "-r", dest="duplicates", action="store_const", const="replace", help="duplicate keys: the last wins"
    )
    option("-w", dest="duplicates", action="store_const", const="ignore", help="duplicate keys: do not warn")
    option("-n", dest="trailing_nul", action="store_false", help="no NUL byte after keys and values (cdb)")
    option("-N", dest="trailing_nul", action="store_true", help="a NUL byte after keys and values (lmdb)")
    option("-o", dest="keep_root", action="store_true", help="stay root, do not become SOURCE's owner")
    option("-p", dest="inherit_mode", action="store_false", help="new files have mode 0644, not SOURCE's")
    parser.set_defaults(duplicates="warn", trailing_nul=None)


def run(arguments: argparse.Namespace) -> int:
    """run - build it; EX_DATAERR says that the source is at fault"""
    maptype, _, file = arguments.table.partition(":")
    bar = Bar() if sys.stderr.isatty() else None
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        if bar:
            bar.clear()
        complain(f"warning: {text}", EX_OK)

    try:
        progress = bar.show if bar else lambda done, total: None
        records = builder.build(maptype, file, arguments.source, _options(arguments, warn, progress))
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


def _options(
    arguments: argparse.Namespace, warn: Callable[[str], None], progress: Callable[[int, int], None]
) -> builder.Options:
    settings = settings_of(arguments)
    return builder.Options(
        fold=arguments.fold,
        utf8=arguments.utf8 and (settings is None or settings.smtputf8_enable),
        duplicates=arguments.duplicates,
        trailing_nul=arguments.trailing_nul,
        inherit_mode=arguments.inherit_mode,
        keep_root=arguments.keep_root,
        map_size=settings.lmdb_map_size if settings else builder.MAP_SIZE,
        warn=warn,
        progress=progress,
    )


def _file_trouble(error: OSError) -> tuple[str, int]:
    status = {FileNotFoundError: EX_NOINPUT, PermissionError: EX_NOPERM}.get(type(error), EX_CANTCREAT)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error), status
