"""client - ask a proxymap server: Client, and AsyncClient for asyncio

Keys and values are bytes; str is taken as UTF-8. "No such key" is None (or
False), everything else that is not OK raises an exception of errors.py; a
hang-up or junk raises ProtocolError, silence TimeoutError, a server that is
not there OSError (these two have the socket's path as `filename`). After one of
the three the connection is closed, and the next request makes a new one.

A client has one request under way at a time: a Client belongs to one thread;
an AsyncClient may be shared by tasks, which then wait for each other. Keys are
not folded here: in dialect 3.6 the server folds ASCII letters if the flags ask
for it, in dialect 3.11 it folds whatever Postfix folds.

_Talk holds what both share: it builds requests, reads replies and does no I/O.
Its methods are generators that yield a request and are sent its reply.

Source: the wire protocol as recorded from Postfix 3.7 and 3.12; proxymap(8).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, TypeVar

from proxymap.errors import BY_STATUS, STAT_NOKEY, STAT_OK, ProtocolError

if TYPE_CHECKING:
    import asyncio  # else imported when it is used: it would double the start of proxymapctl

Dialect: TypeAlias = Literal["3.6", "3.11"]
Text: TypeAlias = bytes | str
T = TypeVar("T")
Steps: TypeAlias = Generator[bytes, list[bytes], T]

FIRST, NEXT = 0, 1  # `function` of a sequence request
FLAG_LOCK = 1 << 6
FLAG_FOLD_FIX = 1 << 14
FLAG_UTF8_REQUEST = 1 << 19
DEFAULT_FLAGS = FLAG_LOCK | FLAG_FOLD_FIX | FLAG_UTF8_REQUEST
DEFAULT_TIMEOUT = 100.0  # seconds of silence; well below Postfix's ipc_timeout of 3600
REPLY_LIMIT = 16 << 20  # bytes; the protocol has no limit of its own
READ_SIZE = 1 << 16
GREETING = [b"protocol", b"proxymap_protocol"]
# What leaves the connection in order. After anything else it is closed: a late reply would be taken
# for the reply to the next request.
IN_STEP: tuple[type[Exception], ...] = (*BY_STATUS.values(), ValueError)
STATUS_NAMES = ("OK", "NOKEY", "RETRY", "BAD", "DENY", "CONFIG")


class ReplyParser:
    """Cuts the server's bytes into attribute lists; takes the greeting away, if there is one."""

    def __init__(self) -> None:
        self._unread = b""
        self._greeted = False

    def feed(self, data: bytes) -> list[bytes] | None:
        """Return the reply as [name, value, name, value, ...], or None if it is not complete yet."""
        self._unread += data
        while (strings := self._attribute_list()) is not None:
            if strings == GREETING and not self._greeted:
                self._greeted = True
                continue
            if self._unread:
                raise ProtocolError("the server sent more than one reply to one request")
            return strings
        return None

    def _attribute_list(self) -> list[bytes] | None:
        unread = self._unread
        if not (b"status\0".startswith(unread[:7]) or b"protocol\0".startswith(unread[:9])):
            raise ProtocolError(f"not a proxymap server: it sent {unread[:40]!r}")
        if len(unread) > REPLY_LIMIT:
            raise ProtocolError(f"the reply is longer than {REPLY_LIMIT} bytes")
        if not unread.endswith(b"\0"):
            return None
        strings = unread.split(b"\0")
        names = strings[:-1:2]
        if b"" not in names:
            return None
        end = 2 * names.index(b"")
        self._unread = b"\0".join(strings[end + 1 :])
        return strings[:end]


class _Talk:
    """The five requests as steps: each yields a request's bytes and is sent the reply's strings."""

    def __init__(self, dialect: Dialect) -> None:
        if dialect not in ("3.6", "3.11"):
            raise ValueError(f'dialect is "3.6" or "3.11", not {dialect!r}')
        self._new = dialect == "3.11"
        # table -> what it was opened with, and the flags of its latest reply; for one connection.
        self._flags: dict[Text, tuple[int, int]] = {}

    def hung_up(self) -> None:
        self._flags.clear()

    def open(self, table: Text, flags: int | None = None) -> Steps[int]:
        if flags is None:
            flags = DEFAULT_FLAGS if self._new else 0
        reply = yield _pack(b"open", table, b"instance_flags" if self._new else b"flags", b"%d" % flags)
        status, (got,) = _unpack(reply, "open", table, b"flags")
        if status == STAT_NOKEY:
            raise ProtocolError(f"open {_show(table)}: the server replied NOKEY")
        self._flags[table] = flags, _number(got)
        return _number(got)

    def lookup(self, table: Text, key: Text, flags: int | None) -> Steps[bytes | None]:
        status, (value,) = yield from self._ask("lookup", table, flags, (b"key", key), (b"value",))
        return value if status == STAT_OK else None

    def update(self, table: Text, key: Text, value: Text, flags: int | None) -> Steps[bool]:
        fields = b"key", key, b"value", value
        status, _ = yield from self._ask("update", table, flags, fields, ())
        return status == STAT_OK

    def delete(self, table: Text, key: Text, flags: int | None) -> Steps[bool]:
        status, _ = yield from self._ask("delete", table, flags, (b"key", key), ())
        return status == STAT_OK

    def sequence(self, table: Text, function: int, flags: int | None) -> Steps[tuple[bytes, bytes] | None]:
        fields = b"function", b"%d" % function
        status, item = yield from self._ask("sequence", table, flags, fields, (b"key", b"value"))
        return (item[0], item[1]) if status == STAT_OK else None

    def _ask(
        self, name: str, table: Text, flags: int | None, fields: tuple[Text, ...], wanted: tuple[bytes, ...]
    ) -> Steps[tuple[int, list[bytes]]]:
        """One request other than open; as Postfix's client does, a table is opened before its first."""
        if table not in self._flags:
            yield from self.open(table)
        opened, latest = self._flags[table]
        if not self._new:
            flags = DEFAULT_FLAGS | opened if flags is None else flags
            reply = yield _pack(name.encode(), table, b"flags", b"%d" % flags, *fields)
            return _unpack(reply, name, table, *wanted)
        flags = latest if flags is None else flags
        both = b"instance_flags", b"%d" % opened, b"flags", b"%d" % flags
        reply = yield _pack(name.encode(), table, *both, *fields)
        status, (got, *values) = _unpack(reply, name, table, b"flags", *wanted)
        self._flags[table] = opened, _number(got)
        return status, values


def _pack(name: bytes, table: Text, *fields: Text) -> bytes:
    """The attribute list `request=name table=table` and fields, which are names and values in turn."""
    texts = b"request", name, b"table", table, *fields
    strings = [text.encode() if isinstance(text, str) else text for text in texts]
    packed = b"\0".join(strings)
    if packed.count(b"\0") != len(strings) - 1:
        raise ValueError("a table name, key or value must not contain a NUL byte")
    return packed + b"\0\0"


def _unpack(reply: list[bytes], name: str, table: Text, *wanted: bytes) -> tuple[int, list[bytes]]:
    """Status (OK or NOKEY) and the values of the wanted attributes; any other status is raised."""
    status = _number(reply[1]) if reply[0] == b"status" else -1
    if status in BY_STATUS:
        raise BY_STATUS[status](f"{name} {_show(table)}: the server replied {STATUS_NAMES[status]}")
    if status not in (STAT_OK, STAT_NOKEY) or reply[2::2] != list(wanted):
        raise ProtocolError(f"{name} {_show(table)}: unexpected reply {reply!r:.200}")
    return status, reply[3::2]


def _number(text: bytes) -> int:
    if not text.isdigit():
        raise ProtocolError(f"a number was expected in the reply, not {text[:40]!r}")
    return int(text)


def _timed_out(timeout: float | None, path: str) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"no answer for {timeout} s", path)


def _show(table: Text) -> str:
    return table if isinstance(table, str) else table.decode("utf-8", "backslashreplace")


class Client:
    """A connection to a proxymap server, made at the first request. `timeout`: seconds, None for ever."""

    def __init__(
        self, path: str, *, dialect: Dialect = "3.6", timeout: float | None = DEFAULT_TIMEOUT
    ) -> None:
        self.path = path
        self._talk = _Talk(dialect)
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._parser = ReplyParser()

    def open(self, table: Text, flags: int | None = None) -> int:
        """Open a table with these flags (None: what Postfix's client sends), return the server's flags."""
        return self._run(self._talk.open(table, flags))

    def lookup(self, table: Text, key: Text, flags: int | None = None) -> bytes | None:
        """The value, or None if there is no such key."""
        return self._run(self._talk.lookup(table, key, flags))

    def update(self, table: Text, key: Text, value: Text, flags: int | None = None) -> bool:
        """Store a value; False if the table keeps the one it has."""
        return self._run(self._talk.update(table, key, value, flags))

    def delete(self, table: Text, key: Text, flags: int | None = None) -> bool:
        """Remove a key; False if there is none."""
        return self._run(self._talk.delete(table, key, flags))

    def sequence(self, table: Text, function: int, flags: int | None = None) -> tuple[bytes, bytes] | None:
        """The FIRST or NEXT key and value, None at the end. The cursor is the server's, shared by all."""
        return self._run(self._talk.sequence(table, function, flags))

    def items(self, table: Text) -> Iterator[tuple[bytes, bytes]]:
        """All keys and values of a table."""
        function = FIRST
        while (item := self.sequence(table, function)) is not None:
            yield item
            function = NEXT

    def close(self) -> None:
        """Hang up. The next request connects again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._talk.hung_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        request = next(steps)
        while True:
            try:
                request = steps.send(self._exchange(request))
            except StopIteration as done:
                result: T = done.value
                return result
            except IN_STEP:
                raise
            except BaseException:
                self.close()
                raise

    def _exchange(self, request: bytes) -> list[bytes]:
        try:
            if self._socket is None:
                self._connect()
            assert self._socket is not None
            self._socket.sendall(request)
            while data := self._socket.recv(READ_SIZE):
                if (reply := self._parser.feed(data)) is not None:
                    return reply
        except BlockingIOError:
            raise _timed_out(self._timeout, self.path) from None
        except (BrokenPipeError, ConnectionResetError):
            pass
        raise ProtocolError(f"{self.path}: the server hung up")

    def _connect(self) -> None:
        """The kernel keeps the time: a socket with a Python timeout costs a poll() before each call."""
        self._parser = ReplyParser()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(None)
        micros = int((self._timeout or 0) * 1e6)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", *divmod(micros, 1_000_000)))
        try:
            self._socket.connect(self.path)
        except OSError as error:
            error.filename = self.path
            raise


class AsyncClient:
    """Client's methods as coroutines. Cancelling one closes the connection, as any failure does."""

    def __init__(
        self, path: str, *, dialect: Dialect = "3.6", timeout: float | None = DEFAULT_TIMEOUT
    ) -> None:
        import asyncio

        self.path = path
        self._talk = _Talk(dialect)
        self._timeout = timeout
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._parser = ReplyParser()
        self._turn = asyncio.Lock()

    async def open(self, table: Text, flags: int | None = None) -> int:
        return await self._run(self._talk.open(table, flags))

    async def lookup(self, table: Text, key: Text, flags: int | None = None) -> bytes | None:
        return await self._run(self._talk.lookup(table, key, flags))

    async def update(self, table: Text, key: Text, value: Text, flags: int | None = None) -> bool:
        return await self._run(self._talk.update(table, key, value, flags))

    async def delete(self, table: Text, key: Text, flags: int | None = None) -> bool:
        return await self._run(self._talk.delete(table, key, flags))

    async def sequence(
        self, table: Text, function: int, flags: int | None = None
    ) -> tuple[bytes, bytes] | None:
        return await self._run(self._talk.sequence(table, function, flags))

    async def items(self, table: Text) -> AsyncIterator[tuple[bytes, bytes]]:
        function = FIRST
        while (item := await self.sequence(table, function)) is not None:
            yield item
            function = NEXT

    async def close(self) -> None:
        """Hang up. The next request connects again."""
        if self._streams is not None:
            writer = self._streams[1]
            self._hang_up()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
        self._talk.hung_up()

    async def _run(self, steps: Steps[T]) -> T:
        import asyncio

        async with self._turn:
            request = next(steps)
            while True:
                timer = asyncio.timeout(self._timeout)
                try:
                    async with timer:
                        reply = await self._exchange(request)
                    request = steps.send(reply)
                except StopIteration as done:
                    result: T = done.value
                    return result
                except IN_STEP:
                    raise
                except BaseException:
                    self._hang_up()
                    if timer.expired():
                        raise _timed_out(self._timeout, self.path) from None
                    raise

    async def _exchange(self, request: bytes) -> list[bytes]:
        try:
            if self._streams is None:
                self._parser = ReplyParser()
                self._streams = await self._connect()
            reader, writer = self._streams
            writer.write(request)
            await writer.drain()
            while data := await reader.read(READ_SIZE):
                if (reply := self._parser.feed(data)) is not None:
                    return reply
        except (BrokenPipeError, ConnectionResetError):
            pass
        raise ProtocolError(f"{self.path}: the server hung up")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        import asyncio

        try:
            return await asyncio.open_unix_connection(self.path)
        except OSError as error:
            error.filename = self.path
            raise
