"""fix_memcached - a private memcached on a port of 127.0.0.1

with Memcached() as server:
    table = server.table(folder / "t.cf", backup="lmdb:/...")
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Self

from fix_database import free_port
from fix_process import OneProcess
from fix_server import wait_until


def unavailable() -> str | None:
    """Why there can be none here, or None."""
    return None if shutil.which("memcached") else "memcached is not installed"


class Memcached(OneProcess):
    """Started when it is entered."""

    def __init__(self) -> None:
        self.port = free_port()

    def start(self) -> Self:
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        command = ["memcached", "-l", "127.0.0.1", "-p", str(self.port), "-c", "4096", *user]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_until(self.answers, "memcached")
        return self

    def answers(self) -> bool:
        try:
            return self.ask(b"version").startswith(b"VERSION")
        except OSError:
            return False

    def ask(self, line: bytes, more: bytes = b"") -> bytes:
        """What it answers to a line, as far as that comes in one piece."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as peer:
            peer.sendall(line + b"\r\n" + more)
            return peer.recv(1 << 16)

    def put(self, key: bytes, value: bytes) -> None:
        assert self.ask(b"set %b 0 0 %d" % (key, len(value)), value + b"\r\n") == b"STORED\r\n"

    def get(self, key: bytes) -> bytes | None:
        head, _, rest = self.ask(b"get " + key).partition(b"\r\n")
        return rest.removesuffix(b"\r\nEND\r\n") if head.startswith(b"VALUE") else None

    def table(self, path: Path, **parameters: object) -> bytes:
        """The name of a table with these parameters, and this server."""
        return write_cf(path, **{"memcache": f"inet:127.0.0.1:{self.port}", **parameters})


def write_cf(path: Path, **parameters: object) -> bytes:
    path.write_text("".join(f"{name} = {value}\n" for name, value in parameters.items()))
    path.chmod(0o644)
    return b"memcache:" + os.fsencode(path)
