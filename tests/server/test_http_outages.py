"""test_http_outages - an nginx that is killed and started again while clients of its http table ask"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from fix_http import nginx, nginx_missing
from fix_server import NOT_FOUND, Attributes, ServerProcess, found, lookup
from fix_tls import Certificates

RETRY: Attributes = [(b"status", b"2"), (b"value", b"")]
FILES = {f"k{n}": b"v%d" % n for n in range(50)}
CLIENTS = 8


class Askers:
    """Clients that ask for what is there, and now and then for what is not.

    wrong: replies that are neither right nor RETRY.
    """

    def __init__(self, server: ServerProcess, table: bytes) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[tuple[bytes, Attributes]] = []
        self._server, self._table, self._stopping = server, table, False
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        choice = random.Random(seed)
        with self._server.connect() as peer:
            while not self._stopping:
                n = choice.randrange(len(FILES) + 5)
                reply = peer.ask(lookup(self._table, b"k%d" % n))
                if reply == RETRY:
                    self.counts["retry"] += 1
                    time.sleep(0.01)
                elif reply == (found(b"v%d" % n) if n < len(FILES) else NOT_FOUND):
                    self.counts["right"] += 1
                else:
                    self.wrong.append((b"k%d" % n, reply))

    def until(self, verdict: str, more: int) -> None:
        wanted = self.counts[verdict] + more
        until = time.monotonic() + 60
        while self.counts[verdict] < wanted and not self.wrong:
            assert time.monotonic() < until, (verdict, self.counts)
            time.sleep(0.01)


@pytest.mark.skipif(nginx_missing() is not None, reason=str(nginx_missing()))
def test_nginx_that_is_killed_under_load_gives_no_wrong_answer(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "tls")
    tls = certificates.pem("server"), certificates.key("server")
    port = 0
    with ServerProcess(own={"lookup_time_limit": "5s"}) as server:
        (server.dir / "ca.pem").write_bytes(Path(certificates.pem("ca")).read_bytes())
        path = server.dir / "t.cf"
        table = f"http:{path}".encode()
        server.approve(table)
        with nginx(FILES, *tls) as port:
            path.write_text(f"url = https://127.0.0.1:{port}/%s\ntls_CAfile = {server.dir}/ca.pem\n")
            server.start()
            with server.connect() as peer:
                assert peer.ask(lookup(table, b"k1")) == found(b"v1")
        with Askers(server, table) as askers:
            for _ in range(4):
                askers.until("retry", CLIENTS)
                with nginx(FILES, *tls, port=port):
                    askers.until("right", 200)
        assert askers.wrong == []
