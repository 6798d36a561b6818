"""fix_resp - a server that speaks as much of Redis's protocol as it is told, true or not

    with Resp({b"GET": b"$1\\r\\nv\\r\\n"}) as server:
        server.uri                              # redis://127.0.0.1:PORT
        server.answers[b"GET"] = (b"*1\\r\\n",)   # in a tuple: that for ever, 100 times a second
        server.commands                         # in order, each a list of bytes

What it has no answer for is +OK; PING is +PONG.
"""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
from collections.abc import Callable
from typing import Any

from fix_listening import Listening

Answer = bytes | tuple[bytes] | Callable[[list[bytes]], bytes] | None


class Resp(Listening):
    """On a port of 127.0.0.1; tls: (certificate, key), as paths. Answers: None hangs up, b"" says nothing."""

    def __init__(self, answers: dict[bytes, Answer], tls: tuple[str, str] | None = None) -> None:
        self.answers: dict[bytes, Answer] = {b"PING": b"+PONG\r\n", **answers}
        self.commands: list[list[bytes]] = []
        self.sockets = set()
        owner = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                owner.sockets.add(self.request)
                with contextlib.suppress(OSError, ValueError):
                    while owner.serve(self):
                        pass
                owner.sockets.discard(self.request)

        class Listener(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

            def get_request(self) -> tuple[Any, Any]:
                sock, address = super().get_request()
                if tls is not None:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(*tls)
                    sock = context.wrap_socket(sock, server_side=True)
                return sock, address

        self.server = Listener(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def uri(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def serve(self, handler: Any) -> bool:
        """One command; False: hang up."""
        line: bytes = handler.rfile.readline()
        if not line:
            return False
        words = []
        for _ in range(int(line[1:])):
            words.append(handler.rfile.read(int(handler.rfile.readline()[1:]) + 2)[:-2])
        self.commands.append(words)
        answer = self.answers.get(words[0].upper(), b"+OK\r\n")
        if callable(answer):
            answer = answer(words)
        if answer is None:
            return False
        if isinstance(answer, bytes):
            handler.wfile.write(answer)
            return True
        while self.server is not None:
            handler.wfile.write(answer[0])
            threading.Event().wait(0.01)
        return False
