from collections.abc import Sequence

class Library:
    soname: str
    packages: str
    def __init__(self, needed_by: str, sonames: Sequence[str], packages: str) -> None: ...
    def has(self, name: str) -> bool: ...
