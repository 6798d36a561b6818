from typing import Any

from proxymap.tables._table import Table
from proxymap.tables._template import Program
from proxymap.tables.base import Opening
from proxymap.tables.domains import DomainList
from proxymap.tables.tablecf import TableCf

class DatabaseTable(Table):
    query: Program
    result: Program
    domains: DomainList | None
    server: Any
    def __init__(
        self,
        type_name: bytes,
        cf: TableCf,
        opening: Opening,
        query: Program,
        *,
        utf8: bool = True,
        result_set_required: bool = True,
        quotes: bool = True,
        fixed: bool = True,
    ) -> None: ...
    def text_for(self, key: bytes) -> tuple[bytes, None] | tuple[None, str]: ...
    def offer(self, changes: bool, records: bool) -> None: ...
    def shown(self, text: bytes) -> str: ...
    def serve(self, server: Any) -> None: ...
