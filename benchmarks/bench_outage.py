"""bench_outage - cdb lookups while a database server is dead or silent, and its clients ask again at once

A mysql and a cdb table are served by one process. The rate and the p99 of cdb's clients are measured
before and during that, in turns. An answer of RETRY comes at once, so mysql's clients ask
as fast as they may.

usage: bench_outage.py [--rounds N] [--seconds S] [--clients N]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from servers import Measured, Server, load, log

CDB_CLIENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description="cdb lookups beside a dead or a silent database server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    parser.add_argument("--clients", type=int, default=32, help="of the database (default: 32)")
    options = parser.parse_args()
    import fix_mariadb  # in tests/, where servers.py leads to
    import fix_sql

    with tempfile.TemporaryDirectory(prefix="pm-bench-") as name, fix_mariadb.MariaDB() as database:
        fix_sql.fill_many(database, fix_sql.RECORDS)
        with fix_sql.Service(database) as service:
            table = service.table()
            other = service.cdb("t", {b"user%d" % i: b"box%d" % i for i in range(100_000)})
            keys = Path(name) / "keys"
            keys.write_text("".join(f"user{i}\n" for i in range(0, 200_000, 7)))
            service.start()
            service.until_right(table)
            one = Server(Path(service.path), service.pid)

            def measure() -> Measured:
                return load(one, other.decode(), keys, CDB_CLIENTS, seconds=options.seconds, warm_up=0.3)

            def beside(break_it: Callable[[], None], mend_it: Callable[[], None]) -> Measured:
                break_it()
                try:
                    with fix_sql.Clients(service, table, count=options.clients) as clients:
                        clients.until("retry", options.clients)
                        return measure()
                finally:
                    mend_it()
                    service.until_right(table)

            outages = {"killed": (database.kill, database.start), "silent": (database.pause, database.resume)}
            for what, (break_it, mend_it) in outages.items():
                rounds = []
                for number in range(options.rounds):
                    log(f"{what}: round {number + 1} of {options.rounds}")
                    rounds.append((measure(), beside(break_it, mend_it)))
                show(what, rounds)


def show(what: str, rounds: list[tuple[Measured, Measured]]) -> None:
    for metric in ("per_second", "p99_us", "cpu_us"):
        ratio = statistics.median(during[metric] / before[metric] for before, during in rounds)
        first, then = (statistics.median(one[n][metric] for one in rounds) for n in (0, 1))
        print(f"{what}: {metric}: before {first:.1f}, meanwhile {then:.1f}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
