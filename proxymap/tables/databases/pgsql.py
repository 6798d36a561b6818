"""pgsql - pgsql:/path/to/file.cf: a query to a PostgreSQL server

Queries are text, quoted by the client library for the connection that they go over.
A host that is a URI has the login, too.

Not as stock: an error in one query is RETRY for its key alone, and keys are UTF-8
(up to Postfix 3.7 they were taken as Latin-1).

Source: pgsql_table(5) of Postfix 3.12; databases.md 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from proxymap.tables.base import Opening
from proxymap.tables.databases.addresses import Address, read_hosts
from proxymap.tables.databases.doubts import Doubt, of_uris
from proxymap.tables.databases.served import ServedTable
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import query_of

PORT = 5432
SCHEMES = ("postgresql", "postgres")
UTF8 = ("utf8", "unicode")  # encodings in which a key may be invalid, without punctuation


class PgsqlLogin(NamedTuple):
    """What a connection needs besides an address; of a URI only encoding counts. None: not given."""

    user: str | None
    password: str | None
    dbname: str | None
    encoding: str

    def __repr__(self) -> str:
        return f"{self.user}@{self.dbname}"


def read_login(cf: TableCf, addresses: tuple[Address, ...]) -> PgsqlLogin:
    """read_login - from the parameters of a table"""
    dbname = cf.optional("dbname")
    if not dbname and any(address.kind != "uri" for address in addresses):
        raise cf.wrong("dbname", "the name of a database, unless all hosts are URIs")
    return PgsqlLogin(
        user=cf.text("user") or None, password=cf.text("password") or None, dbname=dbname or None,
        encoding=cf.text("encoding", "UTF8"),
    )  # fmt: skip


class Pgsql(ServedTable):
    """One .cf file."""

    maptype = "pgsql"

    def __init__(self, type_name: bytes, cf: TableCf, opening: Opening) -> None:
        addresses = read_hosts(cf, PORT, SCHEMES)
        login = read_login(cf, addresses)
        uris_alone = all(address.kind == "uri" for address in addresses)
        self.login_in_vain = uris_alone and bool(login.user or login.password)
        utf8 = "".join(filter(str.isalnum, login.encoding.lower())) in UTF8
        query = query_of(cf, functions=True, utf8=utf8)
        super().__init__(
            type_name, cf, opening, query, addresses, login, utf8=utf8, result_set_required=False
        )  # fmt: skip

    def file_doubts(self) -> Iterator[Doubt]:
        yield from of_uris(self.addresses)
        if self.login_in_vain:
            what = "user and password do not count where all hosts are URIs"
            yield what, "write them into each: postgresql://USER:PASSWORD@HOST/DATABASE", True


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> Pgsql:
    return Pgsql(type_name, TableCf(mapname, opening.host), opening)
