"""test_prometheus - a real Prometheus scrapes what is counted, and answers each query of dashboard and alerts

promtool finds nothing to say of the text, nor of the rules. docs/metrics.md has each metric.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

import pytest
from fix_metrics import metrics_text
from fix_prometheus import Ask, prometheus
from fix_server import LIMIT, ROOT, ServerProcess, lookup, wait_until

from proxymap.metrics.metrics import METRICS, labels_of

sys.path.insert(0, str(ROOT / "contrib"))

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed"
)


class Asked(Protocol):
    title: str
    query: str
    quiet: bool


def panels() -> tuple[Asked, ...]:
    import dashboard

    return cast("tuple[Asked, ...]", dashboard.PANELS)


def alerts() -> list[tuple[str, str]]:
    """(name, expression) of each alert."""
    text = (ROOT / "contrib/alerts.yml").read_text()
    text = re.sub(r"expr: >-\n\s+(.*?)\n(\s+)(.*?)\n", r"expr: \1 \3\n", text)
    return re.findall(r"- alert: (\w+)\n\s+expr: (.*)", text)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One that has something of everything to tell."""
    with ServerProcess() as server:
        table = server.cdb("t", {b"k": b"v"})
        missing, down = f"cdb:{server.dir}/missing", "socketmap:unix:/nowhere/socket:x"
        server.approve(missing, down)
        server.start()
        ask(server, table, missing.encode(), down.encode(), b"cdb:/unapproved")
        yield server


def ask(server: ServerProcess, *tables: bytes) -> None:
    with server.connect() as peer:
        for table in tables:
            for key in (b"k", b"absent"):
                peer.ask(lookup(table, key))


@pytest.fixture(scope="module")
def ask_prometheus(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A private Prometheus that scrapes the server; gives a function that has it answer a query."""
    with prometheus(server, tmp_path_factory.mktemp("prometheus")) as ask:
        wait_until(lambda: ask("rate(proxymap_lookups_total[1m])"), "two scrapes", limit=4 * LIMIT, pause=0.2)
        yield ask


@needs_prometheus
def test_each_panel_has_something_to_draw(server: ServerProcess, ask_prometheus: Ask) -> None:
    ask(server, f"cdb:{server.dir}/t".encode(), b"socketmap:unix:/nowhere/socket:x")
    empty = []
    for panel in panels():
        found = ask_prometheus(panel.query)
        if not found and not panel.quiet:
            empty.append(panel.title)
    assert not empty


@needs_prometheus
def test_each_alert_has_an_answer(server: ServerProcess, ask_prometheus: Ask) -> None:
    """Those that something is wrong with here come up; what the others compare is there."""
    names = dict(alerts())
    assert len(names) == (ROOT / "contrib/alerts.yml").read_text().count("alert:")
    assert ask_prometheus(names["ProxymapDatabaseDown"])
    ask(server, f"cdb:{server.dir}/missing".encode())
    wait_until(lambda: ask_prometheus(names["ProxymapRetries"]), "the share of RETRY")
    assert not ask_prometheus(names["ProxymapDown"])
    for expression in names.values():
        ask_prometheus(expression)


@needs_prometheus
def test_promtool_finds_nothing(server: ServerProcess) -> None:
    text = metrics_text("--socket", server.path)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    subprocess.run(["promtool", "check", "rules", str(ROOT / "contrib/alerts.yml")], check=True)


def test_dashboard_is_made_from_its_list() -> None:
    import dashboard

    assert (ROOT / "contrib/grafana.json").read_text() == dashboard.text()


@pytest.mark.parametrize("what", ["panels", "alerts"])
def test_only_metrics_of_the_list_are_asked_for(what: str) -> None:
    queries = [panel.query for panel in panels()] if what == "panels" else [query for _, query in alerts()]
    known = {metric.name for metric in METRICS}
    for query in queries:
        for name in re.findall(r"proxymap_\w+", query):
            assert name in known or name.removesuffix("_bucket") in known


def test_page_has_each_metric_of_the_list() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    table = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(labels_of(metric))} | {metric.help} |"
        for metric in METRICS
    ]
    assert [line for line in page.splitlines() if line.startswith("| `proxymap_")] == table


def test_files_that_the_page_names_are_there() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    for name in re.findall(r"\]\(([\w./-]+)\)|`(contrib/[\w.]+)`", page):
        path = Path(ROOT / "docs" / name[0]) if name[0] else ROOT / name[1]
        assert path.exists(), path
