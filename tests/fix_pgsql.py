"""fix_pgsql - a private PostgreSQL for the tests; see fix_database"""

from __future__ import annotations

import glob
import os
import shutil
import signal
from collections.abc import Iterator, Sequence

import pytest
from fix_database import DATABASE, PASSWORD, USER, PrivateDatabase, removed

PROGRAMS = ("postgres", "initdb", "psql", "openssl")
HBA = """\
local   all all      trust
hostssl all certified 127.0.0.1/32 cert map=certified
host    all all      127.0.0.1/32 scram-sha-256
"""


def search_path() -> str:
    """Where distributions put the server's programs: the newest version first."""
    versions = glob.glob("/usr/lib/postgresql/*/bin") + glob.glob("/usr/pgsql-*/bin")
    newest_first = sorted(versions, key=lambda name: [int(n) for n in _numbers(name)], reverse=True)
    return os.pathsep.join([*newest_first, os.environ.get("PATH", ""), "/usr/local/bin"])


def _numbers(name: str) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in name).split()


def unavailable() -> str | None:
    """Why there can be no PostgreSQL here, or None."""
    for program in PROGRAMS:
        if shutil.which(program, path=search_path()) is None:
            return f"PostgreSQL's server is not installed: no {program}"
    return None


class PostgreSQL(PrivateDatabase):
    """hosts = unix:FOLDER (the folder of the socket) or 127.0.0.1:PORT. Not started yet.

    A second name of the socket has the default port in it, so that `hosts = unix:FOLDER` finds it.
    The role `certified` logs in with the certificate `client`, over TLS only.
    """

    maptype = "pgsql"
    owner = "postgres"
    _stop_signal = signal.SIGINT  # "fast": without waiting for clients

    @property
    def socket(self) -> str:
        return str(self.dir)

    @property
    def socket_file(self) -> str:
        return str(self.dir / f".s.PGSQL.{self.port}")

    def _initialise(self) -> None:
        self._run(
            _path("initdb"), "--pgdata", str(self.data), "--username=postgres", "--auth=trust", "--no-sync",
            "--encoding=UTF8", "--locale=C",
        )  # fmt: skip
        (self.data / "pg_hba.conf").write_text(HBA)
        (self.data / "pg_ident.conf").write_text(f"certified {USER} certified\n")

    def _command(self) -> list[str]:
        tls = self.certificates
        settings = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.dir),
            "max_connections": "300", "fsync": "off", "shared_buffers": "64MB",
            "ssl": "on", "ssl_cert_file": tls.pem("server"), "ssl_key_file": tls.key("server"),
            "ssl_ca_file": tls.pem("ca"),
        }  # fmt: skip
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [_path("postgres"), "-D", str(self.data), *options, *self.options]

    def start(self) -> PostgreSQL:
        super().start()
        default = self.dir / ".s.PGSQL.5432"
        if self.port != 5432 and not default.is_symlink():
            default.symlink_to(f".s.PGSQL.{self.port}")
        return self

    def _client(self, database: str) -> list[str]:
        return [
            _path("psql"), "--host", str(self.dir), "--port", str(self.port), "--username=postgres",
            "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--field-separator=\t",
            "--set=ON_ERROR_STOP=1", "--dbname", database or "postgres",
        ]  # fmt: skip

    def _first_sql(self) -> Sequence[str]:
        return (
            f"CREATE DATABASE {DATABASE}",
            f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'",
            "CREATE ROLE certified LOGIN",
            f"ALTER DATABASE {DATABASE} OWNER TO {USER}",
        )

    def connections(self, user: str = USER) -> int:
        return int(self.execute(f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}'")[0][0])

    def end_connections(self) -> None:
        sql = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{USER}'"
        self.execute(sql)


def _path(program: str) -> str:
    found = shutil.which(program, path=search_path())
    assert found is not None, program
    return found


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PrivateDatabase]:
    """A running server for the whole session; a test that stops it starts it again."""
    if reason := unavailable():
        pytest.skip(reason)
    with removed(PostgreSQL()) as server:
        yield server
