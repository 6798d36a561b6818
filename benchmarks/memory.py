"""memory - what a server keeps in memory: idle, for a table, for a client, with a full cache

Bytes from /proc/PID/smaps_rollup. What is mapped from files (programs and
tables) is the page cache's, which takes it back when memory is short; what is
anonymous is the server's own.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from servers import Server, folder_for, keys, load, many_files, ours, stock, table

GREETING = b"protocol\0proxymap_protocol\0\0"
CACHE_SIZE = 64 << 20  # proxymap.cf's default
USED = 2.0  # seconds of load on a table
ENOUGH = 1_000_000  # entries, to fill it
LIMIT = 60.0  # seconds

Bytes = dict[str, int]


def measure(
    sizes: list[int], maps: list[str], folder: Path, clients: int, servers: list[str],
    did: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    figures: dict[str, Any] = {"clients": clients, "cache_size": CACHE_SIZE}
    for name in servers:
        figures[name] = {"idle": idle(name, maps), "tables": []}
        did(f"memory: {name}, idle")
        for maptype in ("cdb", "lmdb"):
            for entries in sizes:
                one, wanted = table(maptype, entries, folder), keys("found", entries, folder)
                figures[name]["tables"].append(
                    {
                        "maptype": maptype,
                        "entries": entries,
                        **with_table(name, maps, one, wanted, min(USED, entries / 1000)),
                    }
                )
                did(f"memory: {name}, {maptype} of {entries:,} entries")
        figures[name]["per_client"] = per_client(name, maps, clients)
        did(f"memory: {name}, {clients:,} clients")
    if "ours" in servers and max(sizes) >= ENOUGH:
        figures["cache"] = cache_full(maps, max(sizes), folder)
        did("memory: ours, cache full")
    return figures


@contextmanager
def running(name: str, maps: list[str], *options: str) -> Iterator[Server]:
    if name == "ours":
        with folder_for(maps) as folder, ours(folder, *options) as server:
            yield server
    else:
        with stock(maps) as server:
            yield server


@contextmanager
def connected(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """So many clients, greeted."""
    with contextlib.ExitStack() as stack:
        peers = []
        for _ in range(count):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.settimeout(LIMIT)
            peer.connect(str(server.path))
            if peer.recv(len(GREETING), socket.MSG_WAITALL) != GREETING:
                raise SystemExit(f"{server.path} does not greet")
            peers.append(peer)
        yield peers


def ask(peer: socket.socket, type_name: str, key: str) -> None:
    peer.sendall(f"request\0lookup\0table\0{type_name}\0flags\x0064\0key\0{key}\0\0".encode())
    if not peer.recv(4096).startswith(b"status\x000\0"):
        raise SystemExit(f"{type_name}: {key} is not found")


def idle(name: str, maps: list[str]) -> Bytes:
    """With one client that has not asked: without any, there may be no stock process."""
    with running(name, maps) as server, connected(server, 1):
        time.sleep(0.2)  # threads start
        return server.memory()


def with_table(name: str, maps: list[str], type_name: str, wanted: Path, seconds: float) -> dict[str, Bytes]:
    """After one lookup, and after many; without a cache."""
    with running(name, maps, "-o", "cache_size=0") as server, connected(server, 1) as (peer,):
        ask(peer, type_name, "0user@example.com")
        opened = server.memory()
        load(server, type_name, wanted, 8, seconds=seconds)
        return {"opened": opened, "used": server.memory()}


def per_client(name: str, maps: list[str], count: int) -> dict[str, float]:
    """Anonymous bytes that each silent client costs, and each that has asked once and is silent since."""
    many_files()
    with running(name, maps) as server, connected(server, 1) as (first,):
        ask(first, maps[0], "0user@example.com")
        before = server.memory()
        with connected(server, count) as peers:
            silent = server.memory()
            for peer in peers:
                ask(peer, maps[0], "0user@example.com")
            asked = server.memory()
    return {
        "silent": (silent["anonymous"] - before["anonymous"]) / count,
        "asked": (asked["anonymous"] - before["anonymous"]) / count,
        "processes": silent["processes"],
    }


def cache_full(maps: list[str], entries: int, folder: Path) -> dict[str, int]:
    """The most that anonymous memory grew while more was asked than there is room for."""
    type_name = table("lmdb", entries, folder)
    options = ("-o", f"cache_size={CACHE_SIZE}", "-o", "cache_maptypes=lmdb", "-o", "lmdb_index_size=0")
    with running("ours", maps, *options) as server, connected(server, 1) as (peer,):
        ask(peer, type_name, "0user@example.com")
        before = server.memory()["anonymous"]
        most = 0
        for kind in ("found", "absent") * 4:
            load(server, type_name, keys(kind, entries, folder), 8, requests=250_000)
            most = max(most, server.memory()["anonymous"] - before)
        return {"limit": CACHE_SIZE, "grown": most}
