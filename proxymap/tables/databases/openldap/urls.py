"""urls - where directories are: the parameter server_host of ldap tables, and referrals

Source: ldap_table(5), `server_host`; RFC 4511, 4.1.10; RFC 4516.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from proxymap.config.maincf import ERRORS, TEXT
from proxymap.config.source import split_list
from proxymap.errors import ConfigError
from proxymap.tables.databases.addresses import Address, each_once, port_number, split_port
from proxymap.tables.tablecf import TableCf

PORTS = {"ldap": 389, "ldaps": 636, "ldapi": 0}
SCOPES = {"base": 0, "one": 1, "sub": 2}


def read_servers(cf: TableCf) -> tuple[Address, ...]:
    """read_servers - the addresses in server_host, in order: URLs, and host or host:port"""
    port = cf.integer("server_port", PORTS["ldap"], low=1, high=65535)
    items = split_list(cf.text("server_host", "localhost").encode(TEXT, ERRORS))
    found = []
    for item in (item.decode(TEXT, ERRORS) for item in items):
        try:
            found.append(_address(item, port))
        except ValueError as trouble:
            raise ConfigError(f'{cf.where("server_host")} has "{item}"; expected {trouble}') from None
    if not found:
        raise cf.wrong("server_host", "a host, or the URL of one")
    return each_once(cf, "server_host", found)


def _address(item: str, port: int) -> Address:
    """ValueError says what is expected instead."""
    scheme, slashes, rest = item.partition("://")
    scheme = scheme.lower() if slashes else "ldap"
    if scheme not in PORTS:
        raise ValueError(" or ".join(f"{name}://" for name in PORTS))
    where = (rest if slashes else item).split("/", 1)[0]
    if scheme == "ldapi":
        where = where or "%2Fvar%2Frun%2Fslapd%2Fldapi"
        return Address("url", f"ldapi://{where}/", 0, f"ldapi://{where}")
    host, given = split_port(where)
    number = port_number(given) if given else PORTS[scheme] if slashes else port
    shown = f"{scheme}://{f'[{host}]' if ':' in host else host or 'localhost'}:{number}"
    return Address("url", f"{shown}/", number, shown)


def referral(url: str) -> tuple[Address, bytes | None, int | None]:
    """referral - the server that it names, the base there and the scope, None: as in the search

    Raises ValueError if no other server is named.
    """
    server, _, rest = url.partition("?")
    scheme, slashes, where = server.partition("://")
    host, _, base = where.partition("/")
    if not slashes or not host:
        raise ValueError("it names no server")
    _, scope, *_ = *rest.split("?"), ""
    return _address(f"{scheme}://{host}", 0), unquote_to_bytes(base) or None, SCOPES.get(scope.lower())
