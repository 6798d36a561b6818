"""test_vectors - what real servers answered, asked again of ours, read-only

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
TYPES = ("cdb:", "lmdb:", "pcre:", "regexp:")
EXCHANGES = 122  # of these types, in each of the files; so that nothing passes by being empty


def to_bytes(pairs: list[list[str]], directory: str) -> Attributes:
    return [
        (name.encode(), value.replace("@DIR@", directory).encode(errors="surrogateescape"))
        for name, value in pairs
    ]


def exchanges(dialect: str, directory: str) -> Iterator[tuple[Attributes, Attributes | None]]:
    for line in (VECTORS / f"{dialect}.jsonl").read_text().splitlines():
        exchange = json.loads(line)
        asked = to_bytes(exchange["request"], directory)
        if exchange["service"] == "proxymap" and dict(asked)[b"table"].decode().startswith(TYPES):
            reply = exchange["reply"]
            yield asked, None if reply is None else to_bytes(reply, directory)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        source = shutil.copy(VECTORS / "tables" / "virtual", server.dir)
        for maptype in ("cdb", "lmdb"):
            build(maptype, str(source), options=Options(warn=lambda text: None))
            server.approve(f"{maptype}:{server.dir}/virtual", f"{maptype}:{server.dir}/missing")
        for maptype in ("pcre", "regexp"):
            shutil.copy(VECTORS / "tables" / f"header.{maptype}", server.dir)
            server.approve(f"{maptype}:{server.dir}/header.{maptype}", f"{maptype}:{server.dir}/missing")
        yield server


@pytest.mark.parametrize("dialect", DIALECTS)
def test_recorded_conversation(server: ServerProcess, dialect: str) -> None:
    """In order and on one server, since the flags in a reply depend on what came before."""
    server.start()
    count = 0
    try:
        with server.connect() as peer:
            for asked, expected in exchanges(dialect, str(server.dir)):
                reply = peer.ask(encode(asked))
                if expected is None:
                    assert dict(reply)[b"status"] in (b"1", b"5"), asked
                else:
                    assert reply == expected, asked
                count += 1
    finally:
        assert server.stop() == 0
    assert count == EXCHANGES
