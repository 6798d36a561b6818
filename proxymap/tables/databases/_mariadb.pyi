from proxymap.tables.databases._connection import Attempt, Connection
from proxymap.tables.databases.addresses import Address

class MariaDB:
    cheapest: bytes
    def __init__(self, login: object, time_limit: int) -> None: ...
    def connect(self, address: Address, attempt: Attempt, limit_ms: int) -> Connection: ...
