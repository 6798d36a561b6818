"""exporter - metrics and health over HTTP, as a process of its own that is nobody special

Few connections at a time, each for a short while: whoever connects can hold up neither the
exporter for long nor the server at all. As root it becomes mail_owner once it listens.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

from proxymap.ctl.figures import metrics_text, sockets_of
from proxymap.ctl.health import Trouble, troubles
from proxymap.ctl.options import settings_of
from proxymap.ctl.safety import account_of
from proxymap.errors import ConfigError
from proxymap.metrics.text import CONTENT_TYPE

CLIENTS_MAX = 8  # at a time; more are hung up on
CLIENT_PATIENCE = 5.0  # seconds for a client to ask, however it dawdles, and as many to read
SOCKET_MODE = 0o660
PLAIN = "text/plain; charset=utf-8"


def export(arguments: argparse.Namespace, where: str) -> None:
    """export - serve HTTP there ("HOST:PORT" or "unix:PATH") until a signal ends it. ConfigError."""
    handler = type("Handler", (_Handler,), {"arguments": arguments})
    server = _UnixServer(where, handler) if where.startswith("unix:") else _TcpServer(where, handler)
    with server:
        _become_nobody_special(arguments)
        stop: Callable[..., Any] = lambda *_: threading.Thread(target=server.shutdown).start()  # noqa: E731
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        print(f"proxymapctl: serving /metrics, /health and /live at {where}", file=sys.stderr, flush=True)
        server.serve_forever(poll_interval=0.5)


def _become_nobody_special(arguments: argparse.Namespace) -> None:
    """mail_owner may read what the server counts, and ask it."""
    if os.geteuid() != 0:
        return
    settings = settings_of(arguments)
    owner = account_of(settings.mail_owner if settings else "postfix")
    if owner.pw_uid == 0:
        raise ConfigError(f"parameter mail_owner: {owner.pw_name} is privileged")
    os.setgid(owner.pw_gid)
    os.initgroups(owner.pw_name, owner.pw_gid)
    os.setuid(owner.pw_uid)


class _Handler(BaseHTTPRequestHandler):
    """Three pages."""

    arguments: argparse.Namespace
    timeout = CLIENT_PATIENCE
    server_version, sys_version = "proxymapctl", ""

    def setup(self) -> None:
        """`timeout` alone would give that time to each byte of a request."""
        super().setup()
        self._late = threading.Timer(CLIENT_PATIENCE, self._hear_no_more)
        self._late.daemon = True
        self._late.start()

    def finish(self) -> None:
        self._late.cancel()
        super().finish()

    def _hear_no_more(self) -> None:
        """The request ends here: what there is of it is answered."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def do_GET(self) -> None:
        """One of them; 404 for any other."""
        self._late.cancel()
        try:
            reply = self._page(self.path.partition("?")[0])
        except (ConfigError, OSError, ValueError) as error:
            reply = 503, f"{error}\n", PLAIN
        self._reply(*reply)

    def _page(self, path: str) -> tuple[int, str, str]:
        if path == "/metrics":
            return 200, metrics_text(self.arguments), CONTENT_TYPE
        if path in ("/health", "/live"):
            return (*self._health(live=path == "/live"), PLAIN)
        return 404, "metrics, health and live are here\n", PLAIN

    def _health(self, live: bool) -> tuple[int, str]:
        sockets = sockets_of(self.arguments)
        found: list[Trouble] = list(troubles(sockets, tuple(sockets[1:])))
        counts = [one for one in found if not (live and one.served)]
        text = "".join(f"{one.what}\n" for one in found) or "lookups are answered\n"
        return 503 if counts else 200, text

    def _reply(self, status: int, text: str, kind: str) -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        """A UNIX socket has none."""
        return "client"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: Prometheus asks each quarter of a minute."""


class _Server(ThreadingMixIn, HTTPServer):
    """A thread for each client, but only so many."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    room = threading.BoundedSemaphore(CLIENTS_MAX)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hang up on whoever is one too many."""
        if not self.room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """A client that sees its connection closed may come again: there is room by then."""
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.room.release()
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone, or too slow, is nothing to tell."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"proxymapctl: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


class _TcpServer(_Server):
    def __init__(self, where: str, handler: Any) -> None:
        host, colon, port = where.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
            raise ConfigError(f'--listen "{where}": expected HOST:PORT, such as 127.0.0.1:9154, or unix:PATH')
        try:
            found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, *_, address = found[0]
            super().__init__(address, handler)  # type: ignore[arg-type]
        except OSError as error:
            raise ConfigError(f"--listen {where}: {error.strerror or error}") from None

    def server_bind(self) -> None:
        """Without the look for the host's name, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", self.server_address[1]


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def __init__(self, where: str, handler: Any) -> None:
        self.path = where.removeprefix("unix:")
        self._remove_what_is_left()
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            super().__init__(self.path, handler)  # type: ignore[arg-type]
        except OSError as error:
            raise ConfigError(f"--listen {where}: {error.strerror or error}") from None
        finally:
            os.umask(before)

    def server_bind(self) -> None:
        self.socket.bind(self.path)
        self.server_name, self.server_port = "", 0

    def server_close(self) -> None:
        super().server_close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def _remove_what_is_left(self) -> None:
        """The socket of one that was killed."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
            if stat.S_ISSOCK(os.lstat(self.path).st_mode):
                try:
                    peer.connect(self.path)
                except ConnectionRefusedError:
                    os.unlink(self.path)
