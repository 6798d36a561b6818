"""trace - lookups as a running server answers them"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from proxymap.ctl.live.following import Follower
from proxymap.ctl.options import ANSWERING, TABLE, Parser, duration, table_name
from proxymap.ctl.outcome import EX_OK, printable
from proxymap.errors import ConfigError

STATUSES = ("OK", "NOKEY", "RETRY", "DENY", "CONFIG")

EPILOG = f"""\
A line for each lookup: when it was answered, process id of the client, status,
where the answer came from (table, cache, server, joined, stale, shed, refused),
how long that took, table and key; until Ctrl-C. At most 1,000 lines a second of
each process; how many were left out is said on standard error.

  proxymapctl trace --slow 100ms
  proxymapctl trace mysql:/etc/postfix/virtual.cf --status RETRY
  proxymapctl trace --key user@example.com --json

{ANSWERING}"""


def add(parser: Parser) -> None:
    """add - the command's options"""
    parser.epilog = EPILOG
    parser.add_argument("table", nargs="?", type=table_name, metavar="TABLE", help=f"only of this, {TABLE}")
    parser.add_argument("--key", help="only of this key; ASCII letters in either case")
    parser.add_argument("--slow", metavar="TIME", type=duration, help="only what took so long: 100ms, 2s, 1m")
    parser.add_argument("--status", choices=STATUSES, help="only with this answer")
    parser.add_argument("--count", metavar="N", type=_count, help="end after so many lines")


def run(arguments: argparse.Namespace) -> int:
    """run - follow lookups until enough were seen, or for ever"""
    wanted = {name: getattr(arguments, name) for name in ("table", "key", "slow", "status")}
    left_out: dict[int, int] = {}
    seen, left = 0, arguments.count
    try:
        with Follower(arguments, _note, do="trace", **wanted) as follower:
            for told in follower:
                if told is None:
                    sys.stdout.flush()
                elif "left_out" in told[1]:
                    _tell_left_out(left_out, *told, as_json=arguments.json)
                else:
                    seen += 1
                    print(_line(*told, as_json=arguments.json))
                    if seen == left:
                        break
    finally:
        _sum_up(seen, left_out)
    return EX_OK


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f'"{text}" is not a number from 1 on')
    return int(text)


def _note(text: str) -> None:
    print(f"proxymapctl: {printable(text)}", file=sys.stderr, flush=True)


def _line(pid: int, event: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps({"process": pid, **event})
    try:
        now = float(event["time"])
        clock = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03}"
        more = "..." if event.get("cut") else ""
        text = (
            f"{clock} {event['client'] or '-':>7} {event['status']:<6} {event['source']:<7}"
            f" {took_of(event['took']):>9}  {event['table']}  {event['key']}{more}"
        )
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        raise ConfigError(f"process {pid}: its answer is not understood") from None
    return printable(text)


def took_of(seconds: float) -> str:
    """took_of - a time that is short, in a unit that suits it"""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _tell_left_out(left_out: dict[int, int], pid: int, told: dict[str, Any], as_json: bool) -> None:
    """How many lookups of a process there are no lines of, since that was said last."""
    try:
        count = int(told["left_out"])
    except (TypeError, ValueError):
        return
    more, left_out[pid] = count - left_out.get(pid, 0), count
    if as_json:
        print(json.dumps({"process": pid, "left_out": count}))
    else:
        _note(f"{more:,} lookups left out (process {pid})")


def _sum_up(seen: int, left_out: dict[int, int]) -> None:
    more = sum(left_out.values())
    _note(f"{seen:,} lookups" + (f", {more:,} more were left out" if more else ""))
