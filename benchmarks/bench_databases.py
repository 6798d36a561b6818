"""bench_databases - lookups in MariaDB, PostgreSQL and OpenLDAP: ours beside stock's, in alternating rounds

A private server of each, a million rows, over its UNIX socket; all keys are there,
and nothing is cached on our side. Stock gets a process for each client, up to its
100 (load.c, -H): clients that connect while its processes are idle all land on
one. `delay`: what a lookup takes within the database server besides.

usage: bench_databases.py [--types mysql pgsql ldap] [--clients N ...] [--rounds N] [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import beside
import servers
from beside import middle
from servers import Measured, Server, load, log

CASES = [  # milliseconds in the server, clients
    *((0, clients) for clients in (1, 8, 32, 128)),
    *((delay, clients) for delay in (1, 10) for clients in (32, 128)),
]
WIDE = 100  # server_connection_limit where a lookup takes 10 ms
HOLD = {8: 1.0, 32: 2.0, 128: 8.0}  # seconds; for so many processes to start
METRICS = ("per_second", "cpu_us", "p50_us", "p99_us", "processes", "connections", "retry")
IDLE = "3s"  # for processes and connections that the last case needed
STOCK, USER = "stock", "pm"  # users of the database
ADD_USER = {
    "mysql": "CREATE USER stock@'%' IDENTIFIED BY '{0}'; GRANT ALL ON mail.* TO stock@'%'",
    "pgsql": "CREATE ROLE stock LOGIN PASSWORD '{0}'; GRANT pm TO stock",
}


def main() -> int:
    options = parse()
    if reason := servers.no_stock():
        raise SystemExit(f"without stock's server there is nothing to compare with: {reason}")
    servers.many_files()
    began = time.monotonic()
    result: dict[str, Any] = {
        "host": servers.about_this_host(),
        "rows": options.rows,
        "seconds": options.seconds,
    }
    result["cases"] = [case for maptype in options.types for case in Run(maptype, options).all()]
    result["took_seconds"] = round(time.monotonic() - began)
    print_cases(result["cases"])
    beside.write(options.json, result)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--types", nargs="+", default=["mysql", "pgsql"], choices=["mysql", "pgsql", "ldap"])
    parser.add_argument("--clients", nargs="+", type=int, metavar="N", help="only cases of so many")
    parser.add_argument("--delays", nargs="+", type=int, metavar="MS", help="only cases of such a delay")
    parser.add_argument("--rows", type=int, default=1_000_000)
    beside.add_options(parser)
    return beside.parsed(parser, "rows")


class Run:
    """One type: its server, stock's proxymap and two of ours, which differ in their limit of connections."""

    def __init__(self, maptype: str, options: argparse.Namespace) -> None:
        self.maptype, self.options = maptype, options
        self.cases = [
            (delay, clients)
            for delay, clients in CASES
            if (not options.clients or clients in options.clients)
            and (not options.delays or delay in options.delays)
            and (not delay or maptype in ADD_USER)  # slapd has nothing that sleeps
        ]

    def all(self) -> list[dict[str, Any]]:
        """Each case with the figures of each round."""
        known = [
            {"maptype": self.maptype, "delay_ms": delay, "clients": clients, "ours": [], "stock": []}
            for delay, clients in self.cases
        ]
        with ExitStack() as stack:
            log(f"{self.maptype}: {self.options.rows:,} rows")
            self.database = stack.enter_context(self.filled())
            self.keys = self.database.dir / "keys"
            write_keys(self.keys, self.options.rows)
            self.start(stack)
            for number in range(self.options.rounds):
                log(f"{self.maptype}: round {number + 1} of {self.options.rounds}")
                for case in known:
                    for server in beside.in_turn(number):
                        case[server].append(self.measure(server, case["delay_ms"], case["clients"]))
        return known

    def filled(self) -> Any:
        """The database server, with the rows."""
        import fix_database
        import fix_mariadb
        import fix_pgsql
        import fix_slapd
        import fix_sql

        if self.maptype == "ldap":
            directory = fix_slapd.Slapd().start()
            directory.fill_many(self.options.rows)
            return directory
        kind = fix_mariadb.MariaDB if self.maptype == "mysql" else fix_pgsql.PostgreSQL
        many = "--max-connections=1000" if self.maptype == "mysql" else "--max_connections=1000"
        database = kind(many).start()
        database.execute(ADD_USER[self.maptype].format(fix_database.PASSWORD))
        fix_sql.fill_many(database, self.options.rows)
        return database

    def slow(self, stack: ExitStack, seconds: float) -> str:
        """Where a directory answers so late."""
        from fix_relay import Relay

        relay = stack.enter_context(Relay(("127.0.0.1", self.database.port)))
        relay.delay = seconds / 2  # once for the bind, once for the search
        return f"ldap://127.0.0.1:{relay.port}"

    def start(self, stack: ExitStack) -> None:
        """Stock's server, and ours."""
        from fix_postfix import StockPostfix
        from fix_sql import Service

        delays = sorted({delay for delay, _ in self.cases})
        postfix = StockPostfix({"max_idle": IDLE})
        stack.callback(postfix.remove)
        self.names = {delay: f"{self.maptype}:{postfix.tables}/{delay}ms.cf" for delay in delays}
        self.holds = {clients: f"{self.maptype}:{postfix.tables}/hold{clients}.cf" for clients in HOLD}
        queries = {name: self.query(delay) for delay, name in self.names.items()}
        queries |= {name: self.query(HOLD[n] * 1000, some=True) for n, name in self.holds.items()}
        self.write(queries, STOCK)
        for clients, name in self.holds.items() if self.maptype == "ldap" else ():
            self.database.write_cf(Path(name.partition(":")[2]), hosts=self.slow(stack, HOLD[clients]))
        postfix.set(proxy_read_maps=servers.proxied(queries))
        postfix.start()
        self.stock = servers.served_by(postfix)
        self.ours = {}
        for limit in {limit_for(delay) for delay in delays}:
            limits = {"server_connection_limit": str(limit)} if limit else {}
            service = stack.enter_context(Service(self.database, {"server_idle_limit": IDLE} | limits))
            self.own_names = {
                delay: f"{self.maptype}:{self.database.dir}/{delay}ms.cf" for delay in self.names
            }
            self.write({name: self.query(delay) for delay, name in self.own_names.items()}, USER)
            service.approve(*self.own_names.values())
            service.start()
            self.ours[limit] = Server(Path(service.path), service.pid)

    def write(self, queries: dict[str, str], user: str) -> None:
        for name, query in queries.items():
            others = {} if self.maptype == "ldap" else {"query": query, "user": user}
            self.database.write_cf(Path(name.partition(":")[2]), **others)

    def query(self, delay: float, some: bool = False) -> str:
        """some: of one row, whatever the key."""
        key = "user1@example.com" if some else "%s"
        if self.maptype == "mysql":
            wait = f" AND SLEEP({delay / 1000}) = 0" if delay else ""
            return f"SELECT v FROM many WHERE k = '{key}'{wait}"
        source = f", pg_sleep({delay / 1000})" if delay else ""
        return f"SELECT v FROM many{source} WHERE k = '{key}'"

    def measure(self, server: str, delay: int, clients: int) -> Measured:
        seen: list[int] = []
        if server == "stock":
            one, table, hold, user = self.stock, self.names[delay], self.holds.get(clients, ""), STOCK
        else:
            one, table, hold, user = self.ours[limit_for(delay)], self.own_names[delay], "", USER
        measured = load(
            one, table, self.keys, clients, seconds=self.options.seconds, warm_up=self.options.warm_up,
            hold=hold, look=lambda: seen.append(self.database.connections(user)),
        )  # fmt: skip
        measured["connections"] = seen[0]
        beside.warn_of_failures(f"{server}, {delay} ms, {clients} clients", measured)
        return {name: measured[name] for name in METRICS}


def limit_for(delay: int) -> int:
    """server_connection_limit; 0: as it is."""
    return WIDE if delay >= 10 else 0


def write_keys(path: Path, rows: int) -> None:
    rng = random.Random(1)
    path.write_text(
        "".join(f"user{rng.randrange(rows) + 1}@example.com\n" for _ in range(min(rows, 500_000)))
    )


def print_cases(cases: list[dict[str, Any]]) -> None:
    print(f"table  delay clients | {beside.HEAD} | connections ours stock | stock's processes")
    for case in cases:
        ours, stock = case["ours"], case["stock"]
        print(
            f"{case['maptype']:6} {case['delay_ms']:2} ms {case['clients']:7} | {beside.columns(case)} |"
            f" {middle(ours, 'connections'):16.0f} {middle(stock, 'connections'):5.0f} |"
            f" {middle(stock, 'processes'):4.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())
