"""bench_memcache - lookups in memcached: ours beside stock's server, in alternating rounds

A private memcached, 100,000 keys, all of which are there; nothing is cached on our
side. Stock gets a process for each client, up to its 100 (load.c, -H).

usage: bench_memcache.py [--clients N ...] [--rounds N] [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import beside
import servers
from servers import Measured, Server, load, log

CLIENTS = [8, 32, 128]
HOLD = {8: 1, 32: 2, 128: 8}  # seconds; for so many processes to start
METRICS = ("per_second", "cpu_us", "p50_us", "p99_us", "processes", "retry")


def main() -> int:
    options = parse()
    if reason := servers.no_stock():
        raise SystemExit(f"without stock's server there is nothing to compare with: {reason}")
    servers.many_files()
    cases = run(options)
    print_cases(cases)
    beside.write(options.json, {"host": servers.about_this_host(), "keys": options.keys, "cases": cases})
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS, choices=CLIENTS)
    parser.add_argument("--keys", type=int, default=100_000)
    beside.add_options(parser)
    return beside.parsed(parser, "keys")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each case with the figures of each round."""
    from fix_memcached import Memcached, write_cf
    from fix_postfix import StockPostfix
    from fix_server import ServerProcess

    cases = [{"clients": clients, "ours": [], "stock": []} for clients in options.clients]
    with ExitStack() as stack:
        memcached = stack.enter_context(Memcached())
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=200))
        own = stack.enter_context(ServerProcess())
        postfix = StockPostfix({"max_idle": "3s"})
        stack.callback(postfix.remove)
        table = memcached.table(postfix.tables / "t.cf").decode()
        keys = postfix.dir / "keys"
        fill(memcached.port, keys, options.keys)
        holds = {
            clients: write_cf(
                postfix.tables / f"hold{clients}.cf", timeout=seconds, max_try=1,
                memcache=f"inet:127.0.0.1:{silent.getsockname()[1]}",
            ).decode()
            for clients, seconds in HOLD.items()
        }  # fmt: skip
        postfix.set(proxy_read_maps=servers.proxied([table, *holds.values()]))
        postfix.start()
        own.approve(table)
        own.start()
        both = {"stock": servers.served_by(postfix), "ours": Server(Path(own.path), own.pid)}
        for number in range(options.rounds):
            log(f"round {number + 1} of {options.rounds}")
            for case in cases:
                for name in beside.in_turn(number):
                    hold = holds[case["clients"]] if name == "stock" else ""
                    case[name].append(measure(both[name], table, keys, case["clients"], hold, options))
    return cases


def fill(port: int, keys: Path, count: int) -> None:
    """Store them, and write them in an order by chance."""
    names = [f"user{n}@example.com" for n in range(count)]
    with socket.create_connection(("127.0.0.1", port)) as peer:
        for at in range(0, count, 1000):
            some = names[at : at + 1000]
            peer.sendall(b"".join(b"set %b 0 0 10\r\n0123456789\r\n" % name.encode() for name in some))
            left = len(b"STORED\r\n") * len(some)
            while left:
                left -= len(peer.recv(left))
    random.Random(1).shuffle(names)
    keys.write_text("\n".join(names) + "\n")


def measure(
    server: Server, table: str, keys: Path, clients: int, hold: str, options: argparse.Namespace
) -> Measured:
    measured = load(server, table, keys, clients, seconds=options.seconds, warm_up=options.warm_up, hold=hold)
    beside.warn_of_failures(f"{clients} clients", measured)
    return {name: measured[name] for name in METRICS}


def print_cases(cases: list[dict[str, Any]]) -> None:
    print(f"clients | {beside.HEAD}")
    for case in cases:
        print(f"{case['clients']:7} | {beside.columns(case)}")


if __name__ == "__main__":
    sys.exit(main())
