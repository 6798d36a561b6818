from collections.abc import Iterable

from proxymap._jobs import Queue

class Loop:
    def __init__(
        self,
        listeners: list[int],
        todo: Queue,
        done: Queue,
        log: Queue,
        wake_fd: int,
        *,
        approved: Iterable[bytes],
        writes: bool = False,
        utf8_layer: bool = True,
        greeting: bool = True,
        cache_size: int = 0,
        request_size_limit: int = ...,
        buffer_size_limit: int = ...,
        ipc_timeout: float = 3600,
    ) -> None: ...
    def run(self) -> None: ...
    def stop_accepting(self) -> None: ...
    def drain(self, seconds: float) -> int: ...
    def counters(self) -> dict[str, int]: ...
