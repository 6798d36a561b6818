from proxymap.tables._jobs import Job, Queue
from proxymap.tables._table import Table

class Protocol: ...

class Exchange:
    asks: Queue
    notes: Queue
    log: Queue
    def run(self) -> None: ...
    def wake(self) -> None: ...
    def take_lines(self) -> list[tuple[int, bytes]]: ...
    def resolved(self, of: Endpoint, addresses: list[bytes]) -> None: ...
    def wanted(self, note: Job) -> int: ...

class Endpoint:
    shown: str
    number: int
    figures: dict[str, int]
    down: bool
    owing: int
    last_error: str
    def __init__(
        self,
        exchange: Exchange,
        maptype: str,
        speaks: Protocol,
        shown: str,
        addresses: list[bytes],
        **limits: float,
    ) -> None: ...
    def count(self, change: int) -> None: ...

class NetworkTable(Table):
    endpoint: Endpoint
    server: Endpoint
