"""metrics - what the server counts and measures, as Prometheus reads it"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

from proxymap.ctl.figures import metrics_text
from proxymap.ctl.options import Parser
from proxymap.ctl.outcome import EX_CANTCREAT, EX_NOPERM, EX_OK, complain

EPILOG = """\
Counters are there whether or not a server runs; other numbers come from running
processes. Of the services proxymap and proxywrite, or with --socket of that server.
Only the user that the server runs as and root may read them.
"""

READABLE = 0o644  # node_exporter is another user


def add(parser: Parser) -> None:
    """add - where the text goes"""
    parser.epilog = EPILOG
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--listen", metavar="HOST:PORT|unix:PATH",
        help="serve /metrics, /health and /live there; as root, become mail_owner first",
    )  # fmt: skip
    where.add_argument(
        "--textfile",
        metavar="PATH",
        help="put the text there, whole, for the node_exporter's textfile collector",
    )


def run(arguments: argparse.Namespace) -> int:
    """run - the text on standard output, into a file, or over HTTP"""
    if arguments.listen:
        from proxymap.ctl.exporter import export

        export(arguments, arguments.listen)
    elif arguments.textfile:
        text = metrics_text(arguments)
        try:
            put(arguments.textfile, text)
        except OSError as error:
            status = EX_NOPERM if isinstance(error, PermissionError) else EX_CANTCREAT
            return complain(f"{arguments.textfile}: {error.strerror}", status)
    else:
        sys.stdout.buffer.write(metrics_text(arguments).encode(errors="replace"))  # UTF-8 in any locale
    return EX_OK


def put(path: str, text: str) -> None:
    """put - replace the file at once: a reader sees the old text or the new. OSError."""
    folder, name = os.path.split(os.path.abspath(path))
    fd, new = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with open(fd, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            os.fchmod(fd, READABLE)
        os.rename(new, path)
    except BaseException:
        os.unlink(new)
        raise
