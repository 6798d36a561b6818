"""servers - what the benchmarks put side by side: our daemon, the floor, Postfix's own server

All of them serve the same tables; `load` asks one of them and returns what
load.c measured, with what the server spent meanwhile.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for the private Postfix of the tests

TABLES = ROOT / "build" / "bench-tables"  # kept from run to run
KEY_KINDS = ("found", "absent", "zipf")
KEY_COUNT = 1_000_000  # lines in a file of keys
ANY = 50_000_000  # requests; nobody gets so far
START_LIMIT = 30.0  # seconds

Measured = dict[str, float]


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def about_this_host() -> dict[str, str]:
    """What a figure is worthless without."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "kernel": platform.release(),
        "cpu": model[0].partition(": ")[2] if model else platform.machine(),
        "cpus": str(os.cpu_count()),
        "governor": governor.read_text().strip() if governor.exists() else "not known (a virtual machine?)",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.0f} GiB",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("Cython", "cdbx", "lmdb", "proxymap")},
        "commit": output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "postfix": output("postconf", "-hd", "mail_version"),
        "date": time.strftime("%Y-%m-%d"),
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def output(*command: str) -> str:
    """What a command says; nothing if it fails or is not there."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""


def many_files() -> None:
    """As many descriptors as we may have, for us and for what we start: 5,000 clients need them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# Tables


def table(maptype: str, entries: int, folder: Path = TABLES) -> str:
    return f"{maptype}:{folder}/t{entries}"


def keys(kind: str, entries: int, folder: Path = TABLES) -> Path:
    return folder / f"keys-{kind}-{entries}"


def make_tables(sizes: Iterable[int], folder: Path = TABLES) -> list[str]:
    """Build what is missing; all tables' names."""
    folder.mkdir(parents=True, exist_ok=True)
    for entries in sizes:
        wanted = [folder / f"t{entries}.{maptype}" for maptype in ("cdb", "lmdb")]
        if not all(path.exists() for path in wanted):
            build_tables(entries, folder)
        for kind in KEY_KINDS:
            if not keys(kind, entries, folder).exists():
                write_keys(kind, entries, keys(kind, entries, folder))
    return [table(maptype, entries, folder) for entries in sizes for maptype in ("cdb", "lmdb")]


def build_tables(entries: int, folder: Path) -> None:
    """Like smtp-source -N, which puts a number before the address, so that mail can be sent to them."""
    from proxymap.ctl.builder import build

    source = folder / f"t{entries}"
    with source.open("w") as file:
        file.writelines(f"{i}user@example.com box{i}@store{i % 97}.example.net\n" for i in range(entries))
    for maptype in ("cdb", "lmdb"):
        log(f"building {maptype}: of {entries:,} entries")
        new = folder / f"new.{maptype}"
        new.unlink(missing_ok=True)
        build(maptype, str(folder / "new"), str(source))
        new.chmod(0o644)
        new.rename(folder / f"t{entries}.{maptype}")
    source.unlink()


def write_keys(kind: str, entries: int, path: Path) -> None:
    """found: all equally often; absent; zipf: found, and skewed as in mail (a few are asked often)."""
    rng = random.Random(1)
    new = path.with_suffix(".new")
    with new.open("w") as file:
        for _ in range(min(KEY_COUNT, 100 * entries)):
            number = rng.randrange(entries)
            if kind == "zipf":
                rank = int(entries ** rng.random())  # density 1/rank
                number = rank * 2654435761 % entries  # a prime: ranks are spread over the table
            file.write(f"{number}{'absent' if kind == 'absent' else 'user'}@example.com\n")
    new.rename(path)


# Servers


@dataclass(frozen=True)
class Server:
    """Who answers at a socket."""

    path: Path
    pid: int  # the daemon, or the master(8) whose children answer
    child: str = ""  # their program's name; none: the daemon itself answers

    def pids(self) -> list[int]:
        return children(self.pid, self.child) if self.child else [self.pid]

    def cpu_seconds(self) -> dict[int, float]:
        """By process."""
        found = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found[pid] = cpu_seconds(pid)
        return found

    def memory(self) -> dict[str, int]:
        """Bytes, of all processes: resident (what they share counts for each), and their own share of it."""
        names = {"resident": "Rss", "share": "Pss", "anonymous": "Pss_Anon", "file": "Pss_File"}
        total = dict.fromkeys(names, 0)
        pids = self.pids()
        for pid in pids:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
            for name, field in names.items():
                total[name] += int(fields[field].split()[0]) * 1024
        return total | {"processes": len(pids)}


def children(parent: int, program: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(") ")
            if name == program and int(rest.split()[1]) == parent and rest[0] != "Z":
                found.append(int(folder.name))
    return sorted(found)


def cpu_seconds(pid: int) -> float:
    """By the scheduler's count, in nanoseconds; where there is none, by the clock's ticks."""
    if Path(f"/proc/{pid}/schedstat").exists():
        threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def all_cpus(but: int) -> float:
    """Seconds that all CPUs have been busy, without that process; in clock ticks."""
    times = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = times
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK") - cpu_seconds(but)


@contextmanager
def folder_for(maps: Iterable[str]) -> Iterator[Path]:
    """A folder for sockets, with a main.cf that approves these tables."""
    with tempfile.TemporaryDirectory(prefix="pm-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "main.cf").write_text(
            f"compatibility_level = 3.6\nqueue_directory = {folder}\nmyhostname = test.invalid\n"
            f"proxy_read_maps = {proxied(maps)}\n"
        )
        yield folder


def proxied(maps: Iterable[str]) -> str:
    return " ".join(f"proxy:{name}" for name in maps)


@contextmanager
def ours(folder: Path, *options: str, tree: Path = ROOT) -> Iterator[Server]:
    """Our daemon, by itself, with the main.cf of that folder; tree: whose it is."""
    import fix_server

    fix_server.give(folder)
    path = folder / f"ours-{time.monotonic_ns()}"
    # As where it is installed: what finds the files of an editable installation takes memory (-S: not there).
    packages = [str(tree), sysconfig.get_path("purelib")]
    command = [sys.executable, "-S", "-m", "proxymap", "--listen", f"unix:{path}", *fix_server.as_user()]
    command += ["--config-directory", str(folder), *options]
    with started(["env", f"PYTHONPATH={':'.join(packages)}", *command], path, tree) as process:
        yield Server(path, process.pid)


@contextmanager
def floor(folder: Path) -> Iterator[Server]:
    path = folder / f"floor-{time.monotonic_ns()}"
    with started([str(ROOT / "build/floor"), str(path)], path) as process:
        yield Server(path, process.pid)


@contextmanager
def started(command: list[str], path: Path, tree: Path = ROOT) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tree)
    try:
        deadline = time.monotonic() + START_LIMIT
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"did not start: {' '.join(command)}")
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def no_stock() -> str | None:
    """Why there can be no stock server here, or None."""
    import fix_postfix

    return fix_postfix.unavailable()


@contextmanager
def stock(maps: Iterable[str], **main: str) -> Iterator[Server]:
    """The proxymap of the Postfix that is installed, under its own master; main: more of main.cf."""
    import fix_postfix

    with fix_postfix.StockPostfix({"proxy_read_maps": proxied(maps), **main}) as postfix:
        yield served_by(postfix)


def served_by(postfix: object, service: str = "proxymap") -> Server:
    """A fix_postfix.StockPostfix that runs, as a Server."""
    return Server(Path(postfix.socket(service)), postfix._master.pid, "proxymap")  # type: ignore[attr-defined]


@contextmanager
def our_command() -> Iterator[str]:
    """Our executable, as the command column of master.cf names it."""
    from fix_postfix import daemon_directory

    folder = Path(tempfile.mkdtemp(prefix="pm-bin-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        program = folder / "proxymap"
        program.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            "from proxymap.main import main\nsys.exit(main())\n"
        )
        program.chmod(0o755)
        yield os.path.relpath(program, daemon_directory())
    finally:
        shutil.rmtree(folder)


@contextmanager
def both_writing() -> Iterator[dict[str, tuple[Server, str]]]:
    """proxywrite, ours and stock's, each with a table of its own: name -> server, table."""
    import fix_postfix
    import fix_server

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(fix_server.ServerProcess())
        (server.dir / "data").mkdir()  # such tables are not where main.cf is
        fix_server.give(server.dir / "data")
        name = f"lmdb:{server.dir}/data/w"
        server.approve(name)
        server.start("-n", "proxywrite")
        found = {"proxymap": (Server(Path(server.path), server.pid), name)}
        if reason := no_stock():
            log(f"without the stock server: {reason}")
        else:
            main = {"proxy_write_maps": "proxy:lmdb:$data_directory/w", "max_use": "1000000"}
            postfix = stack.enter_context(fix_postfix.StockPostfix(main))
            found["stock"] = (served_by(postfix, "proxywrite"), f"lmdb:{postfix.data_dir}/w")
        yield found


# Load


def load(
    server: Server,
    table: str,
    keys: Path,
    clients: int,
    requests: int = ANY,
    *,
    seconds: float = 0.0,
    warm_up: float = 0.0,
    updates: bool = False,
    hold: str = "",
    look: Callable[[], None] = lambda: None,
) -> Measured:
    """One run of load.c, with the CPU time that the server and its master spent on each request.

    hold: load.c's -H. look: called at the end, while all clients are still connected.

    others: how many CPUs were busy with something else meanwhile.
    """
    options = ["-p", "-t", str(seconds), "-w", str(warm_up), *(["-u"] if updates else [])]
    options += ["-H", hold] if hold else []
    command = [str(ROOT / "build/load"), *options, str(server.path), table, str(keys), str(clients)]
    with subprocess.Popen(
        [*command, str(requests)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"load on {server.path} failed")
        before, master, others = server.cpu_seconds(), cpu_seconds(server.pid), all_cpus(process.pid)
        start = time.monotonic()
        process.stdin.write("\n")
        line = process.stdout.readline()
        took = time.monotonic() - start
        after, master = server.cpu_seconds(), cpu_seconds(server.pid) - master
        others = all_cpus(process.pid) - others
        look()
    if process.returncode != 0:
        raise SystemExit(f"load on {server.path} failed")
    measured: Measured = json.loads(line)
    used = sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())
    measured["cpu_us"] = used * 1e6 / measured["requests"]
    measured["processes"] = len(after)
    measured["master_cpu_us"] = master * 1e6 / measured["requests"] if server.child else 0.0
    measured["others"] = max(0.0, others - used - (master if server.child else 0.0)) / took
    return measured
