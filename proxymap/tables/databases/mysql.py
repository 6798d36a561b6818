"""mysql - mysql:/path/to/file.cf: a query to a MariaDB or MySQL server

Queries are text, quoted by the client library for the connection that they go over.

Not as stock: `password` of an option file is used where the table has none, the
server may not ask for files of ours, and an error in one query is RETRY for its key
alone.

Source: mysql_table(5) of Postfix 3.12; databases.md 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from proxymap.tables.base import Opening
from proxymap.tables.databases.addresses import Address, read_hosts
from proxymap.tables.databases.doubts import Doubt, of_files
from proxymap.tables.databases.served import ServedTable
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import query_of

PORT = 3306
FILES = ("option_file", "tls_key_file", "tls_cert_file", "tls_CAfile", "tls_CApath")
UTF8 = ("utf8mb4", "utf8mb3", "utf8")  # character sets in which a key may be invalid


class MysqlLogin(NamedTuple):
    """What a connection needs besides an address. Texts that are empty are not given.

    password: None: that of the option file. tls_verify_cert: None: as the library has it.
    """

    user: str
    password: str | None
    dbname: str
    charset: str
    option_file: str
    option_group: str
    tls_key_file: str
    tls_cert_file: str
    tls_CAfile: str
    tls_CApath: str
    tls_ciphers: str
    tls_verify_cert: bool | None

    def __repr__(self) -> str:
        return f"{self.user}@{self.dbname}"


def read_login(cf: TableCf) -> MysqlLogin:
    """read_login - from the parameters of a table"""
    verify = None if cf.optional("tls_verify_cert") is None else cf.boolean("tls_verify_cert", False)
    return MysqlLogin(
        user=cf.text("user"), password=cf.optional("password"), dbname=cf.required("dbname"),
        charset=cf.text("charset", "utf8mb4"),
        option_file=cf.text("option_file"), option_group=cf.text("option_group", "client"),
        tls_key_file=cf.text("tls_key_file"), tls_cert_file=cf.text("tls_cert_file"),
        tls_CAfile=cf.text("tls_CAfile"), tls_CApath=cf.text("tls_CApath"),
        tls_ciphers=cf.text("tls_ciphers"), tls_verify_cert=verify,
    )  # fmt: skip


def read_addresses(cf: TableCf) -> tuple[Address, ...]:
    """read_addresses - from the parameter hosts; localhost: where the library says"""
    return tuple(
        Address("inet", "localhost", 0, "localhost") if address.host == "localhost" else address
        for address in read_hosts(cf, PORT)
    )


class Mysql(ServedTable):
    """One .cf file."""

    maptype = "mysql"
    login: MysqlLogin

    def __init__(self, type_name: bytes, cf: TableCf, opening: Opening) -> None:
        login = read_login(cf)
        utf8 = login.charset.lower() in UTF8
        super().__init__(
            type_name, cf, opening, query_of(cf, utf8=utf8), read_addresses(cf), login, utf8=utf8,
            result_set_required=cf.boolean("require_result_set", True),
        )  # fmt: skip

    def file_doubts(self) -> Iterator[Doubt]:
        return of_files((name, getattr(self.login, name)) for name in FILES)


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> Mysql:
    return Mysql(type_name, TableCf(mapname, opening.host), opening)
