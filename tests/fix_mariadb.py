"""fix_mariadb - a private MariaDB for the tests; see fix_database"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

import pytest
from fix_database import DATABASE, PASSWORD, USER, PrivateDatabase, removed

PROGRAMS = ("mariadbd", "mariadb-install-db", "mariadb", "openssl")
SEARCH = "/usr/sbin:/usr/libexec:/usr/local/sbin:/usr/local/bin:/usr/bin:/bin"


def unavailable() -> str | None:
    """Why there can be no MariaDB here, or None."""
    for program in PROGRAMS:
        if shutil.which(program, path=SEARCH) is None:
            return f"MariaDB's server is not installed: no {program}"
    return None


class MariaDB(PrivateDatabase):
    """hosts = unix:SOCKET or 127.0.0.1:PORT. Not started yet.

    The user `certified` logs in without a password, over TLS with a certificate of the authority.
    """

    maptype = "mysql"
    owner = "mysql"

    @property
    def _tmp(self) -> str:
        """A starting server deletes what others keep in a folder that they share."""
        return str(self.dir / "tmp")

    @property
    def socket(self) -> str:
        return str(self.dir / "s")

    @property
    def socket_file(self) -> str:
        return self.socket

    def _initialise(self) -> None:
        self._run("mkdir", self._tmp)
        self._run(
            _path("mariadb-install-db"), "--no-defaults", f"--datadir={self.data}", "--skip-test-db",
            f"--tmpdir={self._tmp}",
            "--auth-root-authentication-method=normal", "--innodb-log-file-size=8M",
        )  # fmt: skip

    def _command(self) -> list[str]:
        tls = self.certificates
        return [
            _path("mariadbd"), "--no-defaults", f"--datadir={self.data}", f"--socket={self.socket}",
            f"--tmpdir={self._tmp}",
            f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve", "--max-connections=300",
            "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=2", "--skip-log-bin",
            f"--ssl-ca={tls.pem('ca')}", f"--ssl-cert={tls.pem('server')}",
            f"--ssl-key={tls.key('server')}", *self.options,
        ]  # fmt: skip

    def _client(self, database: str) -> list[str]:
        return [
            _path("mariadb"), "--no-defaults", f"--socket={self.socket}", "--user=root", "--batch",
            "--skip-column-names", "--default-character-set=utf8mb4", *([database] if database else []),
        ]  # fmt: skip

    def _first_sql(self) -> Sequence[str]:
        return (
            f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4",
            f"CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'",
            f"GRANT ALL ON {DATABASE}.* TO {USER}@'%'",
            "CREATE USER certified@'%' REQUIRE X509",
            f"GRANT ALL ON {DATABASE}.* TO certified@'%'",
            "DROP USER IF EXISTS ''@localhost",
        )

    def connections(self, user: str = USER) -> int:
        sql = f"SELECT COUNT(*) FROM information_schema.processlist WHERE user = '{user}'"
        return int(self.execute(sql)[0][0])

    def end_connections(self) -> None:
        self.execute(f"KILL CONNECTION USER {USER}")


def _path(program: str) -> str:
    found = shutil.which(program, path=SEARCH)
    assert found is not None, program
    return found


@pytest.fixture(scope="session")
def mariadb() -> Iterator[PrivateDatabase]:
    """A running server for the whole session; a test that stops it starts it again."""
    if reason := unavailable():
        pytest.skip(reason)
    with removed(MariaDB()) as server:
        yield server
