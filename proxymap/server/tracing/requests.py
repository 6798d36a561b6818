"""requests - what the control socket is asked about lookups as they happen: trace"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from proxymap.server.control import Refused
from proxymap.server.tracing._trace import FROM_NOBODY, Tracer
from proxymap.server.tracing.streams import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from proxymap.server._loop import Loop

STATUSES = ("OK", "NOKEY", "RETRY", "BAD", "DENY", "CONFIG")  # as in the protocol
AT_ONCE = 250  # events that are taken from a ring
TELL = 1.0  # seconds between two words of what was left out
FORMS: dict[str, Any] = {"table": str, "key": str, "status": str, "slow": (int, float)}


class Watching:
    """Those who watch the lookups of one loop. between_turns, over: the daemon's.

    Raises ValueError, with what is to be told, for a request that cannot be done.
    """

    def __init__(
        self, loop: Loop, between_turns: Callable[[Callable[[], Any]], Any], over: Callable[[], bool]
    ) -> None:
        self.loop, self.between_turns, self.over = loop, between_turns, over

    def trace(self, request: dict[str, Any]) -> Stream:
        """Follow lookups: all, or those of a table, about a key, with a status, that took so long."""
        tracer = Tracer(**_wanted(request))
        if not self.between_turns(lambda: self.loop.trace(tracer)):
            raise ValueError("as many traces as there may be are under way: end another one first")
        return Stream(_events(tracer), lambda: self._end(tracer), self.over)

    def _end(self, tracer: Tracer) -> None:
        with contextlib.suppress(Refused):  # the loop has come to its end meanwhile
            if not self.over():
                self.between_turns(lambda: self.loop.untrace(tracer))


def _wanted(request: dict[str, Any]) -> dict[str, Any]:
    """A tracer's filter. A null is as if it were not there."""
    wanted = {name: value for name, value in request.items() if value is not None}
    try:
        if not all(isinstance(value, FORMS[name]) for name, value in wanted.items()):
            raise TypeError
        found: dict[str, Any] = {
            name: os.fsencode(wanted[name]) for name in ("table", "key") if name in wanted
        }
        if "status" in wanted:
            found["status"] = STATUSES.index(wanted["status"])
        if "slow" in wanted and 0 <= wanted["slow"] <= 1e6:
            found["slow"] = float(wanted["slow"])
        return found
    except (KeyError, TypeError, ValueError):
        expected = f'"table", "key": texts; "status": one of {" ".join(STATUSES)}; "slow": seconds'
        raise ValueError(f"expected {expected}") from None


def _events(tracer: Tracer) -> Callable[[], Iterator[dict[str, Any]]]:
    """What a stream of the tracer's events takes: each event; now and then, how many were left out."""
    from proxymap.metrics.metrics import SOURCES

    sources = {number: name for name, number in SOURCES.items()} | {FROM_NOBODY: "refused"}
    told, when = 0, 0.0

    def take() -> Iterator[dict[str, Any]]:
        nonlocal told, when
        for at, took, client, status, source, table, key, cut in tracer.take(AT_ONCE):
            event = {
                "time": round(at, 6), "client": client or None, "table": os.fsdecode(table),
                "key": os.fsdecode(key), "status": STATUSES[status], "source": sources[source],
                "took": round(took, 9),
            }  # fmt: skip
            yield event | ({"cut": True} if cut else {})
        if tracer.left_out != told and time.monotonic() - when >= TELL:
            told, when = tracer.left_out, time.monotonic()
            yield {"left_out": told}

    return take
