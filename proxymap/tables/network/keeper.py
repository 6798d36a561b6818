"""keeper - one exchange for all tables of the network types, and the thread that does what it must not

The exchange (_exchange) never waits and runs no Python. Its keeper looks names up, and
logs. Tables with the same server and the same limits share an endpoint. An endpoint
stays until the process ends, since questions may be on their way to it; without tables
it is idle, and has no connections.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable
from functools import partial

from proxymap.base.threads import start_thread
from proxymap.config.maincf import ERRORS, TEXT
from proxymap.tables._jobs import LEVEL_INFO
from proxymap.tables.network._exchange import NOTE_LINES, NOTE_RESOLVE
from proxymap.tables.network._network import Endpoint, Exchange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables._jobs import Job
    from proxymap.tables.base import Host
    from proxymap.tables.network._network import Protocol
    from proxymap.tables.network.addresses import Place

LIMITS = {"connection_limit": 32, "idle_limit": 60, "age_limit": 3600, "connect_time_limit": 3,
          "probe_interval": 1, "time_limit": 10}  # fmt: skip
LONGEST_GAP = 10  # seconds between two attempts to connect to a server that is down


class Keeper:
    """Has the exchange run."""

    def __init__(self, host: Host) -> None:
        self.host, self.exchange = host, Exchange()
        self.endpoints: dict[Hashable, Endpoint] = {}
        self._places: dict[int, tuple[Endpoint, Place]] = {}
        threading.Thread(target=self.exchange.run, name="exchange", daemon=True).start()
        threading.Thread(target=self._keep, name="exchange's keeper", daemon=True).start()

    def endpoint(self, maptype: str, speaks: Protocol, place: Place, limits: dict[str, float]) -> Endpoint:
        key = maptype, place, tuple(sorted(limits.items()))
        made = self.endpoints.get(key)
        if made is None:
            made = self.endpoints[key] = Endpoint(
                self.exchange, maptype, speaks, place.shown, place.packed(), **limits
            )
            self._places[made.number] = made, place
        return made

    def _keep(self) -> None:
        while True:
            with contextlib.suppress(MemoryError):
                note = self.exchange.notes.take()
                if note is not None:
                    self._heed(note)

    def _heed(self, note: Job) -> None:
        if note.kind == NOTE_LINES:
            for level, line in self.exchange.take_lines():
                tell = self.host.inform if level == LEVEL_INFO else self.host.warn
                tell(line.decode(TEXT, ERRORS))
        elif note.kind == NOTE_RESOLVE:
            endpoint, place = self._places[self.exchange.wanted(note)]
            try:
                start_thread("resolving", partial(self._resolve, endpoint, place))
            except (RuntimeError, MemoryError):  # the system allows no more threads
                self.exchange.resolved(endpoint, [])

    def _resolve(self, endpoint: Endpoint, place: Place) -> None:
        """What a thread of its own does."""
        try:
            found = place.resolved(protocols=self.host.parameter("inet_protocols"))
        except Exception:  # whatever it is, such as no memory: nobody asks again before there is an outcome
            found = []
        self.exchange.resolved(endpoint, found)


_keepers: list[Keeper] = []
_lock = threading.Lock()


def endpoint_for(
    maptype: str, speaks: Protocol, place: Place, host: Host, type_name: bytes, **limits: float
) -> Endpoint:
    """endpoint_for - the endpoint of this server, which all who ask for the same share

    host, type_name: for the parameters server_* that hold for this table; limits count more.
    """
    given = {name: value for name, value in host.server_limits(type_name).items() if name in LIMITS}
    with _lock:
        if not _keepers:
            _keepers.append(Keeper(host))
        keeper = _keepers[0]
        keeper.host = host
        every = {**LIMITS, **given, **limits, "longest_gap": LONGEST_GAP}
        return keeper.endpoint(maptype, speaks, place, every)
