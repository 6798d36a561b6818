"""routes - which process has a key: the one there is, the master that sentinels know, or a node of a cluster

`find` may take long and is called by one thread; all else is quick. A route that is not
known is a TableRetry.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError

from proxymap.errors import TableRetry
from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.hosts import DatabaseHost
from proxymap.tables.databases.redispy.nodes import Node
from proxymap.tables.databases.redispy.places import CLUSTER, SENTINEL, Place, of_sentinel

SENTINEL_TIMEOUT = 0.5  # seconds for a sentinel
LOOK_AT_SENTINELS = 1.0  # seconds between two looks while there is something to do
LOOK_AT_CLUSTER = 15.0
NODES_MAX = 1000  # masters that a cluster may have


class Single:
    """One process. look_each: seconds between two calls of `find`; 0: none is of use."""

    look_each = 0.0

    def __init__(self, place: Place, timeout: float, inform: Callable[[str], None]) -> None:
        self.place, self.timeout, self.inform = place, timeout, inform
        self.reason = ""  # why no route is known
        self.nodes = [Node(place, a, DatabaseHost(n, a), timeout) for n, a in enumerate(place.addresses)]

    def node_for(self, key: bytes) -> Node:
        """Where to ask for key."""
        return self.nodes[0]

    @property
    def all_nodes(self) -> list[Node]:
        """Those that there may be connections to."""
        return self.nodes

    def moved(self, key: bytes, address: Address, for_good: bool) -> Node:
        """The node at this address has the key: one that was asked for it says so."""
        raise TableRetry(f"{self.place.shown} belongs to a cluster: write redis+cluster://")

    def find(self) -> None:
        """Find out how things are. Raises RedisError or OSError if nobody tells; the old route stays then."""


class BySentinels(Single):
    """The master, which is another node after each failover, with the same `host`."""

    look_each = LOOK_AT_SENTINELS

    def __init__(self, place: Place, timeout: float, inform: Callable[[str], None]) -> None:
        super().__init__(place, timeout, inform)
        self.nodes = []
        self._host = DatabaseHost(0, Address("inet", place.name, 0, place.shown))
        self._sentinels = [
            Node(
                of_sentinel(place, address), address, DatabaseHost(number, address),
                min(timeout, SENTINEL_TIMEOUT),
            )
            for number, address in enumerate(place.addresses)
        ]  # fmt: skip

    @property
    def all_nodes(self) -> list[Node]:
        return [*self.nodes, *self._sentinels]

    def node_for(self, key: bytes) -> Node:
        if not self.nodes:
            raise TableRetry(self.reason or f"{self.place.shown}: no master is known")
        return self.nodes[0]

    def find(self) -> None:
        """Ask most sentinels: the latest failover counts, of which one that is cut off knows nothing."""
        known: list[tuple[int, str, int]] = []
        reasons = []
        for sentinel in self._sentinels:
            try:
                known.append(master_in(sentinel.ask(["SENTINEL", "MASTER", self.place.name])))
            except (RedisError, OSError, TableRetry) as error:
                reasons.append(f"{sentinel.address.shown}: {error}")
            if len(known) * 2 > len(self._sentinels):
                break
        if not known:
            self.reason = f"{self.place.shown}: no sentinel knows a master: {'; '.join(reasons)}"
            raise NotConnected(self.reason)
        _, name, port = max(known)
        self._use(Address("inet", name, port, f"{name}:{port}"))

    def _use(self, address: Address) -> None:
        old = self.nodes[0] if self.nodes else None
        if old is not None and old.address == address:
            return
        self.nodes = [Node(self.place, address, self._host, self.timeout)]
        self._host.next_probe = 0.0
        if old is not None:
            old.leave()
            self.inform(
                f"redis server {self.place.name}: the master is {address.shown}, and was {old.address.shown}"
            )


class Cluster(Single):
    """Masters of a cluster, each with some of the slots that keys are in."""

    look_each = LOOK_AT_CLUSTER

    def __init__(self, place: Place, timeout: float, inform: Callable[[str], None]) -> None:
        super().__init__(place, timeout, inform)
        self._seeds = self.nodes
        self.nodes = []
        self._slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS

    def node_for(self, key: bytes) -> Node:
        slot: int = key_slot(key)
        node = self._slots[slot]
        if node is None:
            raise TableRetry(self.reason or f"cluster {self.place.shown}: no node has slot {slot}")
        return node

    @property
    def all_nodes(self) -> list[Node]:
        return [*self.nodes, *self._seeds]

    def moved(self, key: bytes, address: Address, for_good: bool) -> Node:
        node = self._node_at(address, self.nodes)
        if node not in self.nodes:
            if len(self.nodes) >= NODES_MAX:
                raise TableRetry(f"cluster {self.place.shown}: it has more than {NODES_MAX} masters")
            self.nodes = [*self.nodes, node]
        if for_good:
            self._slots[key_slot(key)] = node
        return node

    def find(self) -> None:
        """Ask a node, any; if it was cut off and does not know yet, another one is asked the next time."""
        well = [node for node in self.nodes if node.host.down_since is None]
        random.shuffle(well)
        random.shuffle(self._seeds)
        reasons = []
        for node in [*well, *self._seeds]:
            try:
                ranges = ranges_in(node.ask(["CLUSTER", "SLOTS"]), node)
            except (RedisError, OSError, TableRetry) as error:
                reasons.append(f"{node.address.shown}: {error}")
                continue
            if ranges:
                self._use(ranges)
                return
            reasons.append(f"{node.address.shown}: it knows of no slots")
        self.reason = f"cluster {self.place.shown}: no node tells of the others: {'; '.join(reasons)}"
        raise NotConnected(self.reason)

    def _use(self, ranges: list[tuple[int, int, Address]]) -> None:
        slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        nodes: list[Node] = []
        for first, last, address in ranges:
            node = self._node_at(address, [*nodes, *self.nodes])
            if node not in nodes:
                nodes.append(node)
            slots[first : last + 1] = [node] * (last + 1 - first)
        gone = [node for node in self.nodes if node not in nodes]
        self._slots, self.nodes, self.reason = slots, nodes, ""
        for node in gone:
            node.leave()
            self.inform(f"redis server {node.address.shown}: it is no master of the cluster any more")

    def _node_at(self, address: Address, known: list[Node]) -> Node:
        for node in known:
            if node.address == address:
                return node
        return Node(self.place, address, DatabaseHost(len(known), address), self.timeout)


def master_in(told: Any) -> tuple[int, str, int]:
    """master_in - epoch, host and port in an answer to SENTINEL MASTER; TableRetry if it is none"""
    try:
        state = dict(zip(told[::2], told[1::2], strict=True))
        found = int(state[b"config-epoch"]), state[b"ip"].decode(), int(state[b"port"])
    except (TypeError, ValueError, KeyError, AttributeError):
        raise TableRetry("it tells of no master") from None
    if not found[1] or not 0 < found[2] < 65536:
        raise TableRetry("it tells of no master")
    return found


def ranges_in(told: Any, asked: Node) -> list[tuple[int, int, Address]]:
    """ranges_in - (first slot, last, master) in an answer to CLUSTER SLOTS; TableRetry if it is none"""
    found = []
    try:
        for first, last, master, *_ in told:
            if not 0 <= first <= last < REDIS_CLUSTER_HASH_SLOTS:
                raise ValueError
            found.append((first, last, address_of(master[0] or b"", master[1], asked)))
    except (TypeError, ValueError, IndexError, AttributeError):
        raise TableRetry("what it tells of slots cannot be used") from None
    return found


def address_of(name: bytes, port: int, asked: Node) -> Address:
    """address_of - as a node of a cluster tells it; without a name it means the one that it was asked by

    Raises ValueError if there can be none.
    """
    shown = name.decode() or asked.address.host
    if not 0 < port < 65536:
        raise ValueError(f"no port: {port}")
    return Address("inet", shown, port, f"{shown}:{port}")


Route = Single


def route_to(place: Place, timeout: float, inform: Callable[[str], None]) -> Route:
    """route_to - inform: takes a line for the log"""
    kind = {SENTINEL: BySentinels, CLUSTER: Cluster}.get(place.kind, Single)
    return kind(place, timeout, inform)
