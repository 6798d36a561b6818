"""bench_swap - cdb lookups while a texthash of a million lines is swapped in the same process

The p99 and the longest of cdb lookups are measured before, and around the moment
in which the new file is there; loading it takes a quarter of a second.
usage: bench_swap.py [--swaps N] [--lines N] [--clients N ...] [--seconds S]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from threading import Timer

from servers import Server, load, log

STARTED = 0.1  # seconds until the load runs
KEYS = [b"user%d@example.com" % number for number in range(1000)]


def main() -> None:
    parser = argparse.ArgumentParser(description="p99 of cdb lookups while a large texthash is swapped")
    parser.add_argument("--swaps", type=int, default=10, help="for each number of clients (default: 10)")
    parser.add_argument("--lines", type=int, default=1_000_000, help="of the texthash (default: 1000000)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], metavar="N", help="(default: 1 8)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    options = parser.parse_args()
    import fix_server  # in tests/, where servers.py leads to

    with tempfile.TemporaryDirectory(prefix="pm-bench-") as name, fix_server.ServerProcess() as server:
        keys = Path(name) / "keys"
        keys.write_bytes(b"".join(key + b"\n" for key in KEYS))
        cdb = server.cdb("t", dict.fromkeys(KEYS, b"x")).decode()
        text = Path(server.dir) / "text"
        texthash = f"texthash:{text}".encode()

        def write(generation: int) -> Path:
            new = text.with_suffix(".new")
            with new.open("w") as file:
                file.writelines(f"user{n}@example.com box{n}.{generation}\n" for n in range(options.lines))
            return new

        write(0).rename(text)
        server.approve(texthash.decode())
        server.start()
        one = Server(Path(server.path), server.pid)
        with server.connect() as peer:

            def wait_for(generation: int) -> None:
                asked, expected = (
                    fix_server.lookup(texthash, KEYS[7]),
                    fix_server.found(b"box7.%d" % generation),
                )
                fix_server.wait_until(lambda: peer.ask(asked) == expected, "the swap", limit=60)

            wait_for(0)
            for clients in options.clients:
                ratios = []
                for generation in range(1, options.swaps + 1):
                    new = write(generation)
                    time.sleep(0.5)
                    before = load(one, cdb, keys, clients, seconds=options.seconds)
                    Timer(STARTED, new.rename, [text]).start()
                    during = load(one, cdb, keys, clients, seconds=options.seconds, warm_up=0)
                    wait_for(generation)
                    ratios.append(during["p99_us"] / before["p99_us"])
                    log(
                        f"{clients} clients, swap {generation}: p99 {before['p99_us']:.1f} us before,"
                        f" {during['p99_us']:.1f} during ({ratios[-1]:.2f}); longest"
                        f" {before['max_us']:.0f}, {during['max_us']:.0f}"
                    )
                print(
                    f"{clients} clients: p99 during the swap / before: median"
                    f" {statistics.median(ratios):.2f}, most {max(ratios):.2f} of {len(ratios)}"
                )


if __name__ == "__main__":
    main()
