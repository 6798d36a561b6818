"""policy - what a server may do once it is in its sandbox: where it reads and writes, where it connects

Reading is allowed generously, as what a library opens late is not known beforehand: programs,
libraries, /etc, /run. Not allowed: the folders of users, the mail queue, mail, logs, and all else
that no table names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from proxymap.config.maincf import MainCf
from proxymap.config.settings import Settings
from proxymap.config.source import split_list
from proxymap.server.sandbox._landlock import (
    MAKE_DIR,
    MAKE_REG,
    MAKE_SOCK,
    READ_DIR,
    READ_FILE,
    REFER,
    REMOVE_DIR,
    REMOVE_FILE,
    TRUNCATE,
    WRITE_FILE,
)
from proxymap.server.sandbox.needs import Needs

READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | TRUNCATE | MAKE_REG | REMOVE_FILE
WRITE_TABLES = WRITE | MAKE_DIR | REMOVE_DIR | REFER  # Berkeley DB makes a file in a folder of its own
TIDY = READ_DIR | REMOVE_FILE  # beside a socket
PUBLISH = TIDY | MAKE_SOCK

SYSTEM = (
    *("/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/run", "/var/run"),
    *("/nix/store", "/gnu/store", "/proc", "/sys/devices/system"),
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
    # What the name service and TLS keep.
    *("/var/lib/sss", "/var/lib/extrausers", "/var/lib/misc", "/var/db", "/var/yp", "/var/cache/nscd"),
    *("/var/lib/ca-certificates", "/var/kerberos"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full")  # may be written to
# Whose values are files and folders that libraries read, between colons.
ENVIRONMENT = (
    *("LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "OPENSSL_CONF", "OPENSSL_MODULES", "TZDIR"),
    *("KRB5_CONFIG", "KRB5CCNAME", "SASL_PATH", "SASL_CONF_PATH", "LDAPCONF", "LDAPRC"),
    *("PGSERVICEFILE", "PGSYSCONFDIR", "PGPASSFILE", "MARIADB_PLUGIN_DIR"),
)
IN_HOME = (".postgresql", ".pgpass", ".pg_service.conf", ".my.cnf", ".ldaprc", "ldaprc")
RESOLVER = 53


class Policy:
    """What one server may do.

    rights: the rights to each path. ports: that it may connect to by TCP; None: to all. reads: what
    the administrator has added, with what every server reads. any_port: why all.
    """

    def __init__(
        self, settings: Settings, main_cf: MainCf, approved: Iterable[bytes], *, writes: bool
    ) -> None:
        self.rights: dict[str, int] = {}
        needs = Needs(main_cf.get, updates=writes)
        needs.tables(" ".join(map(os.fsdecode, approved)))
        for item in split_list(os.fsencode(main_cf.get("proxy_write_maps" if writes else "proxy_read_maps"))):
            if item.startswith(b"/"):  # a file with more of the list, which a reload reads again
                needs.file(os.fsdecode(item))
        self._allow(READ, SYSTEM, self._of_python(), self._of_libraries())
        self._allow(READ | WRITE_FILE, DEVICES)
        directory = settings.config_directory
        for name in ("main.cf", "proxymap.cf"):
            needs.file(os.path.join(directory, name))
        self._allow(READ, needs.reads, [main_cf.get("data_directory")], settings.sandbox_reads)
        self._allow(WRITE_TABLES, needs.writes, needs.scratch, settings.sandbox_writes)
        if writes:
            self._allow(WRITE_TABLES, [main_cf.get("data_directory")])
        self.any_port = needs.any_port or ("sandbox_ports" if settings.sandbox_ports is None else "")
        ports = {RESOLVER, *needs.ports, *(settings.sandbox_ports or ())}
        self.ports: frozenset[int] | None = None if self.any_port else frozenset(ports)

    def beside(self, socket: str, publishes: bool) -> None:
        """It tidies up beside its socket at the end, and perhaps puts the socket there first."""
        self._allow(PUBLISH if publishes else TIDY, [os.path.dirname(os.path.abspath(socket))])

    def _allow(self, access: int, *paths: Iterable[str]) -> None:
        for some in paths:
            for path in filter(None, some):
                real = os.path.realpath(path)
                self.rights[real] = self.rights.get(real, 0) | access

    @staticmethod
    def _of_python() -> list[str]:
        """Where modules are imported from, late ones too."""
        return [*filter(os.path.isabs, sys.path), sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)]

    @staticmethod
    def _of_libraries() -> list[str]:
        home = os.path.expanduser("~")
        named = (os.environ.get(name, "").removeprefix("FILE:").split(":") for name in ENVIRONMENT)
        return [path for paths in named for path in paths if os.path.isabs(path)] + [
            os.path.join(home, name) for name in IN_HOME
        ]
