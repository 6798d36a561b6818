"""proxymap - drop-in replacement for the Postfix proxymap(8) lookup table server

The names below are loaded when first used: the daemon imports this package at
start and needs none of them.

    with proxymap.Client("/var/spool/postfix/private/proxymap") as client:
        client.lookup("cdb:/etc/postfix/virtual", b"user@example.com")
"""

TYPE_CHECKING = False  # as type checkers know it; importing typing would take milliseconds

if TYPE_CHECKING:
    from .client import AsyncClient, Client
    from .errors import (
        BadRequest,
        ConfigError,
        NotApproved,
        ProtocolError,
        ProxymapError,
        TableConfig,
        TableRetry,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Client",
    "ConfigError",
    "NotApproved",
    "ProtocolError",
    "ProxymapError",
    "TableConfig",
    "TableRetry",
]


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import errors

    if hasattr(errors, name):
        return getattr(errors, name)
    from . import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
