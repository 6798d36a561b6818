"""memory - what running processes keep of a key, in words"""

from __future__ import annotations

import argparse
import os
from typing import Any

from proxymap.base._fold import fold
from proxymap.ctl.connection import ask_processes
from proxymap.errors import ConfigError, ProxymapError


def both(keys: list[str]) -> list[str]:
    """both - each key as it is, and folded: the cache has it as the table was asked for it"""
    return sorted({os.fsdecode(fold(os.fsencode(key), True)) for key in keys}.union(keys))


def kept(arguments: argparse.Namespace, key: bytes) -> list[str]:
    """kept - a line for each process and kind of client; none where that cannot be asked"""
    lines = []
    try:
        for pid, known in ask_processes(
            arguments, do="known", table=arguments.table, keys=both([os.fsdecode(key)])
        ):
            for one in known:
                kind = f"process {pid}, Postfix {one['dialect']}, flags {one['flags']}"
                lines.append(f"before that, in the cache ({kind}): {_words(one)}")
    except (OSError, ProxymapError, ConfigError, KeyError, TypeError):
        return []
    return lines


def _words(one: dict[str, Any]) -> str:
    asking = "is being asked for; who asks now joins" if one.get("asking") else ""
    if "status" not in one:
        return asking
    age = f"{one['age']:.1f} s old"
    if one["status"] == "RETRY":
        text = f"the question was refused, {age}; it is asked again after {max(one['fresh'], 0):.1f} s"
    elif one["fresh"] > 0:
        text = f"{one['status']}, {age}, answers for {one['fresh']:.1f} s more"
    elif one["stale"] > 0:
        text = (
            f"{one['status']}, {age}, stands in for {one['stale']:.0f} s more if its server does not answer"
        )
    else:
        text = f"{one['status']}, {age}, too old to be of use"
    return f"{text}; {asking}" if asking else text
