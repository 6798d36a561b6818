"""test_check_directories - `check`, `check --connect` and `query --explain` of ldap and mongodb tables"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fix_ctl import run
from fix_database import PASSWORD, free_port
from fix_slapd import BASE, PEOPLE, Slapd, entry
from test_checks import Host, root_only

from proxymap.ctl import checks
from proxymap.ctl.safety import Fault

EX_TEMPFAIL = 75
pytestmark = root_only


class Place(Host):
    """A configuration with one table."""

    def __init__(self, maptype: str, parameters: dict[str, str]) -> None:
        super().__init__()
        self.maptype, self.parameters = maptype, parameters
        self.cf = self.dir / "t.cf"
        self.table_name = f"{maptype}:{self.cf}"
        self.set(virtual_alias_maps=f"proxy:{self.table_name}")

    def write(self, **others: str) -> None:
        self.cf.write_text("".join(f"{n} = {v}\n" for n, v in (self.parameters | others).items()))

    def doubts(self, *, connect: bool = True, **others: str) -> list[Fault]:
        self.write(**others)
        return [fault for fault in checks.check(str(self.dir), connect=connect) if self.cf.name in fault.what]

    def explained(self, *keys: str) -> tuple[str, str]:
        done = run("query", "--direct", "--explain", self.table_name, *keys)
        return done.stdout.decode(), done.stderr.decode()


@pytest.fixture(params=["no", "yes"])
def ldap(request: pytest.FixtureRequest, slapd: Slapd) -> Iterator[Place]:
    """Without and with chase_referrals."""
    slapd.remove_entries()
    slapd.add(entry("a", mailacceptinggeneralid="a@b.c", maildrop=["one", "two"]))
    made = Place("ldap", slapd.parameters(search_base=PEOPLE, chase_referrals=request.param))
    yield made
    shutil.rmtree(made.dir)


@pytest.fixture
def mongodb() -> Iterator[tuple[Place, Any]]:
    fix_mongo = pytest.importorskip("fix_mongo", reason="PyMongo is not installed")
    with fix_mongo.FakeMongo([{"k": "a@b.c", "v": ["one", "two"]}]) as server:
        uri = f"mongodb://127.0.0.1:{server.port}/"
        basic = {"dbname": "mail", "collection": "t", "query_filter": '{"k": "%s"}', "result_attribute": "v"}
        made = Place("mongodb", {"uri": uri} | basic)
        yield made, server
        shutil.rmtree(made.dir)


# ldap


def test_good_directory_is_without_a_fault(ldap: Place) -> None:
    assert ldap.doubts() == []


def test_directory_is_not_asked_without_connect(ldap: Place) -> None:
    assert ldap.doubts(connect=False, bind_pw="wrong", server_host="127.0.0.1:9") == []


def test_wrong_password_of_a_directory_is_a_fault_and_not_told(ldap: Place) -> None:
    (fault,) = ldap.doubts(bind_pw="wrong secret")
    assert not fault.warning
    assert "49 (Invalid credentials)" in fault.what
    assert "wrong secret" not in fault.line()
    assert PASSWORD not in fault.line()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"search_base": f"ou=nosuch,{BASE}"}, "not found: 32: No such object"),
        ({"query_filter": "((cn=%s)"}, "Search error -7: Bad search filter"),
        ({"start_tls": "yes", "tls_require_cert": "yes"}, "Unable to set STARTTLS"),
    ],
)
def test_what_the_directory_refuses_is_a_fault(ldap: Place, parameters: dict[str, str], words: str) -> None:
    (fault,) = ldap.doubts(**parameters)
    assert not fault.warning
    assert words in fault.what


def test_each_host_of_a_directory_is_tried(ldap: Place) -> None:
    closed = f"127.0.0.1:{free_port()}"
    (fault,) = ldap.doubts(server_host=f"{ldap.parameters['server_host']} {closed}")
    assert f"ldap://{closed}: " in fault.what


def test_files_of_tls_of_a_directory_are_looked_at(ldap: Place) -> None:
    (fault,) = ldap.doubts(connect=False, tls_ca_cert_file="/nosuch/ca")
    assert fault.warning
    assert fault.what.endswith("tls_ca_cert_file: /nosuch/ca is not there")


def test_attributes_of_which_stock_loses_values_are_warned_of(ldap: Place) -> None:
    (fault,) = ldap.doubts(connect=False, terminal_result_attribute="term")
    assert fault.warning
    assert "stock loses values" in fault.what


def test_explain_shows_base_filter_host_and_values(ldap: Place) -> None:
    ldap.write(query_filter="(mailacceptinggeneralid=%s)", domain="b.c")
    values, told = ldap.explained("a@b.c", "(x)@b.c", "a@other")
    assert values == "a@b.c\tone,two\n"
    assert f"base: {PEOPLE}, filter: (mailacceptinggeneralid=a@b.c)" in told
    assert "filter: (mailacceptinggeneralid=\\28x\\29@b.c)" in told
    assert re.search(f"(asked at|answered by) {ldap.parameters['server_host']}", told)
    assert "rows: 2" in told
    assert "rows: 0" in told
    assert "no query for this key: parameter domain does not match" in told


def test_directory_that_is_down_is_named(ldap: Place) -> None:
    ldap.write(server_host=f"127.0.0.1:{free_port()}")
    done = run("query", "--direct", ldap.table_name, "a@b.c")
    assert done.returncode == EX_TEMPFAIL
    assert "Can't contact LDAP server" in done.stderr.decode()


# mongodb


def test_good_documents_are_without_a_fault(mongodb: tuple[Place, Any]) -> None:
    place, server = mongodb
    assert place.doubts() == []
    assert server.finds[-1]["filter"] == {"k": "1"}
    before = len(server.finds)
    assert place.doubts(connect=False) == []
    assert len(server.finds) == before


def test_what_a_mongodb_server_refuses_is_a_fault(mongodb: tuple[Place, Any]) -> None:
    place, server = mongodb
    for manner, words in {"unauthorized": "not authorized", "error": "bad value"}.items():
        server.manner = manner
        (fault,) = place.doubts()
        assert not fault.warning
        assert words in fault.what


def test_mongodb_server_that_is_down_is_a_fault_without_the_password(mongodb: tuple[Place, Any]) -> None:
    place, _ = mongodb
    uri = f"mongodb://joe:s3cretword@127.0.0.1:{free_port()}/?connectTimeoutMS=200"
    (fault,) = place.doubts(uri=uri)
    assert "Connection refused" in fault.what
    assert "s3cretword" not in fault.line()


def test_part_of_the_filter_outside_quotes_is_a_warning(mongodb: tuple[Place, Any]) -> None:
    place, _ = mongodb
    (fault,) = place.doubts(connect=False, query_filter='{"k": %s}')
    assert fault.warning
    assert "a key from outside is JSON there" in fault.what


def test_explain_shows_the_filter_the_server_and_the_values(mongodb: tuple[Place, Any]) -> None:
    place, server = mongodb
    place.write()
    values, told = place.explained("a@b.c", 'q"x')
    assert values == "a@b.c\tone,two\n"
    assert '{"k": "a@b.c"}' in told
    assert '{"k": "q\\"x"}' in told
    assert f"asked at mongodb://127.0.0.1:{server.port}" in told
    assert "rows: 2" in told
    assert not re.search(r"\n\n", told)
