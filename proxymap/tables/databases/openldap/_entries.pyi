from collections.abc import Sequence

from proxymap.tables.databases.database import DatabaseTable

class Form:
    names: list[bytes]
    def __init__(
        self,
        scope: int,
        attributes: Sequence[list[bytes]],
        *,
        size_limit: int,
        recursion_limit: int,
        time_limit: int,
        base_varies: bool,
    ) -> None: ...
    def attach(self, table: DatabaseTable) -> None: ...
