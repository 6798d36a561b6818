"""test_check_databases - `check`, `check --connect` and `query --explain` before real database servers"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from fix_ctl import run
from fix_database import PASSWORD, PrivateDatabase, free_port
from test_checks import Host, root_only

from proxymap.ctl import checks
from proxymap.ctl.safety import Fault

SERVERS = {"mysql": "mariadb", "pgsql": "postgresql"}
GOOD = "SELECT v FROM checked WHERE k = '%u' AND '%d' <> ''"

pytestmark = root_only


class Place(Host):
    """A configuration with one table of a database."""

    def __init__(self, server: PrivateDatabase) -> None:
        super().__init__()
        self.server = server
        self.cf = self.dir / "t.cf"
        self.table_name = f"{server.maptype}:{self.cf}"
        self.set(virtual_alias_maps=f"proxy:{self.table_name}")

    def doubts(self, *, connect: bool = True, **parameters: str) -> list[Fault]:
        self.server.write_cf(self.cf, **({"query": GOOD} | parameters))
        return [fault for fault in checks.check(str(self.dir), connect=connect) if self.cf.name in fault.what]


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    server: PrivateDatabase = request.getfixturevalue(SERVERS[request.param])
    server.execute("DROP TABLE IF EXISTS checked")
    server.execute("CREATE TABLE checked (k VARCHAR(50), v VARCHAR(50))")
    server.execute("INSERT INTO checked VALUES ('a', 'one'), ('a', 'two')")
    if server.maptype == "pgsql":
        server.execute("GRANT SELECT ON checked TO pm")
    made = Place(server)
    yield made
    shutil.rmtree(made.dir)


def test_good_table_is_without_a_fault(place: Place) -> None:
    assert place.doubts() == []


def test_without_connect_no_server_is_asked(place: Place) -> None:
    assert (
        place.doubts(connect=False, password="wrong", query="SELECT nosuch FROM checked WHERE k = '%s'") == []
    )


def test_part_outside_quotes_is_a_warning(place: Place) -> None:
    (fault,) = place.doubts(connect=False, query="SELECT v FROM checked WHERE k = %s")
    assert fault.warning
    assert "%s is not between single quotes in its query" in fault.line()
    assert fault.remedy == "write '%s'"


def test_wrong_password_is_a_fault_and_not_told(place: Place) -> None:
    (fault,) = place.doubts(password="wrong secret", hosts=f"127.0.0.1:{place.server.port}")
    assert not fault.warning
    assert "denied for user" in fault.what or "authentication failed" in fault.what
    assert "wrong secret" not in fault.line()
    assert PASSWORD not in fault.line()


def test_query_that_the_server_refuses_is_a_fault(place: Place) -> None:
    (fault,) = place.doubts(query="SELECT nosuch FROM checked WHERE k = '%s'")
    assert not fault.warning
    assert "nosuch" in fault.what
    (fault,) = place.doubts(query="SELECT v FROM closed WHERE k = '%s'")
    assert "closed" in fault.what


def test_each_host_is_tried(place: Place) -> None:
    closed = f"127.0.0.1:{free_port()}"
    (fault,) = place.doubts(hosts=f"unix:{place.server.socket} {closed}")
    assert f"inet:{closed}: " in fault.what


@pytest.mark.parametrize(
    "query", ["SELECT 1; DROP TABLE checked", "DELETE FROM checked WHERE k = '%s'", "nonsense"]
)
def test_what_is_no_single_query_is_not_tried(place: Place, query: str) -> None:
    assert place.doubts(query=query) == []
    assert place.server.execute("SELECT count(*) FROM checked") == [["2"]]


def test_query_of_a_number_is_no_fault(place: Place) -> None:
    assert place.doubts(query="SELECT v FROM checked WHERE length(k) = '%u'") == []


def test_files_of_tls_that_cannot_be_read_are_warned_of(place: Place) -> None:
    key = place.dir / "key"
    key.write_text("")
    key.chmod(0o600)
    if place.server.maptype == "mysql":
        faults = place.doubts(
            connect=False, tls_key_file=str(key), tls_CAfile="/nosuch/ca", option_file="/nosuch/cf"
        )
        expected = [
            "option_file: /nosuch/cf is not there",
            f"tls_key_file: {key} cannot be read",
            "tls_CAfile: /nosuch/ca is not there",
        ]
    else:
        hosts = f"postgresql:///mail?host=/run&sslkey={key}&sslrootcert=/nosuch/ca"
        faults = place.doubts(connect=False, hosts=hosts)
        expected = [
            "sslrootcert: /nosuch/ca is not there",
            f"sslkey: {key} cannot be read",
            "user and password do not count where all hosts are URIs",
        ]
    assert all(fault.warning for fault in faults)
    assert [fault.what for fault in faults] == [f"{place.table_name}: {text}" for text in expected]


def test_table_named_after_parameters_of_main_cf_is_opened(place: Place) -> None:
    place.set(
        virtual_alias_maps=f"proxy:{place.server.maptype}:named", named_query=GOOD, named_dbname="mail",
        named_user="pm", named_password=PASSWORD, named_hosts=f"unix:{place.server.socket}",
    )  # fmt: skip
    assert [fault for fault in checks.check(str(place.dir), connect=True) if "named" in fault.what] == []


def test_explain_shows_the_query_the_host_and_the_rows(place: Place) -> None:
    place.server.write_cf(place.cf, query=GOOD)
    done = run("query", "--direct", "--explain", place.table_name, "a@it's", "@x", "b@x")
    host = f"unix:{place.server.socket}"
    assert done.stdout == b"a@it's\tone,two\n"
    told = done.stderr.decode()
    quoted = "it\\'s" if place.server.maptype == "mysql" else "it''s"
    assert f"SELECT v FROM checked WHERE k = 'a' AND '{quoted}' <> ''" in told
    assert f"answered by {host}" in told
    assert "rows: 2" in told
    assert "rows: 0" in told
    assert "no query for this key: it has no user, which a template wants" in told


def test_server_that_is_down_is_named(place: Place) -> None:
    closed = f"127.0.0.1:{free_port()}"
    place.server.write_cf(place.cf, query=GOOD, hosts=closed)
    done = run("query", "--direct", place.table_name, "a@x")
    assert done.returncode == EX_TEMPFAIL
    assert "refused" in done.stderr.decode() or "Can't connect to server" in done.stderr.decode()


EX_TEMPFAIL = 75
