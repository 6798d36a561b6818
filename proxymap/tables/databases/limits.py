"""limits - how many connections to a database server there may be, and how long things may take"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables.base import Host


class ServerLimits(NamedTuple):
    """The parameters server_* of proxymap.cf, and lookup_time_limit; times in seconds."""

    connection_limit: int = 32
    idle_limit: int = 60
    age_limit: int = 3600
    connect_time_limit: int = 3
    error_limit: int = 3
    probe_interval: int = 1
    longest_gap: int = 10  # between two probes
    time_limit: int = 10
    retry_budget: int = 10  # second tries per 100 answers


def server_limits(
    host: Host,
    type_name: bytes,
    retry_interval: int | None = None,
    idle_interval: int | None = None,
    timeout: int = 0,
) -> ServerLimits:
    """server_limits - those that hold for the server of a table

    host, type_name: for the parameters of proxymap.cf. retry_interval, idle_interval, timeout: of
    the table's .cf file, in seconds; 0: not said.
    """
    limits = ServerLimits(**host.server_limits(type_name))
    if retry_interval is not None:
        limits = limits._replace(longest_gap=retry_interval)
    if idle_interval is not None:
        limits = limits._replace(idle_limit=idle_interval)
    if timeout:
        limits = limits._replace(
            time_limit=min(timeout, limits.time_limit),
            connect_time_limit=min(timeout, limits.connect_time_limit),
        )
    return limits
