from collections.abc import Callable
from typing import Any

from proxymap.tables.base import Host

class Writer:
    def look(self) -> None: ...
    def write(self, changes: list[Any], on_disk: Callable[[list[Any]], None] | None = None) -> None: ...

def writer_for(path: str, host: Host, damage_in: Callable[[str], str | None]) -> Writer: ...
