"""tables - lookup tables. For plug-ins it has SlowTable, CONTRACT, TableRetry and TableConfig

They are loaded when somebody asks for them: a start needs none of it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.errors import TableConfig, TableRetry
    from proxymap.tables.base import CONTRACT, SlowTable

__all__ = ["CONTRACT", "SlowTable", "TableConfig", "TableRetry"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from proxymap import errors
    from proxymap.tables import base

    return getattr(base, name, None) or getattr(errors, name)
