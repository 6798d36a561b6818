"""test_unionmap - the values of all members, joined by commas"""

from __future__ import annotations

from pathlib import Path

import pytest
from composites import CompositeContract, make_files, postmap_tables  # noqa: F401
from contract import NOKEY, OK

from proxymap.errors import TableRetry


class TestUnionmap(CompositeContract):
    maptype = "unionmap"

    def test_values_are_joined_in_the_order_of_the_members(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        one, two, three = (f"lmdb:{tmp_path}/{name}" for name in ("one", "two", "three"))
        assert self.open(one, two, three).lookup(b"a", 0) == (OK, 0, b"b,A,b,c")
        assert self.open(three, two, one).lookup(b"a", 0) == (OK, 0, b"b,c,A,b")
        assert self.open(one, two, three).lookup(b"none", 0) == (NOKEY, 0, b"")

    def test_empty_values(self, tmp_path: Path) -> None:
        """No comma behind an empty beginning; all empty is not found."""
        make_files(tmp_path)
        empty = f"cdb:{tmp_path}/one"
        full = f"pipemap:{{{empty}, cdb:{tmp_path}/two}}"
        assert self.open(empty, full).lookup(b"empty", 0)[2] == b"of empty"
        assert self.open(full, empty).lookup(b"empty", 0)[2] == b"of empty,"
        assert self.open(empty, empty).lookup(b"empty", 0) == (NOKEY, 0, b"")

    def test_trouble_counts_though_others_have_found_something(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        with pytest.raises(TableRetry):
            self.open(f"cdb:{tmp_path}/one", f"cdb:{tmp_path}/missing", f"cdb:{tmp_path}/two").ask(b"a", 0)

    def test_explain_tells_each_member(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        one, two = f"cdb:{tmp_path}/one", f"cdb:{tmp_path}/two"
        pipe = f"pipemap:{{{one}, {two}}}"
        assert self.open(one, pipe).explain(b"c") == [
            f"{one}: not found",
            f"{pipe}: not found",
            f"  {one}: not found",
        ]
