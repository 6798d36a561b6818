"""addresses - the parameter `hosts` of mysql and pgsql tables

                        mysql                           pgsql
    host, host:port     TCP; localhost: the UNIX        TCP
    inet:host:port      socket of the library
    [::1]:port          TCP; stock knows no brackets    the same
    unix:/path, /path   a socket                        the folder of one
    postgresql://...    -                               a URI, which has all but the query

Items stand between commas and blanks; without any it is localhost.

Source: mysql_table(5), pgsql_table(5), `hosts`; databases.md 3.1.
"""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

from proxymap.config.maincf import ERRORS, TEXT, mask_secrets
from proxymap.config.source import split_list
from proxymap.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables.tablecf import TableCf

HOSTS_MAX = 64  # the driver has a bit for each


class Address(NamedTuple):
    """Where a server may be.

    kind: "unix", "inet" or "uri". host: path, name or URI. port: 0 if it is not said, or has no
    meaning. shown: for the log, without a password.
    """

    kind: str
    host: str
    port: int
    shown: str

    def __repr__(self) -> str:
        return self.shown


def read_hosts(cf: TableCf, port: int, uris: tuple[str, ...] = ()) -> tuple[Address, ...]:
    """read_hosts - the addresses in the parameter `hosts`; port: where one has none; uris: schemes"""
    text = cf.text("hosts") or "localhost"
    items = [item.decode(TEXT, ERRORS) for item in split_list(text.encode(TEXT, ERRORS))]
    found = []
    for item in items or ["localhost"]:
        try:
            found.append(_address(item, port, uris))
        except ValueError as trouble:
            raise ConfigError(f'{cf.where("hosts")} has "{mask_secrets(item)}"; expected {trouble}') from None
    return each_once(cf, "hosts", found)


def each_once(cf: TableCf, name: str, found: list[Address]) -> tuple[Address, ...]:
    """each_once - what a parameter has, without repetition; raises ConfigError if there are too many"""
    addresses = tuple(dict.fromkeys(found))
    if len(addresses) > HOSTS_MAX:
        raise ConfigError(f"{cf.where(name)} has {len(addresses)} hosts; expected {HOSTS_MAX} at most")
    return addresses


def _address(item: str, port: int, uris: tuple[str, ...]) -> Address:
    """ValueError says what is expected instead."""
    if uris and (scheme := re.match(r"(\w+)://", item)):
        if scheme[1] not in uris:
            raise ValueError(" or ".join(f"{scheme}://" for scheme in uris))
        return Address("uri", item, 0, mask_secrets(item))
    if item.startswith(("unix:", "/")):
        path = item.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError("a path after unix:")
        return Address("unix", path, 0, f"unix:{path}")
    host, given = split_port(item.removeprefix("inet:"))
    if not host:
        raise ValueError("a host name")
    number = port_number(given) if given else port
    return Address(
        "inet", host, number, f"inet:[{host}]:{number}" if ":" in host else f"inet:{host}:{number}"
    )


def split_port(text: str) -> tuple[str, str]:
    """split_port - (host, port or empty). A colon of IPv6 is none before a port, where one can tell."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not _is_address(host) or (rest and not rest.startswith(":")):
            raise ValueError("an address between brackets, and perhaps a port: [::1]:3306")
        return host, rest[1:]
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not _is_address(host) and _is_address(text)):
        return text, ""
    return host, port


def _is_address(text: str) -> bool:
    """Is it an address of IPv6, or of IPv4?"""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


def port_number(text: str) -> int:
    """port_number - a port by its number, or by its name in services(5)."""
    if re.fullmatch("[0-9]{1,5}", text) and 0 < int(text) < 1 << 16:
        return int(text)
    try:
        return socket.getservbyname(text, "tcp")
    except (OSError, ValueError):
        raise ValueError("a port from 1 to 65535, or the name of a service") from None
