"""fix_pair - a stock proxymap and ours, side by side, asked the same

    with Pair("cidr") as pair:
        name = pair.fresh_name()
        pair.ask(lookup(name, b"192.0.2.1"))        # -> the stock reply, ours

Both have the same approved tables and the same environment. A server keeps each
table, and the flags it was first opened with, for its whole life: a test that
wants a table opened anew takes a fresh name. Names of files are approved by the
hundred; a table that is named by its content needs servers started for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from fix_postfix import StockPostfix, dialect
from fix_server import Peer, ServerProcess, environment, give, lookup, wait_until
from oracle import Attributes

FRESH_NAMES = 4  # for one life: with three flag words each, below the 13 errors after which stock exits
OLD = 60  # seconds
ENVIRONMENT = {"DIFF_A": "one", "diff_b": "two words", "DIFF_EMPTY": "", "DIFF_UTF8": "h\u00e9"}
IMPORTED = "MAIL_CONFIG MAIL_LOGTAG POSTLOG_SERVICE POSTLOG_HOSTNAME TZ LANG=C"  # Postfix needs these


class Pair:
    """`dir` holds the tables of both servers; a relative name is in each server's own directory."""

    def __init__(self, maptype: str, service: str = "proxymap", in_a_life: int = FRESH_NAMES) -> None:
        """maptype, in_a_life: of fresh names. With one only, no log line is left out as a repetition."""
        self.maptype, self.service, self.in_a_life = maptype, service, in_a_life
        names = ", ".join(f"{{ {name} = {value} }}" for name, value in ENVIRONMENT.items())
        self.stock = StockPostfix(
            {"service_throttle_time": "1s", "import_environment": f"{IMPORTED} {names}"}
        )
        self.ours = ServerProcess(own={"src_rhs_is_file": "yes"})
        self.dir = self.stock.tables
        self.shared = self.stock.dir / "shared"  # for files that tables refer to
        (self.ours.dir / "rw").mkdir()
        give(self.ours.dir / "rw")
        (self.stock.queue_dir / "rw").mkdir()
        shutil.chown(self.stock.queue_dir / "rw", "postfix")
        self.asked = 0  # questions
        self.peers: tuple[Peer, ...] = ()
        self._serial = 0
        self._fresh: list[bytes] = []
        self._logs = self.stock.log_file, self.ours.log_file
        self._read = [0, 0]  # bytes of each that have been seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.stock.remove()
        self.ours.remove()

    # Life

    def start(self, names: Iterable[bytes]) -> None:
        """Start both anew, with these tables approved."""
        self.stop()
        listed = ", ".join("proxy:" + os.fsdecode(name).replace("$", "$$") for name in names)
        self._read = [log.stat().st_size if log.exists() else 0 for log in self._logs]
        maps = {"proxy_read_maps": listed, "proxy_write_maps": listed}
        self.stock.set(**maps)
        self.stock.start()
        self.ours.main.update(maps)
        self.ours.start("-n", self.service, env=environment(**ENVIRONMENT))
        self.connect()

    def connect(self) -> None:
        """New connections to both."""
        for peer in self.peers:
            peer.close()
        self.peers = self.stock.connect(self.service), self.ours.connect(dialect())

    def stop(self) -> None:
        self.stock.stop()
        if self.ours.alive():
            self.ours.stop(signal.SIGKILL)
            os.unlink(self.ours.path)

    def renew(self) -> None:
        """The next fresh name gets new servers: these may have died, or not have logged everything."""
        self._fresh = []

    def fresh_name(self) -> bytes:
        """The name of a table that neither server knows yet: a path below `dir`."""
        if not self._fresh:
            self._serial += 1
            shutil.rmtree(self.dir)
            self.dir.mkdir(0o755)
            self._fresh = [self._path(n) for n in range(self.in_a_life)]
            warm = f"cdb:{self.shared}/m".encode()
            self.start([*self._fresh, warm])
            if self.maptype == "cdb":
                self.ask(lookup(warm, b"a"))  # or stock dies if the first value that it finds is empty
        return self._fresh.pop()

    def path(self, name: bytes) -> Path:
        """Of the file of a table, without the suffix that its type gives it."""
        return Path(os.fsdecode(name.partition(b":")[2]))

    def cool(self) -> None:
        """Make the new files in `dir` old: stock waits until a source is."""
        now = time.time()
        for path in self.dir.iterdir():
            if path.stat().st_mtime > now - OLD:
                os.utime(path, (now - 2 * OLD, now - 2 * OLD))

    def _path(self, number: int) -> bytes:
        place = "rw" if self.service == "proxywrite" else self.dir
        return f"{self.maptype}:{place}/{self._serial}-{number}".encode()

    # Questions

    def ask(self, request: bytes) -> tuple[Attributes | None, Attributes]:
        """What stock and ours reply; None: stock hung up instead, since it died of the request."""
        stock, ours = self.peers
        self.asked += 1
        ours.send(request)
        return ask_unless_it_dies(stock, request), ours.reply()

    # Logs

    def warnings(self) -> tuple[set[str], set[str]]:
        """What stock and ours have logged since the last time, without process names; ASCII only."""
        mark = f"static:mark-{self.asked}"
        self.ask(lookup(mark.encode(), b""))
        return (
            self._lines(0, mark, r"^.*? postfix/\S+\[\d+\]: "),
            self._lines(1, mark, r"^\S+\[\d+\]: "),
        )

    def _lines(self, which: int, mark: str, process: str) -> set[str]:
        log = self._logs[which]

        def new() -> bytes:
            with contextlib.suppress(FileNotFoundError), log.open("rb") as stream:
                stream.seek(self._read[which])
                return stream.read()
            return b""

        wait_until(lambda: f"list proxy:{mark} in".encode() in new(), f"{mark} in {log}", pause=0.001)
        text = new().decode(errors="replace")
        self._read[which] = log.stat().st_size
        lines = {re.sub(r"(?:[^ -~]|\?)+", "?", re.sub(process, "", line)) for line in text.splitlines()}
        return {line for line in lines if line.startswith(("warning: ", "error: ")) and mark not in line}


def ask_unless_it_dies(peer: Peer, request: bytes) -> Attributes | None:
    try:
        return peer.ask(request)
    except (AssertionError, ConnectionError):
        return None
