"""errors - what can go wrong with a request, each with the reply status that it becomes

"No such key" is an answer (None), never an exception. The client (client.py)
raises these for what a server replied; a table raises TableRetry or
TableConfig, and whatever else it raises becomes RETRY.

Source: proxymap(8); the status numbers stand in _words.pxd too.
"""

STAT_OK, STAT_NOKEY, STAT_RETRY, STAT_BAD, STAT_DENY, STAT_CONFIG = range(6)


class ProxymapError(Exception):
    """A request that got no answer. `status` is the number on the wire."""

    status = STAT_RETRY


class TableRetry(ProxymapError):
    """RETRY: the table is unavailable for now; ask again later."""


class QuestionRefused(TableRetry):
    """RETRY for this key alone: the question itself was refused, which says nothing of the server."""


class ServerDown(TableRetry):
    """RETRY at once, and no line in the log, which was told when the table's server went down."""


class TableConfig(ProxymapError):
    """CONFIG: the table is configured wrongly; asking again does not help."""

    status = STAT_CONFIG


class BadRequest(ProxymapError):
    """BAD: the request is malformed."""

    status = STAT_BAD


class NotApproved(ProxymapError):
    """DENY: the table is not approved, or the service is read-only."""

    status = STAT_DENY


class ProtocolError(ProxymapError):
    """The peer does not speak the proxymap protocol, or hung up."""


class ConfigError(Exception):
    """Configuration that cannot be used: which file, which line, what was expected."""


BY_STATUS: dict[int, type[ProxymapError]] = {
    kind.status: kind for kind in (TableRetry, TableConfig, BadRequest, NotApproved)
}
