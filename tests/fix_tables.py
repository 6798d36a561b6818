"""fix_tables - tables opened in the test's own process, and what they log"""

from __future__ import annotations

from proxymap.tables._table import Table
from proxymap.tables.base import Change, Host
from proxymap.tables.opening import open_table


class Logged:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.host = Host(warn=self.lines.append)
        self.host.inform = self.lines.append


def opened(name: bytes, logged: Logged | None = None, *, writes: bool = False) -> Table:
    table = open_table(name, writes=writes, host=(logged or Logged()).host)
    assert table.reason is None, table.reason
    return table


def change(table: Table, key: bytes, value: bytes | None) -> int:
    made = Change(key, value, 0)
    table.write([made])
    return made.status
