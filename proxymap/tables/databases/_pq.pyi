from proxymap.tables.databases._connection import Attempt, Connection
from proxymap.tables.databases.addresses import Address

class PostgreSQL:
    cheapest: bytes
    def __init__(self, login: object) -> None: ...
    def connect(self, address: Address, attempt: Attempt, limit_ms: int) -> Connection: ...
