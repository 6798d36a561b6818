"""demo_sql - a private MariaDB and PostgreSQL, and tables over both: what `make demo-sql` shows

Starts whichever of the two is installed, in a folder of its own (the server
programs are those that the tests use), serves a table over each, shows the pool
at work and what an outage looks like, and removes everything. Needs no Postfix.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo import ROOT, say, show

sys.path.insert(0, str(ROOT / "tests"))  # the private database servers

import fix_mariadb
import fix_pgsql
from fix_database import PrivateDatabase
from fix_sql import fill_many

USERS = 100_000
CLIENTS = 32
SECONDS = 2
BACK_LIMIT = 30.0  # seconds

MAIN_CF = """\
compatibility_level = 3.7
queue_directory = {folder}
mail_owner = {owner}
proxy_read_maps = {maps}
"""
CF = """\
hosts = unix:{socket}
user = pm
password = {password}
dbname = mail
query = SELECT v FROM many WHERE k = '%s'
domain = example.com
"""


def main() -> int:
    kinds = [(fix_mariadb, fix_mariadb.MariaDB), (fix_pgsql, fix_pgsql.PostgreSQL)]
    usable = [kind for module, kind in kinds if module.unavailable() is None]
    for module, _ in kinds:
        if reason := module.unavailable():
            print(f"Left out. {reason} (Debian: apt install mariadb-server postgresql)")
    databases = [start_database(kind) for kind in usable]
    try:
        return demonstrate(databases) if databases else 1
    finally:
        for database in databases:
            database.remove()


def start_database(kind: type[PrivateDatabase]) -> PrivateDatabase:
    say(f"A private {kind.__name__} with a table of {USERS:,} users.")
    database = kind().start()
    fill_many(database, USERS)
    return database


def demonstrate(databases: list[PrivateDatabase]) -> int:
    with tempfile.TemporaryDirectory(prefix="pm-demo-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        tables = [write_table(folder, database) for database in databases]
        server = start_server(folder, tables)
        try:
            for table, database in zip(tables, databases, strict=True):
                ask(folder, table)
                rate(folder, table, database)
            outage(folder, tables[0], databases[0])
        finally:
            server.terminate()
            status = server.wait(20)
    say(f"The server was told to stop, and left with exit status {status}.")
    return status


def write_table(folder: Path, database: PrivateDatabase) -> str:
    path = folder / f"{database.maptype}.cf"
    path.write_text(CF.format(socket=database.socket, password=database.parameters()["password"]))
    print(f"$ cat {path}\n{path.read_text()}", end="")
    return f"{database.maptype}:{path}"


def start_server(folder: Path, tables: list[str]) -> subprocess.Popen[bytes]:
    owner = "nobody" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
    maps = " ".join(f"proxy:{table}" for table in tables)
    (folder / "main.cf").write_text(MAIN_CF.format(folder=folder, owner=owner, maps=maps))
    command = ["proxymap", "--listen", f"unix:{folder}/proxymap", "--config-directory", str(folder)]
    if os.geteuid() == 0:  # which the server does not stay
        shutil.chown(folder, owner)
        command += ["--user", owner]
    say("Serve them:")
    print("$", *command, "&", flush=True)
    server = subprocess.Popen(command)
    deadline = time.monotonic() + BACK_LIMIT
    while not (folder / "proxymap").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the server did not start")
        time.sleep(0.02)
    return server


def query(folder: Path) -> list[str]:
    return ["proxymapctl", "--socket", f"{folder}/proxymap", "query"]


def ask(folder: Path, table: str) -> None:
    say(f"Found, not found, and not even asked ({table.partition(':')[0]}):")
    show([*query(folder), table, "user4711@example.com"], 0)
    show([*query(folder), table, "nobody@example.com"], 1)
    show([*query(folder), "--direct", "--explain", table, "user42@example.com"], 0)
    show([*query(folder), "--direct", "--explain", table, "user42@elsewhere.example"], 1)


def rate(folder: Path, table: str, database: PrivateDatabase) -> None:
    say(
        f"{CLIENTS} clients, one lookup in flight each, for {SECONDS} s; how many connections does that take?"
    )
    (folder / "keys").write_text("".join(f"user{i}@example.com\n" for i in range(1, USERS, 7)))
    command = [ROOT / "build/load", "-t", str(SECONDS), f"{folder}/proxymap", table, f"{folder}/keys"]
    result = json.loads(subprocess.check_output([*command, str(CLIENTS), "10000000"]))
    print(
        f"{result['per_second']:,} lookups per second, half of them within {result['p50_us']:.0f} µs;"
        f" {result['ok']:,} found, {result['retry']:,} deferred;"
        f" connections: {database.connections()} (server_connection_limit: at most 32)"
    )


def outage(folder: Path, table: str, database: PrivateDatabase) -> None:
    say("The database server is killed. Addresses that were asked for before are answered from memory:")
    database.kill()
    show([*query(folder), table, "user4711@example.com"], 0)
    say("Mail to others is deferred, not bounced. The log says why, once:")
    show([*query(folder), table, "user3@example.com"], 75)  # `rate` asks for each seventh
    say("It is started again; how long until the answers are back?")
    database.start()
    start = time.monotonic()
    while subprocess.run([*query(folder), table, "user3@example.com"], capture_output=True).returncode:
        if time.monotonic() - start > BACK_LIMIT:
            raise SystemExit("they are not back")
        time.sleep(0.05)
    print(f"{time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    os.environ.pop("MAIL_CONFIG", None)
    sys.exit(main())
