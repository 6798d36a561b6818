"""test_sqlite - queries to SQLite databases, beside postmap's

Where we differ from Postfix on purpose, because the stock process would end or
serve stale data: the tests below "Not as stock".
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from fix_postfix import copy_dynamicmaps, release
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxymap.errors import QuestionRefused, TableRetry
from proxymap.tables._table import Table
from proxymap.tables.base import Host
from proxymap.tables.databases import sqlite
from proxymap.tables.databases.sqlite import first_statement
from proxymap.tables.flags import FIXED, FOLD_FIX
from proxymap.tables.opening import open_table
from proxymap.tables.template import parts_outside_quotes

OK, NOKEY = 0, 1
Rows = Iterable[tuple[object, object]]


def database(path: Path, rows: Rows) -> Path:
    """A database with one table v(k, v), put in place by a rename."""
    new = path.with_suffix(".new")
    with_rows = sqlite3.connect(new)
    with with_rows:
        with_rows.execute("PRAGMA synchronous = off")
        with_rows.execute("CREATE TABLE v (k, v)")
        with_rows.executemany("INSERT INTO v VALUES (?, ?)", rows)
    with_rows.close()
    os.rename(new, path)
    return path


numbers = itertools.count()


class Place:
    """A directory with a database t.db, and tables over it; cf is the latest one's file."""

    def __init__(self, directory: Path, rows: Rows) -> None:
        self.dir = directory
        self.db = database(directory / "t.db", rows)
        self.warnings: list[str] = []
        self.parameters: dict[str, str] = {}

    def table(self, query: str = "SELECT v FROM v WHERE k = '%s'", **parameters: str | None) -> Table:
        """A newly opened table; None leaves a parameter out."""
        self.cf = self.dir / f"{next(numbers)}.cf"  # a table that is open already would be shared
        given = {"dbpath": str(self.db), "query": query, **parameters}
        lines = [f"{name} = {value}\n" for name, value in given.items() if value is not None]
        self.cf.write_text("".join(lines), "utf-8", "surrogateescape")
        os.utime(self.cf, (1, 1))  # Postfix waits while a file of parameters is younger than a second
        host = Host(warn=self.warnings.append, parameter=lambda name: self.parameters.get(name, ""))
        return open_table(os.fsencode(f"sqlite:{self.cf}"), host=host)

    def reason(self, query: str = "SELECT 1", **parameters: str | None) -> str:
        reason = self.table(query, **parameters).reason
        assert reason is not None
        return reason.decode(errors="surrogateescape")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, [("a", "1"), ("a", "2"), ("b", "3"), ("o'b", "4"), ("a@b.c", "5")])


def found(table: Table, key: str) -> bytes | None:
    assert table.reason is None, table.reason
    status, flags, value = table.ask(key.encode(), 1)
    assert flags == 1
    assert status in (OK, NOKEY)
    return value if status == OK else None


# Lookups


def test_rows_are_joined_and_a_missing_key_is_nokey(place: Place) -> None:
    table = place.table()
    assert table.flags == FIXED
    assert table.fold(b"A", FOLD_FIX) == b"a"
    assert [found(table, key) for key in ("a", "b", "A", "")] == [b"1,2", b"3", None, None]


def test_key_is_quoted(place: Place) -> None:
    table = place.table()
    assert found(table, "o'b") == b"4"
    assert found(table, "x' OR '1'='1") is None
    assert found(table, "'; DROP TABLE v; --") is None
    assert found(table, "b") == b"3"


def test_only_the_first_column_counts(place: Place) -> None:
    assert found(place.table("SELECT k, v FROM v WHERE v = '%s'"), "3") == b"b"


def test_limits_formats_and_domains(place: Place) -> None:
    table = place.table(result_format="<%s>%U", expansion_limit="1", domain="b.c")
    assert (found(table, "a@b.c"), found(table, "b")) == (b"<5>a", None)
    with pytest.raises(QuestionRefused, match=r'^Expansion limit exceeded for key: "a"$'):
        place.table(expansion_limit="1").ask(b"a", 0)


def test_older_parameters_make_a_query(place: Place) -> None:
    older = {"table": "v", "select_field": "v", "where_field": "k"}
    assert found(place.table(query="", **older), "a") == b"1,2"
    assert found(place.table(query="", **older, additional_conditions="AND v > '1'"), "a") == b"2"
    assert found(place.table(**(older | {"table": "nowhere"})), "b") == b"3"


def test_parameters_in_main_cf(place: Place) -> None:
    place.parameters = {"names_dbpath": str(place.db), "names_query": "SELECT v FROM v WHERE k = '%s'"}
    host = Host(parameter=lambda name: place.parameters.get(name, ""))
    assert found(open_table(b"sqlite:names", host=host), "b") == b"3"
    assert open_table(b"sqlite:other", host=host).reason == (
        b"main.cf: parameter other_dbpath is missing; expected some text"
    )


def test_null_is_dropped_and_empty_warned_of(tmp_path: Path) -> None:
    place = Place(tmp_path, [("k", None), ("k", ""), ("k", b""), ("k", b"\0x"), ("k", "x"), ("n", None)])
    table = place.table()
    assert (found(table, "k"), found(table, "n")) == (b"x", None)
    assert place.warnings == [f'table "sqlite:{place.cf}": empty lookup result for: "k" -- ignored'] * 3


def test_key_that_is_not_utf8_is_nokey_without_a_query(place: Place) -> None:
    table = place.table("SELECT 'x' WHERE '%d' <> '-'")
    assert table.ask(b"@caf\xe9", 0) == (NOKEY, 0, b"")
    assert table.ask(b"caf\xe9@x", 0) == (OK, 0, b"x")
    assert table.explain(b"@caf\xe9") == ["no query for this key: it is not UTF-8"]


def test_explain_shows_the_statement_and_counts_rows(place: Place) -> None:
    table = place.table("SELECT v FROM v WHERE k = '%u'; x", domain="b.c")
    assert table.explain(b"o'b@b.c") == ["SELECT v FROM v WHERE k = 'o''b';", "rows: 1"]
    assert table.explain(b"a@b.c") == ["SELECT v FROM v WHERE k = 'a';", "rows: 2"]
    assert table.explain(b"a@x") == ["no query for this key: parameter domain does not match"]


@pytest.mark.parametrize("name", ["t?mode=rwc", "a b", "100%", "#1", "ä", "\udce9", "x//y", "&immutable=1"])
def test_dbpath_is_a_path_whatever_is_in_it(tmp_path: Path, name: str) -> None:
    directory = tmp_path / f"d {name}"
    directory.mkdir(parents=True)
    place = Place(directory, [("k", "v")])
    assert found(place.table(dbpath=str(place.db)), "k") == b"v"
    assert found(place.table(dbpath=f"/{place.db}"), "k") == b"v"


def test_dbpath_may_be_relative(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.dir)
    assert found(place.table(dbpath="t.db"), "b") == b"3"


def test_threads_ask_side_by_side_and_close_ends_all_connections(place: Place) -> None:
    table = place.table()
    answers: list[bytes | None] = []

    def ask() -> None:
        answers.extend(found(table, "a") for _ in range(200))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"1,2"] * 800
    assert 1 <= open_files(place.db) <= 4
    table.close()
    assert open_files(place.db) == 0


def open_files(path: Path) -> int:
    """How many descriptors of this process are for that file."""
    names = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(name) and os.path.samefile(name, path) for name in names)


STATEMENTS = {
    "SELECT 1": "SELECT 1",
    "SELECT 1;": "SELECT 1;",
    "SELECT 1; SELECT 2": "SELECT 1;",
    "SELECT ';', \";\", `;`, [;], 'it''s;' /* ; */ -- ;\n; x": (
        "SELECT ';', \";\", `;`, [;], 'it''s;' /* ; */ -- ;\n;"
    ),
    "SELECT '[', 1-1, 4/2; x": "SELECT '[', 1-1, 4/2;",
    "SELECT ';": "SELECT ';",
    "SELECT /* ;": "SELECT /* ;",
    "SELECT -- ;": "SELECT -- ;",
    "SELECT [;": "SELECT [;",
    ";;": ";",
    "": "",
}


@pytest.mark.parametrize(("text", "first"), STATEMENTS.items(), ids=repr)
def test_first_statement(text: str, first: str) -> None:
    assert first_statement(text) == first


@pytest.mark.parametrize("text", [";", "'", "';", "/*", "/*;", "-", "-;", "[;", "[", "''", "x"])
def test_first_statement_of_long_texts_is_found_in_time(text: str) -> None:
    first_statement(f"SELECT '{text * 200_000}; x")
    first_statement(f"SELECT {text * 200_000}; x")


# Beside postmap

KEYS = st.text(st.sampled_from("ab'%;@@..-é\"[/*1_"), min_size=1, max_size=9)
VALUES = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False),
    st.text(st.sampled_from("ab@.'%é\0"), max_size=6), st.binary(max_size=0), st.just(b"a\0b"),
    st.sampled_from(["u@d", "u@", "@d", "plain", "u@a.b", 1.0, 1e20, 0.1, 1 / 3, -0.0, 1e-7, 1e15]),
)  # fmt: skip
LETTERS = [f"%{letter}" for letter in "sudSUD12%"]
TEMPLATES = st.lists(st.sampled_from([*LETTERS, "x", "-", "."]), min_size=1, max_size=4).map("".join)
QUERIES = st.one_of(
    st.just("SELECT v FROM v WHERE k = '%s'"),
    st.just("SELECT v FROM v; SELECT 'x'"),
    st.just("SELECT v, k FROM v WHERE k LIKE '%u%%'"),
    st.just("SELECT v || '%s' FROM v WHERE k <> '%s' -- %u"),
    TEMPLATES.map(lambda text: f"SELECT '{text}'"),
    TEMPLATES.map(lambda text: f"SELECT v FROM v WHERE k >= '{text}'; x"),
)
DOMAINS = st.sampled_from([None, None, None, "a.b", "!a, A.B é", "a b 1", "!a.b static", "É"])


UNQUOTED = "query >.*< contains >(%.)< without the recommended '' quotes"  # of stock 3.11 and later


def unavailable() -> str | None:
    if shutil.which("postmap") is None:
        return "Postfix is not installed"
    types = subprocess.run(["postconf", "-m"], capture_output=True, text=True, check=False).stdout.split()
    return None if "sqlite" in types else "postfix-sqlite is not installed"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a main.cf."""
    if reason := unavailable():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("etc")
    (directory / "main.cf").write_text("compatibility_level = 3.6\n")
    copy_dynamicmaps(directory)
    os.utime(directory / "main.cf", (1, 1))
    return directory


def postmap(config: Path, cf: Path, keys: Iterable[str]) -> tuple[dict[str, bytes], str]:
    """key -> value of those found, and the log without UNQUOTED; the process ends at the first error."""
    done = subprocess.run(
        ["postmap", "-c", str(config), "-q", "-", f"sqlite:{cf}"],
        input="".join(f"{key}\n" for key in keys).encode(), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    pairs = [line.partition(b"\t") for line in done.stdout.splitlines()]
    log = done.stderr.decode(errors="replace")
    return {key.decode(): value for key, _, value in pairs}, re.sub(f".*{UNQUOTED}\n", "", log)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(KEYS, VALUES), max_size=8), st.lists(KEYS, max_size=20, unique=True),
    QUERIES, TEMPLATES, DOMAINS,
)  # fmt: skip
def test_answers_and_warnings_are_those_of_postmap(
    config: Path, tmp_path: Path, rows: list[tuple[object, object]], keys: list[str],
    query: str, result: str, domain: str | None,
) -> None:  # fmt: skip
    place = Place(tmp_path, rows)
    table = place.table(query, result_format=result, domain=domain)
    asked = dict.fromkeys([*keys, *(str(key) for key, _ in rows), "a@a.b", "@a.b", "a@", "é@é"])
    expected, log = postmap(config, place.cf, asked)
    assert "fatal" not in log
    assert {key: value for key in asked if (value := found(table, key)) is not None} == expected
    assert place.warnings == [line.removeprefix("postmap: warning: ") for line in log.splitlines()]


@pytest.mark.parametrize("letter", LETTERS)
def test_each_letter_is_that_of_postmap(config: Path, tmp_path: Path, letter: str) -> None:
    values = ["plain", "u@d", "@d", "u@", "@", "u@a..b.", "u@.", "a@b@c.d", "o'b@x'y"]
    place = Place(tmp_path, [("all", value) for value in values])
    keys = ["all", *values]
    for query, result in (f"SELECT '{letter}'", "%s"), ("SELECT v FROM v", f"<{letter}>"):
        table = place.table(query, result_format=result)
        expected, log = postmap(config, place.cf, keys)
        assert {key: value for key in keys if (value := found(table, key)) is not None} == expected
        assert not log


def test_first_statements_are_those_of_postmap(config: Path, place: Place) -> None:
    for text in (
        *("SELECT 'x'; SELECT", "SELECT ';', 1; y", "SELECT 'x' /* ; */; y", "SELECT 'x' AS [;]; y"),
        *("SELECT 'x' -- ;", "SELECT 'x' AS \";\"; y", "SELECT 'x' /* ;", "PRAGMA user_version; x"),
    ):
        table = place.table(text)
        assert {"k": found(table, "k")} == postmap(config, place.cf, ["k"])[0], text


@pytest.mark.skipif(release() < (3, 11), reason="it warns from 3.11 on")
@pytest.mark.parametrize(
    "query",
    [
        "SELECT v FROM v WHERE k = '%s'", "SELECT v FROM v WHERE k = %s", 'SELECT v FROM v WHERE k = "%s"',
        "SELECT 'x%u@%dy', %1", "SELECT %%, '%%', %u, %d, %u", "SELECT 'it''s %s'", "SELECT '' || %S || ''",
        "SELECT 'x' -- %s", "SELECT 1; %U",
    ],
)  # fmt: skip
def test_what_postmap_warns_of_at_open_is_told_by_check(config: Path, place: Place, query: str) -> None:
    place.table(query)
    assert place.warnings == []
    command = ["postmap", "-c", str(config), "-q", "k", f"sqlite:{place.cf}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert re.findall(UNQUOTED, done.stderr) == parts_outside_quotes(query)


# Not as stock: its process ends


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"dbpath": None}, "{cf}: parameter dbpath is missing; expected some text"),
        ({"dbpath": ""}, '{cf}, line 1: parameter dbpath is ""; expected some text'),
        ({"query": None}, "{cf}: parameter query is missing; expected an SQL statement"),
        ({"query": None, "table": "v"}, "{cf}: parameter select_field is missing; expected some text"),
        ({"query": "'%x'"}, "{cf}, line 2: parameter query is \"'%x'\"; expected a template, in which "),
        ({"query": "\udce9"}, '{cf}, line 2: parameter query is "\udce9"; expected text in UTF-8'),
        ({"result_format": "%"}, '{cf}, line 3: parameter result_format is "%"; expected a template'),
        ({"result_format": ""}, '{cf}, line 3: parameter result_format is ""; expected some text'),
        ({"expansion_limit": "1k"}, '{cf}, line 3: parameter expansion_limit is "1k"; expected a number'),
        ({"domain": "!"}, "{cf}, line 3: parameter domain: no pattern after '!'"),
        ({"domain": "/none"}, "{cf}, line 3: parameter domain: open /none: No such file or directory"),
        ({"dbpath": "/none/t.db"}, "open database /none/t.db: No such file or directory"),
        ({"dbpath": "/"}, "open database /: "),
        ({"domain": "x\nnonsense"}, "{cf}, line 4: missing '=' after attribute name: \"nonsense\""),
    ],
)  # fmt: skip
def test_configuration_that_cannot_be_used_is_a_surrogate(
    place: Place, parameters: Mapping[str, str | None], reason: str
) -> None:
    assert place.reason(**parameters).startswith(reason.format(cf=place.cf))


def test_missing_configuration_is_a_surrogate(place: Place) -> None:
    name = f"{place.dir}/none.cf"
    assert open_table(f"sqlite:{name}".encode()).reason == f"open {name}: No such file or directory".encode()


def test_no_database_is_created(place: Place) -> None:
    place.reason(dbpath=f"{place.dir}/new.db")
    assert not os.path.exists(place.dir / "new.db")


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("SELECT", "incomplete input"),
        ("SELECT x FROM nowhere", "no such table: nowhere"),
        ("SELECT v FROM v WHERE k = %s", "no such column: zz"),
        ("INSERT INTO v VALUES ('x', 'y')", "attempt to write a readonly database"),
        ("SELECT abs(-9223372036854775808)", "integer overflow"),
        ("BEGIN", "this gives no column"),
        ("/* nothing */", "this gives no column"),
        ("SELECT ?", "Incorrect number of bindings supplied"),
    ],
)
def test_sql_error_is_retry_and_tells_the_query_without_the_key(place: Place, query: str, error: str) -> None:
    table = place.table(query)
    with pytest.raises(TableRetry) as caught:
        table.ask(b"zz", 0)
    assert error in str(caught.value)
    assert str(caught.value).endswith(f"; query: {query}")


def test_error_for_one_key_leaves_the_others_alone(place: Place) -> None:
    table = place.table("SELECT %s")
    with pytest.raises(TableRetry):
        table.ask(b"zz", 0)
    assert found(table, "3") == b"3"


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_WAIT", 0.01)


def test_locked_database_is_retry_until_it_is_unlocked(place: Place, short_wait: None) -> None:
    table = place.table()
    other = sqlite3.connect(place.db, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TableRetry, match="database is locked") as caught:
        table.ask(b"b", 0)
    assert not isinstance(caught.value, QuestionRefused)
    other.execute("INSERT INTO v VALUES ('b', 'new')")
    other.execute("COMMIT")
    other.close()
    assert found(table, "b") == b"3,new"


def test_table_opens_while_the_database_is_locked(place: Place, short_wait: None) -> None:
    other = sqlite3.connect(place.db, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    table = place.table()
    other.execute("ROLLBACK")
    other.close()
    assert found(table, "b") == b"3"


def test_lookups_leave_no_lock(place: Place) -> None:
    table = place.table(expansion_limit="1")
    assert found(table, "b") == b"3"
    with pytest.raises(TableRetry):
        table.ask(b"a", 0)
    other = sqlite3.connect(place.db, timeout=0, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    other.close()


def test_runaway_query_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "TIME_LIMIT", 0.05)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    table = place.table(f"SELECT CASE '%s' WHEN 'x' THEN ({endless}) ELSE 1 END")
    with pytest.raises(TableRetry, match="interrupted"):
        table.ask(b"x", 0)
    assert found(table, "y") == b"1"


def test_file_that_is_no_database_is_retry(place: Place) -> None:
    place.db.write_bytes(b"no database " * 1000)
    with pytest.raises(TableRetry, match="file is not a database"):
        place.table().ask(b"b", 0)


# Not as stock: it goes on with the old file


def test_replaced_database_is_noticed(place: Place) -> None:
    table = place.table()
    assert found(table, "b") == b"3"
    database(place.db, [("b", "new")])
    assert found(table, "b") == b"new"
    assert open_files(place.db) == 1


def test_lost_database_goes_on_answering_and_its_successor_is_noticed(place: Place) -> None:
    table = place.table()
    place.db.unlink()
    assert found(table, "b") == b"3"
    database(place.db, [("b", "new")])
    assert found(table, "b") == b"new"


def test_database_lost_with_its_connections_is_retry(place: Place) -> None:
    table = place.table("SELECT v FROM v WHERE k = %s")
    place.db.unlink()
    with pytest.raises(QuestionRefused, match="no such column"):
        table.ask(b"zz", 0)
    with pytest.raises(TableRetry, match=rf"^open database {place.db}: No such file or directory$"):
        table.ask(b"1", 0)
