"""bench_stuck - cdb lookups while all workers of unix: wait for a directory that does not answer

Four lookups of users that take ten seconds each are under way meanwhile; the
p99 of cdb lookups in the same process is measured before and during that.
usage: bench_stuck.py [--rounds N] [--requests N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path

from servers import ROOT, Server, load, log

CLIENTS = 8
STUCK = 8  # twice as many as there are workers


def main() -> None:
    parser = argparse.ArgumentParser(description="p99 of cdb lookups beside stuck ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200_000)
    options = parser.parse_args()
    import fix_server  # in tests/, where servers.py leads to

    with tempfile.TemporaryDirectory(prefix="pm-bench-") as name, fix_server.ServerProcess() as server:
        fix_server.give(name)
        library = Path(name) / "slow_users.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", library, ROOT / "tests/server/slow_users.c", "-ldl"], check=True
        )
        table = server.cdb("t", {b"user%d" % i: b"box%d" % i for i in range(100_000)})
        keys = Path(name) / "keys"
        keys.write_text("".join(f"user{i}\n" for i in range(0, 200_000, 7)))
        server.approve("unix:passwd.byname")
        server.start(env=fix_server.environment(LD_PRELOAD=str(library)))
        before: list[float] = []
        during: list[float] = []
        for number in range(options.rounds):
            log(f"round {number + 1} of {options.rounds}")
            one = Server(Path(server.path), server.pid)
            before.append(load(one, table.decode(), keys, CLIENTS, options.requests)["p99_us"])
            with fix_server.peers(server, STUCK) as stuck:
                for peer in stuck:
                    peer.send(fix_server.lookup(b"unix:passwd.byname", b"slow"))
                during.append(load(one, table.decode(), keys, CLIENTS, options.requests)["p99_us"])
                for peer in stuck:
                    peer.reply()
    ratio = statistics.median(after / first for first, after in zip(before, during, strict=True))
    print(f"p99 of cdb lookups, µs, medians: before {statistics.median(before):.1f},"
          f" during {statistics.median(during):.1f}; ratio {ratio:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
