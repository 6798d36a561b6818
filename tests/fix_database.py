"""fix_database - what the private MariaDB and the private PostgreSQL of the tests have in common

    with MariaDB() as server:
        server.execute("CREATE TABLE t (k VARCHAR(100), v VARCHAR(100))")
        path = server.write_cf(folder / "t.cf", query="SELECT v FROM t WHERE k = '%s'")

Each lies in a folder of its own under /tmp, listens there and on a port of
127.0.0.1, and runs as the unprivileged user of its package (as the tester where
the tester is not root). It has the database `mail`, to which the user `pm` may
log in with PASSWORD. Sockets are open to mail_owner. stop() and the like end
only what start() has started, by its process number.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

from fix_server import wait_until
from fix_tls import Certificates

OWN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of make asan
START_LIMIT = 60.0  # seconds; for a machine that is very busy
STOP_LIMIT = 60.0
DATABASE, USER, PASSWORD = "mail", "pm", "kept secret 7"


class PrivateDatabase:
    """A server process with a data folder; a subclass says which. Not started yet."""

    maptype: ClassVar[str]
    owner: ClassVar[str]  # the user of its package

    def __init__(self, *options: str) -> None:
        """options: more of the server's command line."""
        self.dir = Path(tempfile.mkdtemp(prefix="pm-db-", dir="/tmp"))
        self.dir.chmod(0o755)
        self.data = self.dir / "data"
        self.log_file = self.dir / "log"
        self.port = free_port()
        self.options = list(options)
        self.process: subprocess.Popen[bytes] | None = None
        self.certificates = Certificates(self.dir / "tls")
        self._give_away()
        self._initialise()

    # What a subclass says

    def _initialise(self) -> None:
        """Make the data folder."""
        raise NotImplementedError

    def _command(self) -> list[str]:
        """What the server is started with."""
        raise NotImplementedError

    def _client(self, database: str) -> list[str]:
        """A client that reads SQL, as the administrator over the socket."""
        raise NotImplementedError

    def _first_sql(self) -> Sequence[str]:
        """What makes the database and its user."""
        raise NotImplementedError

    @property
    def socket(self) -> str:
        """What follows `unix:` in the parameter hosts."""
        raise NotImplementedError

    @property
    def socket_file(self) -> str:
        """The socket itself."""
        raise NotImplementedError

    def address(self) -> str:
        """The server by its address: another host than by its socket."""
        return f"127.0.0.1:{self.port}"

    def connections(self, user: str = USER) -> int:
        """How many connections a user has now."""
        raise NotImplementedError

    def end_connections(self) -> None:
        """Have the server end all connections of USER, as an administrator may."""
        raise NotImplementedError

    # Life

    def start(self) -> Self:
        """Start, and wait until it answers."""
        assert self.process is None, "already started"
        first = not (self.dir / "started").exists()
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir,
                start_new_session=True, env=OWN, **self._identity(),
            )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self._command()[0]} does not start:\n{self.log()}")
            time.sleep(0.02)
        if first:
            for sql in self._first_sql():
                self.execute(sql, database="")
            (self.dir / "started").touch()
        return self

    def answers(self) -> bool:
        done = subprocess.run(self._client(""), input=b"SELECT 1;", capture_output=True, env=OWN)
        return done.returncode == 0

    def stop(self) -> None:
        """End it in good order."""
        self._end(self._stop_signal)

    _stop_signal: ClassVar[int] = signal.SIGTERM

    def kill(self) -> None:
        """End it at once, with all that it has started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its session is its own
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It and its children stand still, until resume()."""
        self._tell_all(signal.SIGSTOP)
        wait_until(lambda: all(map(stands_still, self._pids())), "the standstill")

    def resume(self) -> None:
        self._tell_all(signal.SIGCONT)

    def _tell_all(self, number: int) -> None:
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):  # a child may have ended since
                os.kill(pid, number)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(STOP_LIMIT)
            self.process = None

    def _pids(self) -> list[int]:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def remove(self) -> None:
        """Kill it, and remove its folder."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start() if self.process is None else self

    def __exit__(self, *details: object) -> None:
        self.remove()

    # Using it

    def execute(self, sql: str, database: str = DATABASE) -> list[list[str]]:
        """Run SQL as the administrator; the rows, as text."""
        done = subprocess.run(self._client(database), input=sql.encode(), capture_output=True, env=OWN)
        if done.returncode:
            raise RuntimeError(f"{sql:.1000}\n{done.stderr.decode()}")
        return [line.split("\t") for line in done.stdout.decode(errors="surrogateescape").splitlines()]

    def parameters(self, **others: str) -> dict[str, str]:
        """Of a .cf file: the socket, the user, the database, and these."""
        return {
            "hosts": f"unix:{self.socket}", "user": USER, "password": PASSWORD, "dbname": DATABASE,
        } | others  # fmt: skip

    def write_cf(self, path: Path, **others: str) -> Path:
        """Write a .cf file: parameters() with these."""
        lines = [f"{name} = {value}\n" for name, value in self.parameters(**others).items()]
        path.write_text("".join(lines), errors="surrogateescape")
        path.chmod(0o644)
        old = time.time() - 60  # Postfix waits until such a file is older than a second or two
        os.utime(path, (old, old))
        return path

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # As another user

    def _identity(self) -> dict[str, object]:
        """Keywords for subprocess, so that a program runs as the unprivileged user."""
        if os.geteuid() != 0:
            return {}
        who = pwd.getpwnam(self.owner)
        return {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}

    def _give_away(self) -> None:
        """All in the folder to the unprivileged user."""
        if os.geteuid() == 0:
            for path in (self.dir, *self.dir.rglob("*")):
                shutil.chown(path, self.owner, pwd.getpwnam(self.owner).pw_gid)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, cwd=self.dir, env=OWN, **self._identity())  # type: ignore[call-overload]
        if done.returncode:
            raise RuntimeError(f"{command}\n{done.stdout.decode()}{done.stderr.decode()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def stands_still(pid: int) -> bool:
    """Are all threads of the process stopped, or is it gone? The signal is sent to one of them."""
    try:
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0]
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return not os.path.exists(f"/proc/{pid}")
    return set(states) <= set("TtZX")


@contextlib.contextmanager
def removed(server: PrivateDatabase) -> Iterator[PrivateDatabase]:
    """Start it; remove it at the end."""
    try:
        yield server.start()
    finally:
        server.remove()
