OF_SERVICE: int
OF_TABLE: int
OF_SERVER: int
FROM_TABLE: int
FROM_SERVER: int
FROM_CACHE: int
FROM_JOINED: int
FROM_STALE: int
FROM_SHED: int
BUCKETS: int
FASTER: int
SLOWER: int
LOOKUPS: int
REQUESTS: int
OPENINGS: int
LOOKUP_SECONDS: int
OPENED: int
OPEN_FAILED: int
ANSWERS: int
LATE: int
SHED: int
RETRIES: int
PROBES: int
ERRORS: int
QUEUE_SECONDS: int
ERROR_FAILED: int
ERROR_DOWN: int
REFUSED: int
CONNECTIONS: int
HANGUPS: int
PAUSES: int
STARTS: int
RELOADS: int
LOG_LOST: int
EVICTIONS: int
TURN_SECONDS: int
TURN_CLIENTS: int
REFUSED_UNAPPROVED: int
REFUSED_READ_ONLY: int
REFUSED_BAD: int
REFUSED_TOO_LONG: int
REFUSED_MEMORY: int
LAYOUT: int
HEADER_SIZE: int
ROW_SIZE: int
FILE_SIZE: int
NAME_AT: int
CELLS_AT: int
READY: int

def attach(fd: int) -> None: ...
def is_damaged() -> bool: ...

class Figures:
    def __init__(self, kind: int, name: bytes) -> None: ...
    def count(self, cell: int, n: int = 1) -> None: ...
    def time(self, first: int, shift: int, seconds: float) -> None: ...
    def value(self, cell: int) -> int: ...
