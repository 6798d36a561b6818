"""fix_postfix - a private Postfix: the stock proxymap under the stock master

    with StockPostfix({"proxy_read_maps": "proxy:cdb:$tables/v"}) as postfix:
        client = Client(postfix.socket("proxymap"))

Only the services named in MASTER run, and no network port is open. Everything
lies in a directory of its own under /tmp: pytest's directories are closed to
mail_owner, and their names are too long for a socket. master runs as our child
in a process group of its own, which stop() ends and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fix_server import OWN, Peer, wait_until, write_parameters

ROOT = Path(__file__).resolve().parent.parent
STOCK_DAEMONS = "/usr/lib/postfix/sbin"
MASTER = """\
postlog   unix-dgram n - n - 1 postlogd
proxymap  unix  -  -  n  -  -  proxymap
proxywrite unix -  -  n  -  1  proxymap
"""
QUEUE_DIRECTORIES = {"pid": 0o755, "private": 0o700, "public": 0o710}
START_LIMIT = 30.0  # seconds; for a machine that is very busy
DAEMON_LIMIT = 10.0
NUL_WARNING = "text after null byte may be ignored"  # of Postfix 3.11, where ours has nothing to say


def unavailable() -> str | None:
    """Why there can be no private Postfix here, or None."""
    if os.geteuid() != 0:
        return "a private Postfix needs root"
    for program in ("master", "proxymap"):
        if not os.access(f"{daemon_directory()}/{program}", os.X_OK):
            return "Postfix is not installed"
    return None


def type_missing(maptype: str) -> str | None:
    """Why the installed Postfix has no tables of this type, or None."""
    known = subprocess.run(["postconf", "-m"], capture_output=True, text=True).stdout.split()
    return None if maptype in known else f"the installed Postfix has no {maptype} tables"


def default(parameter: str) -> str:
    """What postconf says that it is in the Postfix that is installed; "" if there is none."""
    if shutil.which("postconf") is None:
        return ""
    return subprocess.run(["postconf", "-dh", parameter], capture_output=True, text=True).stdout.strip()


def daemon_directory() -> str:
    """Where the stock daemons are."""
    return default("daemon_directory") or STOCK_DAEMONS


@functools.cache
def release() -> tuple[int, int]:
    """Of the Postfix that is installed; (0, 0): none is."""
    found = re.match(r"(\d+)\.(\d+)", default("mail_version"))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def dialect() -> str:
    """What its clients and servers speak; those of 3.11 answer BAD to what came before."""
    return "3.11" if release() >= (3, 11) else "3.6"


def complaints(said: bytes) -> list[bytes]:
    """The lines that a tool wrote to standard error, without Debian's 3.11 on hash and btree as such."""
    deprecation = (b"hash/btree support is deprecated", b"NON_BERKELEYDB_README")
    return [line for line in said.splitlines() if not any(part in line for part in deprecation)]


def copy_dynamicmaps(folder: Path) -> None:
    """Let a configuration in this folder find the table types that are files of their own."""
    if os.path.exists("/etc/postfix/dynamicmaps.cf"):  # from 3.11 on Debian has it in meta_directory
        shutil.copy("/etc/postfix/dynamicmaps.cf", folder)


def lives(group: int) -> bool:
    """Has a process of that group not ended? A zombie has; init may leave it there for seconds."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, found, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(found) == group and state not in "ZX":
                return True
    return False


class StockPostfix:
    """A Postfix instance of its own; `dir` is open to mail_owner and holds whatever a test needs."""

    def __init__(
        self, main: Mapping[str, str] | None = None, master: str = MASTER, *, place: str = "/tmp"
    ) -> None:
        """main, master: parameters of main.cf, and the whole of master.cf. place: where `dir` is made.

        Not started yet.
        """
        self.dir = Path(tempfile.mkdtemp(prefix="pm-", dir=place))
        self.dir.chmod(0o755)
        self.config_dir = self.dir / "etc"
        self.queue_dir = self.dir / "q"
        self.data_dir = self.dir / "data"
        self.log_file = self.dir / "log"
        self.tables = self.dir / "tables"
        self._master: subprocess.Popen[bytes] | None = None
        self._peers: list[Peer] = []
        self._make_directories()
        (self.config_dir / "master.cf").write_text(master)
        self._main = {
            "compatibility_level": "3.6",
            "queue_directory": str(self.queue_dir),
            "data_directory": str(self.data_dir),
            "maillog_file": str(self.log_file),
            "maillog_file_prefixes": str(self.dir),
            "inet_interfaces": "loopback-only",
            "inet_protocols": "ipv4",
            "myhostname": "test.invalid",
            "tables": str(self.tables),
        }
        self.set(**(main or {}))

    def _make_directories(self) -> None:
        owner = pwd.getpwnam("postfix")
        for path in (self.config_dir, self.queue_dir, self.data_dir, self.tables):
            path.mkdir(mode=0o755)
        if OWN:
            write_parameters(self.config_dir / "proxymap.cf", OWN)
        copy_dynamicmaps(self.config_dir)
        os.chown(self.data_dir, owner.pw_uid, owner.pw_gid)
        for name, mode in QUEUE_DIRECTORIES.items():
            (self.queue_dir / name).mkdir()
            (self.queue_dir / name).chmod(mode)
            if name != "pid":
                os.chown(self.queue_dir / name, owner.pw_uid, owner.pw_gid)

    def set(self, **parameters: str) -> None:
        """Change parameters in main.cf; a running daemon sees them when it starts anew: reload()."""
        self._main.update(parameters)
        lines = [f"{name} = {value}\n" for name, value in self._main.items()]
        path = self.config_dir / "main.cf"
        path.write_text("".join(lines), errors="surrogateescape")
        old = time.time() - 60  # Postfix waits until main.cf is older than a second or two
        os.utime(path, (old, old))

    def socket(self, service: str = "proxymap") -> str:
        """The path of a service's socket."""
        return str(self.queue_dir / "private" / service)

    def connect(self, service: str = "proxymap") -> Peer:
        """A raw connection to a service, in the dialect that it speaks; remove() closes it."""
        path = self.socket(service)
        self._peers.append(wait_until(lambda: _peer(path), f"{path} accepts a connection"))
        return self._peers[-1]

    def postmap(self, *arguments: str, **keywords: object) -> subprocess.CompletedProcess[bytes]:
        """Run postmap with this instance's configuration."""
        command = ["postmap", "-c", str(self.config_dir), *arguments]
        return subprocess.run(command, capture_output=True, **keywords)  # type: ignore[call-overload,no-any-return]

    def log(self) -> str:
        """What the daemons have logged so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def start(self) -> None:
        """Start master, and wait until the services accept connections."""
        assert self._master is None, "already started"
        self._master = subprocess.Popen(
            [f"{daemon_directory()}/master", "-d", "-c", str(self.config_dir)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT
        while not _accepts(self.socket()):
            if self._master.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"master does not start; its log:\n{self.log()}")
            time.sleep(0.01)

    def reload(self) -> None:
        """What `postfix reload` does; daemons that serve nobody end at once."""
        assert self._master is not None, "not started"
        self._master.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End master, which ends its children, and wait for all: one that lives on has its sockets."""
        if self._master is None:
            return
        group = self._master.pid  # its session is its own: see start()
        self._master.terminate()
        try:
            self._master.wait(DAEMON_LIMIT)
        finally:
            deadline = time.monotonic() + DAEMON_LIMIT
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            self._master.wait()
            while lives(group) and time.monotonic() < deadline:
                time.sleep(0.001)
            self._master = None

    def remove(self) -> None:
        """Stop, and remove the whole directory."""
        for peer in self._peers:
            peer.close()
        self.stop()
        for _ in range(3):  # a daemon that is just ending may still write to its log
            shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self) -> StockPostfix:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.remove()


def _peer(path: str) -> Peer | None:
    """A connection; None: start() waits for proxymap's socket alone, and this one is not listened on yet."""
    with contextlib.suppress(ConnectionRefusedError):
        return Peer(path, dialect=dialect())
    return None


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(path)
        return True
    return False


@pytest.fixture(scope="module")
def stock_postfix() -> Iterator[StockPostfix]:
    """A running Postfix for a module."""
    if reason := unavailable():
        pytest.skip(reason)
    with StockPostfix() as postfix:
        yield postfix


@pytest.fixture(scope="module")
def command() -> Iterator[str]:
    """Our executable, as master.cf's command column names it."""
    folder = Path(tempfile.mkdtemp(prefix="pm-bin-", dir="/tmp"))
    folder.chmod(0o755)
    program = folder / "proxymap"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from proxymap.main import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    yield os.path.relpath(program, daemon_directory())
    shutil.rmtree(folder)
