"""test_vectors - what real servers answered, asked again of ours

vectors/ holds conversations recorded from Postfix 3.7.11 and a 3.12 snapshot,
and the sources of their tables. A reply of null: the real server died there.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from fix_postfix import StockPostfix, dialect, release, unavailable
from fix_server import DIALECTS, Peer, ServerProcess
from oracle import Attributes, encode

from proxymap.ctl.builder import Options, build

VECTORS = Path(__file__).parents[1] / "vectors"
EXCHANGES = {"proxymap": 297, "proxywrite": 99}  # in each of the files, so that nothing passes by being empty

# Berkeley DB: the same questions, where the library and what makes the files are there.
BDB = ("hash", "btree")
BDB_EXCHANGES = {"proxymap": 88, "proxywrite": 66}


def have_bdb() -> bool:
    return importlib.util.find_spec("berkeleydb") is not None and shutil.which("postmap") is not None


def to_bytes(pairs: list[list[str]], directory: str) -> Attributes:
    return [
        (name.encode(), value.replace("@DIR@", directory).encode(errors="surrogateescape"))
        for name, value in pairs
    ]


def exchanges(
    spoken: str, service: str, directory: str, bdb: bool | None = None
) -> Iterator[tuple[Attributes, Attributes | None]]:
    """Requests and recorded replies, those of Berkeley DB tables or all others; None: of all."""
    for line in (VECTORS / f"{spoken}.jsonl").read_text().splitlines():
        exchange = json.loads(line)
        asked = to_bytes(exchange["request"], directory)
        if exchange["service"] == service and bdb in (None, type_in(asked) in BDB):
            reply = exchange["reply"]
            yield asked, None if reply is None else to_bytes(reply, directory)


def make_tables(folder: Path, config: Path, more: Iterable[str]) -> None:
    """What the recording server had, but for the Berkeley DB types that are not in `more`."""
    for source in (VECTORS / "tables").iterdir():
        (folder / source.name).write_text(source.read_text().replace("@DIR@", str(folder)))
    for maptype in ("cdb", "lmdb"):
        build(maptype, str(folder / "virtual"), options=Options(warn=lambda text: None))
    db = sqlite3.connect(folder / "names.sqlite")
    db.executescript((folder / "names.sqlite.sql").read_text())
    db.close()
    for maptype in more:
        path = shutil.copy(folder / "virtual", folder / f"v{maptype}")
        command = ["postmap", "-c", str(config), f"{maptype}:{path}"]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        server.write_config()  # for smtputf8_enable: the recording host had it
        make_tables(server.dir, server.dir, BDB if have_bdb() else ())
        yield server


@pytest.mark.parametrize("service", EXCHANGES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_recorded_conversation(server: ServerProcess, dialect: str, service: str) -> None:
    others = EXCHANGES[service] - BDB_EXCHANGES[service]
    assert replay(server, dialect, service, bdb=False) == others


@pytest.mark.skipif(not have_bdb(), reason="berkeleydb or Postfix is not installed")
@pytest.mark.parametrize("service", EXCHANGES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_recorded_conversation_with_hash_and_btree(server: ServerProcess, dialect: str, service: str) -> None:
    assert replay(server, dialect, service, bdb=True) == BDB_EXCHANGES[service]


# Where we differ on purpose: a client of 3.6 is told what the table is when it can be opened.
MISSING = {f"{maptype}:@DIR@/missing" for maptype in ("cdb", "lmdb", "texthash")}
OPENED_AS_A_PATTERN: Attributes = [(b"status", b"0"), (b"flags", b"96")]
OPENED_AS_ITSELF: Attributes = [(b"status", b"0"), (b"flags", b"80")]


def replay(server: ServerProcess, dialect: str, service: str, *, bdb: bool) -> int:
    """In order and on one server, since the flags in a reply depend on what came before."""
    conversation = list(exchanges(dialect, service, str(server.dir), bdb))
    server.approve(*{dict(asked)[b"table"].decode().replace("$", "$$") for asked, _ in conversation})
    server.start("-n", service)
    with server.connect() as peer:
        for asked, expected in conversation:
            reply = peer.ask(encode(asked))
            if expected == OPENED_AS_A_PATTERN and name_in(asked, server) in MISSING:
                expected = OPENED_AS_ITSELF
            if expected is None:
                assert dict(reply)[b"status"] in (b"1", b"5"), asked
            else:
                assert reply == expected, asked
    assert server.stop() == 0
    return len(conversation)


def name_in(asked: Attributes, server: ServerProcess) -> str:
    return dict(asked)[b"table"].decode().replace(str(server.dir), "@DIR@")


# The server that is installed

# What opening a table that cannot be opened gets; the recorded server is of 3.12. Clients obey neither bit.
UNOPENED: dict[tuple[int, int], Attributes] = {
    (3, 11): [(b"status", b"0"), (b"flags", b"97")],
    (3, 12): [(b"status", b"0"), (b"flags", b"4194400")],
}


def live(
    stock: StockPostfix, service: str, conversation: Iterable[Attributes]
) -> Iterator[Attributes | None]:
    """Its replies; None where it leaves instead, and another one takes over."""
    peer: Peer | None = None
    for asked in conversation:
        peer = peer or Peer(stock.socket(service))
        try:
            yield peer.ask(encode(asked))
        except (AssertionError, OSError):
            yield None
            peer.close()
            peer = None
    if peer:
        peer.close()


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_installed_server_answers_as_recorded() -> None:
    """In its dialect, for the types that it has. Where the recorded one died, it may answer."""
    stock = StockPostfix()
    done = subprocess.run(["postconf", "-m"], capture_output=True, text=True, check=True)
    known = {*done.stdout.split(), "nosuchtype"}
    compared: Counter[str] = Counter()
    try:
        make_tables(stock.data_dir, stock.config_dir, known & {*BDB})
        recorded = {service: [*exchanges(dialect(), service, str(stock.data_dir))] for service in EXCHANGES}
        for service, parameter in (("proxymap", "proxy_read_maps"), ("proxywrite", "proxy_write_maps")):
            tables = {dict(asked)[b"table"].decode() for asked, _ in recorded[service]}
            stock.set(
                **{parameter: " ".join(f"proxy:{table}" for table in sorted(tables)).replace("$", "$$")}
            )
        stock.start()
        for service, conversation in recorded.items():
            assert len(conversation) == EXCHANGES[service]
            asked = [pair for pair in conversation if type_in(pair[0]) in known]
            for (question, expected), reply in zip(
                asked, live(stock, service, [question for question, _ in asked]), strict=True
            ):
                wanted = UNOPENED.get(release(), expected) if expected == UNOPENED[3, 12] else expected
                assert reply == wanted or expected is None, (question, reply)
                compared[type_in(question)] += 1
    finally:
        stock.remove()
    print(f"{compared.total()} as recorded: {dict(compared)}")


def type_in(question: Attributes) -> str:
    return dict(question)[b"table"].decode().partition(":")[0]
