"""fix_server - our daemon as a process, raw connections to it, and what /proc says of it

    with ServerProcess() as server:
        table = server.cdb("t", {b"k": b"v"})
        server.start()
        with server.connect() as peer:
            assert peer.ask(lookup(table, b"k")) == [(b"status", b"0"), (b"value", b"v")]

Every table that is made here is approved. Waiting is generous: a limit is there
to end a broken run, not to measure.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cdbx
import lmdb
from oracle import FIELDS, Attributes, encode, take_list

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 30.0  # seconds; for a machine that is very busy
GREETING = b"protocol\0proxymap_protocol\0\0"
DIALECTS = ("3.6", "3.11")
USER = "daemon" if os.geteuid() == 0 else None  # as whom the daemon runs when root runs the tests
# In each proxymap.cf: who is not root sees nothing of a process that keeps its memory to itself.
SANDBOXED = os.environ.get("PROXYMAP_TEST_SANDBOX") == "yes"
OWN = {**({} if USER else {"core_dumps": "yes"}), **({"sandbox": "yes"} if SANDBOXED else {})}

# Dictionary flags, as tests spell them.
TRY0, TRY1, FIXED, PATTERN, LOCK = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6
FOLD_FIX, OPEN_LOCK, BULK_UPDATE, MULTI_WRITER = 1 << 14, 1 << 16, 1 << 17, 1 << 18


def request(kind: str, table: bytes, dialect: str = "3.6", **fields: bytes | int) -> bytes:
    """A request as a client of that dialect sends it; flags and instance_flags are LOCK unless given."""
    attributes = [(b"request", kind.encode()), (b"table", table)]
    for name in FIELDS[dialect][kind]:
        value = fields.get(name, LOCK if name.endswith("flags") else b"")
        attributes.append((name.encode(), b"%d" % value if isinstance(value, int) else value))
    return encode(attributes)


def lookup(table: bytes, key: bytes, dialect: str = "3.6", **fields: bytes | int) -> bytes:
    return request("lookup", table, dialect, key=key, **fields)


def found(value: bytes) -> Attributes:
    """The 3.6 reply to a lookup that finds value."""
    return [(b"status", b"0"), (b"value", value)]


NOT_FOUND: Attributes = [(b"status", b"1"), (b"value", b"")]
BARE_BAD: Attributes = [(b"status", b"3")]


def wait_until(true: Callable[[], Any], what: str, limit: float = LIMIT, pause: float = 0.01) -> Any:
    deadline = time.monotonic() + limit
    while not (result := true()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit} s in vain: {what}")
        time.sleep(pause)
    return result


def translate(data: bytes) -> tuple[bytes, list[bytes]]:
    """The same requests in the dialect of 3.11, and what each asks for; what is malformed stays as it is."""
    lists, kinds = [], []
    while data and (taken := take_list(data)) is not None:
        attributes, data = taken
        kind = dict(attributes).get(b"request", b"")
        lists.append(encode(_with_instance_flags(attributes, kind)))
        kinds.append(kind)
    return b"".join(lists) + data, kinds


def _with_instance_flags(attributes: Attributes, kind: bytes) -> Attributes:
    if kind == b"open":
        return [(b"instance_flags" if name == b"flags" else name, value) for name, value in attributes]
    return [
        pair
        for name, value in attributes
        for pair in ([(b"instance_flags", value)] if name == b"flags" else []) + [(name, value)]
    ]


class Peer:
    """A raw connection: bytes out, attribute lists in.

    dialect: "3.11" translates requests of 3.6 on their way out, and leaves the flags out of replies
    that had none before, so that one test suits every release.
    """

    def __init__(self, path: str, greeted: bool = True, dialect: str = "3.6") -> None:
        self.dialect = dialect
        self._asked: list[bytes] = []  # of translated requests: what for
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT)
        self.unread = b""
        self.socket.connect(path)
        if greeted:
            assert self.read_exactly(len(GREETING)) == GREETING

    def send(self, data: bytes) -> None:
        if self.dialect != "3.6":
            data, kinds = translate(data)
            self._asked += kinds
        self.socket.sendall(data)

    def send_slowly(self, data: bytes) -> None:
        """One byte a piece."""
        for i in range(len(data)):
            self.socket.sendall(data[i : i + 1])

    def read_exactly(self, count: int) -> bytes:
        while len(self.unread) < count:
            data = self.socket.recv(1 << 16)
            assert data, f"the server hung up after {self.unread!r:.200}"
            self.unread += data
        data, self.unread = self.unread[:count], self.unread[count:]
        return data

    def reply(self) -> Attributes:
        """The next reply."""
        while (taken := take_list(self.unread)) is None:
            data = self.socket.recv(1 << 16)
            assert data, f"the server hung up after {self.unread!r:.200}"
            self.unread += data
        reply, self.unread = taken
        if self._asked and self._asked.pop(0) != b"open":
            return [pair for pair in reply if pair[0] != b"flags"]
        return reply

    def answered(self) -> bool:
        """Whether there is something to read, right now."""
        return bool(self.unread or select.select([self.socket], [], [], 0)[0])

    def ask(self, data: bytes) -> Attributes:
        self.send(data)
        return self.reply()

    def rest(self) -> bytes:
        """All that comes until the server hangs up."""
        pieces, self.unread = [self.unread], b""
        while data := self.socket.recv(1 << 20):
            pieces.append(data)
        return b"".join(pieces)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ServerProcess:
    """`python -m proxymap` on a main.cf of its own. Everything lies in `dir`, which remove() removes."""

    def __init__(
        self,
        main: Mapping[str, str] | None = None,
        *,
        own: Mapping[str, str] | None = None,
        greeted: bool = True,
    ) -> None:
        """main, own: parameters of main.cf and of proxymap.cf. Not started yet."""
        self.dir = Path(tempfile.mkdtemp(prefix="pm-", dir="/tmp"))  # short: a socket's path is limited
        give(self.dir)
        self.path = str(self.dir / "s")
        self.log_file = self.dir / "log"
        self.greeted = greeted
        self.approved: list[str] = []
        self.main = {
            "compatibility_level": "3.6",
            "queue_directory": str(self.dir),
            "myhostname": "test.invalid",
            **({"mail_owner": USER} if USER else {}),
            **(main or {}),
        }
        self.own = {**OWN, **(own or {})}
        self.env: dict[str, str] = {}  # more of the environment
        self.process: subprocess.Popen[bytes] | None = None
        self._peers: list[Peer] = []

    # Tables

    def approve(self, *names: bytes | str) -> None:
        self.approved += [os.fsdecode(name) for name in names]

    def cdb(self, name: str, records: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> bytes:
        """Build a cdb table and approve it; returns its type:name."""
        write_cdb(self.dir / f"{name}.cdb", records)
        self.approve(f"cdb:{self.dir}/{name}")
        return f"cdb:{self.dir}/{name}".encode()

    def lmdb(self, name: str, records: Mapping[bytes, bytes]) -> bytes:
        """The same for lmdb; keys and values are stored as they are given."""
        write_lmdb(self.dir / f"{name}.lmdb", records)
        give(self.dir / f"{name}.lmdb")
        self.approve(f"lmdb:{self.dir}/{name}")
        return f"lmdb:{self.dir}/{name}".encode()

    def beside_postfix(self, version: str, **defaults: str) -> None:
        """Have it find a Postfix of that version, with these defaults."""
        lines = "".join(
            f"{name} = {value}\n" for name, value in {"mail_version": version, **defaults}.items()
        )
        (self.dir / "defaults").write_text(lines)
        (self.dir / "postconf").write_text(f"#!/bin/sh\ncat {self.dir}/defaults\n")
        (self.dir / "postconf").chmod(0o755)
        self.main["command_directory"] = str(self.dir)

    # Life

    def write_config(self) -> None:
        maps = {
            name: ", ".join("proxy:" + table for table in self.approved)
            for name in ("proxy_read_maps", "proxy_write_maps")
        }
        write_parameters(self.dir / "main.cf", maps | self.main)
        write_parameters(self.dir / "proxymap.cf", self.own)

    def command(self, *arguments: str) -> list[str]:
        return [
            *(sys.executable, "-m", "proxymap", "--listen", f"unix:{self.path}"),
            *("--config-directory", str(self.dir), *arguments),
        ]

    def start(self, *arguments: str, wait: bool = True, **keywords: Any) -> Self:
        """Write the configuration and start. keywords go to Popen."""
        self.write_config()
        keywords.setdefault("env", environment(**self.env))
        with self.log_file.open("ab") as log:
            keywords.setdefault("stderr", log)
            self.process = subprocess.Popen(self.command(*arguments), stdin=subprocess.DEVNULL, **keywords)
        if wait:
            wait_until(lambda: os.path.exists(self.path) or not self.alive(), "the server's socket")
            assert self.alive(), self.log()
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; returns its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def remove(self) -> None:
        for peer in self._peers:
            peer.close()
        if self.alive():
            assert self.process is not None
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    # Talking to it, looking at it

    def connect(self, dialect: str = "3.6") -> Peer:
        """A connection, which remove() closes if nobody has before."""
        self._peers.append(Peer(self.path, self.greeted, dialect))
        return self._peers[-1]

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_lines(self) -> list[str]:
        """The log without the process's name and number, and without the line on the sandbox of OWN."""
        lines = [re.sub(r"^\S+\[\d+\]: ", "", line) for line in self.log().splitlines()]
        return [line for line in lines if not ("sandbox" in OWN and line.startswith("sandbox: Landlock"))]

    def wait_log(self, text: str) -> None:
        wait_until(lambda: text in self.log(), f"{text!r} in the log")

    def resident(self) -> int:
        """Bytes of memory in use."""
        return self._memory("VmRSS")

    def peak(self) -> int:
        """The most that it ever was."""
        return self._memory("VmHWM")

    def _memory(self, field: str) -> int:
        match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert match is not None
        return int(match[1]) * 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def limit(self, **soft: int) -> None:
        """Set limits of resources, such as nofile=10. As the user that the daemon is: no other may."""
        options = [f"--{name}={value}:" for name, value in soft.items()]
        group = pwd.getpwnam(USER).pw_gid if USER else None
        subprocess.run(["prlimit", "--pid", str(self.pid), *options], check=True, user=USER, group=group)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment(**more: str) -> dict[str, str]:
    """What the daemon is started with: nothing of the tester's that it would heed."""
    drop = ("MAIL_CONFIG", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def as_user() -> list[str]:
    """What has the daemon run as USER, whatever its main.cf says."""
    return ["--user", USER] if USER else []


def give(*paths: Path | str) -> None:
    """Let these be the daemon's own."""
    if USER:
        for path in paths:
            shutil.chown(path, USER)


def write_parameters(path: Path, parameters: Mapping[str, str]) -> None:
    text = "".join(f"{name} = {value}\n" for name, value in parameters.items())
    path.write_text(text, errors="surrogateescape")


def write_cdb(path: Path, records: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> None:
    """A new file, put in place by a rename, as postmap does."""
    new = path.with_suffix(".new")
    with new.open("w+b") as file:
        maker = cdbx.CDB.make(file, mmap=False)
        for key, value in records.items() if isinstance(records, Mapping) else records:
            maker.add(key, value)
        maker.commit()
        file.flush()
    new.rename(path)


def write_lmdb(path: Path, records: Mapping[bytes, bytes]) -> None:
    with (
        lmdb.open(str(path), subdir=False, map_size=64 << 20, lock=False) as env,
        env.begin(write=True) as txn,
    ):
        for key, value in records.items():
            txn.put(key, value)


@contextlib.contextmanager
def peers(server: ServerProcess, count: int) -> Iterator[list[Peer]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.connect()) for _ in range(count)]


def ask_at_once(clients: list[Peer], question: bytes, expected: Attributes) -> None:
    for peer in clients:
        peer.send(question)
    for peer in clients:
        assert peer.reply() == expected


def can_lock(file: Path, kind: str = "EX") -> bool:
    """Could another process, as Postfix does it?"""
    script = f"import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_{kind} | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", script, str(file)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
