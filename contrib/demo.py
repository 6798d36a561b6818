"""demo - build two tables, write rules, serve them, ask them all: what `make demo` shows

Runs the real commands in a folder of its own, prints each with its output, and
removes everything. Needs no Postfix and no root.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USERS = 100_000
LOOKUPS = 200_000

MAIN_CF = """\
# All that proxymap reads of a main.cf, in five lines.
compatibility_level = 3.7
queue_directory = {folder}
proxy_read_maps = proxy:cdb:{folder}/virtual proxy:lmdb:{folder}/aliases
    proxy:regexp:{folder}/headers proxy:cidr:{folder}/clients
"""

HEADERS = """\
/^Subject:.*lottery/            REJECT no lottery here
/^X-Mailer: ([A-Za-z]+) ([0-9]+)/  WARN mailer $1, version $2
"""

CLIENTS = """\
192.0.2.0/28    OK
192.0.2.0/24    REJECT not from this network
2001:db8::/32   DUNNO
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="pm-demo-") as name:
        folder = Path(name)
        (folder / "main.cf").write_text(MAIN_CF.format(folder=folder))
        write_sources(folder)
        say(f"Two tables of {USERS:,} users, from postmap's source text:")
        show(["proxymapctl", "build", f"cdb:{folder}/virtual"])
        show(["proxymapctl", "build", f"lmdb:{folder}/aliases"])
        server = start_server(folder)
        try:
            ask(folder)
            rate(folder, server.pid)
        finally:
            server.terminate()
            status = server.wait(20)
    say(f"The server was told to stop, and left with exit status {status}.")
    return status


def write_sources(folder: Path) -> None:
    with open(folder / "virtual", "w") as virtual, open(folder / "aliases", "w") as aliases:
        for i in range(USERS):
            virtual.write(f"user{i}@example.com  box{i}@store{i % 10}.example.net\n")
            aliases.write(f"user{i}  user{i}@example.com\n")
    (folder / "headers").write_text(HEADERS)
    (folder / "clients").write_text(CLIENTS)


def start_server(folder: Path) -> subprocess.Popen[bytes]:
    command = ["proxymap", "--listen", f"unix:{folder}/proxymap", "--config-directory", str(folder)]
    if os.geteuid() == 0:  # which the server does not stay
        shutil.chown(folder, "nobody")
        command += ["--user", "nobody"]
    say("Serve them, with this main.cf:")
    print((folder / "main.cf").read_text(), end="")
    print("$", shlex.join(command), "&")
    server = subprocess.Popen(command)
    deadline = time.monotonic() + 20
    while not (folder / "proxymap").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the server did not start")
        time.sleep(0.02)
    return server


def ask(folder: Path) -> None:
    query = ["proxymapctl", "--socket", f"{folder}/proxymap", "query"]
    say("Found:")
    show([*query, f"cdb:{folder}/virtual", "user4711@example.com"], 0)
    show([*query, f"lmdb:{folder}/aliases", "user42"], 0)
    say("Rules, by regular expression and by network; which of them was it?")
    show([*query, "--explain", f"regexp:{folder}/headers", "X-Mailer: Pine 4"], 0)
    show([*query, "--explain", f"cidr:{folder}/clients", "192.0.2.77"], 0)
    say("Not found:")
    show([*query, f"cdb:{folder}/virtual", "nobody@example.com"], 1)
    show([*query, f"lmdb:{folder}/aliases", "nobody"], 1)
    say("Not approved by main.cf:")
    show([*query, "cdb:/etc/secrets", "root"], 77)


def rate(folder: Path, pid: int) -> None:
    say(f"Eight clients, one request in flight each, {LOOKUPS:,} lookups:")
    (folder / "keys").write_text("".join(f"user{i}@example.com\n" for i in range(0, 2 * USERS, 7)))
    command = [ROOT / "build/load", f"{folder}/proxymap", f"cdb:{folder}/virtual", f"{folder}/keys"]
    before = cpu_seconds(pid)
    result = json.loads(subprocess.check_output([*command, "8", str(LOOKUPS)]))
    cpu_us = (cpu_seconds(pid) - before) * 1e6 / LOOKUPS
    print(
        f"{result['per_second']:,} lookups per second, half of them within {result['p50_us']} µs,"
        f" 99 % within {result['p99_us']} µs; {cpu_us:.1f} µs of CPU each;"
        f" {result['ok']:,} found, {result['nokey']:,} not found"
    )


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(command: list[str], expected: int = 0) -> None:
    """Run a command as a user would; SystemExit if it does not end as expected."""
    print("$", shlex.join(command), flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        print(f"(exit status {status})", flush=True)
    if status != expected:
        raise SystemExit(f"expected exit status {expected}")


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    os.environ.pop("MAIL_CONFIG", None)
    sys.exit(main())
