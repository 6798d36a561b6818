"""needs - what tables need of the system, as far as their names and parameters tell: files, folders, ports

Files are replaced by a rename, so what a table needs is the folder of each. A path with symlinks
in it needs two: where it lies, and where it leads. What has to be read besides by every server
is in policy.py.

Source: the parameters in proxymap_tables(5) that name files and servers.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable

from proxymap.base.files import open_at_once
from proxymap.base.nsswitch import sources_of
from proxymap.config.maincf import ERRORS, TEXT, read_parameters
from proxymap.config.source import split_list
from proxymap.errors import ConfigError
from proxymap.tables.types import TABLE_TYPES

FILES = (
    "dbpath", "option_file", "headers_file", "tls_CAfile", "tls_CApath", "tls_cert_file", "tls_key_file",
    "tls_ca_cert_file", "tls_ca_cert_dir", "tls_cert", "tls_key", "tls_random_file",
)  # fmt: skip
LISTS = ("domain", "backup")  # of tables, and of files that are such lists
SERVERS = ("hosts", "server_host", "server_port", "memcache", "url", "uri", "dbname")
OTHERS = ("chase_referrals", "sasl_mechs")
MADE_OF_OTHERS = ("debug", "pipemap", "unionmap")
PORTS = {
    "http": (80, 443), "ldap": (389, 636), "memcache": (11211,), "mysql": (3306,), "pgsql": (5432, 88),
    "socketmap": (), "tcp": (),
}  # fmt: skip
# Which servers they ask is not said in their parameters alone.
ANY_PORT = {
    "mongodb": "its server names others", "redis": "its server names others",
    "python": "its code may ask any",
}  # fmt: skip
HERE = frozenset({"files", "compat", "systemd", "sss", "db", "extrausers", "winbind", "mymachines"})
WORD_ENDS = re.compile(r"[\s,{}]+")
FILE_IN_URI = re.compile(r"=((?:/|%2[Ff])[^&\s']+)")
PORT_IN_TEXT = re.compile(r":([\w-]+)(?![\w-]*://)")

Parameter = Callable[[str], str]


class Needs:
    """What some tables need. parameter: the value of a parameter of main.cf. writes: they are written to.

    reads, writes: folders, and files that stay what they are; scratch: where a library may want to make
    files, and most often does not. types: those of the tables, but for tables made of others. ports: of
    TCP. any_port: why a table may connect to any port; empty: none may.
    """

    def __init__(self, parameter: Parameter, *, updates: bool) -> None:
        self._parameter, self._updates = parameter, updates
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.scratch: set[str] = set()
        self.ports: set[int] = set()
        self.any_port = ""
        self.types: set[str] = set()
        self._seen: set[str] = set()

    def tables(self, text: str) -> None:
        """Add the tables in a text: several, or the name of one that is made of others."""
        for word in WORD_ENDS.split(text):
            word = word.lstrip("!").removeprefix("proxy:")
            maptype, colon, name = word.partition(":")
            if word in self._seen:
                continue
            self._seen.add(word)
            if colon and maptype in TABLE_TYPES:
                self._table(maptype, name)

    def list(self, text: str) -> None:
        """Add the tables in a list, in which `/file` stands for more of the list."""
        for item in split_list(text.encode(TEXT, ERRORS)):
            path = item.decode(TEXT, ERRORS).lstrip("!")
            if not path.startswith("/"):
                self.tables(path)
            elif path not in self._seen:
                self._seen.add(path)
                self._list_in(path)

    def file(self, path: str) -> None:
        """Add a file, or a folder, that is read."""
        for folder in folders_of(path):
            self.reads.add(folder)

    def _list_in(self, path: str) -> None:
        self.file(path)
        try:
            with open(path, encoding=TEXT, errors=ERRORS, opener=open_at_once) as lines:
                for line in lines:
                    self.list(line.partition("#")[0])
        except (OSError, ValueError):
            pass  # as its table will say

    def _table(self, maptype: str, name: str) -> None:
        known = TABLE_TYPES[maptype]
        if maptype in MADE_OF_OTHERS:
            self.tables(name)
            return
        self.types.add(maptype)
        if known.suffix is not None and not name.startswith("{"):
            self._indexed(name + os.fsdecode(known.suffix), known.writable)
        elif maptype in ("socketmap", "tcp"):
            self._servers(maptype, name)
        elif maptype == "unix":
            self._names(name)
        elif maptype in PORTS or maptype in ANY_PORT or maptype == "sqlite":
            self._database(maptype, name)

    def _indexed(self, path: str, writable: bool) -> None:
        self.file(path)
        if self._updates and writable:
            self.writes.update(folders_of(path))

    def _names(self, name: str) -> None:
        """unix: the name service may ask a server."""
        try:
            sources = set(sources_of(name.partition(".")[0]))
        except OSError:
            sources = set()
        if foreign := sorted(sources - HERE):
            self.any_port = f"nsswitch.conf names {foreign[0]}"

    def _database(self, maptype: str, name: str) -> None:
        """Add what its parameters name, which are in a file or in main.cf."""
        self.any_port = self.any_port or ANY_PORT.get(maptype, "")
        values = self._values(name)
        if maptype == "python":
            for value in values.values():
                self.tables(value)
                for word in filter(os.path.isabs, WORD_ENDS.split(value)):
                    self.file(word)
            return
        for parameter in FILES:
            if path := values.get(parameter):
                self.file(path)
        for parameter in LISTS:
            self.list(values.get(parameter, ""))
        if maptype == "sqlite":
            self._sqlite(values.get("dbpath", ""))
        else:
            self._servers(maptype, " ".join(values.get(name, "") for name in SERVERS))
            self._other_servers(maptype, values)

    def _values(self, name: str) -> dict[str, str]:
        if not name.startswith(("/", ".")):
            return {each: self._parameter(f"{name}_{each}") for each in FILES + LISTS + SERVERS + OTHERS}
        self.file(name)
        try:
            return read_parameters(name, lambda warning: None, strict=False)[0]
        except (OSError, ConfigError):
            return {}

    def _sqlite(self, path: str) -> None:
        """SQLite makes files beside a database in WAL mode even to read it, and others to sort a lot."""
        for folder in (*folders_of(path), "/var/tmp", "/tmp"):
            if path and os.access(folder, os.W_OK):
                self.scratch.add(folder)

    def _servers(self, maptype: str, text: str) -> None:
        """Add the ports in a text about servers, and those that are meant where it has none."""
        self.ports.update(PORTS.get(maptype, ()))
        for match in FILE_IN_URI.findall(text):
            self.file(match.replace("%2F", "/").replace("%2f", "/"))
        for word in PORT_IN_TEXT.findall(text):
            if (port := port_of(word)) is not None:
                self.ports.add(port)

    def _other_servers(self, maptype: str, values: dict[str, str]) -> None:
        if values.get("server_port", "").isdecimal():
            self.ports.add(int(values["server_port"]))
        if values.get("chase_referrals", "").lower() == "yes":
            self.any_port = "it follows referrals"
        elif values.get("sasl_mechs"):
            self.any_port = "its login may ask other servers"
        elif values.get("option_file"):
            self.any_port = "option_file may name other servers"
        elif maptype == "pgsql":
            text = values.get("hosts", "") + values.get("dbname", "")
            if "service=" in text or "port=" in text or any(name.startswith("PG") for name in os.environ):
                self.any_port = "libpq takes servers from elsewhere"


def folders_of(path: str) -> list[str]:
    """folders_of - the folder of a file, where it lies and where it leads; a folder or a device itself"""
    if not path:
        return []
    if os.path.exists(path) and not os.path.isfile(path):
        return [os.path.realpath(path)]
    folders = [os.path.realpath(os.path.dirname(path) or "."), os.path.dirname(os.path.realpath(path))]
    return list(dict.fromkeys(folders))


def port_of(word: str) -> int | None:
    """port_of - the number of a port that is one, or the name of one; None: it is neither"""
    if word.isascii() and word.isdecimal():
        return int(word) if 0 < int(word[:6]) < 1 << 16 else None
    try:
        return socket.getservbyname(word, "tcp")
    except (OSError, ValueError):
        return None
