"""test_client - Client and AsyncClient against a scripted server, and against the stock one

ScriptedServer is used by test_ctl too. Each wire test runs with the server's
bytes whole, byte by byte, and with greeting and first reply joined.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fix_postfix import StockPostfix, dialect
from hypothesis import given
from hypothesis import strategies as st

import proxymap
from proxymap.client import FIRST, NEXT, AsyncClient, Client, ReplyParser
from proxymap.errors import BY_STATUS, ProtocolError

Request = list[tuple[bytes, bytes]]
GREETING = b"protocol\0proxymap_protocol\0\0"
CUTS = ["whole", "bytes", "joined"]


def attribute_list(*strings: bytes) -> bytes:
    """Names and values in turn -> bytes; the slow and simple way."""
    return b"".join(string + b"\0" for string in strings) + b"\0"


def read_list(stream: Any) -> Request | None:
    """One attribute list, read byte by byte; None at the end of the stream."""
    attributes = []
    while name := read_string(stream):
        attributes.append((name, read_string(stream) or b""))
    return attributes if name is not None else None


def read_string(stream: Any) -> bytes | None:
    string = b""
    while (byte := stream.read(1)) != b"\0":
        if not byte:
            return None
        string += byte
    return string


class ScriptedServer:
    """A server whose replies come from answer(request); None hangs up, b"" says nothing."""

    def __init__(
        self,
        path: str,
        answer: Callable[[Request], bytes | None],
        cut: str = "whole",
        greeting: bytes = GREETING,
    ) -> None:
        self.path = path
        self.requests: list[Request] = []
        self._answer, self._cut, self._greeting = answer, cut, greeting
        self._stopping = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        """One connection after the other, up to the one that __exit__ makes."""
        while True:
            connection, _ = self._listener.accept()
            with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError):
                if self._stopping:
                    return
                self._converse(connection, stream)

    def _converse(self, connection: socket.socket, stream: Any) -> None:
        pending = self._greeting
        if self._cut != "joined":
            self._send(connection, pending)
            pending = b""
        while (request := read_list(stream)) is not None:
            self.requests.append(request)
            reply = self._answer(request)
            if reply is None:
                return
            self._send(connection, pending + reply)
            pending = b""

    def _send(self, connection: socket.socket, data: bytes) -> None:
        size = 1 if self._cut == "bytes" else max(len(data), 1)
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *details: object) -> None:
        self._stopping = True
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.path)
        self._thread.join(20)
        self._listener.close()
        assert not self._thread.is_alive()


class Blocking:
    """AsyncClient with Client's manners, so that one test serves both."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self._runner.run(getattr(self._client, name)(*arguments))

    def items(self, table: str) -> list[tuple[bytes, bytes]]:
        async def collect() -> list[tuple[bytes, bytes]]:
            return [item async for item in self._client.items(table)]

        return self._runner.run(collect())

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()
        self._runner.close()


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


def answer_old(request: Request) -> bytes:
    """Dialect 3.6: a table with the one key `a`; no key is stored twice, none deleted twice."""
    fields = dict(request)
    found = fields.get(b"key") == b"a" or fields.get(b"function") == b"0"
    status = b"0" if found or fields[b"request"] == b"open" else b"1"
    rest: dict[bytes, list[bytes]] = {
        b"open": [b"flags", b"28"],
        b"lookup": [b"value", b"1" if found else b""],
        b"sequence": [b"key", b"a" if found else b"", b"value", b"1" if found else b""],
    }
    return attribute_list(b"status", status, *rest.get(fields[b"request"], []))


def answer_new(request: Request) -> bytes:
    """Dialect 3.11: the same; each reply's flags are the request's, plus 1."""
    flags = dict(request).get(b"flags", b"1000")
    status, *rest = answer_old(request).split(b"\0")[1:-2]
    if dict(request)[b"request"] == b"open":
        rest = []
    return attribute_list(b"status", status, b"flags", b"%d" % (int(flags) + 1), *rest)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("greeting", [GREETING, b""], ids=["greeting", "none"])
@pytest.mark.parametrize("dialect", ["3.6", "3.11"])
def test_each_request_has_its_answer(kind: Any, path: str, cut: str, greeting: bytes, dialect: str) -> None:
    answer = answer_new if dialect == "3.11" else answer_old
    with ScriptedServer(path, answer, cut, greeting), kind(path, dialect=dialect) as client:
        assert client.open("t:x") == (1001 if dialect == "3.11" else 28)
        assert client.lookup("t:x", b"a") == b"1"
        assert client.lookup("t:x", "b") is None
        assert client.update("t:x", b"a", b"1") is True
        assert client.update("t:x", b"b", b"") is False
        assert client.delete("t:x", b"a") is True
        assert client.delete("t:x", b"b") is False
        assert client.sequence("t:x", FIRST) == (b"a", b"1")
        assert client.sequence("t:x", NEXT) is None
        assert list(client.items("t:x")) == [(b"a", b"1")]


def test_requests_of_36_have_flags(kind: Any, path: str) -> None:
    with ScriptedServer(path, answer_old) as server, kind(path) as client:
        client.lookup("t:x", b"k")
        client.update("t:x", b"k", b"v", 64)
        client.sequence("t:x", NEXT)
    assert server.requests == [
        [(b"request", b"open"), (b"table", b"t:x"), (b"flags", b"0")],
        [(b"request", b"lookup"), (b"table", b"t:x"), (b"flags", b"540736"), (b"key", b"k")],
        [(b"request", b"update"), (b"table", b"t:x"), (b"flags", b"64"), (b"key", b"k"), (b"value", b"v")],
        [(b"request", b"sequence"), (b"table", b"t:x"), (b"flags", b"540736"), (b"function", b"1")],
    ]


def test_requests_of_311_repeat_the_flags_of_the_latest_reply(kind: Any, path: str) -> None:
    with ScriptedServer(path, answer_new) as server, kind(path, dialect="3.11") as client:
        client.open("t:x", 7)
        client.lookup("t:x", b"k")
        client.delete("t:x", b"k")
        client.lookup("t:y", b"k")
        client.lookup("t:x", b"k")
    flags = [(dict(r)[b"table"], dict(r)[b"instance_flags"], dict(r).get(b"flags")) for r in server.requests]
    assert flags == [
        (b"t:x", b"7", None),
        (b"t:x", b"7", b"1001"),
        (b"t:x", b"7", b"1002"),
        (b"t:y", b"540736", None),
        (b"t:y", b"540736", b"1001"),
        (b"t:x", b"7", b"1003"),
    ]
    names = [b"request", b"table", b"instance_flags", b"flags", b"key"]
    assert [name for name, _ in server.requests[-1]] == names


@pytest.mark.parametrize("status", BY_STATUS)
@pytest.mark.parametrize("bare", [False, True])
def test_after_trouble_the_connection_lives(kind: Any, path: str, status: int, bare: bool) -> None:
    def answer(request: Request) -> bytes:
        if (b"key", b"bad") in request:
            return attribute_list(b"status", b"%d" % status, *(() if bare else (b"value", b"")))
        return answer_old(request)

    with ScriptedServer(path, answer) as server, kind(path) as client:
        with pytest.raises(BY_STATUS[status], match="t:x"):
            client.lookup("t:x", b"bad")
        assert client.lookup("t:x", b"a") == b"1"
        assert len(server.requests) == 3  # the table is still open


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "reply",
    [
        None,
        b"HTTP/1.0 400 Bad Request\r\n\r\n",
        b"\0",
        attribute_list(b"status", b"6", b"value", b""),
        attribute_list(b"status", b"x", b"value", b""),
        attribute_list(b"status", b"0"),
        attribute_list(b"status", b"0", b"key", b"1"),
        attribute_list(b"status", b"0", b"value", b"1", b"more", b"1"),
        attribute_list(b"value", b"1", b"status", b"0"),
        GREETING * 2,
    ],
)
def test_hang_up_or_junk_is_protocol_error(kind: Any, path: str, cut: str, reply: bytes | None) -> None:
    def answer(request: Request) -> bytes | None:
        return reply if (b"key", b"junk") in request else answer_old(request)

    with ScriptedServer(path, answer, cut) as server, kind(path) as client:
        with pytest.raises(ProtocolError):
            client.lookup("t:x", b"junk")
        assert client.lookup("t:x", b"a") == b"1"
        assert (b"request", b"open") in server.requests[-2]  # on a new connection, so opened again


def test_two_replies_to_one_request_are_protocol_error(kind: Any, path: str) -> None:
    server = ScriptedServer(path, lambda request: answer_old(request) * 2)
    with server, kind(path) as client, pytest.raises(ProtocolError):
        client.open("t:x")


def test_hang_up_within_a_reply_is_protocol_error(kind: Any, path: str) -> None:
    whole = GREETING + attribute_list(b"status", b"0", b"flags", b"28")
    for length in range(len(whole)):
        server = ScriptedServer(f"{path}{length}", lambda _: None, greeting=whole[:length])
        with server, kind(f"{path}{length}") as client, pytest.raises(ProtocolError):
            client.open("t:x")


def test_silence_is_timeout_error(kind: Any, path: str) -> None:
    server = ScriptedServer(path, lambda _: b"")
    with server, kind(path, timeout=0.05) as client, pytest.raises(TimeoutError) as caught:
        client.open("t:x")
    assert caught.value.filename == path


def test_no_server_is_os_error_with_the_path(kind: Any, path: str) -> None:
    with kind(path) as client, pytest.raises(FileNotFoundError) as caught:
        client.open("t:x")
    assert caught.value.filename == path


@pytest.mark.parametrize("what", ["table", "key", "value"])
def test_nul_is_value_error_and_is_not_sent(kind: Any, path: str, what: str) -> None:
    words = {"table": "t:x", "key": "k", "value": "v"} | {what: "n\0n"}
    with ScriptedServer(path, answer_old) as server, kind(path) as client:
        with pytest.raises(ValueError):
            client.update(*words.values())
        assert all(dict(request)[b"request"] == b"open" for request in server.requests)
        assert client.lookup("t:x", b"a") == b"1"


def test_unknown_dialect_is_value_error(path: str) -> None:
    with pytest.raises(ValueError):
        Client(path, dialect="3.5")  # type: ignore[arg-type]


def test_tasks_share_an_async_client(path: str) -> None:
    def answer(request: Request) -> bytes:
        key = dict(request).get(b"key")
        return answer_old(request) if key is None else attribute_list(b"status", b"0", b"value", b"=" + key)

    async def ask() -> list[bytes | None]:
        async with AsyncClient(path) as client:
            return await asyncio.gather(*(client.lookup("t:x", f"{i}") for i in range(50)))

    with ScriptedServer(path, answer):
        assert asyncio.run(ask()) == [b"=%d" % i for i in range(50)]


def test_cancelled_request_does_not_disturb_the_next(path: str) -> None:
    asked = threading.Event()

    def answer(request: Request) -> bytes:
        if (b"key", b"slow") in request:
            asked.set()
            return b""
        return answer_old(request)

    async def ask() -> bytes | None:
        async with AsyncClient(path) as client:
            slow = asyncio.create_task(client.lookup("t:x", b"slow"))
            await asyncio.to_thread(asked.wait)
            slow.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await slow
            return await client.lookup("t:x", b"a")

    with ScriptedServer(path, answer):
        assert asyncio.run(ask()) == b"1"


TEXT = st.binary(max_size=20).map(lambda raw: raw.replace(b"\0", b"?"))


@given(st.lists(st.tuples(TEXT.filter(bool), TEXT), max_size=4), TEXT, st.booleans(), st.data())
def test_parser_does_not_mind_cuts(
    pairs: list[Any], value: bytes, greeting: bool, data: st.DataObject
) -> None:
    strings = [b"status", value, *(text for pair in pairs for text in pair)]
    stream = GREETING * greeting + attribute_list(*strings)
    cuts = sorted(data.draw(st.lists(st.integers(1, len(stream)))))
    parser = ReplyParser()
    got = [parser.feed(stream[a:b]) for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    assert got[-1] == strings
    assert set(map(type, got[:-1])) <= {type(None)}


PIECES = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"status\0", GREETING, b"0\0\0"]))


@given(st.lists(PIECES))
def test_parser_takes_any_bytes(pieces: list[bytes]) -> None:
    parser = ReplyParser()
    with contextlib.suppress(ProtocolError):
        for piece in pieces:
            parser.feed(piece)


# The stock server


@pytest.fixture(scope="module")
def tables(stock_postfix: StockPostfix) -> StockPostfix:
    source = stock_postfix.tables / "v"
    source.write_text("a 1\nUpper x\nlast " + "z" * 70000 + "\n")
    for maptype in ("cdb", "lmdb"):
        stock_postfix.postmap(f"{maptype}:{source}", check=True)
    read = " ".join(f"proxy:{maptype}:{source}" for maptype in ("cdb", "lmdb"))
    write = f"proxy:lmdb:{stock_postfix.data_dir}/w"
    stock_postfix.stop()
    stock_postfix.set(proxy_read_maps=read, proxy_write_maps=write)
    stock_postfix.start()
    return stock_postfix


@pytest.mark.parametrize("maptype", ["cdb", "lmdb"])
def test_stock_lookup(kind: Any, tables: StockPostfix, maptype: str) -> None:
    table = f"{maptype}:{tables.tables}/v"
    with kind(tables.socket(), dialect=dialect()) as client:
        assert client.open(table) & 16  # "fixed", which decides about folding
        assert client.lookup(table, b"a") == b"1"
        assert client.lookup(table, b"UPPER") == b"x"
        assert client.lookup(table, b"absent") is None
        assert client.lookup(table, b"last") == b"z" * 70000
        with pytest.raises(proxymap.NotApproved):
            client.lookup("cdb:other", b"a")
        assert client.lookup(table, b"a") == b"1"


def test_stock_items(kind: Any, tables: StockPostfix) -> None:
    with kind(tables.socket(), dialect=dialect()) as client:
        items = list(client.items(f"lmdb:{tables.tables}/v"))
    assert items == [(b"a", b"1"), (b"last", b"z" * 70000), (b"upper", b"x")]


def test_stock_update_and_delete(kind: Any, tables: StockPostfix) -> None:
    table = f"lmdb:{tables.data_dir}/w"
    with kind(tables.socket("proxywrite"), dialect=dialect()) as client:
        assert client.update(table, "käse", b"1") is True
        assert client.lookup(table, "käse") == b"1"
        assert client.delete(table, "käse") is True
        assert client.delete(table, "käse") is False
    with kind(tables.socket(), dialect=dialect()) as client, pytest.raises(proxymap.NotApproved):
        client.update(f"lmdb:{tables.tables}/v", b"a", b"2")


# The package


def test_package_is_light_and_its_names_are_lazy() -> None:
    code = (
        "import sys, proxymap; loaded = {'typing', 'proxymap.client', 'proxymap.errors'} & set(sys.modules);"
        "assert not loaded, loaded; proxymap.Client; assert 'asyncio' not in sys.modules;"
        "[getattr(proxymap, name) for name in proxymap.__all__]"
    )
    subprocess.run([sys.executable, "-S", "-c", code], check=True, cwd=Path(proxymap.__file__).parents[1])


def test_no_such_name_in_package() -> None:
    with pytest.raises(AttributeError):
        proxymap.nothing  # noqa: B018


def test_version_is_the_projects() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    assert proxymap.__version__ == tomllib.loads(project.read_text())["project"]["version"]
