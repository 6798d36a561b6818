"""soak_outages - a database is cut, slowed, paused and restarted at random under load: `make soak-outages`

    python tests/soak_outages.py [--seconds N] [--types mysql pgsql] [--attack N]

32 clients judge every reply: the right value, the right "no", or RETRY. Values are kept
for a second, old ones stand in, so that each way of answering has its share. Memory,
threads and descriptors must not grow. Then an attack: so many different absent keys,
with "no" kept for an hour, must not grow memory beyond cache_size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from fix_database import PrivateDatabase
from fix_mariadb import MariaDB
from fix_pgsql import PostgreSQL
from fix_relay import Relay
from fix_server import ROOT, wait_until
from fix_sql import RECORDS, Clients, Service, fill_many

KINDS = {"mysql": MariaDB, "pgsql": PostgreSQL}
PARTS = 10  # with figures at the end of each
SETTLED = 3  # parts after which nothing may grow any more
GROWTH = 8 << 20  # bytes; the cache is full by then, malloc has its holes
MORE = 6  # threads and descriptors that come and go: attempts to connect, cancels
LIMIT = 2.0  # lookup_time_limit
SLACK = 3.0  # seconds; a thread that waits for a CPU of a busy machine
CACHE = 4 << 20  # cache_size of the attack
OWN = {
    "cache_ttl": "1s", "cache_stale_ttl": "1h", "lookup_time_limit": f"{LIMIT:.0f}s", "cache_size": "1M",
    "cache_stale_wait": "1s", "server_connection_limit": "8",
}  # fmt: skip


def soak(database: PrivateDatabase, seconds: float, seed: int) -> list[dict[str, float]]:
    """The figures of each part. AssertionError: a wrong answer, or something grows."""
    rng = random.Random(seed)
    figures = []
    with Relay(("127.0.0.1", database.port)) as relay, Service(database, OWN) as service:
        table = service.table(hosts=f"127.0.0.1:{relay.port}")
        service.start()
        service.until_right(table)
        with Clients(service, table) as clients:
            for part in range(PARTS):
                until = time.monotonic() + seconds / PARTS
                while time.monotonic() < until:
                    time.sleep(rng.uniform(0.2, 3))
                    trouble(rng, relay, database)
                clients.until_right()
                assert clients.wrong == [], clients.wrong[:5]
                figures.append(figures_of(service, clients, part))
                print(json.dumps(figures[-1]), flush=True)
        assert clients.slowest <= LIMIT + SLACK, clients.slowest
    for name, more in (("memory", GROWTH), ("threads", MORE), ("descriptors", MORE)):
        settled = max(one[name] for one in figures[:SETTLED])
        assert figures[-1][name] <= settled + more, (name, [one[name] for one in figures])
    return figures


def trouble(rng: random.Random, relay: Relay, database: PrivateDatabase) -> None:
    """One of the things that happen; it is over when this returns."""
    what = rng.choice(["cut", "cut", "slow", "stall", "refuse", "pause", "kill", "restart"])
    seconds = rng.choice([0.1, 0.5, 2.0, 4.0])
    if what == "cut":
        relay.cut()
    elif what == "slow":
        relay.delay = rng.choice([0.01, 0.1, 1.0])
        time.sleep(seconds)
        relay.delay = 0.0
    elif what == "stall":
        relay.stalled = True
        time.sleep(seconds)
        relay.stalled = False
    elif what == "refuse":
        relay.refuse()
        time.sleep(seconds)
        relay.listen()
    elif what == "pause":
        database.pause()
        time.sleep(seconds)
        database.resume()
    else:
        (database.kill if what == "kill" else database.stop)()
        time.sleep(seconds)
        start(database)


def start(database: PrivateDatabase) -> None:
    """Processes of one that was killed may be there for a moment."""
    for _ in range(20):
        with contextlib.suppress(RuntimeError):
            database.start()
            return
        time.sleep(0.5)
    database.start()


def figures_of(service: Service, clients: Clients, part: int) -> dict[str, float]:
    return {
        "part": part, "memory": service.resident(), "threads": service.threads(),
        "descriptors": service.descriptors(), **clients.counts, "slowest": round(clients.slowest, 2),
    }  # fmt: skip


def attack(database: PrivateDatabase, count: int) -> dict[str, float]:
    """So many absent keys, once each; the known ones stay in the cache. AssertionError: memory grows."""
    own = {
        "cache_ttl": "1h",
        "cache_negative_ttl": "1h",
        "cache_size": str(CACHE),
        "lookup_time_limit": "60s",
    }
    with Service(database, own) as service:
        table = service.table()
        service.start()
        service.until_right(table)
        keys = service.dir / "attack"
        before = 0
        for part in range(PARTS):
            with keys.open("w") as file:
                first = part * count // PARTS
                file.writelines(f"guess{first + n}@example.com\n" for n in range(count // PARTS))
            load(service, table, keys, count // PARTS)
            before = before or service.resident()
            print(
                json.dumps({"absent": (part + 1) * count // PARTS, "memory": service.resident()}), flush=True
            )
        asked = service.database.connections()
        assert service.resident() <= before + CACHE, (before, service.resident())
        return {"absent": count, "memory": service.resident(), "after the first part": before, "open": asked}


def load(service: Service, table: bytes, keys: Path, requests: int) -> None:
    command = [str(ROOT / "build/load"), service.path, table.decode(), str(keys), "32", str(requests)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="for each type (default: 600)")
    parser.add_argument("--types", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--attack", type=int, default=10_000_000, metavar="N", help="absent keys; 0: none")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    for maptype in options.types:
        with KINDS[maptype]() as database:
            fill_many(database, RECORDS)
            if options.seconds:
                print(maptype, json.dumps(soak(database, options.seconds, options.seed)[-1]))
            if options.attack:
                print(maptype, json.dumps(attack(database, options.attack)))
    return 0


if __name__ == "__main__":
    wait_until(lambda: (ROOT / "build/load").exists(), "make build/load", 0)
    sys.exit(main())
