"""draw_dashboard - have a server live for a while under a private Prometheus, and draw its dashboard

    make dashboard

Grafana itself is not needed: the queries are those of contrib/dashboard.py, drawn by matplotlib
into docs/metrics/dashboard.svg.
"""

from __future__ import annotations

import random
import signal
import tempfile
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
from dashboard import PANELS, Panel
from fix_prometheus import Ask, prometheus
from fix_server import ROOT, ServerProcess, lookup, wait_until

SECONDS = 90
CLIENTS = 3
PAUSE = 0.005  # seconds between two questions of a client
SHOWN = (
    "Lookups", "Lookups by result", "Where answers come from", "Share of RETRY",
    "Lookups of slow tables: 99 % take at most", "Database servers that are up", "Clients",
    "Requests refused",
)  # fmt: skip
DOWN = "socketmap:unix:/nowhere/socket:x"


def main() -> None:
    """Live, then draw."""
    with ServerProcess(own={"cache_maptypes": "regexp"}) as server:
        tables = [server.cdb("virtual", {b"%d" % n: b"v" for n in range(1000)})]
        (server.dir / "access").write_text("/^[0-4]/ OK\n")
        tables += [f"regexp:{server.dir}/access".encode(), DOWN.encode()]
        server.approve(*tables[1:])
        server.start()
        with tempfile.TemporaryDirectory() as folder, prometheus(server, Path(folder)) as ask:
            wait_until(lambda: ask("proxymap_up"), "the first scrape", limit=120)
            began = time.time()
            live(server, tables)
            draw(ask, began, time.time(), ROOT / "docs/metrics/dashboard.svg")


def live(server: ServerProcess, tables: list[bytes]) -> None:
    """Clients ask; a table's server is away; main.cf is read anew."""
    until = time.monotonic() + SECONDS

    def ask(number: int) -> None:
        choice = random.Random(number)
        with server.connect() as peer:
            while time.monotonic() < until:
                away = until - time.monotonic() < SECONDS / 2
                table = choice.choices([*tables, b"cdb:/unapproved"], [80, 18, 2 * away, 0.2])[0]
                peer.ask(lookup(table, b"%d" % choice.randrange(1200)))
                time.sleep(PAUSE)

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(SECONDS / 3)
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    for client in clients:
        client.join()


def draw(ask: Ask, began: float, ended: float, file: Path) -> None:
    """A graph for each panel that is shown."""
    panels = [panel for panel in PANELS if panel.title in SHOWN]
    figure, axes = plt.subplots(
        len(panels) // 2, 2, figsize=(12, 2.6 * len(panels) // 2), layout="constrained"
    )
    for panel, axis in zip(panels, axes.flat, strict=True):
        query = panel.query.replace("[1m]", "[15s]")
        for line in ask(query, start=began, end=ended, step=1):
            times = [float(when) - began for when, _ in line["values"]]
            axis.plot(
                times, [float(value) for _, value in line["values"]], label=named(panel, line["metric"])
            )
        axis.set_title(panel.title, fontsize=10)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
    figure.savefig(file, metadata={"Date": None})


def named(panel: Panel, labels: dict[str, str]) -> str:
    """A line's name as Grafana makes it, without the folder of the trial."""
    text = panel.legend
    for label, value in labels.items():
        kind, _, name = value.partition(":")
        shown = f"{kind}:{Path(name).name}" if name.startswith("/") else value
        text = text.replace("{{" + label + "}}", shown)
    return text


if __name__ == "__main__":
    main()
