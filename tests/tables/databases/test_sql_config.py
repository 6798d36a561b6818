"""test_sql_config - .cf files of mysql and pgsql tables: what a server is asked for, and what is refused"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxymap.tables.base import Host
from proxymap.tables.databases import served
from proxymap.tables.databases.limits import ServerLimits
from proxymap.tables.opening import open_table

MYSQL = {"dbname": "mail", "query": "SELECT v FROM t WHERE k = '%s'"}
PGSQL = MYSQL


class Server:
    """What stands for pool.Server: remembers what it was asked for, answers from `answers`."""

    def __init__(self, *asked_for: Any) -> None:
        self.maptype, self.addresses, self.login, self.limits, _ = asked_for
        self.tables: list[Any] = []
        self.answers: dict[bytes, tuple[int, bytes]] = {}

    def attach(self, table: Any) -> None:
        self.tables.append(table)
        table.crews = (self,)

    def ask(self, table: Any, key: bytes, explain: bool = False) -> tuple[int, bytes, dict[str, Any] | None]:
        status, value = self.answers.get(key, (1, b""))
        return status, value, {"sql": b"SQL", "host": "inet:db1:1", "rows": 2} if explain else None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(served, "server_for", Server)
    return tmp_path


def opened(place: Path, maptype: str, **parameters: str | None) -> Any:
    """A table whose .cf file has these and the least that it needs; None: not that."""
    wanted = {**(MYSQL if maptype == "mysql" else PGSQL), **parameters}
    path = place / f"{len(list(place.iterdir()))}.cf"  # each time another table
    path.write_text("".join(f"{name} = {value}\n" for name, value in wanted.items() if value is not None))
    return open_table(f"{maptype}:{path}".encode(), host=Host())


def login_of(place: Path, maptype: str, **parameters: str | None) -> Any:
    table = opened(place, maptype, **parameters)
    assert table.reason is None, table.reason
    return table.server.login


def test_mysql_defaults(place: Path) -> None:
    table = opened(place, "mysql")
    server = table.server
    assert [(a.kind, a.host, a.port, a.shown) for a in server.addresses] == [
        ("inet", "localhost", 0, "localhost")
    ]
    assert server.login == ("", None, "mail", "utf8mb4", "", "client", "", "", "", "", "", None)
    assert (server.maptype, server.limits) == ("mysql", ServerLimits())
    assert (table.flags, table.slow) == (16, 1)


def test_mysql_all_parameters(place: Path) -> None:
    words = {
        "user": "u", "password": "p w", "charset": "latin1", "option_file": "/o", "option_group": "g",
        "tls_key_file": "/k", "tls_cert_file": "/c", "tls_CAfile": "/a", "tls_CApath": "/p",
        "tls_ciphers": "x",
    }  # fmt: skip
    login = login_of(place, "mysql", **words, tls_verify_cert="yes")
    assert {name: getattr(login, name) for name in words} == words
    assert login.tls_verify_cert is True
    assert login_of(place, "mysql", tls_verify_cert="no").tls_verify_cert is False
    assert login_of(place, "mysql", password="").password == ""


def test_pgsql_defaults_and_parameters(place: Path) -> None:
    server = opened(place, "pgsql").server
    assert [a.shown for a in server.addresses] == ["inet:localhost:5432"]
    assert server.login == (None, None, "mail", "UTF8")
    assert login_of(place, "pgsql", user="u", password="p", encoding="LATIN1") == ("u", "p", "mail", "LATIN1")


def test_pgsql_needs_no_dbname_where_all_hosts_are_uris(place: Path) -> None:
    assert login_of(place, "pgsql", dbname=None, hosts="postgresql://h/d postgres:///e").dbname is None
    reason = opened(place, "pgsql", dbname=None, hosts="postgresql://h/d h").reason
    assert reason.endswith(
        b"parameter dbname is missing; expected the name of a database, unless all hosts are URIs"
    )


@pytest.mark.parametrize("maptype", ["mysql", "pgsql"])
def test_intervals_are_whole_seconds(place: Path, maptype: str) -> None:
    server = opened(place, maptype, retry_interval="3", idle_interval="7").server
    assert (server.limits.longest_gap, server.limits.idle_limit) == (3, 7)
    for bad in ("0", "5s", "-1", ""):
        assert b"parameter retry_interval is" in opened(place, maptype, retry_interval=bad).reason


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("dbname", "", b'parameter dbname is "'),
        ("result_format", "", b'parameter result_format is ""'),
        ("query", "SELECT '%x'", b'"%x" means nothing'),
        ("query", "SELECT '%", b'"%" means nothing'),
        ("expansion_limit", "x", b"expected a number"),
        ("hosts", "h:nosuch", b'parameter hosts has "h:nosuch"; expected a port'),
        ("domain", "!", b"no pattern after '!'"),
    ],
)
@pytest.mark.parametrize("maptype", ["mysql", "pgsql"])
def test_what_stock_dies_of_is_named(
    place: Path, maptype: str, parameter: str, value: str, expected: bytes
) -> None:
    table = opened(place, maptype, **{parameter: value})
    assert expected in table.reason
    assert f"{place}/0.cf, line ".encode() in table.reason


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("option_group", ""), ("charset", ""), ("require_result_set", "1"), ("tls_verify_cert", "?")],
)
def test_mysql_bad_value_is_named(place: Path, parameter: str, value: str) -> None:
    assert (
        f'parameter {parameter} is "{value}"'.encode() in opened(place, "mysql", **{parameter: value}).reason
    )


LEGACY = {"query": None, "table": "t", "select_field": "v", "where_field": "k"}


@pytest.mark.parametrize("maptype", ["mysql", "pgsql"])
def test_query_may_be_made_of_older_parameters(place: Path, maptype: str) -> None:
    assert opened(place, maptype, **LEGACY).query.text == "SELECT v FROM t WHERE k = '%s' "
    more = opened(place, maptype, **LEGACY, additional_conditions="AND a = '%d'")
    assert more.query.text == "SELECT v FROM t WHERE k = '%s' AND a = '%d'"
    assert opened(place, maptype, **(LEGACY | {"query": ""})).query.text.startswith("SELECT v FROM t")
    assert opened(place, maptype, **(LEGACY | {"query": "q"})).query.text == "q"
    for name in ("select_field", "where_field"):
        assert (
            f"parameter {name} is missing".encode()
            in opened(place, maptype, **(LEGACY | {name: None})).reason
        )
    assert b"parameter query is missing" in opened(place, maptype, query=None).reason


def test_pgsql_select_function(place: Path) -> None:
    assert opened(place, "pgsql", **(LEGACY | {"select_function": "f"})).query.text == "SELECT f('%s')"
    assert opened(place, "mysql", **(LEGACY | {"select_function": "f"})).query.text.startswith("SELECT v")


@pytest.mark.parametrize(
    ("maptype", "parameter", "asked"),
    [
        *(("mysql", value, False) for value in ("utf8mb4", "UTF8", "utf8mb3")),
        *(("mysql", value, True) for value in ("latin1", "gbk")),
        *(("pgsql", value, False) for value in ("UTF8", "utf-8", "Unicode")),
        *(("pgsql", value, True) for value in ("LATIN1", "SQL_ASCII")),
    ],
)
def test_key_that_is_invalid_in_utf8_is_not_asked_for(
    place: Path, maptype: str, parameter: str, asked: bool
) -> None:
    name = "charset" if maptype == "mysql" else "encoding"
    table = opened(place, maptype, **{name: parameter})
    assert (table.lookup(b"caf\xe9")[0] != 1) == asked
    assert (table.explain(b"caf\xe9") == ["no query for this key: it is not UTF-8"]) == (not asked)


def test_no_password_is_shown_by_anything(place: Path) -> None:
    hosts = "postgresql://u:secret@h/d"
    server = opened(place, "pgsql", hosts=hosts, password="secret", user="u").server
    assert "secret" not in f"{server.login!r} {server.login} {server.addresses}"
    server = opened(place, "mysql", password="secret", user="u").server
    assert "secret" not in f"{server.login!r} {server.login} {server.addresses}"


@pytest.mark.parametrize("maptype", ["mysql", "pgsql"])
def test_answers_come_from_the_server_and_refusals_from_here(place: Path, maptype: str) -> None:
    table = opened(place, maptype, domain="x")
    table.server.answers[b"a@x"] = 0, b"found"
    assert table.ask(b"a@x", 0) == (0, 0, b"found")
    assert table.ask(b"b@x", 0) == table.ask(b"b@y", 0) == (1, 0, b"")
    assert table.lookup(b"a@y") == (1, 12, b"")
    assert table.lookup(b"a@x")[0] == LATER
    assert table.explain(b"a@x") == ["SQL", "answered by inet:db1:1", "rows: 2"]
    assert table.explain(b"a@y") == ["no query for this key: parameter domain does not match"]
    assert table.crews == (table.server,)


LATER = 100  # _table.pxd


def test_domains_that_may_take_long_are_asked_by_workers(place: Path) -> None:
    table = opened(place, "mysql", domain="pcre:{{/^x$/ 1}}")
    table.server.answers[b"a@x"] = table.server.answers[b"a@y"] = 0, b"found"
    assert table.crews is None
    assert table.lookup(b"a@y")[0] == LATER
    assert table.ask(b"a@x", 0) == (0, 0, b"found")
    assert table.ask(b"a@y", 0) == (1, 0, b"")
