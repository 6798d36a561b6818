"""test_template - which keys are asked for, what a template makes of them, and how values are joined"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from proxymap.errors import ConfigError, TableRetry
from proxymap.tables.base import Host, Opening
from proxymap.tables.databases.database import DatabaseTable
from proxymap.tables.opening import open_table
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import IN_RESULT, compile_query, compile_text, parts_outside_quotes

NAME = b"sqlite:t"


class Recipe(DatabaseTable):
    """A table whose database finds what the test wants it to find."""

    found: Iterable[bytes | None] = ()

    def __new__(cls, place: Path, query: str, *rest: object, **options: object) -> Recipe:
        return super().__new__(cls, NAME)

    def __init__(self, place: Path, query: str, result: str = "%s", domain: str = "", limit: int = 0) -> None:
        self.warnings: list[str] = []
        self.queries: list[bytes] = []
        path = place / "t.cf"
        path.write_text(
            f"query = {query}\nresult_format = {result}\nexpansion_limit = {limit}\n"
            + (f"domain = {domain}\n" if domain else "")
        )
        opening = Opening(0, False, Host(warn=self.warnings.append), open_table)
        cf = TableCf(str(path).encode(), opening.host)
        super().__init__(NAME, cf, opening, compile_query(cf, "query", query))

    @contextlib.contextmanager
    def values(self, sql: bytes) -> Iterator[Iterable[bytes | None]]:
        self.queries.append(sql)
        yield self.found

    def asked(self, key: bytes) -> bytes | None:
        """The query for a key, or None."""
        self.queries.clear()
        self.ask(key, 0)
        return self.queries[0] if self.queries else None

    def joined(self, key: bytes, *values: bytes | None) -> bytes | None:
        self.found = values
        status, _, value = self.ask(key, 0)
        return value if status == 0 else None


KEYS = [
    b"plain",
    b"u@d",
    b"@d",
    b"u@",
    b"@",
    b"u@a.b.c",
    b"u@a..b.",
    b"u@.",
    b"a@b@c.d",
    b"o'b@x'y",
    b"50%@d",
]
# Query -> what is asked for each of KEYS; as postmap has it.
QUERIES = {
    "[%s]": "[plain] [u@d] [@d] [u@] [@] [u@a.b.c] [u@a..b.] [u@.] [a@b@c.d] [o''b@x''y] [50%@d]",
    "[%S]": "[plain] [u@d] [@d] [u@] [@] [u@a.b.c] [u@a..b.] [u@.] [a@b@c.d] [o''b@x''y] [50%@d]",
    "[%u]": "[plain] [u] - [u] - [u] [u] [u] [a@b] [o''b] [50%]",
    "[%U]": "[plain] [u] - [u] - [u] [u] [u] [a@b] [o''b] [50%]",
    "[%d]": "- [d] [d] - - [a.b.c] [a..b.] [.] [c.d] [x''y] [d]",
    "[%D%u]": "- [du] - - - [a.b.cu] [a..b.u] [.u] [c.da@b] [x''yo''b] [d50%]",
    "[%1]": "- [d] [d] - - [c] [b] - [d] [x''y] [d]",
    "[%2.%1]": "- - - - - [b.c] [a.b] - [c.d] - -",
    "[%3]": "- - - - - [a] - - - - -",
    "[%9]": "- - - - - - - - - - -",
    "%%s%%%%%1%%": "- %s%%d% %s%%d% - - %s%%c% %s%%b% - %s%%d% %s%%x''y% %s%%d%",
    "constant": "constant " * len(KEYS),
}


@pytest.mark.parametrize(("query", "expected"), QUERIES.items(), ids=QUERIES)
def test_query_is_filled_from_the_key_or_not_sent(tmp_path: Path, query: str, expected: str) -> None:
    recipe = Recipe(tmp_path, query)
    assert [(recipe.asked(key) or b"-").decode() for key in KEYS] == expected.split()
    assert not recipe.warnings


def test_result_format_that_wants_parts_of_the_key_keeps_queries_from_being_sent(tmp_path: Path) -> None:
    for result, sent in {
        "%U": [b"u", b"u@d"],
        "%D": [b"u@d", b"@d"],
        "%1": [b"u@d", b"@d"],
        "%2": [],
    }.items():
        recipe = Recipe(tmp_path, "%s", result)
        assert [key for key in (b"u", b"u@d", b"@d") if recipe.asked(key)] == sent, result


def test_result_format_that_wants_parts_of_the_value_keeps_none(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, "%s", "%u %d")
    assert all(recipe.asked(key) for key in KEYS)


def test_ninth_label_counts_from_the_right(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, "%1%2%3%4%5%6%7%8%9")
    assert recipe.asked(b"u@l.k.i.h.g.f.e.d.c.b.a") == b"abcdefghi"
    assert recipe.asked(b"u@h.g.f.e.d.c.b.a") is None


def test_empty_key_is_not_asked_for_and_warned_of(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, "constant")
    assert recipe.asked(b"") is None
    assert recipe.warnings == ['table "sqlite:t": empty query string -- ignored']


def test_domain_lets_only_addresses_in_it_pass(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, "%s", domain="d")
    sent = [b"u@d", b"u@D", b"a@b@d"]
    not_sent = [b"", b"u", b"d", b"@d", b"u@", b"u@x", b"u@x.d"]
    assert [key for key in sent + not_sent if recipe.asked(key)] == sent
    assert not recipe.warnings


def test_failing_domain_list_is_retry(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, "%s", domain="nosuchtype:x")
    assert recipe.asked(b"u") is None
    with pytest.raises(
        TableRetry, match="domain list: nosuchtype:x is unavailable: unsupported dictionary type"
    ):
        recipe.asked(b"u@d")


@pytest.mark.parametrize("bad", ["%", "x%", "%%%", "%x", "%0", "% s", "%(s)s", "%ä"])
@pytest.mark.parametrize("name", ["query", "result_format"])
def test_percent_that_means_nothing_is_refused(tmp_path: Path, name: str, bad: str) -> None:
    texts = {"query": "%s", "result_format": "%s"} | {name: bad}
    with pytest.raises(
        ConfigError, match=rf"/t\.cf, line \d: parameter {name} is .*; expected a template, in which"
    ):
        Recipe(tmp_path, texts["query"], texts["result_format"])


@pytest.mark.parametrize("text", ["(%s)", "%%(s)s", "%%%s%%", "\n%s\udcff%%", "", "%%"])
def test_all_else_in_a_template_is_plain(text: str) -> None:
    pieces = compile_text(text, IN_RESULT).pieces
    filled = b"".join(plain + (b"%d%%" if part >= 0 else b"") for plain, part in pieces)
    raw = text.encode(errors="surrogateescape")
    assert filled == b"%".join(part.replace(b"%s", b"%d%%") for part in raw.split(b"%%"))


VALUES = [b"plain", b"u@d", b"@d", b"u@", b"@", b"a@b@c"]
RESULTS = {
    "%s": b"plain,u@d,@d,u@,@,a@b@c",
    "<%u>": b"<plain>,<u>,<u>,<a@b>",
    "<%d>": b"<d>,<d>,<c>",
    "%d!%u": b"d!u,c!a@b",
    "%s=%S=%U=%D=%2=%%": b"%s=k@x.y=k=x.y=x=%%",
    "constant": b"constant,constant,constant,constant,constant,constant",
}


@pytest.mark.parametrize(("result", "expected"), RESULTS.items(), ids=RESULTS)
def test_values_are_formatted_dropped_and_joined(tmp_path: Path, result: str, expected: bytes) -> None:
    if b"%s" in expected:
        expected = b",".join(expected.replace(b"%%", b"%").replace(b"%s", value) for value in VALUES)
    assert Recipe(tmp_path, "%s", result).joined(b"k@x.y", *VALUES) == expected


def test_null_is_dropped_silently_and_empty_with_a_warning(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, "%s", "<%s>")
    assert recipe.joined(b"k", None, b"a", b"", b"\0b", b"b\0c") == b"<a>,<b>"
    assert recipe.warnings == ['table "sqlite:t": empty lookup result for: "k" -- ignored'] * 2
    assert recipe.joined(b"k") is recipe.joined(b"k", None) is recipe.joined(b"k", b"") is None


def test_values_are_not_quoted(tmp_path: Path) -> None:
    assert Recipe(tmp_path, "%s", "'%s'%S").joined(b"k'", b"o'brien") == b"'o'brien'k'"


def test_more_values_than_expansion_limit_is_retry_and_the_rest_is_not_read(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, "%s", "%d", limit=2)
    assert recipe.joined(b"k", b"plain", b"u@a", None, b"u@b", b"", b"plain") == b"a,b"
    values = iter([b"u@a", b"u@b", b"u@c", b"u@d"])
    recipe.found = values
    with pytest.raises(TableRetry, match=r'^Expansion limit exceeded for key: "k"$'):
        recipe.ask(b"k", 0)
    assert list(values) == [b"u@d"]


def test_limit_of_zero_or_less_is_none(tmp_path: Path) -> None:
    for limit in (0, -1):
        assert Recipe(tmp_path, "%s", limit=limit).joined(b"k", b"a", b"b", b"c") == b"a,b,c"


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("SELECT v FROM t WHERE k = '%s'", []),
        ("SELECT v FROM t WHERE k = lower('%u@%d') AND n = '%%'", []),
        ("SELECT v FROM t WHERE k = 'it''s %s' -- it's %%", []),
        ("SELECT v FROM t WHERE k='\\'%s'", []),
        ("SELECT v FROM t WHERE k LIKE'%s'", []),
        ("SELECT `a'b` FROM t WHERE k='%s'", []),
        ("SELECT v FROM t WHERE k = %s", ["%s"]),
        ("SELECT v FROM t WHERE k = '%u' AND d = %d", ["%d"]),
        ('SELECT v FROM t WHERE k = "%s"', ["%s"]),
        ("SELECT v FROM t WHERE k = E'%s'", ["%s"]),
        ("SELECT v FROM t WHERE k = $$%s$$ OR k = $a$%1$a$", ["%s", "%1"]),
        ("SELECT v FROM t WHERE k = '' || %s || ''", ["%s"]),
        ("SELECT v FROM t /* '%s' */", ["%s"]),
        ("SELECT v FROM t WHERE k = 'open %s", ["%s"]),
    ],
)
def test_part_of_the_key_outside_single_quotes_is_seen(query: str, parts: list[str]) -> None:
    assert parts_outside_quotes(query) == parts
