"""test_benchmarks - they run, and what is made of their figures is right; nothing here is about speed"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from string import Template
from typing import Any

import databases
import fix_mariadb
import fix_memcached
import fix_pgsql
import fix_postfix
import fix_slapd
import pyperf
import pytest
import report
from figures import Figures
from fix_server import GREETING
from oracle import take_list
from verdicts import judge

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
DELAY = 0.02  # seconds


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    subprocess.run(["make", "-s", "build/load", "build/floor"], cwd=ROOT, check=True)


def run(name: str, *arguments: object, status: int = 0) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


# The load generator


class Delaying:
    """A server for one client that answers every tenth request late, and "not found" to every fourth."""

    def __init__(self, path: Path) -> None:
        self.answered = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with peer:
            peer.sendall(GREETING)
            data = b""
            while piece := peer.recv(65536):
                data += piece
                while (taken := take_list(data)) is not None:
                    data = taken[1]
                    self.answered += 1
                    if self.answered % 10 == 0:
                        time.sleep(DELAY)
                    peer.sendall(b"status\0%d\0value\0\0\0" % (self.answered % 4 == 0))

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


def test_load_counts_replies_and_their_latency(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a\nb\n")
    server = Delaying(tmp_path / "s")
    command = [ROOT / "build/load", tmp_path / "s", "cdb:t", tmp_path / "keys", "1", "100"]
    measured = json.loads(subprocess.check_output(command))
    server.close()
    assert server.answered == measured["requests"] == 100
    assert (measured["ok"], measured["nokey"]) == (75, 25)
    assert measured["p99_us"] >= DELAY * 1e6  # ten of a hundred are late
    order = [measured[name] for name in ("p50_us", "p90_us", "p99_us", "p999_us", "max_us")]
    assert order == sorted(order)


def test_load_does_not_count_the_warm_up_and_waits_until_it_is_told_to_begin(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a\n")
    server = Delaying(tmp_path / "s")
    command = [ROOT / "build/load", "-p", "-w", "0.05", tmp_path / "s", "cdb:t", tmp_path / "keys", "1", "20"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        warm_up = server.answered
        process.stdin.write(b"\n")
        process.stdin.flush()
        measured = json.loads(process.stdout.readline())
    server.close()
    assert warm_up > 0
    assert measured["requests"] == 20 == server.answered - warm_up


def test_load_ends_after_its_time(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a\n")
    server = Delaying(tmp_path / "s")
    command = [ROOT / "build/load", "-t", "0.05", tmp_path / "s", "cdb:t", tmp_path / "keys", "1", "1000000"]
    measured = json.loads(subprocess.check_output(command))
    server.close()
    assert 0 < measured["requests"] < 1_000_000


# The run


@pytest.fixture
def tables() -> Iterator[Path]:
    """A folder that the daemon's user may look into; pytest's are closed to it."""
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_bench_runs_from_end_to_end(tmp_path: Path, tables: Path) -> None:
    result = tmp_path / "results" / "bench.json"
    printed = run(
        "bench.py", "--part", "load", "memory", "--servers", "floor", "ours", "--sizes", 500,
        "--clients", 1, 8, "--keys", "found", "absent", "--rounds", 2,
        "--warm-up", 0.02, "--seconds", 0.02, "--silent-clients", 20, "--tables", tables, "--json", result,
    )  # fmt: skip
    assert printed.count("floor") == printed.count("ours") == 8
    figures = Figures(result.parent)
    assert len(figures.load) == 8
    for case in figures.load:
        for server in ("floor", "ours"):
            assert len(figures.values(case, server, "cpu_us")) == 2
            assert min(figures.values(case, server, "per_second")) > 0
    assert figures.bench["memory"]["ours"]["idle"]["resident"] > 0
    assert figures.bench["memory"]["ours"]["per_client"]["processes"] == 1
    assert sorted(path.suffix for path in tables.glob("t500.*")) == [".cdb", ".lmdb"]
    run(
        "report.py", "--results", result.parent, "--json"
    )  # nothing of what is wanted was measured: nothing failed


def test_parts_run(tmp_path: Path) -> None:
    out = tmp_path / "micro.json"
    run("bench_micro.py", "--debug-single-value", "--processes", 1, "--quiet", "--output", out,
        "--inherit-environ", "PROXYMAP_MICRO_ENTRIES")  # fmt: skip
    names = set(pyperf.BenchmarkSuite.load(str(out)).get_benchmark_names())
    assert {
        "parse 3.6",
        "build 3.11",
        "cache hit",
        "cache insert, evict",
        "approval",
        "template, C",
        "cdb found, cdbx",
    } <= names
    assert {"lmdb absent, proxymap", "cidr, 100 rules, proxymap", "re, 100 rules, Python"} <= names


# The report


def made_up() -> dict[str, Any]:
    """As bench.py writes it; we are as fast as the floor."""

    def columns(speed: float, master: float = 0.0) -> dict[str, list[float]]:
        per_second = [speed * factor for factor in (0.9, 1.0, 1.1)]
        cpu = [1e6 / one for one in per_second]
        times = {f"{name}_us": [8 * one for one in cpu] for name in ("p50", "p90", "p99", "p999", "max")}
        return {"per_second": per_second, "cpu_us": cpu, **times, "processes": [1, 1, 1],
                "master_cpu_us": [master] * 3}  # fmt: skip

    cases = product(
        ("cdb", "lmdb"), (1000, 1_000_000, 10_000_000), ("found", "absent"), (1, 8, 32, 64, 500, 5000)
    )
    load = [
        {"maptype": maptype, "entries": entries, "keys": keys, "clients": clients,
         "servers": {"floor": columns(200_000), "ours": columns(200_000), "stock": columns(40_000, 9.0)}}
        for maptype, entries, keys, clients in cases
    ]  # fmt: skip
    seconds = {"stock": {"seconds": [4.0, 4.0, 4.0], "server_cpu_seconds": [1.0, 1.0, 1.0]},
               "ours": {"seconds": [2.0, 2.1, 2.2], "server_cpu_seconds": [0.5, 0.5, 0.5]}}  # fmt: skip
    memory = {"resident": 15_000_000, "anonymous": 7_000_000, "file": 8_000_000, "processes": 1}
    server = {
        "idle": memory,
        "tables": [{"maptype": "cdb", "entries": 1000, "opened": memory, "used": memory}],
        "per_client": {"silent": 400.0, "asked": 400.0, "processes": 1},
    }
    return {
        "host": {"cpu": "made up", "date": "2026-01-01"},
        "options": {"rounds": 3, "seconds": 0.5},
        "took_seconds": 60,
        "load": load,
        "clients": {"entries": 1_000_000, "keys": 100_000, "messages": 2000, "recipients": 5, "sessions": 20,
                    "cases": {"postmap cdb": seconds, "mail": seconds}},
        "start": {"ours": [50.0, 51.0], "stock": [5.0, 6.0]},
        "memory": {"clients": 5000, "cache_size": 1 << 26, "ours": server, "stock": server,
                   "cache": {"limit": 1 << 26, "grown": 60_000_000}},
    }  # fmt: skip


def write_results(folder: Path, bench: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(bench))
    write_suite(folder / "micro.json", {"parse 3.6": [60e-9] * 5, "cdb found, proxymap": [90e-9] * 5,
                                        "cdb found, cdbx": [130e-9] * 5})  # fmt: skip
    return folder


def write_suite(path: Path, benchmarks: dict[str, list[float]]) -> Path:
    """pyperf's JSON; each list is one process's values in seconds."""
    suite = [
        pyperf.Benchmark([pyperf.Run(values, metadata={"name": name, "loops": 1}, collect_metadata=False)])
        for name, values in benchmarks.items()
    ]
    path.unlink(missing_ok=True)
    pyperf.BenchmarkSuite(suite).dump(str(path))
    return path


def test_report_draws_writes_and_repeats_itself(tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", made_up())
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- make report: from here -->\nold\n<!-- make report: to here -->\nafter\n")
    files = []
    for name in ("first", "second"):
        docs = tmp_path / name
        run("report.py", "--results", results, "--docs", docs, "--readme", readme)
        files.append(
            {path.relative_to(docs): path.read_bytes() for path in docs.rglob("*") if path.is_file()}
        )
    assert files[0] == files[1]
    pictures = {
        f"performance/{name}.{kind}"
        for name in ("throughput", "latency", "cpu", "size")
        for kind in ("svg", "png")
    }
    assert {str(path) for path in files[0]} == {"performance.md", *pictures}
    page = files[0][Path("performance.md")].decode()
    assert "$" not in page
    assert "A start takes 50 ms, the stock server's 6 ms." in page
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| cdb | 8 | 40,000/s, 25.0 µs | 200,000/s, 5.0 µs | 200,000/s, 5.0 µs |" in text


def test_verdict_is_that_of_the_worst_case(tmp_path: Path) -> None:
    bench = made_up()
    results = write_results(tmp_path / "results", bench)
    held = json.loads(run("report.py", "--results", results, "--json"))
    assert {one["held"] for one in held} == {True, None}  # lmdb beside py-lmdb is not measured
    million = next(one for one in bench["load"] if one["entries"] == 1_000_000 and one["clients"] == 32)
    million["servers"]["ours"]["per_second"] = [180_000.0, 180_000.0, 180_000.0]
    write_results(results, bench)
    verdicts = json.loads(run("report.py", "--results", results, "--json", status=1))
    (missed,) = [one for one in verdicts if one["held"] is False]
    assert missed["what"] == "requests per second, of the floor's"
    assert missed["where"] == "cdb, 1 million entries, found, 32 clients"
    assert missed["figure"] == pytest.approx(0.9)  # of ratios within a round: 1.0, 0.9, 0.82
    assert "**no**" in run("report.py", "--results", results, "--verdict", status=1)


def test_pages_are_those_of_the_results() -> None:
    """README and docs/performance.md were made anew after the last `make bench`, or change of words."""
    figures = Figures()
    page = Template(report.TEMPLATE.read_text()).substitute(report.blocks(figures, judge(figures)))
    assert (ROOT / "docs/performance.md").read_text() == page
    assert report.BEGIN + report.readme_part(figures) + report.END in (ROOT / "README.md").read_text()
    for name in re.findall(r"\((performance/\S+)\)", page):
        assert (ROOT / "docs" / name).exists()


# The comparison of parts


@pytest.mark.parametrize(
    ("now", "status"),
    [
        ([130e-9, 131e-9, 129e-9, 130e-9, 132e-9], 1),  # a third slower
        ([103e-9, 104e-9, 102e-9, 103e-9, 103e-9], 0),  # significant, and less than the limit
        ([60e-9, 190e-9, 95e-9, 80e-9, 150e-9], 0),  # 15 % slower on average: noise
        ([70e-9, 71e-9, 70e-9, 69e-9, 70e-9], 0),  # faster
    ],
)
def test_compare_fails_on_a_regression_beyond_noise(tmp_path: Path, now: list[float], status: int) -> None:
    base = write_suite(
        tmp_path / "a.json", {"parse": [100e-9, 101e-9, 99e-9, 100e-9, 102e-9], "same": [1e-6, 2e-6]}
    )
    new = write_suite(tmp_path / "b.json", {"parse": now, "same": [1e-6, 2e-6]})
    run("compare.py", base, new, status=status)
    words = json.loads(run("compare.py", base, new, "--json", status=status))
    assert words["same"]["is"] == "same"
    assert (words["parse"]["is"] == "slower") == bool(status)


def test_report_says_what_holds_of_databases(tmp_path: Path) -> None:
    def case(maptype: str, clients: int, rate: float, cpu: float) -> dict[str, Any]:
        stock = {"per_second": 1000.0, "cpu_us": 40.0, "p50_us": 1.0, "connections": 9}
        ours = stock | {"per_second": 1000 * rate, "cpu_us": 40 * cpu}
        one = {"maptype": maptype, "delay_ms": 0, "clients": clients}
        return one | {"ours": [ours] * 3, "stock": [stock] * 3}

    cases = [case("mysql", 32, 0.9, 0.5), case("pgsql", 32, 0.9, 0.6), case("pgsql", 1, 0.7, 2.0)]
    (tmp_path / "databases.json").write_text(json.dumps({"rows": 1000, "seconds": 1, "cases": cases}))
    lines = databases.database_words(tmp_path).splitlines()
    held = {line.split("|")[1].strip(): line.split("|")[4].strip() for line in lines if "stock's |" in line}
    held.pop("table, time in the server, clients")
    assert held == {
        "mysql, 0 ms, 32 clients: CPU": "yes",
        "mysql, 0 ms, 32 clients: lookups/s": "yes",
        "pgsql, 0 ms, 32 clients: CPU": "**no**",
        "pgsql, 0 ms, 32 clients: lookups/s": "**no**",
        "pgsql, 0 ms, 1 client: time": "**no**",
    }


@pytest.mark.parametrize("maptype", ["mysql", "pgsql", "ldap"])
def test_bench_databases_runs_from_end_to_end(maptype: str, tmp_path: Path) -> None:
    module = {"mysql": fix_mariadb, "pgsql": fix_pgsql, "ldap": fix_slapd}[maptype]
    if reason := fix_postfix.unavailable() or module.unavailable():
        pytest.skip(reason)
    out = tmp_path / "databases.json"
    run("bench_databases.py", "--quick", "--types", maptype, "--clients", 8, "--json", out)
    (case,) = json.loads(out.read_text())["cases"]
    for server in ("ours", "stock"):
        (figures,) = case[server]
        assert figures["retry"] == 0
        assert figures["per_second"] > 0
        if server == "ours" or fix_postfix.dialect() == "3.6":  # the load speaks that; 3.11 answers BAD
            assert figures["connections"] >= 1


def test_bench_memcache_runs_from_end_to_end(tmp_path: Path) -> None:
    if reason := fix_postfix.unavailable() or fix_memcached.unavailable():
        pytest.skip(reason)
    out = tmp_path / "memcache.json"
    run("bench_memcache.py", "--quick", "--clients", 8, "--json", out)
    (case,) = json.loads(out.read_text())["cases"]
    for server in ("ours", "stock"):
        (figures,) = case[server]
        assert figures["retry"] == 0
        assert figures["per_second"] > 0


@pytest.mark.parametrize(
    "name",
    [
        *("bench.py", "report.py", "compare.py", "bench_micro.py", "bench_databases.py", "bench_memcache.py"),
        *("bench_cache.py", "mail_trace.py"),
    ],
)
def test_help(name: str) -> None:
    assert "usage:" in run(name, "--help")
