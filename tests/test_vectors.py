"""test_vectors - what real servers answered, asked again of ours: cdb and lmdb; lmdb for updates too

vectors/ holds conversations recorded from Postfix 3.7.11 and a 3.12 snapshot,
and the sources of their tables. A reply of null: the real server died there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_server import DIALECTS, ServerProcess
from oracle import Attributes, encode

from proxymap.build import Options, build

VECTORS = Path(__file__).parent / "vectors"
TYPES = ("cdb:", "lmdb:")
EXCHANGES = 92  # of these types, in each of the files; so that nothing passes by being empty
UPDATES = 33  # the same of lmdb on the read-write service


def to_bytes(pairs: list[list[str]], directory: str) -> Attributes:
    return [
        (name.encode(), value.replace("@DIR@", directory).encode(errors="surrogateescape"))
        for name, value in pairs
    ]


def exchanges(
    dialect: str, directory: str, service: str, types: tuple[str, ...]
) -> Iterator[tuple[Attributes, Attributes | None]]:
    for line in (VECTORS / f"{dialect}.jsonl").read_text().splitlines():
        exchange = json.loads(line)
        asked = to_bytes(exchange["request"], directory)
        if exchange["service"] == service and dict(asked)[b"table"].decode().startswith(types):
            reply = exchange["reply"]
            yield asked, None if reply is None else to_bytes(reply, directory)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        source = shutil.copy(VECTORS / "tables" / "virtual", server.dir)
        for maptype in ("cdb", "lmdb"):
            build(maptype, str(source), options=Options(warn=lambda text: None))
            server.approve(f"{maptype}:{server.dir}/virtual", f"{maptype}:{server.dir}/missing")
        shutil.copy(VECTORS / "tables" / "access.cidr", server.dir)
        server.approve(f"cidr:{server.dir}/access.cidr")
        yield server


@pytest.mark.parametrize("dialect", DIALECTS)
def test_recorded_conversation(server: ServerProcess, dialect: str) -> None:
    """In order and on one server, since the flags in a reply depend on what came before."""
    server.start()
    try:
        assert replay(server, exchanges(dialect, str(server.dir), "proxymap", TYPES)) == EXCHANGES
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_recorded_updates(dialect: str) -> None:
    with ServerProcess() as server:
        server.approve(f"lmdb:{server.dir}/rw_lmdb")
        server.start("-n", "proxywrite")
        assert replay(server, exchanges(dialect, str(server.dir), "proxywrite", ("lmdb:",))) == UPDATES


def replay(server: ServerProcess, conversation: Iterator[tuple[Attributes, Attributes | None]]) -> int:
    """Hold a conversation; returns how long it was."""
    count = 0
    with server.connect() as peer:
        for asked, expected in conversation:
            reply = peer.ask(encode(asked))
            if expected is None:
                assert dict(reply)[b"status"] in (b"1", b"5"), asked
            else:
                assert reply == expected, asked
            count += 1
    return count
