from collections.abc import Callable

from proxymap.tables.databases._connection import Connection
from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.openldap._entries import Form

class Chaser:
    def __init__(
        self,
        main: Connection,
        told: Callable[[str], tuple[Address, bytes | None, int | None]],
        reach: Callable[[Address, int], Connection],
    ) -> None: ...
    @property
    def born(self) -> float: ...
    def close(self) -> None: ...
    def take_lines(self) -> list[bytes]: ...
    def search(self, wanted: Form, text: bytes, limit_ms: int) -> list[bytes]: ...
