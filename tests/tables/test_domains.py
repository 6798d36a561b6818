"""test_domains - the list of domains in a table's parameter `domain`; test_sqlite asks postmap the same"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fix_server import write_cdb

from proxymap.errors import ConfigError, TableRetry
from proxymap.tables.base import Host, Opening, SlowTable
from proxymap.tables.domains import DomainList
from proxymap.tables.opening import open_table


def domain_list(text: str, utf8: bool = True) -> tuple[DomainList, list[str]]:
    warnings: list[str] = []
    opening = Opening(0, False, Host(utf8, warnings.append), open_table)
    return DomainList(text.encode(), "t.cf, line 1", opening), warnings


def matching(text: str, *domains: str) -> list[str]:
    found, warnings = domain_list(text)
    assert not warnings
    return [domain for domain in domains if domain.encode() in found]


def test_names_match_exactly_in_any_case() -> None:
    assert matching("a.x, B.X\tc.x", "a.x", "A.x", "b.x", "x", "d.a.x", "c.x", "") == [
        "a.x",
        "A.x",
        "b.x",
        "c.x",
    ]
    assert matching("straße.x ÄÖ.x", "STRASSE.x", "äö.x") == ["STRASSE.x", "äö.x"]


def test_case_beyond_ascii_counts_without_utf8() -> None:
    found, _ = domain_list("ÄÖ.x", utf8=False)
    assert "ÄÖ.X".encode() in found
    assert "äö.x".encode() not in found


def test_domain_that_is_not_utf8_matches_nothing_else() -> None:
    found, _ = domain_list("a.x")
    assert b"\xe4.x" not in found


def test_first_item_that_matches_decides() -> None:
    assert matching("!a.x a.x b.x", "a.x", "b.x") == ["b.x"]
    assert matching("b.x !b.x !!a.x", "a.x", "b.x") == ["a.x", "b.x"]


def test_braces_and_brackets_are_plain() -> None:
    assert matching("{a.x} [x:y]", "a.x", "[x:y]", "{a.x}") == ["[x:y]", "{a.x}"]


def test_exclamation_mark_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^t\.cf, line 1: no pattern after '!'$"):
        domain_list("a ! b")


def test_comment_ends_the_text_with_a_warning() -> None:
    found, warnings = domain_list("a.x # b.x c.x")
    assert warnings == ["t.cf, line 1: comment at end of line is not supported: # b.x c.x"]
    assert b"a.x" in found
    assert b"b.x" not in found


def test_file_holds_more_items(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text("inner.x\n")
    path = tmp_path / "list"
    path.write_text(f"# comment.x\na.x b.x\n  c.x\n\n!d.x\nd.x {tmp_path}/inner\n")
    domains = ("a.x", "b.x", "c.x", "d.x", "comment.x", "e.x", "inner.x")
    assert matching(f"{path} e.x", *domains) == ["a.x", "b.x", "c.x", "e.x", "inner.x"]
    assert matching(f"!{path} a.x e.x inner.x", *domains) == ["d.x", "e.x"]


def test_file_that_is_missing_or_includes_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list"
    with pytest.raises(ConfigError, match=rf"^t\.cf, line 1: open {path}: No such file or directory$"):
        domain_list(f"a.x {path}")
    path.write_text(f"a.x !{path}\n")
    with pytest.raises(ConfigError, match=rf"^t\.cf, line 1: {path} includes itself$"):
        domain_list(str(path))


def test_file_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list")
    with pytest.raises(ConfigError, match=rf"^t\.cf, line 1: open {tmp_path}/list: not a regular file$"):
        domain_list(f"{tmp_path}/list")


def put(path: Path, *domains: bytes) -> None:
    write_cdb(path, dict.fromkeys(domains, b"1"))


def test_table_has_domains_for_keys_in_lower_case(tmp_path: Path) -> None:
    put(tmp_path / "t.cdb", b"a.x", b"b.x")
    assert matching(f"cdb:{tmp_path}/t", "a.x", "A.X", "c.x") == ["a.x", "A.X"]
    assert matching(f"!cdb:{tmp_path}/t, a.x, c.x", "a.x", "b.x", "c.x") == ["c.x"]


def test_replaced_table_is_noticed(tmp_path: Path) -> None:
    put(tmp_path / "t.cdb", b"a.x")
    found, _ = domain_list(f"cdb:{tmp_path}/t")
    assert (b"a.x" in found, b"b.x" in found) == (True, False)
    put(tmp_path / "t.cdb", b"b.x")
    assert (b"a.x" in found, b"b.x" in found) == (False, True)


def test_table_that_fails_is_retry_until_it_is_there(tmp_path: Path) -> None:
    found, _ = domain_list(f"first.x cdb:{tmp_path}/t last.x")
    assert b"first.x" in found
    for domain in (b"a.x", b"last.x"):
        with pytest.raises(
            TableRetry, match=rf"^domain list: cdb:{tmp_path}/t is unavailable: open database"
        ):
            assert domain in found
    put(tmp_path / "t.cdb", b"a.x")
    assert b"a.x" in found
    assert b"last.x" in found


def test_trouble_of_a_slow_table_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: SlowTable, key: bytes) -> bytes | None:
        raise TableRetry("down")

    found, _ = domain_list("unix:passwd.byname")
    assert b"root" in found
    monkeypatch.setattr("proxymap.tables.databases.unix.Passwd.lookup", fail)
    with pytest.raises(TableRetry, match=r"^down$"):
        assert b"root" in found
