"""bench_memcache - lookups in memcached: ours beside stock's server, in alternating rounds

A private memcached, 100,000 keys, all of which are there; nothing is cached on our
side. Stock gets a process for each client, up to its 100 (load.c, -H).

usage: bench_memcache.py [--clients N ...] [--rounds N] [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import servers
from servers import ROOT, Measured, Server, load, log

RESULTS = ROOT / "benchmarks" / "results" / "memcache.json"
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
    if options.json:
        result = {"host": servers.about_this_host(), "keys": options.keys, "cases": cases}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        log(f"written: {options.json}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS, choices=CLIENTS)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    parser.add_argument("--warm-up", type=float, default=0.7, metavar="S", help="before it (default: 0.7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="few keys, one short round")
    options = parser.parse_args()
    if options.quick:
        options.keys, options.rounds, options.seconds, options.warm_up = 10_000, 1, 0.5, 0.2
    return options


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
                for name in ("ours", "stock") if number % 2 == 0 else ("stock", "ours"):
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
    if measured["retry"] or measured["nokey"]:
        log(f"{clients} clients: {measured['retry']:.0f} deferred, {measured['nokey']:.0f} not found")
    return {name: measured[name] for name in METRICS}


def middle(figures: list[Measured], metric: str) -> float:
    return statistics.median(one[metric] for one in figures)


def ratio(case: dict[str, Any], metric: str) -> float:
    """Ours to stock's: the median of the rounds' ratios."""
    pairs = zip(case["ours"], case["stock"], strict=True)
    return statistics.median(ours[metric] / stock[metric] for ours, stock in pairs)


def print_cases(cases: list[dict[str, Any]]) -> None:
    print("clients | lookups/s     ours    stock  ratio | CPU µs  ours stock  ratio | p50 µs  ours   stock")
    for case in cases:
        ours, stock = case["ours"], case["stock"]
        print(
            f"{case['clients']:7} | {middle(ours, 'per_second'):18,.0f} {middle(stock, 'per_second'):8,.0f}"
            f" {ratio(case, 'per_second'):6.2f} | {middle(ours, 'cpu_us'):12.1f}"
            f" {middle(stock, 'cpu_us'):5.1f} {ratio(case, 'cpu_us'):6.2f} |"
            f" {middle(ours, 'p50_us'):12,.0f} {middle(stock, 'p50_us'):7,.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())
