"""servers - what the benchmarks put side by side: our daemon, the floor, Postfix's own server

All of them serve the same tables of one folder; `load` asks one of them and
returns what load.c measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for the private Postfix of the tests

Measured = dict[str, float]


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def about_this_host() -> dict[str, str]:
    """What a figure is worthless without."""
    import Cython

    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "kernel": platform.release(),
        "cpu": model[0].partition(": ")[2] if model else platform.machine(),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
        "cython": Cython.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


@contextmanager
def tables(entries: int) -> Iterator[Path]:
    """A folder with cdb:FOLDER/T and lmdb:FOLDER/T, a main.cf that approves them, and files of keys.

    keys-half: half of them found; keys-zipf: found, and skewed as in mail (a few are asked often).
    """
    from proxymap.build import build

    with tempfile.TemporaryDirectory(prefix="pm-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with open(folder / "T", "w") as source:
            source.writelines(
                f"user{i}@example.com box{i}@store{i % 97}.example.net\n" for i in range(entries)
            )
        for maptype in ("cdb", "lmdb"):
            log(f"building {maptype}: of {entries:,} entries")
            build(maptype, str(folder / "T"))
        write_keys(folder, entries)
        maps = " ".join(f"proxy:{maptype}:{folder}/T" for maptype in ("cdb", "lmdb"))
        (folder / "main.cf").write_text(
            f"compatibility_level = 3.6\nqueue_directory = {folder}\nproxy_read_maps = {maps}\n"
        )
        yield folder


def write_keys(folder: Path, entries: int, count: int = 200_000) -> None:
    rng = random.Random(1)
    users = list(range(entries))
    rng.shuffle(users)
    with open(folder / "keys-half", "w") as half, open(folder / "keys-zipf", "w") as zipf:
        for _ in range(count):
            half.write(f"user{rng.randrange(2 * entries)}@example.com\n")
            rank = int(entries ** rng.random()) - 1  # density 1/rank
            zipf.write(f"user{users[rank]}@example.com\n")


@contextmanager
def ours(folder: Path, *options: str) -> Iterator[tuple[Path, int]]:
    """Our daemon: (socket, pid)."""
    path = folder / f"ours-{time.monotonic_ns()}"
    command = [
        sys.executable,
        "-m",
        "proxymap",
        "--listen",
        f"unix:{path}",
        "--config-directory",
        str(folder),
    ]
    with started([*command, *options], path) as process:
        yield path, process.pid


@contextmanager
def floor(folder: Path) -> Iterator[tuple[Path, int]]:
    path = folder / f"floor-{time.monotonic_ns()}"
    with started([str(ROOT / "build/floor"), str(path)], path) as process:
        yield path, process.pid


@contextmanager
def stock(folder: Path) -> Iterator[tuple[Path, int] | None]:
    """The stock server for the same tables."""
    for file in folder.iterdir():
        file.chmod(0o644)
    maps = " ".join(f"proxy:{maptype}:{folder}/T" for maptype in ("cdb", "lmdb"))
    with stock_of(maps, f"cdb:{folder}/T") as server:
        yield server


@contextmanager
def stock_of(maps: str, table: str) -> Iterator[tuple[Path, int] | None]:
    """The proxymap of the Postfix that is installed, under its own master; None where there is none.

    maps: its proxy_read_maps; table: one of them.
    """
    import fix_postfix

    if reason := fix_postfix.unavailable():
        log(f"without the stock server: {reason}")
        yield None
        return
    with fix_postfix.StockPostfix({"proxy_read_maps": maps}) as postfix:
        import proxymap

        with proxymap.Client(postfix.socket()) as client:
            client.open(table)
            pid = int(subprocess.check_output(["pgrep", "-n", "-x", "proxymap"]))
            yield Path(postfix.socket()), pid


@contextmanager
def both_writing() -> Iterator[dict[str, tuple[tuple[Path, int], str]]]:
    """proxywrite, ours and stock's, each with a table of its own: name -> (socket, pid), table."""
    import fix_postfix
    import fix_server

    import proxymap

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(fix_server.ServerProcess())
        (server.dir / "data").mkdir()  # such tables are not where main.cf is
        table = f"lmdb:{server.dir}/data/w"
        server.approve(table)
        server.start("-n", "proxywrite")
        found = {"proxymap": ((Path(server.path), server.pid), table)}
        if reason := fix_postfix.unavailable():
            log(f"without the stock server: {reason}")
        else:
            main = {"proxy_write_maps": "proxy:lmdb:$data_directory/w", "max_use": "1000000"}
            postfix = stack.enter_context(fix_postfix.StockPostfix(main))
            table = f"lmdb:{postfix.data_dir}/w"
            client = stack.enter_context(proxymap.Client(postfix.socket("proxywrite")))
            client.open(table)
            pid = int(subprocess.check_output(["pgrep", "-n", "-x", "proxymap"]))
            found["stock"] = ((Path(postfix.socket("proxywrite")), pid), table)
        yield found


@contextmanager
def started(command: list[str], path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"did not start: {' '.join(command)}")
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def load(
    server: tuple[Path, int], table: str, keys: Path, clients: int, requests: int, *options: str
) -> Measured:
    """One run of load.c."""
    path, pid = server
    command = [ROOT / "build/load", *options, path, table, keys, str(clients), str(requests), str(pid)]
    measured: Measured = json.loads(subprocess.check_output([str(part) for part in command]))
    return measured
