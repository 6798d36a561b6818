from collections.abc import Iterable
from typing import Any

from proxymap.base._watch import Watch
from proxymap.server.tracing._trace import Tracer
from proxymap.tables._jobs import Queue
from proxymap.tables._table import Table

END_WOKEN: int
END_MASTER: int
END_IDLE: int
END_USED: int

class Loop:
    def __init__(
        self,
        listeners: list[int],
        todo: Queue,
        renewals: Queue,
        asks: Queue,
        done: Queue,
        log: Queue,
        watching: Watch,
        wake_fd: int,
        *,
        config: Table | None = None,
        writes: bool = False,
        status_fd: int = -1,
        generation: int = 0,
        max_use: int = 0,
        max_idle: int = 0,
        **settings: Any,
    ) -> None: ...
    def configure(
        self,
        *,
        approved: Iterable[bytes],
        utf8_layer: bool = True,
        greeting: bool = True,
        cache_size: int = 0,
        cache_negative_share: int = 25,
        request_size_limit: int = ...,
        buffer_size_limit: int = ...,
        ipc_timeout: float = 3600,
        value_size_limit: int = ...,
        waiting_limit: int = ...,
    ) -> None: ...
    def run(self) -> int: ...
    def add_client(self, fd: int) -> None: ...
    @property
    def progress(self) -> tuple[int, bool]: ...
    def stop_accepting(self) -> None: ...
    def drain(self, seconds: float) -> int: ...
    def tables(self) -> list[dict[str, Any]]: ...
    def open_anew(self, name: bytes | None = None) -> None: ...
    def flush(
        self, name: bytes | None = None, key: bytes | None = None, negative: bool = False
    ) -> tuple[int, int]: ...
    def known(self, name: bytes, key: bytes) -> list[dict[str, Any]]: ...
    def trace(self, tracer: Tracer) -> bool: ...
    def untrace(self, tracer: Tracer) -> None: ...
    def counters(self) -> dict[str, int]: ...
