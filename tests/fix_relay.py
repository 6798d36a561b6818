"""fix_relay - a relay before a server, that cuts, delays, halves, stalls and remembers

    with Relay(("127.0.0.1", server.port)) as relay:
        hosts = f"127.0.0.1:{relay.port}"
        relay.cut()               # all connections that are open now
        relay.stalled = True      # accepts, and passes nothing on
        relay.delay = 0.1         # seconds for each piece that the server sends
        relay.piece = 1           # bytes of the server at a time
        relay.cut_after = 20      # bytes of the server's, then each connection ends;
    relay.marker = b"user"    # counted from the last that the client sent with this in it
        relay.closing = True      # accepts and closes
        relay.sent()              # all that clients have sent, a string of bytes per connection

It runs on a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Self

from fix_asyncio import close_server, end_loop

Target = tuple[str, int] | str  # an address, or the path of a socket
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PATIENCE = 0.005  # seconds between looks at `stalled`


class Passed:
    """What one connection has let pass. counts: the marker was seen."""

    bytes = 0
    counts = False


class Relay:
    """Listens on a port of 127.0.0.1; the attributes may change at any time."""

    def __init__(self, target: Target, host: str = "127.0.0.1") -> None:
        self.target, self._host = target, host
        self.port = 0
        self.delay = 0.0
        self.piece = 0
        self.cut_after = 0
        self.marker = b""
        self.stalled = self.closing = False
        self.accepted = 0  # connections, so far
        self._sent: list[bytearray] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self.listen()

    def listen(self) -> None:
        """Accept connections, on the same port as before."""
        self._do(self._listen)

    def refuse(self) -> None:
        """Listen no more, and cut what is open."""
        self._do(self._refuse)

    def cut(self) -> None:
        """End all connections that are open, both sides."""
        self._do(self._cut)

    def open_connections(self) -> int:
        return len(self._open) // 2

    def sent(self) -> list[bytes]:
        """What clients have sent, by connection."""
        return [bytes(data) for data in self._sent]

    def close(self) -> None:
        self._do(self._refuse)
        end_loop(self._loop, self._thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    # On the thread

    def _do(self, what: Callable[[], object]) -> None:
        async def run() -> None:
            result = what()
            if asyncio.iscoroutine(result):
                await result

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, self._host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            await close_server(self._server)
            self._server = None
        self._cut()
        await asyncio.sleep(0.01)  # the connections' tasks end

    def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        sent = bytearray()
        self._sent.append(sent)
        writers = [writer]
        self._open.add(writer)
        try:
            if self.closing:
                return
            there, there_writer = await self._connect()
            writers.append(there_writer)
            self._open.add(there_writer)
            await self._pump_both((reader, writer), (there, there_writer), sent)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in writers:
                self._open.discard(end)
                with contextlib.suppress(OSError, RuntimeError):
                    end.transport.abort() if not self.closing else end.close()

    async def _connect(self) -> Ends:
        if isinstance(self.target, str):
            return await asyncio.open_unix_connection(self.target)
        return await asyncio.open_connection(*self.target)

    async def _pump_both(self, client: Ends, server: Ends, sent: bytearray) -> None:
        passed = Passed()
        up = asyncio.ensure_future(self._up(client[0], server[1], sent, passed))
        down = asyncio.ensure_future(self._down(server[0], client[1], passed))
        _, pending = await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()

    async def _up(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytearray, passed: Passed
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                sent += data
                if self.marker and self.marker in data:
                    passed.bytes, passed.counts = 0, True
                await self._may_pass()
                writer.write(data)
                await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: Passed) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                for at in range(0, len(data), self.piece or len(data)):
                    await self._may_pass()
                    some = data[at : at + (self.piece or len(data))]
                    rest = self._rest(passed)
                    writer.write(some[:rest])
                    await writer.drain()
                    if rest is not None and len(some) >= rest:
                        return
                    passed.bytes += len(some)
                    await asyncio.sleep(0)

    def _rest(self, passed: Passed) -> int | None:
        """How many bytes more of the server's go to the client before the connection is cut."""
        if self.cut_after and (passed.counts or not self.marker):
            return max(0, self.cut_after - passed.bytes)
        return None

    async def _may_pass(self) -> None:
        while self.stalled:
            await asyncio.sleep(PATIENCE)
