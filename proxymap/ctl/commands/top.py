"""top - what a running server is asked most, as it happens"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from proxymap.ctl.commands.trace import took_of
from proxymap.ctl.live.screen import Screen, is_terminal, size
from proxymap.ctl.live.watched import Row, Watched
from proxymap.ctl.options import ANSWERING, Parser, duration
from proxymap.ctl.outcome import EX_OK, printable

KEYS = 10  # that are shown at most
SERVERS = 8

EPILOG = f"""\
Tables by lookups a second since the frame before, with the share of answers from
the cache (and old ones), errors (RETRY and CONFIG), and how long lookups took that
were not answered at once; database servers; keys that are asked most, of a sample
of 1,000 lookups a second. q ends it. Into a pipe it prints one frame.

Both services are watched; with --socket, one.

{ANSWERING}"""


def add(parser: Parser) -> None:
    """add - the command's options"""
    parser.epilog = EPILOG
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument(
        "--interval", metavar="TIME", type=_interval, default=2.0, help="between two frames; default: 2s"
    )


def run(arguments: argparse.Namespace) -> int:
    """run - frames, until the user has seen enough"""
    watched = Watched(arguments)
    try:
        if arguments.json:
            _print_json(watched, arguments)
        elif arguments.once or not is_terminal():
            time.sleep(arguments.interval)
            watched.look()
            for line in frame_lines(watched.frame(KEYS), 80, None)[0]:
                print(line)
        else:
            _draw(watched, arguments.interval)
    finally:
        watched.keys.end()
    return EX_OK


def _interval(text: str) -> float:
    seconds = duration(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("expected a time from 100ms to 60m")
    return seconds


def _print_json(watched: Watched, arguments: argparse.Namespace) -> None:
    """An object for each frame."""
    while True:
        time.sleep(arguments.interval)
        watched.look()
        print(json.dumps(watched.frame(KEYS)))
        sys.stdout.flush()
        if arguments.once:
            return


def _draw(watched: Watched, interval: float) -> None:
    with Screen() as screen:
        frame = watched.frame(KEYS)
        pause = min(interval, 0.5)  # the first frame has no rates yet
        due = time.monotonic() + pause
        while True:
            screen.draw(*frame_lines(frame, *size()))
            if not screen.wait(due - time.monotonic()):
                return
            if time.monotonic() >= due:
                watched.look()
                frame = watched.frame(KEYS)
                due = time.monotonic() + interval


def frame_lines(frame: Row, columns: int, height: int | None) -> tuple[list[str], set[int]]:
    """frame_lines - a frame as lines of that width, and which are headings. height None: all there is"""
    columns = max(columns, 20)
    clock = time.strftime("%H:%M:%S", time.localtime(frame["time"]))
    lines = [
        f"proxymapctl top  {clock}   processes: {frame['processes']}"
        f"   lookups: {frame['rate']:,.0f}/s   over {frame['seconds']:.1f} s"
    ]
    servers, keys = frame["servers"][:SERVERS], frame["keys"]
    room = None
    if height is not None:
        below = (2 + len(servers) if servers else 0) + (2 + len(keys) if keys or frame["keys_trouble"] else 0)
        room = max(height - 3 - below, 3)
    headings: set[int] = set()
    _section(lines, headings, _tables(frame["tables"][:room], columns))
    if servers:
        _section(lines, headings, _servers(servers, columns))
    if keys or frame["keys_trouble"]:
        _section(lines, headings, _keys(keys, frame["keys_trouble"], columns))
    return [printable(line)[:columns].rstrip() for line in lines], headings


def _section(lines: list[str], headings: set[int], more: list[str]) -> None:
    lines.append("")
    headings.add(len(lines))
    lines += more


def _tables(tables: list[Row], columns: int) -> list[str]:
    wide = columns - 44
    lines = [f"{'LOOKUPS/s':>10} {'HITS':>5} {'ERRORS':>7} {'P50':>8} {'P99':>8}  TABLE"]
    for table in tables:
        lines.append(
            f"{table['rate']:>10,.1f} {_percent(table['hits']):>5} {table['errors']:>7,}"
            f" {_took(table['p50']):>8} {_took(table['p99']):>8}  {_shortened(table['table'], wide)}"
        )
    return lines if tables else [*lines, "   nothing has been asked yet"]


def _servers(servers: list[Row], columns: int) -> list[str]:
    wide = columns - 44
    lines = [f"{'ANSWERS/s':>10} {'MEAN':>8} {'CONNS':>7} {'WAIT':>6} {'STATE':>8}  SERVER"]
    for server in servers:
        connections = f"{_shown(server['busy'])}/{_shown(server['open'])}"
        lines.append(
            f"{server['answers_rate']:>10,.1f} {_took((server['mean_ms'] or 0) / 1000):>8} {connections:>7}"
            f" {_shown(server['waiting']):>6} {_shown(server['state']):>8.8}"
            f"  {_shortened(str(server['server']), wide)}"
        )
    return lines


def _keys(keys: list[Row], trouble: str | None, columns: int) -> list[str]:
    lines = [f"{'SHARE':>10}  {'KEY':<32}  TABLE"]
    for one in keys:
        key = f"{one['key'][:31]}…" if len(one["key"]) > 32 else one["key"]
        lines.append(
            f"{_percent(one['share']):>10}  {printable(key):<32}  {_shortened(one['table'], columns - 46)}"
        )
    return [*lines, f"  none: {trouble}"] if trouble else lines


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _took(seconds: float | None) -> str:
    return "-" if seconds is None else took_of(seconds)


def _shortened(name: str, wide: int) -> str:
    """The end of a name says most."""
    wide = max(wide, 12)
    return name if len(name) <= wide else f"…{name[1 - wide :]}"
