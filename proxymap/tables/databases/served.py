"""served - a table whose queries a database server answers: what mysql, pgsql and ldap have in common

All tables with the same hosts and login share its connections (pool.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from proxymap.errors import TableRetry
from proxymap.tables._template import Program
from proxymap.tables.base import Opening
from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.database import DatabaseTable
from proxymap.tables.databases.doubts import Doubt, NoParameters, explaining, of_query
from proxymap.tables.databases.limits import server_limits
from proxymap.tables.databases.pool import Server, server_for
from proxymap.tables.tablecf import TableCf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable

    from proxymap.tables.databases.crewed import CrewedServer


class ServedTable(DatabaseTable):
    """One .cf file. login: what the client library needs besides an address."""

    maptype: ClassVar[str]
    timeout = 0  # seconds for a question, of its .cf file; 0: none

    def __init__(
        self, type_name: bytes, cf: TableCf, opening: Opening, query: Program, addresses: tuple[Address, ...],
        login: Hashable, *, utf8: bool, result_set_required: bool,
    ) -> None:  # fmt: skip
        super().__init__(type_name, cf, opening, query, utf8=utf8, result_set_required=result_set_required)
        self.addresses, self.login, self.host = addresses, login, opening.host
        self.limits = server_limits(
            self.host, type_name, cf.integer("retry_interval", 0, low=1) or None,
            cf.integer("idle_interval", 0, low=1) or None, self.timeout,
        )  # fmt: skip
        self.serve(self.server_at(addresses))

    def server_at(self, addresses: tuple[Address, ...]) -> Server | CrewedServer:
        """The server with these addresses and this table's login."""
        return server_for(self.maptype, addresses, self.login, self.limits, self.host)

    def doubts(self, connect: bool = False) -> Iterator[Doubt]:
        yield from self.query_doubts()
        yield from self.file_doubts()
        for address in self.addresses if connect else ():
            if trouble := self._trouble_at(address):
                what = trouble if address.shown in trouble else f"{address.shown}: {trouble}"
                yield what, "see to the server, the login and the query", False

    def query_doubts(self) -> Iterator[Doubt]:
        """Of the query."""
        return of_query(self.query)

    def file_doubts(self) -> Iterator[Doubt]:
        """Of the files that the login names."""
        raise NotImplementedError

    def _trouble_at(self, address: Address) -> str:
        """What keeps us from a host, or its server from explaining the query, which does not run."""
        trial = self.trial(explaining(self.query))
        trial.serve(self.server_at((address,)))
        try:
            trial.ask(b"x", 0)
        except TableRetry as error:
            return "" if "invalid input syntax" in str(error) else str(error)  # our sample is no number
        return ""

    def trial(self, query: Program) -> DatabaseTable:
        """A table that asks this."""
        opening = Opening(0, False, self.host, lambda name: self)
        return DatabaseTable(
            self.type_name, NoParameters(), opening, query, utf8=False, result_set_required=False
        )
