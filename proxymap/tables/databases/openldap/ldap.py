"""ldap - ldap:/path/to/file.cf: searches of a directory

A base and a filter are made of the key; the values of the attributes that are found
are the answer, in the server's order. Special attributes name further entries.

Not as stock: terminal and leaf attributes count for each entry by itself, a loop of
special attributes ends at once, a host that is silent does not keep us from the next,
version is 3 where it is not said, sasl_minssf counts, and where nothing is found while a
referral cannot be followed the answer is RETRY.

Source: ldap_table(5) of Postfix 3.12; databases.md 6.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from proxymap.config.maincf import ERRORS, TEXT
from proxymap.config.source import split_list
from proxymap.errors import TableRetry
from proxymap.tables._template import NO_PART, Program
from proxymap.tables.base import Opening
from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.crewed import CrewedServer, crewed_server
from proxymap.tables.databases.database import DatabaseTable
from proxymap.tables.databases.doubts import SAMPLE, Doubt, of_files
from proxymap.tables.databases.openldap._entries import Form
from proxymap.tables.databases.openldap.chasing import ChasingServer
from proxymap.tables.databases.openldap.login import LdapLogin, read_login
from proxymap.tables.databases.openldap.urls import SCOPES, read_servers
from proxymap.tables.databases.pool import Server
from proxymap.tables.databases.served import ServedTable
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import compile_query

Warn = Callable[[str], None]

FILTER = "(mailacceptinggeneralid=%s)"
FILES = ("tls_ca_cert_file", "tls_ca_cert_dir", "tls_cert", "tls_key")
IGNORED = ("cache", "cache_expiry", "cache_size")
END = b"\0"  # of the base; the filter follows


class LdapCf(TableCf):
    """Parameters, with those that had another name once."""

    def text(self, name: str, default: str = "") -> str:
        if name != "result_format":
            return super().text(name, default)
        return self.optional(name) or self.optional("result_filter") or default


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
        self.form, self.chases = read_form(cf, warn), cf.boolean("chase_referrals", False)
        self.timeout = read_timeout(cf)
        self.special = [bool(_names(cf, f"{kind}_result_attribute")) for kind in ("terminal", "special")]
        super().__init__(
            type_name, cf, opening, read_query(cf, warn), addresses, read_login(cf, addresses, warn),
            result_set_required=False, utf8=True,
        )  # fmt: skip
        self.form.attach(self)

    def server_at(self, addresses: tuple[Address, ...]) -> Server | CrewedServer:
        return self._chasing_at(addresses) if self.chases else super().server_at(addresses)

    def _chasing_at(self, addresses: tuple[Address, ...]) -> ChasingServer:
        """For chase_referrals: the driver's part is done by workers."""
        key = "ldap", addresses, self.login, self.limits
        made = crewed_server(key, lambda: ChasingServer(addresses, self.login, self.limits, self.host))
        assert isinstance(made, ChasingServer)
        return made

    def explain(self, key: bytes) -> list[str]:
        return [*super().explain(key), *([f"asked at {self.server.shown}"] if self.chases else [])]

    @contextlib.contextmanager
    def values(self, text: bytes) -> Iterator[Iterator[bytes]]:
        """What workers find; text: the base, NUL, and the filter."""
        yield iter(self.server.search(self.form, text))

    def _trouble_at(self, address: Address) -> str:
        if not self.chases:
            return super()._trouble_at(address)
        try:
            self._chasing_at((address,)).search(self.form, self._sample())
        except TableRetry as error:
            return str(error)
        return ""

    def query_doubts(self) -> Iterator[Doubt]:
        if any(self.special):
            yield (
                "where a search finds several entries, stock loses values of those that follow one with"
                " terminal or special values; proxymap has them all", "compare the answers", True,
            )  # fmt: skip

    def file_doubts(self) -> Iterator[Doubt]:
        return of_files((name, getattr(self.login, name)) for name in FILES)

    def trial(self, query: Program) -> DatabaseTable:
        table = super().trial(Program("", [(self._sample(), NO_PART)]))
        self.form.attach(table)
        return table

    def _sample(self) -> bytes:
        """Base and filter of a key that hardly anybody has."""
        return b"".join(plain + (SAMPLE if part != NO_PART else b"") for plain, part in self.query.pieces)

    def shown(self, text: bytes) -> str:
        base, _, found = text.decode(TEXT, ERRORS).partition("\0")
        return f"base: {base or '(none)'}, filter: {found}"


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> Ldap:
    return Ldap(type_name, LdapCf(mapname, opening.host), opening)
