"""fix_http - HTTP servers of our own: Python's, nginx, and one that lies

with Web({"a@b.c": b"x@y.z"}) as web:          # http.server, HTTP/1.1
    url = f"http://127.0.0.1:{web.port}/alias?address=%s"
    assert web.requests[0].path == "/alias?address=a%40b.c"
with Liar() as liar:
    liar.manner = "short"                       # see MANNERS
"""

from __future__ import annotations

import contextlib
import http.server
import shutil
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

from fix_database import free_port
from fix_listening import Listening
from fix_server import LIMIT, wait_until


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]


class Server(Listening):
    """A threading server on a port of 127.0.0.1; tls: (certificate, key), as paths."""

    handler: type[socketserver.BaseRequestHandler]

    def __init__(self, tls: tuple[str, str] | None = None) -> None:
        self.tls, self.port = tls, 0
        self.requests: list[Request] = []
        self.connections = 0
        self.sockets: set[socket.socket] = set()
        self.listen()

    def listen(self) -> None:
        owner = self

        class Listener(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True
            request_queue_size = 64

            def get_request(self) -> tuple[Any, Any]:
                sock, address = super().get_request()
                owner.connections += 1
                return sock, address

            def finish_request(self, request: Any, address: Any) -> None:
                if owner.tls:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(*owner.tls)
                    request = context.wrap_socket(request, server_side=True)
                owner.sockets.add(request)
                try:
                    super().finish_request(request, address)
                finally:
                    owner.sockets.discard(request)
                    with contextlib.suppress(OSError):
                        request.close()

            def handle_error(self, request: Any, address: Any) -> None:
                pass  # clients leave as they like

        self.server = Listener(("127.0.0.1", self.port), self.handler)
        self.server.owner = self  # type: ignore[attr-defined]
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


class Web(Server):
    """Python's own http.server. It finds `records` by the parameter `address`, or the last step of the path.

    A key that it does not have is 404; `statuses` has others. What it was asked is in `requests`.
    """

    class handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # it sends head and body apart, and would wait 40 ms between them

        def do_GET(self) -> None:
            owner: Web = self.server.owner  # type: ignore[attr-defined]
            owner.requests.append(Request(self.command, self.path, dict(self.headers)))
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, keep_blank_values=True, encoding="latin-1", strict_parsing=False)
            key = query["address"][0].encode("latin-1") if "address" in query else b""
            key = key or unquote_to_bytes(parts.path.rpartition("/")[2])
            body = owner.records.get(key, owner.default)
            status = owner.statuses.get(key, 404 if body is None else 200)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/alias?address=elsewhere")
            if status != 204:
                self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if status != 204:
                self.wfile.write(body or b"")

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    def __init__(self, records: dict[bytes, bytes], tls: tuple[str, str] | None = None) -> None:
        self.records, self.default = records, None
        self.statuses: dict[bytes, int] = {}
        super().__init__(tls)


OK = b"HTTP/1.1 200 OK\r\n"
FORGED = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
# What a liar sends, and then hangs up; "..." has it send that for ever, a piece each 0.02 s.
MANNERS: dict[str, bytes | tuple[bytes, bytes]] = {
    "fine": OK + b"Content-Length: 5\r\n\r\nvalue",
    "nothing": b"",
    "garbage": b"\x00\xff\x01 no http at all\r\n\r\n",
    "half a status": b"HTTP/1.1 20",
    "half a header": OK + b"Content-Le",
    "cut after 404": b"HTTP/1.1 404",
    "cut after the line of 404": b"HTTP/1.1 404 Not Found\r\n",
    "cut in the head of 404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nServ",
    "cut before the end of the head": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n",
    "cut after 204": b"HTTP/1.1 204 No Content",
    "head of 200 without end": OK + b"Content-Length: 0\r\n",
    "body of 404 cut": b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nno",
    "last line missing": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nvalue\r\n0\r\n",
    "many headers": OK + b"X: y\r\n" * 1000 + b"Content-Length: 5\r\n\r\nvalue",
    "long chunk head": (OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x" * 65536),
    "endless trailer": (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    "negative chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nvalue\r\n0\r\n\r\n",
    "two statuses": b"HTTP/1.1 200 404 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "short": OK + b"Content-Length: 50\r\n\r\nvalue",
    "no length": OK + b"\r\nvalue",
    "bad length": OK + b"Content-Length: five\r\n\r\nvalue",
    "negative length": OK + b"Content-Length: -5\r\n\r\nvalue",
    "underscored length": OK + b"Content-Length: 0_5\r\n\r\nvalue",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 3\r\n\r\nvalue",
    "length and chunks": OK
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nvalue\r\n0\r\n\r\n",
    "two codings": OK + b"Transfer-Encoding: identity, chunked\r\n\r\n5\r\nvalue\r\n0\r\n\r\n",
    "chunk garbage": OK + b"Transfer-Encoding: chunked\r\n\r\nvalue\r\nno number\r\n",
    "chunk cut": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nval",
    "chunks without end": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nvalue\r\n",
    "unknown coding": OK + b"Transfer-Encoding: gzip\r\n\r\nvalue",
    "encoded": OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nvalue",
    "huge": (OK + b"Content-Length: 99999999999\r\n\r\n", b"x" * 65536),
    "endless chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"8000\r\n" + b"x" * 0x8000 + b"\r\n"),
    "header flood": (OK, b"X-Flood: " + b"x" * 1000 + b"\r\n"),
    "long header": (OK + b"X-Long: ", b"x" * 65536),
    "many lines to go on": (b"", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"),
    "slow": (OK + b"Content-Length: 100000\r\n\r\n", b"x"),
    "slow headers": (OK, b"X"),
    "silent": (b"", b""),
    "no content, with content": b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n" + FORGED,
    "early": b"HTTP/1.1 103 Early Hints\r\n\r\n" + FORGED,
    "switch": b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + FORGED,
    "empty": OK + b"Content-Length: 0\r\n\r\n",
    "old": b"HTTP/0.9 200 OK\r\n\r\nvalue",
}


class Liar(Server):
    """Sends what its manner says, whatever it is asked."""

    manner = "fine"
    stays = False  # does the connection stay after the answer?

    class handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            owner: Liar = self.server.owner  # type: ignore[attr-defined]
            while lines := self.lines():
                method, path, _ = lines[0].split(" ", 2)
                owner.requests.append(Request(method, path, dict(line.split(": ", 1) for line in lines[1:])))
                sent = MANNERS[owner.manner]
                first, more = sent if isinstance(sent, tuple) else (sent, None)
                self.wfile.write(first)
                while more is not None and owner.server is not None:
                    self.wfile.write(more)
                    threading.Event().wait(0.02)
                if not owner.stays:
                    break

        def lines(self) -> list[str]:
            found = []
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                found.append(line.decode("latin-1").removesuffix("\r\n"))
            return found


NGINX = """\
daemon off;
master_process off;
pid {dir}/pid;
error_log {dir}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log {dir}/access.log;
    client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
    uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
    keepalive_timeout 75;
    default_type text/plain;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        root {dir}/files;
        location = /moved {{ return 301 /a@b.c; }}
        location = /none {{ return 204; }}
        location = /broken {{ return 500; }}
        location = /slow {{ limit_rate 10; try_files /long =404; }}
    }}
}}
"""


def nginx_missing() -> str | None:
    """Why there can be no nginx here, or None."""
    return None if shutil.which("nginx", path="/usr/sbin:/usr/bin") else "nginx is not installed"


@contextlib.contextmanager
def nginx(files: dict[str, bytes], certificate: str, key: str, port: int = 0) -> Iterator[int]:
    """A private nginx with TLS that serves these files; its port. It is killed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ng-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "files").mkdir()
    for name, content in files.items():
        (folder / "files" / name).write_bytes(content)
    port = port or free_port()
    text = NGINX.format(dir=folder, port=port, certificate=certificate, key=key)
    (folder / "nginx.conf").write_text(text)
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin") or "nginx"
    command = [program, "-e", folder / "error.log", "-c", folder / "nginx.conf"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port), "nginx")
        yield port
    finally:
        process.kill()
        process.wait(LIMIT)
        shutil.rmtree(folder)


def answers(port: int) -> bool:
    """Does anybody listen there?"""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
