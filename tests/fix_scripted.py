"""fix_scripted - servers of socketmap, tcp and memcache tables that do as they are told, and count

    with Scripted("socketmap", {b"a": b"OK 1"}) as server:
        table = server.table("map")         # b"socketmap:inet:127.0.0.1:PORT:map"
        server.manner = "silent"            # see Manner
        server.questions                    # the keys, in order

`records` has the payload of each key: of socketmap what stands in the netstring,
of tcp the line, of memcache the value. `raw` has whole answers, after which the
connection is closed. Each connection has a thread of its own. A question whose word
is in `held` (get; of memcache also set, add, delete) is looked at when `go` is set.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import BinaryIO, Literal, Self
from urllib.parse import unquote_to_bytes

Manner = Literal[
    "answer",  # as it should
    "silent",  # never
    "close",  # in place of an answer
    "reset",  # the same, with a reset
    "half",  # half an answer, then the end
    "drip",  # a byte each tenth of a second
    "once",  # an answer, then the end
    "garbage",  # in place of an answer
    "error",  # what the protocol has for that
    "extra",  # the answer, and once more while the next question is under way; once
    "twice",  # the answer twice, in one piece
]
ERRORS = {"socketmap": b"TEMP later", "tcp": b"400 later", "memcache": b"SERVER_ERROR out of memory\r\n"}


class Scripted:
    """On a port of 127.0.0.1 or another host, or on a socket."""

    def __init__(
        self, maptype: str, records: Mapping[bytes, bytes], *, unix: bool = False, host: str = "127.0.0.1"
    ) -> None:
        self.maptype, self.records = maptype, dict(records)
        self.raw: dict[bytes, bytes] = {}
        self.manner: Manner = "answer"
        self.delay = 0.0  # seconds before each answer
        self.questions: list[bytes] = []
        self.connections = 0  # so far
        self.late: bytes | None = None  # an answer that is one too many, to be sent
        self.held: Collection[bytes] = ()
        self.go = threading.Event()
        self.waiting = 0  # questions that were held, so far
        self._open: set[socket.socket] = set()
        self._folder = tempfile.mkdtemp(prefix="pm-", dir="/tmp")
        if unix:
            os.chmod(self._folder, 0o755)
            self.path = f"{self._folder}/s"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.path)
            os.chmod(self.path, 0o777)
            self._listener.listen(128)
            self.endpoint = f"unix:{self.path}"
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family, backlog=128)
            self.port = self._listener.getsockname()[1]
            self.endpoint = f"inet:[{host}]:{self.port}" if ":" in host else f"inet:{host}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def table(self, name: str = "map") -> bytes:
        """The name of a socketmap or tcp table that asks here."""
        if self.maptype == "tcp":
            return f"tcp:{self.endpoint.removeprefix('inet:')}".encode()
        return f"{self.maptype}:{self.endpoint}:{name}".encode()

    @property
    def open(self) -> int:
        """Connections, now."""
        return len(self._open)

    def hang_up(self) -> None:
        """Close all connections."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.go.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # or accept() goes on in its thread
        self._listener.close()
        self.hang_up()
        with contextlib.suppress(OSError):
            os.unlink(f"{self._folder}/s")
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    # What its threads do

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as stream:
            for key, answer in self._asked(stream):
                self.questions.append(key)
                if not self._reply(connection, key, answer):
                    break
        self._open.discard(connection)

    def _reply(self, connection: socket.socket, key: bytes, answer: bytes) -> bool:
        """Does the connection go on?"""
        manner = self.manner
        time.sleep(self.delay)
        if key in self.raw:
            connection.sendall(self.raw[key])
            return False
        if manner == "silent":
            while connection.recv(4096):  # until the client gives up
                pass
            return False
        if manner == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if manner in ("close", "reset"):
            return False
        if manner == "drip":
            for at in range(len(answer)):
                time.sleep(0.1)
                connection.sendall(answer[at : at + 1])
            return True
        if manner == "extra" and self.late is None:
            self.late = answer
        elif self.late:
            connection.sendall(self.late)
            self.late = b""
            time.sleep(0.05)
        pieces = {
            "half": answer[: len(answer) // 2], "garbage": b"what?\n", "twice": answer * 2,
            "error": self._framed(ERRORS[self.maptype]),
        }  # fmt: skip
        connection.sendall(pieces.get(manner, answer))
        return manner not in ("half", "once")

    # The protocols

    def _asked(self, stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
        """Each question's key, and the answer to it."""
        return getattr(self, f"_asked_{self.maptype}")(stream)  # type: ignore[no-any-return]

    def _hold(self, word: bytes = b"get") -> None:
        if word in self.held:
            self.waiting += 1
            self.go.wait()

    def _framed(self, payload: bytes) -> bytes:
        if self.maptype == "socketmap":
            return b"%d:%b," % (len(payload), payload)
        return payload + b"\n" if self.maptype == "tcp" else payload

    def _asked_socketmap(self, stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
        while length := b"".join(iter(lambda: stream.read(1).strip(b":"), b"")):
            _, _, key = stream.read(int(length)).partition(b" ")
            assert stream.read(1) == b","
            self._hold()
            yield key, self._framed(self.records.get(key, b"NOTFOUND "))

    def _asked_tcp(self, stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
        for line in stream:
            assert line.startswith(b"get ")
            self._hold()
            key = unquote_to_bytes(line[4:-1])
            yield key, self._framed(self.records.get(key, b"500 no"))

    def _asked_memcache(self, stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
        for line in stream:
            word, *rest = line.split()
            value = stream.read(int(rest[3]) + 2)[:-2] if word in (b"set", b"add") else None
            self._hold(word)
            if word == b"version":
                yield b"", b"VERSION 1\r\n"
            elif word == b"get":
                value = self.records.get(rest[0])
                found = b"" if value is None else b"VALUE %b 0 %d\r\n%b\r\n" % (rest[0], len(value), value)
                yield rest[0], found + b"END\r\n"
            elif word == b"delete":
                known = rest[0] in self.records
                if self.manner == "answer":
                    self.records.pop(rest[0], None)
                yield rest[0], b"DELETED\r\n" if known else b"NOT_FOUND\r\n"
            else:
                assert value is not None
                stored = word == b"set" or rest[0] not in self.records
                if stored and self.manner == "answer":
                    self.records[rest[0]] = value
                yield rest[0], b"STORED\r\n" if stored else b"NOT_STORED\r\n"


class NeverConnects:
    """A port of 127.0.0.1 whose listener takes no more connections: an attempt hangs."""

    def __enter__(self) -> Self:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port = self._listener.getsockname()[1]
        self._fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self._fillers.append(filler)
        return self

    def __exit__(self, *details: object) -> None:
        for each in [*self._fillers, self._listener]:
            each.close()
