"""fix_mongo - a pretended MongoDB server, which counts what it is asked and misbehaves

    with FakeMongo([{"k": "a", "v": "1"}]) as server:
        uri = f"mongodb://127.0.0.1:{server.port}/"
        server.manner = "error"

It finds documents whose fields are equal to those of the filter, and keeps what it was asked in
`finds`. A null in a filter stands for a field that is not there. manner: answer, error (of the
question), unauthorized, not_primary, close, silent (until `mute` is set), half, garbage,
invalid (a string that is no UTF-8).
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from typing import Any

import bson
from fix_listening import Listening

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
HELLO = {
    "ok": 1.0, "ismaster": True, "isWritablePrimary": True, "maxWireVersion": 21, "minWireVersion": 0,
    "maxBsonObjectSize": 1 << 24, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 1000,
}  # fmt: skip
ERRORS = {
    "error": {"ok": 0.0, "errmsg": "bad value", "code": 2},
    "unauthorized": {"ok": 0.0, "errmsg": "not authorized", "code": 13},
    "not_primary": {"ok": 0.0, "errmsg": "not primary", "code": 10107},
}


class FakeMongo(Listening):
    """Listens on a port of 127.0.0.1."""

    def __init__(self, documents: list[dict[str, Any]]) -> None:
        self.documents, self.manner = documents, "answer"
        self.finds: list[dict[str, Any]] = []
        self.mute = threading.Event()  # set: who is silent answers after all
        self.sockets: set[socket.socket] = set()
        self.port = 0
        self.listen()

    def listen(self) -> None:
        fake = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                fake.sockets.add(self.request)
                with contextlib.suppress(OSError, EOFError):
                    while fake.serve(self.request):
                        pass
                fake.sockets.discard(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def serve(self, peer: socket.socket) -> bool:
        """One request; False: no more."""
        length, number, _, kind = struct.unpack("<iiii", exactly(peer, 16))
        body = exactly(peer, length - 16)
        if kind == OP_QUERY:  # the first hello
            reply = struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(HELLO)
            peer.sendall(struct.pack("<iiii", 16 + len(reply), 1, number, OP_REPLY) + reply)
            return True
        command = bson.decode(body[5:])
        if "find" not in command:
            return send(peer, number, HELLO)
        self.finds.append(command)
        return self.answer(peer, number, command)

    def answer(self, peer: socket.socket, number: int, command: dict[str, Any]) -> bool:
        wanted = command["filter"]
        found = [d for d in self.documents if all(d.get(name) == value for name, value in wanted.items())]
        shown = [{n: v for n, v in d.items() if command["projection"].get(n)} for d in found]
        reply = {"ok": 1.0, "cursor": {"id": 0, "ns": "mail.t", "firstBatch": shown}}
        if self.manner == "close":
            return False
        if self.manner == "silent":
            return self.mute.wait(30) and send(peer, number, reply)
        if self.manner == "garbage":
            peer.sendall(b"\xff" * 64)
            return False
        if self.manner in ("half", "invalid"):
            return send(peer, number, reply, self.manner)
        return send(peer, number, ERRORS.get(self.manner, reply))


def send(peer: socket.socket, number: int, document: dict[str, Any], manner: str = "") -> bool:
    body = struct.pack("<iB", 0, 0) + bson.encode(document)
    data = struct.pack("<iiii", 16 + len(body), 1, number, OP_MSG) + body
    if manner == "half":
        peer.sendall(data[: len(data) // 2])
        return False
    peer.sendall(data.replace(b"one", b"\xff\xfe\xff") if manner == "invalid" else data)
    return True


def exactly(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        some = peer.recv(count - len(data))
        if not some:
            raise EOFError
        data += some
    return data
