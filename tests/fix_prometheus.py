"""fix_prometheus - a private Prometheus that scrapes a server's metrics each second"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fix_database import free_port
from fix_server import LIMIT, ROOT, ServerProcess, environment

Ask = Callable[..., list[Any]]


@contextlib.contextmanager
def prometheus(server: ServerProcess, folder: Path) -> Iterator[Ask]:
    """Gives a function that has it answer a query; with start, end and step a range of time.

    An answer is empty while it is not ready yet.
    """
    ours, its = free_port(), free_port()
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 1s}}\nrule_files: [{ROOT}/contrib/alerts.yml]\n"
        f"scrape_configs: [{{job_name: proxymap, static_configs: [{{targets: ['127.0.0.1:{ours}']}}]}}]\n"
    )
    listen = ["--socket", server.path, "-c", str(server.dir), "metrics", "--listen", f"127.0.0.1:{ours}"]
    commands = [
        [sys.executable, "-m", "proxymap.ctl", *listen],
        [
            "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{its}",
        ],
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        started = [subprocess.Popen(command, stderr=log, env=environment()) for command in commands]

    def ask(query: str, **span: float) -> list[Any]:
        what = urllib.parse.urlencode({"query": query, **span})
        url = f"http://127.0.0.1:{its}/api/v1/{'query_range' if span else 'query'}?{what}"
        try:
            with urllib.request.urlopen(url, timeout=LIMIT) as reply:
                answer = json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            return []  # it listens, and reads its storage
        except OSError:
            return []
        assert answer["status"] == "success"
        return list(answer["data"]["result"])

    try:
        yield ask
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(LIMIT)
