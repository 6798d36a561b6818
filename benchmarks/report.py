"""report - from benchmarks/results/ to plots, docs/performance.md and README's table

The words of docs/performance.md are in performance.md.in; this fills in tables.
Nothing is measured here: equal results give equal files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template

from databases import database_words
from figures import MILLION, NAMES, RESULTS, SERVERS, Case, Figures, ratios, short, table
from mail_day import day_words
from verdicts import Verdict, judge

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = Path(__file__).with_name("performance.md.in")
BEGIN, END = "<!-- make report: from here -->\n", "<!-- make report: to here -->\n"
RIVALS = ("cdbx", "py-lmdb")
DISTURBED = 0.1  # CPUs
MB = 1e6
NOT_MEASURED = "Not measured.\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2] if __doc__ else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="With --verdict and --json the exit status is 1 if a line does not hold.",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help=f"default: {RESULTS}")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="DIR", help="where to write")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    parser.add_argument("--verdict", action="store_true", help="only say what holds; write nothing")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    options = parser.parse_args()
    try:
        figures = Figures(options.results)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}; `make bench` makes it", file=sys.stderr)
        return 1
    verdicts = judge(figures)
    if options.json:
        print(json.dumps([as_json(verdict) for verdict in verdicts], indent=1, ensure_ascii=False))
    else:
        print(verdict_table(verdicts), end="")
    if options.json or options.verdict:
        return int(any(verdict.held is False for verdict in verdicts))
    import plots

    plots.draw(figures, options.docs / "performance")
    text = Template(TEMPLATE.read_text()).substitute(blocks(figures, verdicts))
    (options.docs / "performance.md").write_text(text)
    put_between_marks(options.readme, readme_part(figures))
    return 0


def as_json(verdict: Verdict) -> dict[str, object]:
    figure = verdict.figure if verdict.figures else None
    return {"what": verdict.what, "limit": str(verdict.limit), "figure": figure, "rounds": verdict.figures,
            "where": verdict.where, "held": verdict.held}  # fmt: skip


def put_between_marks(path: Path, text: str) -> None:
    whole = path.read_text()
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path}: the marks {BEGIN!r} and {END!r} are missing")
    path.write_text(before + begin + text + end + after)


def readme_part(figures: Figures) -> str:
    """The table and the plot that an administrator wants."""
    plot = "![Requests per second against the number of clients](docs/performance/throughput.svg)"
    return f"{short_table(figures)}\n{plot}\n"


def blocks(figures: Figures, verdicts: list[Verdict]) -> dict[str, object]:
    """What the template names."""
    clients, options = figures.bench.get("clients", {}), figures.bench["options"]
    known = {
        "short_table": short_table(figures),
        "verdicts": verdict_table(verdicts),
        "by_clients": by_clients(figures),
        "by_size": by_size(figures),
        "real_clients": client_table(figures),
        "start": start_table(figures),
        "databases": database_words(figures.folder),
        "mail_day": day_words(figures.folder),
        "memory": memory_table(figures),
        "per_client": per_client_table(figures),
        "cache": cache_words(figures),
        "parts": parts_table(figures),
        "others": others_words(figures),
        "slower": slower(figures, verdicts),
        "host": "".join(f"  - {name}: {value}\n" for name, value in figures.bench["host"].items()).rstrip(),
        "postmap_keys": f"{clients.get('keys', 0):,}",
        "silent_clients": f"{figures.bench.get('memory', {}).get('clients', 0):,}",
        "minutes": f"{figures.bench['took_seconds'] / 60:.0f}",
        "date": figures.bench["host"]["date"],
    }
    known |= {name: f"{clients.get(name, 0):,}" for name in ("messages", "recipients", "sessions")}
    known |= {"rounds": rounds(figures), "seconds": options["seconds"]}
    return known | stock_facts(figures)


def rounds(figures: Figures) -> str:
    """How many there were; more of the cases that a verdict is about."""
    counts = {len(figures.values(case, "ours", "cpu_us")) for case in figures.load}
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)}))


def stock_facts(figures: Figures) -> dict[str, str]:
    master: list[float] = []
    processes: list[float] = []
    for case in figures.load:
        master += figures.values(case, "stock", "master_cpu_us")
        processes += figures.values(case, "stock", "processes")
    if not master:
        return {"stock_processes": "no process", "stock_master": "-"}
    most = max(processes)
    return {
        "stock_processes": "one process" if most == 1 else f"up to {most:.0f} processes",
        "stock_master": f"{statistics.median(master):.1f}",
    }


def others_words(figures: Figures) -> str:
    """Was the machine quiet?"""
    busy = [
        value
        for case in figures.load
        for server in SERVERS
        for value in figures.values(case, server, "others")
    ]
    if not busy:
        return "not known"
    often = sum(value > DISTURBED for value in busy) / len(busy)
    middle = statistics.median(busy)
    return f"{middle:.2f} CPUs (median); more than {DISTURBED:g} during {often:.0%} of the figures"


def short_table(figures: Figures) -> str:
    def cell(case: Case, server: str) -> str:
        speed, cpu = figures.median(case, server, "per_second"), figures.median(case, server, "cpu_us")
        return "-" if speed is None or cpu is None else f"{speed:,.0f}/s, {cpu:.1f} µs"

    head = ["table of a million entries", "clients", *(NAMES[server] for server in SERVERS)]
    cases = figures.cases(entries=MILLION, keys="found", clients=(8, 32))
    return table(
        head, ([case.maptype, case.clients, *(cell(case, server) for server in SERVERS)] for case in cases)
    )


def verdict_table(verdicts: list[Verdict]) -> str:
    rows = ([one.what, one.limit, one, one.where or "-", one.word] for one in verdicts)
    return table(["", "wanted", "median (rounds)", "worst case", "held"], rows)


def by_clients(figures: Figures) -> str:
    head = ["table", "clients", "server", "req/s", "CPU µs", "p50 µs", "p90", "p99", "p99.9", "max"]
    metrics = ("per_second", "cpu_us", "p50_us", "p90_us", "p99_us", "p999_us", "max_us")
    rows = []
    for case in figures.cases(entries=MILLION, keys="found"):
        for server in SERVERS:
            if figures.values(case, server, "cpu_us"):
                cells = [number(figures.median(case, server, metric), metric) for metric in metrics]
                rows.append([case.maptype, f"{case.clients:,}", NAMES[server], *cells])
    return table(head, rows)


def by_size(figures: Figures) -> str:
    head = ["table", "entries", "keys"]
    for server in SERVERS:
        head += [f"{NAMES[server]}: req/s", "CPU µs"]
    rows = []
    for case in figures.cases(clients=8):
        medians = [
            number(figures.median(case, server, metric), metric)
            for server in SERVERS for metric in ("per_second", "cpu_us")
        ]  # fmt: skip
        rows.append([case.maptype, short(case.entries), case.keys, *medians])
    return table(head, rows)


def number(value: float | None, metric: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if metric == "cpu_us" else f"{value:,.0f}"


def client_table(figures: Figures) -> str:
    head = ["", "server", "seconds", "CPU s, client", "CPU s, server", "time, of that with Postfix's own"]
    rows = []
    for name, columns in figures.clients().items():
        for server in ("stock", "ours"):
            middle = {metric: statistics.median(values) for metric, values in columns[server].items()}
            client = f"{middle['client_cpu_seconds']:.2f}" if "client_cpu_seconds" in middle else "-"
            ratio = statistics.median(ratios(columns[server]["seconds"], columns["stock"]["seconds"]))
            spent = f"{middle['server_cpu_seconds']:.2f}"
            rows.append([name, NAMES[server], f"{middle['seconds']:.2f}", client, spent, f"{ratio:.2f}"])
    return table(head, rows) if rows else NOT_MEASURED


def start_table(figures: Figures) -> str:
    known: dict[str, list[float]] = figures.bench.get("start", {})
    rows = []
    for name, times in known.items():
        server, comma, what = name.partition(",")
        columns = (statistics.median(times), min(times), max(times))
        rows.append([NAMES[server] + comma + what, *(f"{column:.0f}" for column in columns)])
    return table(["server", "median", "least", "most"], rows) if rows else NOT_MEASURED


def measured_memory(figures: Figures) -> dict[str, dict]:
    known = figures.bench.get("memory", {})
    return {server: known[server] for server in ("stock", "ours") if server in known}


def memory_table(figures: Figures) -> str:
    rows = []
    for server, known in measured_memory(figures).items():
        rows.append([NAMES[server], "idle", *in_mb(known["idle"])])
        for one in known["tables"]:
            what = f"{one['maptype']} of {short(one['entries'])} entries, asked for long"
            rows.append([NAMES[server], what, *in_mb(one["used"])])
    return table(["server", "", "resident", "anonymous", "files"], rows) if rows else NOT_MEASURED


def in_mb(memory: dict[str, int]) -> list[str]:
    return [f"{memory[name] / MB:.1f}" for name in ("resident", "anonymous", "file")]


def per_client_table(figures: Figures) -> str:
    rows = [
        [NAMES[server], f"{known['per_client']['silent']:,.0f}", f"{known['per_client']['asked']:,.0f}",
         f"{known['per_client']['processes']}"]
        for server, known in measured_memory(figures).items()
    ]  # fmt: skip
    return (
        table(["server", "that has not asked", "that has asked once", "processes"], rows)
        if rows
        else NOT_MEASURED
    )


def cache_words(figures: Figures) -> str:
    cache = figures.bench.get("memory", {}).get("cache")
    if not cache:
        return ""
    return (
        f"A cache that is full took {cache['grown'] / MB:.1f} MB; its limit was {cache['limit'] / MB:.1f} MB."
    )


def parts_table(figures: Figures) -> str:
    rows = [
        [
            name,
            f"{one.median() * 1e9:,.1f}",
            f"{one.median_abs_dev() * 1e9:,.1f}" if one.get_nvalue() > 1 else "-",
        ]
        for name, one in figures.micro.items()
    ]
    return table(["", "median", "median absolute deviation"], rows) if rows else NOT_MEASURED


def slower(figures: Figures, verdicts: list[Verdict]) -> str:
    """Whatever the figures have against us."""
    lines = [*slower_load(figures), *slower_rest(figures), *slower_parts(figures)]
    for one in verdicts:
        if one.held is False:
            lines.append(
                f"Wanted: {one.what}, {one.limit}; it is {one}{f' ({one.where})' if one.where else ''}."
            )
    return "".join(f"- {line}\n" for line in lines) or "Nothing that was measured.\n"


def slower_load(figures: Figures) -> Iterator[str]:
    """By metric, the cases in which the stock server did better."""
    names = {
        "per_second": "Requests per second",
        "cpu_us": "CPU for each request",
        "p50_us": "The median reply",
        "p99_us": "p99",
        "p999_us": "p99.9",
        "max_us": "The slowest reply",
    }
    for metric, name in names.items():
        worse, compared = {}, 0
        for case in figures.load:
            ours, stock = (figures.values(case, server, metric) for server in ("ours", "stock"))
            if ours and stock:
                compared += 1
                ratio = statistics.median(ratios(ours, stock))
                if (ratio < 1) if metric == "per_second" else (ratio > 1):
                    worse[case] = ratio
        if worse:
            case = max(worse, key=lambda one: abs(worse[one] - 1))
            yield (
                f"{name}: worse than the stock server's in {len(worse)} of {compared} cases,"
                f" most so by {worse[case]:.2f} times ({case})."
            )


def slower_rest(figures: Figures) -> Iterator[str]:
    for name, columns in figures.clients().items():
        ratio = statistics.median(ratios(columns["ours"]["seconds"], columns["stock"]["seconds"]))
        if ratio > 1:
            yield f"{name}: {ratio:.2f} times as long as with the stock server."
    start = figures.bench.get("start", {})
    if "stock" in start:
        ours, stock = (statistics.median(start[name]) for name in ("ours", "stock"))
        if ours > stock:
            yield f"A start takes {ours:.0f} ms, the stock server's {stock:.0f} ms."
    memory = measured_memory(figures)
    if len(memory) == 2:
        ours, stock = (memory[name]["idle"]["anonymous"] / MB for name in ("ours", "stock"))
        if ours > stock:
            yield f"An idle process has {ours:.1f} MB of its own, a stock one {stock:.1f} MB."


def slower_parts(figures: Figures) -> Iterator[str]:
    for name, rival in figures.micro.items():
        what, _, who = name.rpartition(", ")
        ours = figures.micro.get(f"{what}, proxymap")
        if ours and who in RIVALS and ours.median() > rival.median():
            times = (f"{one.median() * 1e9:.0f} ns" for one in (ours, rival))
            yield f"{what}, from Python: {next(times)}, with {who} {next(times)}."


if __name__ == "__main__":
    sys.exit(main())
