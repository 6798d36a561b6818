"""addresses - where a server of the network types is: text -> Place; and the form that connect(2) takes

    inet:host:port   unix:path   local:path         socketmap, memcache
    host:port                                       tcp

A host is a name, or an address of IPv4 or, also between brackets, of IPv6; a port a
number or a name of services(5). A path is as connect(2) has it: a relative one is
below queue_directory, where the daemon is.

Source: socketmap_table(5), memcache_table(5), tcp_table(5).
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

from proxymap.config.maincf import ERRORS, TEXT

PATH_MAX = 107  # bytes of sockaddr_un


class Place(NamedTuple):
    """shown: for the log. path: of a socket; else None, and there are host and port."""

    shown: str
    path: bytes | None
    host: str
    port: int

    def packed(self) -> list[bytes]:
        """The address, if nobody has to be asked for it."""
        if self.path is not None:
            return [struct.pack("=H", socket.AF_UNIX) + self.path + b"\0"]
        try:
            return self.resolved(socket.AI_NUMERICHOST)
        except OSError:
            return []

    def resolved(self, flags: int = 0, protocols: str = "all") -> list[bytes]:
        """All addresses of the host. protocols: as inet_protocols has them. May take long; raises OSError."""
        family = _family(protocols)
        name = os.fsencode(self.host)  # text would need a codec, which a jail may lack
        found = socket.getaddrinfo(name, self.port, family, type=socket.SOCK_STREAM, flags=flags)
        return [pack(family, address) for family, _, _, _, address in found]


def _family(protocols: str) -> socket.AddressFamily:
    words = protocols.lower().replace(",", " ").split()
    if ("ipv4" in words) == ("ipv6" in words):
        return socket.AF_UNSPEC
    return socket.AF_INET if "ipv4" in words else socket.AF_INET6


def pack(family: int, address: tuple[object, ...]) -> bytes:
    """pack - struct sockaddr_in or sockaddr_in6 of what getaddrinfo tells"""
    host, port = str(address[0]), address[1]
    head = struct.pack("=H", family) + struct.pack("!H", port)
    if family == socket.AF_INET:
        return head + socket.inet_pton(family, host) + bytes(8)
    flow, scope = address[2:4]
    number = socket.inet_pton(family, host.partition("%")[0])
    return head + struct.pack("!I", flow) + number + struct.pack("=I", scope)


def read_server(text: bytes) -> Place:
    """read_server - of inet:host:port, unix:path, local:path; ValueError says what is expected instead"""
    transport, colon, rest = text.partition(b":")
    if colon and transport == b"inet":
        return read_host(rest)._replace(shown=text.decode(TEXT, ERRORS))
    if colon and transport in (b"unix", b"local") and rest:
        if len(rest) > PATH_MAX:
            raise ValueError(f"{_shown(rest)}: the name of a socket has at most {PATH_MAX} bytes")
        return Place(text.decode(TEXT, ERRORS), rest, "", 0)
    raise ValueError(f'bad server "{_shown(text)}"; expected inet:host:port, unix:path or local:path')


def read_host(text: bytes) -> Place:
    """read_host - of host:port; ValueError says what is expected instead"""
    name, colon, port = text.decode(TEXT, ERRORS).rpartition(":")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    if not colon or not port or not name:
        raise ValueError(f'bad server "{_shown(text)}"; expected host:port')
    return Place(text.decode(TEXT, ERRORS), None, name, _port(port))


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16:
        return int(text)
    try:
        return socket.getservbyname(text, "tcp")
    except (OSError, ValueError):
        raise ValueError(f'bad port "{text}"; expected 1 to 65535, or the name of a service') from None


def server_and_rest(text: bytes) -> tuple[Place, bytes]:
    """server_and_rest - SERVER:NAME, split at the last colon; ValueError says what is expected instead"""
    server, colon, name = text.rpartition(b":")
    if not colon:
        raise ValueError("socketmap requires server:socketmap argument")
    return read_server(server), name


def _shown(text: bytes) -> str:
    return os.fsdecode(text)
