"""test_pipemap - the value of each member is the key of the next"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from composites import CompositeContract, make_files, postmap_tables  # noqa: F401
from contract import NOKEY, OK
from fix_server import write_lmdb


class TestPipemap(CompositeContract):
    maptype = "pipemap"

    def test_value_is_the_next_key(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        one, two, three = (f"lmdb:{tmp_path}/{name}" for name in ("one", "two", "three"))
        assert self.open(one).lookup(b"a", 0) == (OK, 0, b"b")
        assert self.open(one, two).lookup(b"a", 0) == (OK, 0, b"a")
        assert self.open(one, two, three).lookup(b"a", 0) == (OK, 0, b"b,c")
        assert self.open(one, two, three, two).lookup(b"a", 0) == (OK, 0, b"both")

    def test_miss_anywhere_is_the_answer(self, tmp_path: Path) -> None:
        """Even if a later member cannot be opened."""
        make_files(tmp_path)
        one, missing = f"lmdb:{tmp_path}/one", f"lmdb:{tmp_path}/missing"
        assert self.open(one, missing).lookup(b"none", 0) == (NOKEY, 0, b"")
        assert self.open(one, one).lookup(b"\xc3\xa9", 0) == (NOKEY, 0, b"")

    def test_empty_value_is_a_key(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        table = self.open(f"cdb:{tmp_path}/one", f"cdb:{tmp_path}/two")
        assert table.lookup(b"empty", 0) == (OK, 0, b"of empty")

    def test_long_values_pass_through_both_scratches(self, tmp_path: Path) -> None:
        long = [bytes([97 + i]) * 400 for i in range(6)]
        write_lmdb(tmp_path / "chain.lmdb", dict(pairwise(long)))
        for length in range(1, 6):
            table = self.open(*[f"lmdb:{tmp_path}/chain"] * length)
            assert table.lookup(long[0], 0) == (OK, 0, long[length])

    def test_explain_ends_where_the_pipe_does(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        one, two = f"cdb:{tmp_path}/one", f"cdb:{tmp_path}/two"
        assert self.open(one, two, one, two).explain(b"\xc3\xa9") == [f"{one}: É", f"{two}: not found"]
