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
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_server import DIALECTS, ServerProcess
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
    dialect: str, service: str, directory: str, bdb: bool
) -> Iterator[tuple[Attributes, Attributes | None]]:
    """Requests and recorded replies, those of Berkeley DB tables or all others."""
    for line in (VECTORS / f"{dialect}.jsonl").read_text().splitlines():
        exchange = json.loads(line)
        asked = to_bytes(exchange["request"], directory)
        maptype = dict(asked)[b"table"].decode().partition(":")[0]
        if exchange["service"] == service and (maptype in BDB) == bdb:
            reply = exchange["reply"]
            yield asked, None if reply is None else to_bytes(reply, directory)


def make_tables(server: ServerProcess) -> None:
    """What the recording server had."""
    for source in (VECTORS / "tables").iterdir():
        (server.dir / source.name).write_text(source.read_text().replace("@DIR@", str(server.dir)))
    for maptype in ("cdb", "lmdb"):
        build(maptype, str(server.dir / "virtual"), options=Options(warn=lambda text: None))
    db = sqlite3.connect(server.dir / "names.sqlite")
    db.executescript((server.dir / "names.sqlite.sql").read_text())
    db.close()
    for maptype in BDB if have_bdb() else ():
        path = shutil.copy(server.dir / "virtual", server.dir / f"v{maptype}")
        server.write_config()  # for smtputf8_enable: the recording host had it
        command = ["postmap", "-c", str(server.dir), f"{maptype}:{path}"]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        make_tables(server)
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


def replay(server: ServerProcess, dialect: str, service: str, *, bdb: bool) -> int:
    """In order and on one server, since the flags in a reply depend on what came before."""
    conversation = list(exchanges(dialect, service, str(server.dir), bdb))
    server.approve(*{dict(asked)[b"table"].decode().replace("$", "$$") for asked, _ in conversation})
    server.start("-n", service)
    with server.connect() as peer:
        for asked, expected in conversation:
            reply = peer.ask(encode(asked))
            if expected is None:
                assert dict(reply)[b"status"] in (b"1", b"5"), asked
            else:
                assert reply == expected, asked
    assert server.stop() == 0
    return len(conversation)
