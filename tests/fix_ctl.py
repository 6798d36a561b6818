"""fix_ctl - proxymapctl in a process of its own, and a server for it that is played by a script"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from test_client import Request, ScriptedServer, attribute_list

import proxymap

HOME = Path(proxymap.__file__).parents[1]
TABLE = {b"a": b"1", b"b c": b"2\t2", "é".encode(): b"\xff", b"many": b"v" * 200}
TROUBLE = {b"retry": b"2", b"deny": b"4", b"config": b"5", b"bad": b"3"}


def answer(request: Request) -> bytes | None:
    """TABLE, and keys that get the status they are named after; `gone` hangs up."""
    fields = dict(request)
    if fields[b"request"] == b"open":
        status = b"4" if fields[b"table"] == b"t:denied" else b"0"
        return attribute_list(b"status", status, b"flags", b"28" if fields[b"table"] != b"t:raw" else b"32")
    if fields[b"request"] == b"sequence":
        return None
    key = fields[b"key"]
    if key == b"gone":
        return None
    status = TROUBLE.get(key, b"0" if key in TABLE else b"1")
    return attribute_list(b"status", status, b"value", TABLE.get(key, b""))


def run(*arguments: Any, stdin: bytes = b"", **keywords: Any) -> subprocess.CompletedProcess[bytes]:
    """proxymapctl in a process of its own."""
    command = [sys.executable, "-m", "proxymap.ctl", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=HOME, timeout=60, **keywords)


def ask(server: ScriptedServer, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    done = run("--socket", server.path, *arguments, stdin=stdin)
    return done.returncode, done.stdout, done.stderr.decode()
