"""start - from exec to the first reply, ours and Postfix's own, in alternating rounds

Each is started as master(8) starts it: as root, with the descriptors, the
environment and the arguments that a child gets. The clock runs from the start
of the process until a client, which has waited from the beginning, has the
greeting and one reply from a cdb table. Ours is measured twice: with bytecode,
as an installation has it, and without. Each is a virtual environment of its
own, in which there is nothing else: that of the developer loads more at its start.

By hand, beside another tree that is built: start.py --beside DIR --rounds 100
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from servers import ROOT

from proxymap.server.launch import open_to_all

LIMIT = 60.0  # seconds for one start; to end a broken run
END_LIMIT = 10.0  # seconds for its end
GREETING = b"protocol\0proxymap_protocol\0\0"
REPLY = b"status\x000\0value\0value\0\0"
ENTRIES = 1000


def measure(rounds: int, did: Callable[[str], None], beside: Path | None = None) -> dict[str, list[float]]:
    """Milliseconds, by server. beside: another tree, which is measured too."""
    figures: dict[str, list[float]] = {}
    with configured() as folder:
        servers = programs(folder)
        if beside is not None:
            servers["the other tree"] = installed(folder / "beside", beside, bytecode=True)
        for path in servers.values():
            first_reply(path, folder)  # the files are in memory from here on
        for _ in range(rounds):
            for name, path in servers.items():
                figures.setdefault(name, []).append(round(first_reply(path, folder), 2))
                did(f"start: {name}")
    return figures


@contextlib.contextmanager
def configured() -> Iterator[Path]:
    """A folder with main.cf and the table cdb:FOLDER/t, open to mail_owner."""
    from proxymap.ctl.builder import build

    with tempfile.TemporaryDirectory(prefix="pm-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "t").write_text("key value\n" + "".join(f"key{i} value{i}\n" for i in range(1, ENTRIES)))
        build("cdb", str(folder / "t"))
        (folder / "t.cdb").chmod(0o644)
        (folder / "main.cf").write_text(
            f"compatibility_level = 3.6\nqueue_directory = {folder}\nmyhostname = test.invalid\n"
            f"inet_interfaces = loopback-only\nproxy_read_maps = proxy:cdb:{folder}/t\n"
        )
        yield folder


def programs(folder: Path) -> dict[str, Path]:
    """What to start, by name; the stock server only where there is one."""
    from fix_postfix import daemon_directory, unavailable

    found = {
        "ours": installed(folder / "with", ROOT, bytecode=True),
        "ours, no bytecode": installed(folder / "without", ROOT, bytecode=False),
    }
    if unavailable() is None:
        found["stock"] = Path(daemon_directory(), "proxymap")
    return found


def installed(folder: Path, tree: Path, *, bytecode: bool) -> Path:
    """A virtual environment with a copy of the package and its executable, as an installation has them."""
    subprocess.run([interpreter(), "-m", "venv", "--without-pip", folder], check=True)
    packages = next((folder / "lib").glob("python*/site-packages"))
    leave = shutil.ignore_patterns("__pycache__", "*.pyx", "*.pxd", "*.c")
    shutil.copytree(tree / "proxymap", packages / "proxymap", ignore=leave)
    if bytecode:
        compileall.compile_dir(packages, quiet=1)
    program = folder / "bin" / "proxymap"
    program.write_text(
        f"#!{folder}/bin/python\nimport sys\n"
        "sys.dont_write_bytecode = True\nfrom proxymap.main import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    return program


def interpreter() -> str:
    """This Python, or the system's of the same version: on a mail host mail_owner may read it."""
    system = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    ours = getattr(sys, "_base_executable", sys.executable)
    return ours if open_to_all(os.__file__) or not os.access(system, os.X_OK) else system


def first_reply(program: Path, folder: Path) -> float:
    """Milliseconds until a new process has answered; it is gone when this returns."""
    request = f"request\0lookup\0table\0cdb:{folder}/t\0flags\x0064\0key\0key\0\0".encode()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(folder))
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(LIMIT)
        client.connect(str(folder / "s"))
        started = time.perf_counter()
        stack.enter_context(child_of_master(program, folder, listener))
        read(client, GREETING)
        client.sendall(request)
        read(client, REPLY)
        ended = time.perf_counter()
    return (ended - started) * 1000


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    """The service's socket, non-blocking as master's are."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(100)
        listener.setblocking(False)
        try:
            yield listener
        finally:
            path.unlink()


@contextlib.contextmanager
def child_of_master(program: Path, folder: Path, listener: socket.socket) -> Iterator[None]:
    """The process, started without a shell or an interpreter between; ended with its status channel."""
    status, theirs = socket.socketpair()
    flow = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    fds = [null, null, null, *flow, theirs.fileno(), listener.fileno()]  # 0 to 6
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]  # out of the way of 0 to 6
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(copies)]
    environment = {"MAIL_CONFIG": str(folder), "MAIL_LOGTAG": "postfix", "LANG": "C", "GENERATION": "17"}
    pid = os.posix_spawn(program, ["proxymap", "-t", "unix", "-u"], environment, file_actions=actions)
    for fd in (*copies, *flow, null):
        os.close(fd)
    theirs.close()
    try:
        yield
    finally:
        status.close()  # master's word that this child is to end
        reap(pid)


def reap(pid: int) -> None:
    """Wait for the end of a child; a deadline ends it."""
    deadline = time.monotonic() + END_LIMIT
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise SystemExit("a process did not end with its status channel")
        time.sleep(0.002)


def read(client: socket.socket, expected: bytes) -> None:
    """Read just that; anything else ends the run."""
    data = b""
    while len(data) < len(expected):
        piece = client.recv(len(expected) - len(data))
        if not piece:
            break
        data += piece
    if data != expected:
        raise SystemExit(f"expected {expected!r}, got {data!r}")


def main() -> None:
    """Medians and quartiles on standard output."""
    parser = argparse.ArgumentParser(description="The time from exec to the first reply.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another tree, measured too")
    options = parser.parse_args()
    for name, figures in measure(options.rounds, lambda text: None, options.beside).items():
        low, middle, high = statistics.quantiles(figures, n=4)
        print(f"{name:20} {middle:7.2f} ms, quartiles {low:.2f} and {high:.2f}, least {min(figures):.2f}")


if __name__ == "__main__":
    main()
