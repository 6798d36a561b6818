"""fix_redis - private Redis servers on ports of 127.0.0.1: alone, with sentinels, as a cluster

    with RedisServer(folder) as server:
        server.client().set("k", "v")
        server.kill()
        server.start()

Each has a folder of its own, and what was written outlives its end, however that comes.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from fix_process import OneProcess
from fix_server import wait_until

LIMIT = 60.0  # seconds; for a machine that is very busy
NODE_TIMEOUT_MS = 1500  # of a cluster
DOWN_AFTER_MS = 1000  # of sentinels


def unavailable() -> str | None:
    """Why there can be none here, or None."""
    try:
        import redis  # noqa: F401
    except ImportError:
        return "redis-py is not installed"
    return None if shutil.which("redis-server") else "redis-server is not installed"


def free_port() -> int:
    """One that is free, and so is the one 10,000 above, which nodes of a cluster talk at."""
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10000))
            return port


class RedisServer(OneProcess):
    """One process. options: of its configuration. program: redis-server, or redis-sentinel."""

    program = "redis-server"

    def __init__(self, folder: Path, **options: object) -> None:
        self.port, self.dir = free_port(), folder / f"redis-{random.getrandbits(32):08x}"
        self.dir.mkdir(parents=True)
        self.socket = self.dir / "socket"
        self.options: dict[str, object] = {
            "port": self.port, "bind": "127.0.0.1", "dir": self.dir, "save": '""', "appendonly": "yes",
            "appendfsync": "no", "unixsocket": self.socket, "unixsocketperm": 777, "daemonize": "no",
            "logfile": self.dir / "log", "enable-debug-command": "local",
        }  # fmt: skip
        self.options |= {name.replace("_", "-"): value for name, value in options.items()}

    @property
    def uri(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def lines(self) -> Iterable[str]:
        return [f"{name} {value}" for name, value in self.options.items() if value is not None]

    def start(self) -> Self:
        path = self.dir / "redis.conf"
        if not path.exists():  # sentinels write to theirs, and so do masters
            path.write_text("\n".join(self.lines()) + "\n")
        self.dir.chmod(0o755)
        self.process = subprocess.Popen(
            [self.program, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            wait_until(self.answers, f"{self.program}: {self.dir}", LIMIT)
        except BaseException:
            self.kill()
            raise
        return self

    def answers(self) -> bool:
        import redis

        try:
            with contextlib.closing(self.client()) as client:
                return bool(client.ping())
        except redis.exceptions.AuthenticationError:
            return True
        except redis.exceptions.RedisError:
            return False

    def client(self, **others: Any) -> Any:
        import redis

        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=20, **others)

    def ask(self, *command: object) -> Any:
        with contextlib.closing(self.client()) as client:
            return client.execute_command(*command)

    def put(self, values: Mapping[str, str]) -> None:
        with contextlib.closing(self.client()) as client:
            for key, value in values.items():
                client.set(key, value)


class Sentinel(RedisServer):
    program = "redis-sentinel"

    def __init__(self, folder: Path, master: RedisServer, quorum: int) -> None:
        super().__init__(folder)
        self.options = {"port": self.port, "bind": "127.0.0.1", "dir": self.dir, "logfile": self.dir / "log"}
        self.master, self.quorum = master, quorum

    def lines(self) -> Iterable[str]:
        return [
            *super().lines(),
            f"sentinel monitor mymaster 127.0.0.1 {self.master.port} {self.quorum}",
            f"sentinel down-after-milliseconds mymaster {DOWN_AFTER_MS}",
            "sentinel failover-timeout mymaster 3000",
        ]


def is_linked(replica: RedisServer) -> bool:
    """Does it have all that its master has?"""
    with contextlib.closing(replica.client()) as client:
        return bool(client.info("replication").get("master_link_status") == "up")


class Group:
    """What starts and ends together."""

    def __init__(self) -> None:
        self.all: list[RedisServer] = []

    def begin(self) -> None:
        """Start all, and wait until they know each other."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        for one in self.all:
            one.kill()


class Watched(Group):
    """A master, a replica, and three sentinels."""

    def __init__(self, folder: Path) -> None:
        self.data = [RedisServer(folder), RedisServer(folder)]
        self.sentinels = [Sentinel(folder, self.data[0], 2) for _ in range(3)]
        self.all = [*self.data, *self.sentinels]

    def begin(self) -> None:
        first, second = self.data
        first.start()
        second.options["replicaof"] = f"127.0.0.1 {first.port}"
        second.start()
        wait_until(lambda: is_linked(second), "replica", LIMIT)
        for sentinel in self.sentinels:
            sentinel.start()
        wait_until(self._is_settled, "sentinels that know each other", LIMIT)

    def _is_settled(self) -> bool:
        states = [sentinel.client().sentinel_master("mymaster") for sentinel in self.sentinels]
        return all(s["num-other-sentinels"] == 2 and s["num-slaves"] == 1 for s in states)

    @property
    def uri(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/mymaster"

    def master(self) -> RedisServer:
        """The one that most sentinels know."""
        ports = [int(s.client().sentinel_master("mymaster")["port"]) for s in self.sentinels if s.process]
        port = max(set(ports), key=ports.count)
        return next(server for server in self.data if server.port == port)

    def other(self) -> RedisServer:
        master = self.master()
        return next(server for server in self.data if server is not master)


class ClusterOf(Group):
    """Three masters, each with some slots, and a replica of each."""

    def __init__(self, folder: Path, replicas: bool = True) -> None:
        options: dict[str, object] = {
            "cluster_enabled": "yes", "cluster_node_timeout": NODE_TIMEOUT_MS,
            "cluster_require_full_coverage": "no", "cluster_replica_validity_factor": 0,
        }  # fmt: skip
        self.masters = [RedisServer(folder, **options) for _ in range(3)]
        self.replicas = [RedisServer(folder, **options) for _ in range(3 if replicas else 0)]
        self.all = [*self.masters, *self.replicas]

    def begin(self) -> None:
        for server in self.all:
            server.start()
        bounds = [0, 5461, 10923, 16384]
        for number, server in enumerate(self.masters):
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            server.ask("CLUSTER", "ADDSLOTS", *range(bounds[number], bounds[number + 1]))
        for server in self.all[1:]:
            server.ask("CLUSTER", "MEET", "127.0.0.1", self.all[0].port)
        wait_until(lambda: all(self._knows(server, len(self.all)) for server in self.all), "cluster", LIMIT)
        for master, replica in zip(self.masters, self.replicas, strict=False):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID").decode())
        wait_until(self._is_whole, "cluster state", LIMIT)

    def _knows(self, server: RedisServer, count: int) -> bool:
        return len(server.ask("CLUSTER NODES")) == count

    def _is_whole(self) -> bool:
        if any(server.ask("CLUSTER INFO")["cluster_state"] != "ok" for server in self.all):
            return False
        return all(map(is_linked, self.replicas))

    @property
    def uri(self) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.all[:3])
        return f"redis+cluster://{hosts}"

    def put(self, values: Mapping[str, str]) -> None:
        import redis

        with contextlib.closing(redis.RedisCluster(host="127.0.0.1", port=self.masters[0].port)) as client:
            for key, value in values.items():
                client.set(key, value)


def write_cf(path: Path, **parameters: object) -> bytes:
    """The name of a table with these parameters."""
    path.write_text("".join(f"{name} = {value}\n" for name, value in parameters.items() if value is not None))
    path.chmod(0o644)
    return b"redis:" + str(path).encode()
