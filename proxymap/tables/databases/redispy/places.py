"""places - the parameter `uri` of redis tables: which processes there are, and how to log in

    redis://[user[:password]@]host[:port][/number]           one server, which is a master
    unix://[user[:password]@]/path/to/socket[?db=number]     the same by a socket
    redis+sentinel://[...@]host[:port],.../name[/number]     the master that sentinels know by that name
    redis+cluster://[...@]host[:port],...                    a cluster, by some of its nodes

With `rediss` in place of `redis` all connections are TLS; `valkey` and `valkeys` are the same.

Source: redis-py's URLs; Sentinel's guidelines for clients; the cluster specification.
"""

from __future__ import annotations

import inspect
import re
import ssl
from typing import Any, NamedTuple
from urllib.parse import unquote

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, SSLConnection
from redis.retry import Retry

from proxymap.config.maincf import mask_secrets
from proxymap.errors import ConfigError
from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.redispy.bounded import OverTcp, OverTls, OverUnix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables.tablecf import TableCf

SINGLE, SENTINEL, CLUSTER = "", "sentinel", "cluster"
PORTS = {SINGLE: 6379, SENTINEL: 26379, CLUSTER: 6379}
# What keeps redis-py from telling its version on each connection, which it looks up on the disk each time.
_PARAMETERS = inspect.signature(AbstractConnection).parameters
SILENT = {name: None for name in ("driver_info", "lib_name", "lib_version") if name in _PARAMETERS}
if "driver_info" in SILENT:
    SILENT = {"driver_info": None}
# Python 3.13 refuses many private authorities. Older releases of redis-py cannot be told.
_LENIENT = {"ssl_exclude_verify_flags": [ssl.VERIFY_X509_STRICT]}
LENIENT = _LENIENT if set(_LENIENT) <= set(inspect.signature(SSLConnection).parameters) else {}
FORM = re.compile(
    r"(?:(?P<unix>unix)|(?:redis|valkey)(?P<tls>s?)(?:\+(?P<kind>sentinel|cluster))?)"
    r"://(?:(?P<login>[^@/\s]*)@)?(?P<hosts>[^@/?#]*)(?P<path>[^?#]*)(?:\?db=(?P<number>\d{1,6}))?"
)
HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:]+))(?::(?P<port>\d{1,5}))?")
EXPECTED = (
    "redis://[user:password@]host[:port][/number], unix:///path, redis+sentinel://host,.../name or"
    " redis+cluster://host,..."
)


class Login(NamedTuple):
    """What a process wants to know. Empty: nothing."""

    user: str
    password: str


class Tls(NamedTuple):
    """Files; an empty name stands for the system's CAs, or for no certificate."""

    ca_file: str
    cert_file: str
    key_file: str


class Place(NamedTuple):
    """Where the data are. kind: SINGLE, SENTINEL or CLUSTER. name: of the master, for sentinels."""

    kind: str
    addresses: tuple[Address, ...]
    name: str
    number: int
    login: Login
    sentinel_login: Login
    tls: Tls | None

    @property
    def shown(self) -> str:
        """For the log, without a password."""
        hosts = ", ".join(address.shown for address in self.addresses)
        return f"{self.name} by sentinels {hosts}" if self.name else hosts


def read_place(cf: TableCf) -> Place:
    """read_place - of a table with these parameters; raises ConfigError"""
    form = FORM.fullmatch(cf.required("uri"))
    if form is None:
        raise _wrong(cf, EXPECTED)
    kind, path = form["kind"] or SINGLE, unquote(form["path"])
    user, _, password = (form["login"] or "").partition(":")
    addresses = (Address("unix", path, 0, path),) if form["unix"] else _hosts(cf, form["hosts"], kind)
    if form["unix"] and (form["hosts"] or not path.startswith("/")):
        raise _wrong(cf, "unix:///path")
    if kind == SINGLE and len(addresses) > 1:
        raise _wrong(cf, "one server (several: redis+sentinel:// or redis+cluster://)")
    name, number = _path(cf, kind, "" if form["unix"] else path)
    return Place(
        kind, addresses, name, int(form["number"] or number), Login(unquote(user), unquote(password)),
        Login(cf.text("sentinel_user"), cf.text("sentinel_password")), _tls(cf) if form["tls"] else None,
    )  # fmt: skip


def of_sentinel(place: Place, address: Address) -> Place:
    """of_sentinel - one of the sentinels of a place, as a place"""
    return Place(SINGLE, (address,), "", 0, place.sentinel_login, Login("", ""), place.tls)


def connection_to(place: Place, address: Address, timeout: float) -> Any:
    """connection_to - a connection of redis-py's, not connected yet; nothing is tried again by itself

    timeout: seconds to connect, and for an answer; see bounded.Bounds.
    """
    common: dict[str, Any] = {
        "db": place.number, "username": place.login.user or None, "password": place.login.password or None,
        "socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0),
        "protocol": 2, **SILENT,
    }  # fmt: skip
    if address.kind == "unix":
        return OverUnix(path=address.host, **common)
    common |= {"host": address.host, "port": address.port}
    if place.tls is None:
        return OverTcp(**common)
    return OverTls(
        ssl_ca_certs=place.tls.ca_file or None, ssl_certfile=place.tls.cert_file or None,
        ssl_keyfile=place.tls.key_file or None, ssl_cert_reqs="required", ssl_check_hostname=True,
        **LENIENT, **common,
    )  # fmt: skip


def _hosts(cf: TableCf, text: str, kind: str) -> tuple[Address, ...]:
    found = []
    for item in text.split(","):
        host = HOST.fullmatch(item)
        port = int((host and host["port"]) or PORTS[kind])
        if host is None or not 0 < port < 65536:
            raise _wrong(cf, "host or host:port, several between commas")
        name = host["v6"] or host["name"]
        found.append(Address("inet", name, port, f"[{name}]:{port}" if host["v6"] else f"{name}:{port}"))
    return tuple(dict.fromkeys(found))


def _path(cf: TableCf, kind: str, path: str) -> tuple[str, int]:
    """The name of a master, and the number of a database."""
    parts = path.strip("/").split("/") if path.strip("/") else []
    name = parts.pop(0) if kind == SENTINEL and parts else ""
    number = parts.pop(0) if parts and kind != CLUSTER else "0"
    if kind == SENTINEL and not name:
        raise _wrong(cf, "redis+sentinel://host,.../name, with the name of a master")
    if parts or not re.fullmatch(r"\d{1,6}", number):
        raise _wrong(cf, "a number of a database at the end (a cluster has none)")
    return name, int(number)


def _tls(cf: TableCf) -> Tls:
    tls = Tls(cf.text("tls_CAfile"), cf.text("tls_cert_file"), cf.text("tls_key_file"))
    try:
        context = ssl.create_default_context(cafile=tls.ca_file or None)
        if tls.cert_file:
            context.load_cert_chain(tls.cert_file, tls.key_file or None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{cf.where('uri')}: TLS cannot be used: {mask_secrets(str(error))}") from None
    return tls


def _wrong(cf: TableCf, expected: str) -> ConfigError:
    return cf.wrong("uri", expected)
