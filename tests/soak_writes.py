"""soak_writes - clients update at full speed until kill -9: `make soak`, and in small in the tests

    python tests/soak_writes.py [--rounds N] [--seed N] [--type lmdb|hash|btree] [--clients N]

A client has one request under way and keys of its own. So, when the server has
been killed, each key must be as the last reply says, or as the request that was
not answered any more says. Stock's postmap reads the table.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time

from fix_postfix import complaints
from fix_server import ServerProcess, give, request

from proxymap.tables.opening import open_table

CLIENTS = 6
KEYS = 40  # of each client
LIFE = 0.02, 0.4  # seconds of full speed before the end
State = bytes | None  # of a key; None: it is not there


class Client:
    """Updates and deletes until the server is gone. `answered` is what holds, `under_way` what may."""

    def __init__(self, server: ServerProcess, table: bytes, name: int, rng: random.Random) -> None:
        self.peer, self.table, self.rng = server.connect(), table, rng
        self.keys = [b"c%d-%d" % (name, i) for i in range(KEYS)]
        self.answered: dict[bytes, State] = {}
        self.under_way: tuple[bytes, State] | None = None
        self.count = 0
        self.wrong: str | None = None
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        try:
            while self.wrong is None:
                self.change(self.rng.choice(self.keys))
        except (OSError, AssertionError):  # hung up on
            self.peer.close()

    def change(self, key: bytes) -> None:
        self.count += 1
        delete = self.rng.random() < 0.2
        value = b"%d-" % self.count + b"x" * self.rng.choice([1, 30, 3000])
        self.under_way = key, None if delete else value
        if delete:
            status = dict(self.peer.ask(request("delete", self.table, key=key)))[b"status"]
            good = b"0" if self.answered.get(key) is not None else b"1"
        else:
            status = dict(self.peer.ask(request("update", self.table, key=key, value=value)))[b"status"]
            good = b"0"
        if status != good:
            self.wrong = f"{'delete' if delete else 'update'} of {key!r} was answered {status!r}"
        self.answered[key] = self.under_way[1]
        self.under_way = None

    def lies(self, stored: dict[bytes, bytes]) -> list[str]:
        """What is not as it was answered."""
        found = [] if self.wrong is None else [self.wrong]
        for key, state in self.answered.items():
            may = [state]
            if self.under_way is not None and self.under_way[0] == key:
                may.append(self.under_way[1])
            if stored.get(key) not in may:
                found.append(f"{key!r} is {stored.get(key)!r:.60}, not {may!r:.200}")
        return found


def kill_round(rng: random.Random, maptype: str = "lmdb", count: int = CLIENTS) -> int:
    """One round; returns how many changes were answered. AssertionError: one of them was lost."""
    with ServerProcess() as server:
        table = f"{maptype}:{server.dir}/w"
        server.approve(table)
        clients: list[Client] = []
        stored: dict[bytes, bytes] = {}
        for _ in range(2):  # the second server finds what the first has left
            server.start("-n", "proxywrite")
            clients = [Client(server, table.encode(), i, rng) for i in range(count)]
            for client in clients:
                client.answered = {key: stored.get(key) for key in client.keys}
                client.thread.start()
            time.sleep(rng.uniform(*LIFE))
            server.stop(signal.SIGKILL)
            for client in clients:
                client.thread.join()
            os.chown(server.dir, os.geteuid(), -1)
            reason = open_table(table.encode(), writes=True).reason  # as the next server begins
            assert reason is None, reason
            # Where the server was killed before it made the file, open_table has, as root.
            give(server.dir, *server.dir.glob("w*"))
            read = subprocess.run(["postmap", "-s", table], capture_output=True, check=False)
            assert not complaints(read.stderr), read.stderr
            stored = dict(line.split(b"\t") for line in read.stdout.splitlines())
            lies = [lie for client in clients for lie in client.lies(stored)]
            assert not lies, lies
            (server.dir / "s").unlink()
        assert not list(server.dir.glob("*.corrupt-*")), server.log()
        assert "damaged" not in server.log(), server.log()
        return sum(client.count for client in clients)


def main() -> None:
    options = argparse.ArgumentParser(description="Kill the server amid updates, and look for what was lost.")
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options.add_argument("--type", choices=["lmdb", "hash", "btree"], default="lmdb")
    options.add_argument("--clients", type=int, default=CLIENTS)
    given = options.parse_args()
    print(f"seed {given.seed}", flush=True)
    total = 0
    for number in range(given.rounds):
        total += kill_round(random.Random(f"{given.seed} {number}"), given.type, given.clients)
        if sys.stdout.isatty() or number % 10 == 9:
            print(f"{number + 1} rounds, {total} changes, none lost", flush=True)


if __name__ == "__main__":
    main()
