FROM_NOBODY: int

class Tracer:
    def __init__(
        self,
        *,
        table: bytes | None = None,
        key: bytes | None = None,
        slow: float = 0,
        status: int = -1,
        rate: int = 1000,
    ) -> None: ...
    def take(self, limit: int) -> list[tuple[float, float, int, int, int, bytes, bytes, bool]]: ...
    @property
    def left_out(self) -> int: ...
