"""fix_fake - servers that speak just enough MySQL or PostgreSQL, count questions, and misbehave on demand

    with FakeMySQL({"a": ["1"]}) as server:
        hosts = f"127.0.0.1:{server.port}"
        ...
        server.questions          # the SQL of each, in order
        server.manner = "half"    # see Manner

A question is answered with the rows of `records` for its last literal between
single quotes (or its last bound parameter); None is NULL. They run on a thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from fix_asyncio import close_server, end_loop

Rows = Sequence[str | None]
Manner = Literal[
    "answer",  # as it should
    "error",  # to each question: an error of the question
    "silent",  # never
    "slow",  # never, except to the question whether the server is up
    "hollow",  # only to that question; in place of others the end, as a proxy does whose server is dead
    "close",  # in place of an answer
    "half",  # half an answer, then the end
    "extra",  # the answer, and another one unasked
    "garbage",  # in place of an answer
    "full",  # no log-in: too many connections
    "leave",  # to each question: an error that says that the server shuts down
]
LITERAL = {  # by whether a backslash escapes
    True: re.compile(rb"'((?:[^'\\]|''|\\.)*)'", re.DOTALL),
    False: re.compile(rb"'((?:[^']|'')*)'"),
}
ESCAPED = re.compile(rb"''|\\(.)", re.DOTALL)
LETTERS = {b"n": b"\n", b"r": b"\r", b"Z": b"\x1a", b"0": b"\0"}


class FakeServer:
    """On a port of 127.0.0.1."""

    maptype: ClassVar[str]
    backslashes: ClassVar[bool]  # they escape in literals

    def __init__(self, records: Mapping[str, Rows]) -> None:
        self.records = {key.encode("utf-8", "surrogateescape"): rows for key, rows in records.items()}
        self.manner: Manner = "answer"
        self.delay = 0.0  # seconds before each answer
        self.questions: list[bytes] = []
        self.orders: list[bytes] = []  # statements that are no questions, MySQL only
        self.log_ins = 0
        self.open = 0  # connections, now
        self.crowds: list[int] = []  # connections at each question
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake", daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.listen()

    def listen(self) -> None:
        """Accept connections, on the same port as before."""

        async def run() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def leave(self) -> None:
        """Listen no more, and end all connections."""

        async def run() -> None:
            if self._server is not None:
                await close_server(self._server)
                self._server = None
            self._end()
            await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def cut(self) -> None:
        """End all connections that are open."""

        async def run() -> None:
            self._end()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def _end(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.leave()
        end_loop(self._loop, self._thread)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.open += 1
        try:
            if await self._log_in(reader, writer):
                self.log_ins += 1
                await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    async def _log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        raise NotImplementedError

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    def _rows(self, sql: bytes) -> Rows:
        literals = LITERAL[self.backslashes].findall(sql)
        if not literals:
            return ["1"]  # SELECT 1
        return self.records.get(unescaped(literals[-1], self.backslashes), [])

    async def _send(
        self, writer: asyncio.StreamWriter, sql: bytes, good: bytes, error: bytes, leaving: bytes
    ) -> bool:
        """An answer in the manner of the moment. False: the connection is over."""
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.manner in ("slow", "hollow") and b"'" not in sql:
            writer.write(good)
            return True
        data = {"error": error, "leave": leaving, "garbage": b"\xff" * 200, "extra": good + good}
        if self.manner in ("silent", "slow"):
            await asyncio.sleep(3600)
        if self.manner == "half":
            writer.write(good[: len(good) // 2])
        elif self.manner not in ("close", "hollow"):
            writer.write(data.get(self.manner, good))
        await writer.drain()
        return self.manner not in ("close", "hollow", "half", "garbage", "leave")


def unescaped(text: bytes, backslashes: bool) -> bytes:
    if not backslashes:
        return text.replace(b"''", b"'")
    return ESCAPED.sub(lambda found: b"'" if found[1] is None else LETTERS.get(found[1], found[1]), text)


# MySQL: packets of a length (3 bytes), a number and a payload


class FakeMySQL(FakeServer):
    maptype = "mysql"
    backslashes = True
    CAPABILITIES: ClassVar[int] = 0x000FA20F & ~0x800  # protocol 4.1, plugins, several results; no TLS

    async def _log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self.manner == "full":
            writer.write(packet(0, error_payload(1040, b"08004", b"Too many connections")))
            await writer.drain()
            return False
        salt = b"abcdefghijklmnopqrst"
        greeting = b"\x0a5.5.5-10.11.0-MariaDB\0" + struct.pack("<I", 7) + salt[:8] + b"\0"
        greeting += struct.pack("<HBHHB", self.CAPABILITIES & 0xFFFF, 45, 2, self.CAPABILITIES >> 16, 21)
        greeting += bytes(10) + salt[8:] + b"\0mysql_native_password\0"
        writer.write(packet(0, greeting))
        await self._read(reader)
        writer.write(packet(2, OK_PAYLOAD))
        await writer.drain()
        return True

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readexactly(4)
        return await reader.readexactly(int.from_bytes(head[:3], "little"))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            command = await self._read(reader)
            if command[:1] == b"\x01":  # COM_QUIT
                return
            if command[:1] == b"\x03" and b"SELECT" in command:
                sql = command[1:]
                if b"'" in sql:
                    self.questions.append(sql)
                    self.crowds.append(self.open)
                error = packet(1, error_payload(1146, b"42S02", b"Table 'mail.nosuch' doesn't exist"))
                leaving = packet(1, error_payload(1053, b"08S01", b"Server shutdown in progress"))
                if not await self._send(writer, sql, self._result(self._rows(sql)), error, leaving):
                    return
            elif command[:1] in (b"\x03", b"\x0e", b"\x1f", b"\x02"):  # SET ..., ping, reset, init
                self.orders.append(command[1:])
                writer.write(packet(1, OK_PAYLOAD))
            else:
                writer.write(packet(1, error_payload(1047, b"08S01", b"Unknown command")))

    def _result(self, rows: Rows) -> bytes:
        names = [b"def", b"mail", b"t", b"t", b"v", b"v"]
        column = b"".join(map(counted, names)) + b"\x0c" + struct.pack("<HIBHBxx", 45, 255, 253, 0, 0)
        end = b"\xfe" + struct.pack("<HH", 0, 2)
        values = [b"\xfb" if row is None else counted(row.encode("utf-8", "surrogateescape")) for row in rows]
        return b"".join(packet(n + 1, data) for n, data in enumerate([b"\x01", column, end, *values, end]))


OK_PAYLOAD = b"\0\0\0" + struct.pack("<HH", 2, 0)


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number & 0xFF]) + payload


def error_payload(code: int, state: bytes, text: bytes) -> bytes:
    return b"\xff" + struct.pack("<H", code) + b"#" + state + text


def counted(text: bytes) -> bytes:
    """A string with its length before it."""
    return (bytes([len(text)]) if len(text) < 251 else b"\xfc" + struct.pack("<H", len(text))) + text


# PostgreSQL: messages of a letter, a length (4 bytes, with itself) and a body


class FakePostgreSQL(FakeServer):
    """prepared: knows prepared statements; "forgetful": as behind a pooler, each is gone at its next use."""

    maptype = "pgsql"
    backslashes = False

    def __init__(
        self, records: Mapping[str, Rows], prepared: Literal["yes", "no", "forgetful"] = "yes"
    ) -> None:
        self.prepared = prepared
        self.cancels = 0
        super().__init__(records)

    async def _log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            (size,) = struct.unpack("!I", await reader.readexactly(4))
            body = await reader.readexactly(size - 4)
            (code,) = struct.unpack("!I", body[:4])
            if code in (80877103, 80877104):  # TLS, Kerberos
                writer.write(b"N")
            elif code == 80877102:
                self.cancels += 1
                return False
            else:
                break
        if self.manner == "full":
            writer.write(error_message(b"FATAL", b"53300", b"sorry, too many clients already"))
            await writer.drain()
            return False
        writer.write(message(b"R", struct.pack("!I", 0)))
        for name, value in PARAMETERS.items():
            writer.write(message(b"S", name + b"\0" + value + b"\0"))
        writer.write(message(b"K", struct.pack("!II", 1, 2)) + READY)
        await writer.drain()
        return True

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        statements: dict[bytes, bytes] = {}
        answer = b""  # until Sync
        failed = False
        while True:
            kind = await reader.readexactly(1)
            (size,) = struct.unpack("!I", await reader.readexactly(4))
            body = await reader.readexactly(size - 4)
            if kind == b"X":
                return
            if kind == b"Q":
                if not await self._question(writer, body.rstrip(b"\0"), READY, b"T" + COLUMN):
                    return
            elif kind == b"S":
                writer.write(answer + READY)
                answer, failed = b"", False
            elif not failed:
                if kind == b"B":
                    asked = self._bound(body, statements)
                    if asked is not None:
                        if not await self._bound_question(reader, writer, asked):
                            return
                        continue
                piece = self._step(kind, body, statements)
                failed = piece.startswith(b"E")
                answer += piece

    def _step(self, kind: bytes, body: bytes, statements: dict[bytes, bytes]) -> bytes:
        """The answer to a message of the extended protocol, but for that to Bind."""
        if kind == b"P":
            name, sql = body.split(b"\0")[:2]
            if self.prepared == "no":
                return error_message(b"ERROR", b"0A000", b"prepared statements are not supported here")
            statements[name] = sql
            return message(b"1", b"")
        if kind == b"D":
            return message(b"t", struct.pack("!HI", 1, 25)) + message(b"T", COLUMN_BODY)
        if kind == b"B":
            return error_message(b"ERROR", b"26000", b'prepared statement "x" does not exist')
        return message(b"3", b"") if kind == b"C" else b""

    def _bound(self, body: bytes, statements: dict[bytes, bytes]) -> bytes | None:
        """The question that a Bind message makes of its statement; None: there is no such statement."""
        _, _, rest = body.partition(b"\0")
        name, _, rest = rest.partition(b"\0")
        sql = statements.get(name)
        if sql is None or self.prepared == "forgetful":
            statements.pop(name, None)
            return None
        (formats,) = struct.unpack_from("!H", rest)
        at = 2 + 2 * formats
        (count,) = struct.unpack_from("!H", rest, at)
        at += 2
        value = b""
        for _ in range(count):
            (size,) = struct.unpack_from("!i", rest, at)
            value = rest[at + 4 : at + 4 + size]
            at += 4 + size
        return sql + b" -- '" + value.replace(b"'", b"''") + b"'" if count else sql

    async def _bound_question(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sql: bytes
    ) -> bool:
        """Bind, and what follows it up to Sync."""
        described = b""
        while True:
            kind = await reader.readexactly(1)
            (size,) = struct.unpack("!I", await reader.readexactly(4))
            await reader.readexactly(size - 4)
            if kind == b"D":
                described = b"T" + COLUMN
            if kind == b"S":
                return await self._question(writer, sql, READY, described, message(b"2", b""))

    async def _question(
        self, writer: asyncio.StreamWriter, sql: bytes, ready: bytes, described: bytes, before: bytes = b""
    ) -> bool:
        if not sql.upper().lstrip().startswith((b"SELECT", b"SHOW")):
            writer.write(before + message(b"C", b"SET\0") + ready)
            return True
        if b"'" in sql:
            self.questions.append(sql)
            self.crowds.append(self.open)
        rows = self._rows(sql)
        lines = b"".join(message(b"D", struct.pack("!H", 1) + field(row)) for row in rows)
        good = before + described + lines + message(b"C", b"SELECT %d\0" % len(rows)) + ready
        error = before + error_message(b"ERROR", b"42P01", b'relation "nosuch" does not exist') + ready
        leaving = error_message(b"FATAL", b"57P01", b"terminating connection due to administrator command")
        return await self._send(writer, sql, good, error, leaving)


PARAMETERS = {
    b"server_version": b"15.0", b"server_encoding": b"UTF8", b"client_encoding": b"UTF8",
    b"standard_conforming_strings": b"on", b"integer_datetimes": b"on", b"is_superuser": b"off",
}  # fmt: skip


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def error_message(severity: bytes, code: bytes, text: bytes) -> bytes:
    body = b"S" + severity + b"\0V" + severity + b"\0C" + code + b"\0M" + text + b"\0\0"
    return message(b"E", body)


def field(value: str | None) -> bytes:
    if value is None:
        return struct.pack("!i", -1)
    data = value.encode("utf-8", "surrogateescape")
    return struct.pack("!i", len(data)) + data


READY = message(b"Z", b"I")
COLUMN_BODY = struct.pack("!H", 1) + b"v\0" + struct.pack("!IHIhiH", 0, 0, 25, -1, -1, 0)
COLUMN = struct.pack("!I", len(COLUMN_BODY) + 4) + COLUMN_BODY
