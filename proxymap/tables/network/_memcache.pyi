from proxymap.tables._jobs import Queue
from proxymap.tables._table import Table
from proxymap.tables._template import Program
from proxymap.tables.domains import DomainList
from proxymap.tables.network._network import Endpoint, NetworkTable, Protocol

GET: int
SET: int
DELETE: int
ADD: int
LONGEST_KEY: int
MISSED: bytes
FAILED: bytes
speaks: Protocol

class MemcacheTable(NetworkTable):
    backup: Table | None
    doubts_count: int
    def equip(
        self,
        to: Endpoint,
        key_format: Program,
        domains: DomainList | None,
        backup: Table | None,
        *,
        line_limit: int,
        data_limit: int,
        ttl: int,
        flags: int,
        writes: bool,
        in_python: bool,
    ) -> None: ...
    def equipped(self) -> None: ...
    def memcached_key(self, key: bytes) -> bytes | None: ...
    def may_ask(self, key: bytes) -> bool: ...
    def begin(self, kind: int, key: bytes, value: bytes = b"") -> Queue: ...
    def end(self, replies: Queue) -> tuple[int, bytes, str]: ...
    def store(self, key: bytes, value: bytes | None, flags: int) -> int: ...
