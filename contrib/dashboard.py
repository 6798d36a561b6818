"""dashboard - the list of the dashboard's panels; writes contrib/grafana.json from it

    python contrib/dashboard.py > contrib/grafana.json

A test compares the file, and has a real Prometheus answer each query.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

WIDTH, HEIGHT = 12, 8  # of a panel; a row has 24


class Panel(NamedTuple):
    """A graph. unit: as Grafana calls it. legend: of a line. quiet: there may be nothing to draw."""

    title: str
    query: str
    unit: str
    legend: str
    quiet: bool = False


def rate(metric: str, by: str, span: str = "1m") -> str:
    """rate - of a counter in a second, for each of some labels"""
    return f"sum by ({by}) (rate(proxymap_{metric}[{span}]))"


def most(metric: str, by: str) -> str:
    """most - what 99 of 100 values of a histogram do not exceed"""
    return f"histogram_quantile(0.99, {rate(f'{metric}_bucket', f'{by}, le')})"


RETRIED = 'lookups_total{result="retry"}'

PANELS = (
    Panel("Processes that answer", "proxymap_up", "short", "{{service}}"),
    Panel("Lookups", rate("lookups_total", "table"), "reqps", "{{table}}"),
    Panel("Lookups by result", rate("lookups_total", "result"), "reqps", "{{result}}"),
    Panel("Where answers come from", rate("lookups_total", "source"), "reqps", "{{source}}"),
    Panel(
        "Share of RETRY", f"{rate(RETRIED, 'table')} / {rate('lookups_total', 'table')}",
        "percentunit", "{{table}}",
    ),
    Panel("Lookups of slow tables: 99 % take at most", most("lookup_seconds", "table"), "s", "{{table}}"),
    Panel("Turns of the loop: 99 % take at most", most("turn_seconds", "service"), "s", "{{service}}", True),
    Panel("Clients", "proxymap_clients", "short", "{{service}}"),
    Panel("Connections made", rate("connections_total", "service"), "cps", "{{service}}"),
    Panel("Requests refused", rate("refused_total", "reason"), "reqps", "{{reason}}"),
    Panel("Database servers that are up", "proxymap_server_up", "short", "{{server}}"),
    Panel("Connections to servers", "proxymap_server_connections", "short", "{{server}} {{state}}"),
    Panel("Questions that wait", "proxymap_server_queue", "short", "{{server}}"),
    Panel("Queue: 99 % wait at most", most("server_queue_seconds", "server"), "s", "{{server}}", True),
    Panel("Troubles of servers", rate("server_errors_total", "server, kind"), "ops", "{{server}} {{kind}}"),
    Panel("Cache", "proxymap_cache_bytes", "bytes", "{{kind}}"),
    Panel("Evictions", rate("cache_evictions_total", "service"), "ops", "{{service}}"),
    Panel("Openings", rate("openings_total", "table, outcome"), "ops", "{{table}} {{outcome}}"),
    Panel("Processes begun", rate("starts_total", "service", "5m"), "ops", "{{service}}"),
    Panel("Log lines lost", rate("log_lines_lost_total", "service", "5m"), "ops", "{{service}}"),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """dashboard - as Grafana imports it; it asks for the Prometheus to use"""
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    return {
        "__inputs": [
            {"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}
        ],
        "title": "proxymap", "uid": "proxymap", "schemaVersion": 38, "refresh": "30s", "tags": ["postfix"],
        "time": {"from": "now-6h", "to": "now"},
        "panels": [
            {
                "id": number + 1, "type": "timeseries", "title": panel.title, "datasource": source,
                "gridPos": {
                    "x": number % 2 * WIDTH, "y": number // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT,
                },
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": "A", "datasource": source, "expr": panel.query, "legendFormat": panel.legend}
                ],
            }
            for number, panel in enumerate(PANELS)
        ],
    }  # fmt: skip


def text() -> str:
    """text - of the file"""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
