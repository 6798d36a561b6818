"""ldap - ldap:/path/to/file.cf: searches of a directory

A base and a filter are made of the key; the values of the attributes that are found
are the answer, in the server's order. Special attributes name further entries.

Not as stock: terminal and leaf attributes count for each entry by itself, a loop of
special attributes ends at once, a host that is silent does not keep us from the next,
version is 3 where it is not said, and sasl_minssf counts.

Source: ldap_table(5) of Postfix 3.12; databases.md 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from proxymap.config.maincf import ERRORS, TEXT
from proxymap.config.source import split_list
from proxymap.errors import ConfigError
from proxymap.tables._template import NO_PART, Program
from proxymap.tables.base import Opening
from proxymap.tables.databases.addresses import Address, each_once, port_number, split_port
from proxymap.tables.databases.database import DatabaseTable
from proxymap.tables.databases.doubts import SAMPLE, Doubt, of_files
from proxymap.tables.databases.openldap._entries import Form
from proxymap.tables.databases.served import ServedTable
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import compile_query

Warn = Callable[[str], None]

PORTS = {"ldap": 389, "ldaps": 636, "ldapi": 0}
SCOPES = {"base": 0, "one": 1, "sub": 2}
BINDS = {"yes": "simple", "simple": "simple", "no": "no", "none": "no", "sasl": "sasl"}
FILTER = "(mailacceptinggeneralid=%s)"
FILES = ("tls_ca_cert_file", "tls_ca_cert_dir", "tls_cert", "tls_key")
IGNORED = ("cache", "cache_expiry", "cache_size")
NEWEST = 3  # version of the protocol
END = b"\0"  # of the base; the filter follows


class LdapLogin(NamedTuple):
    """What a connection needs besides an address; texts that are empty are not given. bind: of BINDS."""

    version: int
    bind: str
    bind_dn: str
    bind_pw: str
    sasl_mechs: str
    sasl_realm: str
    sasl_authz_id: str
    sasl_minssf: int
    dereference: int
    start_tls: bool
    tls_require_cert: bool
    tls_ca_cert_file: str
    tls_ca_cert_dir: str
    tls_cert: str
    tls_key: str
    tls_random_file: str
    tls_cipher_suite: str

    def __repr__(self) -> str:
        return f"{self.bind_dn}"


class LdapCf(TableCf):
    """Parameters, with those that had another name once."""

    def text(self, name: str, default: str = "") -> str:
        if name != "result_format":
            return super().text(name, default)
        return self.optional(name) or self.optional("result_filter") or default


def read_login(cf: TableCf, addresses: tuple[Address, ...], warn: Warn) -> LdapLogin:
    """read_login - from the parameters of a table; raises ConfigError"""
    bind = cf.text("bind", "yes").lower()
    if bind not in BINDS:
        raise cf.wrong("bind", " or ".join(f'"{name}"' for name in BINDS))
    version = cf.integer("version", NEWEST, low=2)
    if version > NEWEST:
        warn(f"{cf.where('version')} is {version}: {NEWEST} is used")
    if cf.boolean("chase_referrals", False):
        raise cf.wrong("chase_referrals", '"no": referrals are not followed yet')
    start_tls = cf.boolean("start_tls", False)
    if start_tls or any(address.host.startswith("ldaps:") for address in addresses):
        version = NEWEST
    dereference = cf.integer("dereference", 0)
    if not 0 <= dereference <= 3:
        warn(f"{cf.where('dereference')}: Unrecognized value {dereference}: 0 is used")
        dereference = 0
    return LdapLogin(
        version=min(version, NEWEST), bind=BINDS[bind],
        bind_dn=cf.text("bind_dn"), bind_pw=cf.text("bind_pw"),
        sasl_mechs=cf.text("sasl_mechs"), sasl_realm=cf.text("sasl_realm"),
        sasl_authz_id=cf.text("sasl_authz_id"), sasl_minssf=cf.integer("sasl_minssf", 0, low=0),
        dereference=dereference, start_tls=start_tls,
        tls_require_cert=cf.boolean("tls_require_cert", False),
        tls_ca_cert_file=cf.text("tls_ca_cert_file"), tls_ca_cert_dir=cf.text("tls_ca_cert_dir"),
        tls_cert=cf.text("tls_cert"), tls_key=cf.text("tls_key"),
        tls_random_file=cf.text("tls_random_file"), tls_cipher_suite=cf.text("tls_cipher_suite"),
    )  # fmt: skip


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


def read_form(cf: TableCf, warn: Warn) -> Form:
    """read_form - what is searched for, besides base and filter"""
    scope = cf.text("scope", "sub").lower()
    if scope not in SCOPES:
        warn(f"{cf.where('scope')}: Unrecognized value {scope}: sub is used")
    limit = max(0, cf.integer("expansion_limit", 0))
    attributes = [_names(cf, f"{kind}result_attribute") for kind in ("terminal_", "leaf_", "", "special_")]
    if cf.optional("result_attribute") is None:
        attributes[2] = [b"maildrop"]
    return Form(
        SCOPES.get(scope, SCOPES["sub"]), attributes,
        size_limit=max(0, cf.integer("size_limit", limit)),
        recursion_limit=cf.integer("recursion_limit", 1000, low=1), time_limit=read_timeout(cf),
        base_varies="%" in cf.text("search_base").replace("%%", ""),
    )  # fmt: skip


def read_timeout(cf: TableCf) -> int:
    """read_timeout - seconds for a connection, and for a search; 0: no limit but those of proxymap.cf"""
    timeout = cf.integer("timeout", 10)
    if timeout == 0:
        raise cf.wrong("timeout", "seconds, or -1")
    return max(0, timeout)


def _names(cf: TableCf, name: str) -> list[bytes]:
    return list(split_list(cf.text(name).encode(TEXT, ERRORS)))


def read_query(cf: TableCf, warn: Warn) -> Program:
    """read_query - the base, NUL, and the filter"""
    base = compile_query(cf, "search_base", cf.text("search_base"))
    found = compile_query(cf, "query_filter", cf.text("query_filter", FILTER))
    if "%" not in found.text:
        warn(f"ldap:{cf.name}: Fixed query_filter {found.text} is probably useless")
    *pieces, (text, part) = base.pieces
    assert part == NO_PART  # the text at the end
    (first, first_part), *rest = found.pieces
    pieces += [(text + END + first, first_part), *rest]
    return Program(f"{base.text} {found.text}", pieces)


class Ldap(ServedTable):
    """One .cf file."""

    maptype = "ldap"
    login: LdapLogin

    def __init__(self, type_name: bytes, cf: TableCf, opening: Opening) -> None:
        warn = opening.host.warn
        for name in IGNORED:
            if cf.optional(name) is not None:
                warn(f"{cf.where(name)} has no effect")
        addresses = read_servers(cf)
        self.form = read_form(cf, warn)
        self.timeout = read_timeout(cf)
        self.special = [bool(_names(cf, f"{kind}_result_attribute")) for kind in ("terminal", "special")]
        super().__init__(
            type_name, cf, opening, read_query(cf, warn), addresses, read_login(cf, addresses, warn),
            result_set_required=False, utf8=True,
        )  # fmt: skip
        self.form.attach(self)

    def query_doubts(self) -> Iterator[Doubt]:
        if any(self.special):
            yield (
                "where a search finds several entries, stock loses values of those that follow one with"
                " terminal or special values; proxymap has them all", "compare the answers", True,
            )  # fmt: skip

    def file_doubts(self) -> Iterator[Doubt]:
        return of_files((name, getattr(self.login, name)) for name in FILES)

    def trial(self, query: Program) -> DatabaseTable:
        text = b"".join(plain + (SAMPLE if part != NO_PART else b"") for plain, part in self.query.pieces)
        table = super().trial(Program("", [(text, NO_PART)]))
        self.form.attach(table)
        return table

    def shown(self, text: bytes) -> str:
        base, _, found = text.decode(TEXT, ERRORS).partition("\0")
        return f"base: {base or '(none)'}, filter: {found}"


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> Ldap:
    return Ldap(type_name, LdapCf(mapname, opening.host), opening)
