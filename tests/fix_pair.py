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

from fix_postfix import NUL_WARNING, StockPostfix, dialect
from fix_server import Peer, ServerProcess, environment, give, lookup, request, wait_until
from oracle import Attributes, encode, take_list

FRESH_NAMES = 4  # for one life: with three flag words each, below the 13 errors after which stock exits
OLD = 60  # seconds
ENVIRONMENT = {"DIFF_A": "one", "diff_b": "two words", "DIFF_EMPTY": "", "DIFF_UTF8": "h\u00e9"}
IMPORTED = "MAIL_CONFIG MAIL_LOGTAG POSTLOG_SERVICE POSTLOG_HOSTNAME TZ LANG=C"  # Postfix needs these


SURROGATE = 1 << 22  # in replies of ours and of 3.12: the table cannot be opened
SURROGATE_3_11 = 1


class Client:
    """Asks with the manners of Postfix 3.11: opens a table first, then sends the flags of its latest reply.

    Requests are of 3.6, one at a time; so are replies, and their flags are in `flags`. tables.md 2.3.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer, self.socket = peer, peer.socket
        self._latest: dict[tuple[bytes, bytes], bytes] = {}  # flags of (table, flags it was opened with)
        self._asked = b"", (b"", b"")
        self.flags = 0

    def send(self, data: bytes) -> None:
        taken = take_list(data)
        assert taken is not None
        (_, kind), (_, table), (_, flags), *rest = taken[0]
        opened = table, flags
        if kind != b"open" and opened not in self._latest:
            self.ask(request("open", table, flags=flags))
        words = [(b"instance_flags", flags)]
        if kind != b"open":
            words.append((b"flags", self._latest[opened]))
        self.socket.sendall(encode([(b"request", kind), (b"table", table), *words, *rest]))
        self._asked = kind, opened

    def reply(self) -> Attributes:
        reply = self._peer.reply()
        kind, opened = self._asked
        self._latest[opened] = word = dict(reply).get(b"flags", b"0")
        self.flags = flags_of_3_11(int(word))
        if kind == b"open":
            return [(name, b"%d" % self.flags if name == b"flags" else value) for name, value in reply]
        return [pair for pair in reply if pair[0] != b"flags"]

    def ask(self, data: bytes) -> Attributes:
        self.send(data)
        return self.reply()

    def close(self) -> None:
        self._peer.close()


def flags_of_3_11(word: int) -> int:
    """The same, with the bit of a table that cannot be opened where 3.11 has it; clients obey neither."""
    return word & ~SURROGATE | SURROGATE_3_11 if word & SURROGATE else word


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
        self.peers: tuple[Peer | Client, ...] = ()
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
        if dialect() == "3.11":
            self.peers = tuple(map(Client, self.peers))

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

    def cool(self, folder: Path | None = None) -> None:
        """Make the new files in `dir`, or in that folder, old: stock waits until a source is."""
        now = time.time()
        for path in (folder or self.dir).iterdir():
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
        told = {line for line in lines if line.startswith(("warning: ", "error: ")) and mark not in line}
        return {line for line in told if not line.endswith(NUL_WARNING)}


def ask_unless_it_dies(peer: Peer | Client, request: bytes) -> Attributes | None:
    try:
        return peer.ask(request)
    except (AssertionError, ConnectionError):
        return None
