"""test_watch - the names that are watched"""

from __future__ import annotations

from pathlib import Path

import pytest
from fix_server import write_cdb, write_lmdb

from proxymap.base._watch import Watch
from proxymap.tables.opening import open_table


@pytest.mark.parametrize(("maptype", "write"), [("cdb", write_cdb), ("lmdb", write_lmdb)])
def test_file_that_is_watched_twice_has_its_names_once(tmp_path: Path, maptype: str, write: object) -> None:
    """One of them, that of the content, is empty: a sanitizer sees whether its bytes are read."""
    write(tmp_path / f"t.{maptype}", {b"k": b"v"})  # type: ignore[operator]
    table, watch = open_table(f"{maptype}:{tmp_path}/t".encode()), Watch()
    table.watch(watch)
    names = watch.names
    table.watch(watch)
    assert watch.names == names > 0
