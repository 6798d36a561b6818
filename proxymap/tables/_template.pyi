PART_KEY: int
PART_USER: int
PART_DOMAIN: int
PART_LABEL: int
PART_VALUE: int
PART_VALUE_USER: int
PART_VALUE_DOMAIN: int
NO_PART: int

class Program:
    text: str
    pieces: list[tuple[bytes, int]]
    def __init__(self, text: str, pieces: list[tuple[bytes, int]]) -> None: ...
    @property
    def wants(self) -> int: ...
