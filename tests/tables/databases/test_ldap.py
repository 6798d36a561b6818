"""test_ldap - what the parameters of ldap_table(5) do and what can go wrong, beside stock's proxymap

Each row of databases.md 6. Where ours is to differ from stock 3.7 a test says so:
test_intended_difference_*.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_database import PASSWORD, free_port
from fix_pair import Pair
from fix_postfix import type_missing, unavailable
from fix_relay import Relay
from fix_rows import RETRY, Rows, readable, wait_for
from fix_server import NOT_FOUND, USER, found, lookup
from fix_slapd import BASE, BIND_DN, PEOPLE, Slapd, entry
from fix_slapd import unavailable as slapd_unavailable
from fix_sql import Clients, Service, served
from ldap_cases import NAMES, fill

from proxymap.errors import ConfigError
from proxymap.tables.databases._connection import Attempt
from proxymap.tables.databases.hosts import ConnectFailed

REASON = slapd_unavailable()
STOCK_REASON = unavailable() or type_missing("ldap")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

KEY, VALUE = b"a@b.c", b"box of a,box of a@b.c"
CREDENTIALS = {"bind": "sasl", "bind_dn": "pm", "bind_pw": PASSWORD}
NOBODY = {"bind_dn": "", "bind_pw": ""}


@pytest.fixture(scope="module")
def directory() -> Iterator[Slapd]:
    with Slapd() as server:
        fill(server)
        yield server


@pytest.fixture(scope="module")
def ldap(directory: Slapd) -> Iterator[Rows]:
    if STOCK_REASON is not None:
        pytest.skip(STOCK_REASON)
    with Pair("ldap", in_a_life=30) as pair:
        yield Rows(pair, directory)


def slapd_of(rows: Rows) -> Slapd:
    assert isinstance(rows.database, Slapd)
    return rows.database


# Connecting


def test_forms_of_server_host(ldap: Rows) -> None:
    server = slapd_of(ldap)
    port = str(server.port)
    for hosts in (server.address(), ldap.tcp, server.local_url, server.tls_address(), f"{server.address()}/"):
        assert ldap.value(KEY, server_host=hosts) == VALUE
    assert ldap.value(KEY, server_host="127.0.0.1", server_port=port) == VALUE
    assert ldap.value(KEY, server_host=f"127.0.0.1:{free_port()}, {ldap.tcp}") == VALUE


def test_refused(ldap: Rows) -> None:
    ldap.fails("Can't contact LDAP server", server_host=f"127.0.0.1:{free_port()}")


def test_bad_scheme_is_retry(ldap: Rows) -> None:
    ldap.fails("Unable to init LDAP server", ours="expected ldap://", server_host="http://127.0.0.1/")


def test_intended_difference_silent_host_is_left_for_the_next(ldap: Rows) -> None:
    with Relay(("127.0.0.1", slapd_of(ldap).port)) as relay:
        relay.stalled = True
        hosts = f"127.0.0.1:{relay.port}, {ldap.tcp}"
        name = ldap.table(server_host=hosts, timeout="1")
        assert ldap.stock(name, KEY) == RETRY
        deadline = time.monotonic() + 20
        while ldap.ours(name, KEY) != found(VALUE):
            assert time.monotonic() < deadline
        start = time.monotonic()
        assert ldap.ours(name, KEY) == found(VALUE)
        assert time.monotonic() - start < 1


@pytest.mark.parametrize("bind", ["yes", "simple", "no", "none"])
def test_bind(ldap: Rows, bind: str) -> None:
    assert ldap.value(KEY, bind=bind) == VALUE


def test_anonymous_bind(ldap: Rows) -> None:
    assert ldap.value(KEY, **NOBODY) == VALUE


@pytest.mark.parametrize(
    ("dn", "password", "number"), [(BIND_DN, "wrong", 49), ("nonsense", "x", 34), (BIND_DN, "", 53)]
)
def test_refused_bind(ldap: Rows, dn: str, password: str, number: int) -> None:
    ldap.fails(f"with dn {dn}: {number} (", bind_dn=dn, bind_pw=password)


def test_bad_bind_and_version_are_retry(ldap: Rows) -> None:
    for parameters in ({"bind": "perhaps"}, {"version": "1"}):
        name = ldap.table(**parameters)
        assert ldap.ours(name, KEY) == RETRY
        assert ldap.stock(name, KEY) is None  # it dies


@pytest.mark.parametrize("mechanism", ["DIGEST-MD5", "SCRAM-SHA-256", ""])
def test_sasl(ldap: Rows, mechanism: str) -> None:
    assert ldap.value(KEY, **CREDENTIALS, sasl_mechs=mechanism) == VALUE


def test_sasl_external(ldap: Rows) -> None:
    server = slapd_of(ldap)
    assert (
        ldap.value(KEY, bind="sasl", sasl_mechs="EXTERNAL", server_host=server.local_url, **NOBODY) == VALUE
    )


def test_sasl_unknown_mechanism_is_retry(ldap: Rows) -> None:
    ldap.fails(": -6 (", **CREDENTIALS, sasl_mechs="NOSUCH")


def test_sasl_mechanism_that_needs_tls_is_retry(ldap: Rows) -> None:
    name = ldap.table(**CREDENTIALS, sasl_mechs="PLAIN")
    assert ldap.same(name, KEY) == RETRY


def test_sasl_with_version_2_is_retry(ldap: Rows) -> None:
    ldap.fails(": -12 (", **CREDENTIALS, sasl_mechs="DIGEST-MD5", version="2")


def test_sasl_other_identity_is_retry(ldap: Rows) -> None:
    ldap.fails(": 50 (", **CREDENTIALS, sasl_mechs="DIGEST-MD5", sasl_authz_id="u:small")


def test_intended_difference_sasl_minssf_counts(ldap: Rows) -> None:
    parameters = CREDENTIALS | {"sasl_mechs": "DIGEST-MD5"}
    name = ldap.table(**parameters, sasl_minssf="256")
    assert ldap.stock(name, KEY) == found(VALUE)
    assert ldap.ours(name, KEY) == RETRY
    assert ldap.ours(ldap.table(**parameters, sasl_minssf="56"), KEY) == found(VALUE)


# TLS


@pytest.mark.parametrize("how", ["start_tls", "ldaps"])
def test_tls(ldap: Rows, how: str) -> None:
    tls = {"start_tls": "yes"} if how == "start_tls" else {"server_host": slapd_of(ldap).tls_address()}
    assert ldap.value(KEY, **tls) == VALUE
    assert ldap.value(KEY, **tls, tls_require_cert="yes", tls_ca_cert_file=readable(ldap, "ca")) == VALUE
    other = readable(ldap, "other_ca")
    name = ldap.table(**tls, tls_require_cert="yes", tls_ca_cert_file=other)
    assert ldap.same(name, KEY) == RETRY


def test_tls_that_fails_says_so(ldap: Rows) -> None:
    tls = {"start_tls": "yes", "tls_require_cert": "yes", "tls_ca_cert_file": readable(ldap, "other_ca")}
    ldap.fails("Unable to set STARTTLS: -11", server_host=f"ldap://localhost:{slapd_of(ldap).port}", **tls)


def test_tls_and_localhost(ldap: Rows) -> None:
    """The library looks for the host's own name in the certificate then."""
    host = f"ldap://localhost:{slapd_of(ldap).port}"
    tls = {"start_tls": "yes", "tls_require_cert": "yes", "tls_ca_cert_file": readable(ldap, "ca")}
    ldap.same(ldap.table(server_host=host, **tls), KEY)


def test_tls_certificate_of_the_client(ldap: Rows) -> None:
    tls = {"start_tls": "yes", "bind": "sasl", "sasl_mechs": "EXTERNAL"} | NOBODY
    for ask, user in ((ldap.stock, "postfix"), (ldap.ours, USER)):
        key = ldap.pair.shared.parent / f"client-{user}.key"
        key.write_bytes(Path(ldap.database.certificates.key("client")).read_bytes())
        subprocess.run(["chown", user, str(key)], check=True)
        key.chmod(0o600)
        name = ldap.table(**tls, tls_cert=readable(ldap, "client"), tls_key=str(key))
        assert ask(name, KEY) == found(VALUE)


@pytest.mark.parametrize(
    "parameters", [{"tls_ca_cert_file": "/nosuch/file"}, {"tls_cipher_suite": "nonsense"}]
)
def test_tls_context_that_cannot_be_made(ldap: Rows, parameters: dict[str, str]) -> None:
    words = "Unable to allocate new TLS context"
    ldap.fails(words, start_tls="yes", **parameters)


# Searching and values


def test_what_is_sent(ldap: Rows) -> None:
    """Byte for byte, but for the number of the message."""
    parameters = {
        "scope": "one", "dereference": "1", "size_limit": "7", "timeout": "9", "result_attribute": "cn, mail",
        "terminal_result_attribute": "term", "leaf_result_attribute": "leafmail",
        "special_result_attribute": "inner", "search_base": PEOPLE, "query_filter": "(&(cn=%u)(other=%d))",
    }  # fmt: skip
    asked = []
    for ask in (ldap.stock, ldap.ours):
        with Relay(("127.0.0.1", slapd_of(ldap).port)) as relay:
            ask(ldap.table(server_host=f"127.0.0.1:{relay.port}", **parameters), b"a*(b)@b.c")
            (sent,) = (bytes(one) for one in relay.sent() if PEOPLE.encode() in one)
            asked.append(sent[sent.index(PEOPLE.encode()) : sent.index(b"inner")])
    assert asked[0] == asked[1]
    assert b"a*(b)" in asked[0]


@pytest.mark.parametrize("parameter", ["query_filter", "search_base"])
def test_parts_are_quoted(ldap: Rows, parameter: str) -> None:
    template = {"query_filter": "(cn=%s)", "search_base": f"cn=%s,{PEOPLE}"}[parameter]
    others = {"query_filter": "(objectClass=*)"} if parameter == "search_base" else {"search_base": PEOPLE}
    name = ldap.table(**{parameter: template}, **others)
    for text in NAMES:
        assert ldap.same(name, text.encode()) == found(f"box of {text}".encode()), text
    for key in (b"*", b"a)(cn=*", b"x@a\nb", b"a,ou=people", b"\\", b'"'):
        assert ldap.same(name, key) == NOT_FOUND


def test_filters_that_find_nothing(ldap: Rows) -> None:
    assert ldap.value(KEY, query_filter="(nosuch=%s)") is None
    assert ldap.value(b"b", query_filter=" (cn=%s) ") == b"box of b"
    assert ldap.value(b"b", query_filter="cn=%s") == b"box of b"


def test_names_of_attributes(ldap: Rows) -> None:
    for names in ("", "*", "dn", "nosuch"):
        assert ldap.value(KEY, result_attribute=names) is None
    assert ldap.value(KEY, result_attribute="MAILDROP") == VALUE
    assert ldap.value(b"b", query_filter="(cn=%s)", result_attribute="entryDN") == f"cn=b,{PEOPLE}".encode()


def test_parameters_that_are_mended(ldap: Rows) -> None:
    for parameters in ({"version": "4"}, {"scope": "children"}, {"dereference": "7"}):
        assert ldap.value(KEY, **parameters) == VALUE
    assert ldap.value(b"p@b.c", result_format="", result_filter="<%s>") == b"<deutsch>"
    assert ldap.value(b"any", query_filter="(cn=b)") == b"box of b"


def test_timeout_of_nothing_is_retry(ldap: Rows) -> None:
    assert ldap.same(ldap.table(timeout="0"), KEY) == RETRY
    assert ldap.value(KEY, timeout="-1") == VALUE


def test_base_that_is_not_there(ldap: Rows) -> None:
    assert ldap.value(KEY, search_base=f"cn=%s,{BASE}") is None
    ldap.fails("not found: 32: No such object", search_base=f"ou=nosuch,{BASE}")


def test_base_that_is_a_referral_is_retry(ldap: Rows) -> None:
    ldap.fails("Search error 10: Referral", search_base=f"ou=away,{PEOPLE}")


def test_version_2_and_a_referral_is_retry(ldap: Rows) -> None:
    ldap.fails("Search error 9: ", version="2")


def test_malformed_filter_is_retry(ldap: Rows) -> None:
    ldap.fails("Search error -7: Bad search filter", query_filter="((cn=%s)")


def test_size_limits(ldap: Rows) -> None:
    words = "Search error 4: Size limit exceeded"
    ldap.fails(words, key=KEY, size_limit="1")
    small = BIND_DN.replace("uid=pm", "uid=small")
    ldap.fails(words, bind_dn=small, query_filter="(cn=*%d)", key=b"x@c")


def test_expansion_limit(ldap: Rows) -> None:
    words = "Expansion limit exceeded"
    ldap.fails(words, key=b"odd@b.c", expansion_limit="2", size_limit="0")


def test_intended_difference_negative_limit_is_none(ldap: Rows) -> None:
    name = ldap.table(expansion_limit="-1")
    assert ldap.stock(name, KEY) == RETRY
    assert ldap.ours(name, KEY) == found(VALUE)


def test_aliases(ldap: Rows) -> None:
    deep = {"query_filter": "(mailacceptinggeneralid=%s)", "search_base": f"cn=alias,{PEOPLE}"}
    assert [ldap.value(b"deep@b.c", **deep, dereference=str(n)) for n in range(4)] == [
        None, None, b"deep box", b"deep box",
    ]  # fmt: skip


def test_values_are_in_the_order_of_the_server(ldap: Rows) -> None:
    for result in ("mail maildrop other", "other, maildrop, mail"):
        value = ldap.value(b"several", query_filter="(cn=%s)", result_attribute=result)
        assert value is not None
        assert sorted(value.split(b",")) == [b"1", b"2", b"3", b"x@y", b"z@y"]


def test_value_ends_at_its_first_nul(ldap: Rows) -> None:
    assert ldap.value(b"p@b.c", result_attribute="jpegPhoto") == b"ab"


def test_options_are_subtypes(ldap: Rows) -> None:
    assert ldap.value(b"p@b.c") == b"deutsch"


SPECIAL = {"special_result_attribute": "inner"}


def test_special_leaf_and_terminal(ldap: Rows) -> None:
    every = SPECIAL | {"leaf_result_attribute": "leafmail", "terminal_result_attribute": "term"}
    assert ldap.value(b"t@b.c", **every) == b"t1,t2"
    assert ldap.value(b"l@b.c", **every) == b"leaf1,shown"
    value = ldap.value(b"g@b.c", **every)
    assert value is not None
    assert b"not shown" not in value
    assert value.endswith(b"own") or value.startswith(b"own")


def test_special_values_that_are_urls(ldap: Rows) -> None:
    """Host and attributes that are not wanted do not count."""
    value = ldap.value(b"url@b.c", **SPECIAL)
    assert value is not None
    assert sorted(value.split(b",")) == sorted(
        [b"u", b"box of a", b"box of b", b"box of b", b"1", b"2", b"3", b"box of b"]
    )


def test_dangling_name_is_skipped(ldap: Rows) -> None:
    value = ldap.value(b"d@b.c", **SPECIAL)
    assert value is not None
    assert b"box of b" in value
    wait_for(ldap.pair.ours.log, 0, "not found, skipping")


def test_what_is_no_name_is_retry(ldap: Rows) -> None:
    for key, words in {b"w@b.c": "34", b"bu@b.c": "malformed URL", b"bf@b.c": "-7"}.items():
        name = ldap.table(**SPECIAL)
        ldap.asked_in_vain(name, words, key, words)


def test_recursion_limit(ldap: Rows) -> None:
    ldap.fails("Recursion limit exceeded for special attribute", key=b"o@b.c", recursion_limit="2", **SPECIAL)


def test_intended_difference_loop_ends_at_once(ldap: Rows) -> None:
    """Stock searches a thousand times."""
    name = ldap.table(**SPECIAL)
    before = slapd_of(ldap).figure("cn=Search,cn=Operations", "monitorOpCompleted")
    assert ldap.ours(name, b"lo@b.c") == RETRY
    assert slapd_of(ldap).figure("cn=Search,cn=Operations", "monitorOpCompleted") - before < 10
    wait_for(ldap.pair.ours.log, 0, "there is a loop through special attribute")
    assert ldap.stock(name, b"lo@b.c") == RETRY


def test_intended_difference_values_of_later_entries(ldap: Rows) -> None:
    """Stock forgets to look at each entry anew."""
    below = f"ou=later,{BASE}"
    slapd_of(ldap).add(
        (below, {"objectClass": ["organizationalUnit"], "ou": ["later"]}),
        entry("m1", below, mailacceptinggeneralid="many", term="t1", maildrop="p1"),
        entry("m2", below, mailacceptinggeneralid="many", maildrop="p2"),
        entry("m3", below, mailacceptinggeneralid="many", term="t3"),
    )
    name = ldap.table(search_base=below, terminal_result_attribute="term")
    assert ldap.stock(name, b"many") == found(b"t1,t3")
    assert ldap.ours(name, b"many") == found(b"t1,p2,t3")


# Ours alone


def connector(server: Slapd, path: Path, **parameters: str) -> tuple[object, object]:
    """What connects for a table, and its first address."""
    from proxymap.tables.base import Host
    from proxymap.tables.databases.openldap._login import OpenLDAP
    from proxymap.tables.databases.openldap.ldap import LdapCf
    from proxymap.tables.databases.openldap.login import read_login
    from proxymap.tables.databases.openldap.urls import read_servers

    cf = LdapCf(os.fsencode(server.write_cf(path, **parameters)), Host())
    addresses = read_servers(cf)
    return OpenLDAP(read_login(cf, addresses, print)), addresses[0]


def test_more_hosts_than_a_server_may_have_are_refused(tmp_path: Path) -> None:
    from proxymap.tables.base import Host
    from proxymap.tables.databases.openldap.ldap import LdapCf
    from proxymap.tables.databases.openldap.urls import read_servers

    path = tmp_path / "t.cf"
    for count in (64, 65):
        path.write_text("server_host = " + " ".join(f"h{n}" for n in range(count)))
        cf = LdapCf(os.fsencode(path), Host())
        if count == 64:
            assert len(read_servers(cf)) == count
        else:
            with pytest.raises(ConfigError, match="server_host has 65 hosts; expected 64 at most"):
                read_servers(cf)


def test_failed_start_tls_leaks_nothing(directory: Slapd, tmp_path: Path) -> None:
    """A thousand times; of stock each leaks a descriptor."""
    ca = {
        "start_tls": "yes",
        "tls_require_cert": "yes",
        "tls_ca_cert_file": directory.certificates.pem("other_ca"),
    }
    made, address = connector(directory, tmp_path / "t.cf", **ca)
    before = 0
    for number in range(1000):
        with pytest.raises(ConnectFailed, match="Unable to set STARTTLS"):
            made.connect(address, Attempt(0), 5000)  # type: ignore[attr-defined]
        if number == 10:
            before = len(os.listdir("/proc/self/fd"))
    assert len(os.listdir("/proc/self/fd")) <= before


def test_question_that_is_refused_costs_no_connection(directory: Slapd) -> None:
    """Stock connects and binds anew."""
    with Relay(("127.0.0.1", directory.port)) as relay, Service(directory) as service:
        table = service.table(server_host=f"127.0.0.1:{relay.port}", size_limit="1")
        service.start()
        with service.connect() as peer:
            for _ in range(10):
                assert peer.ask(lookup(table, KEY)) == RETRY
        assert relay.accepted == 1


@pytest.mark.parametrize(
    "how", [{"start_tls": "yes"}, {"bind": "sasl", "sasl_mechs": "DIGEST-MD5"}, {"scheme": "ldaps"}, {}]
)
def test_server_that_hangs_is_retry_in_time_and_then_used_again(
    directory: Slapd, how: dict[str, str]
) -> None:
    with (
        Relay(("127.0.0.1", directory.tls_port if "scheme" in how else directory.port)) as relay,
        served(directory, {"lookup_time_limit": "3s", "server_connect_time_limit": "1s"}) as service,
    ):
        relay.stalled = True
        host = f"{how.get('scheme', 'ldap')}://127.0.0.1:{relay.port}"
        others = {name: value for name, value in how.items() if name != "scheme"}
        table = service.table(server_host=host, **others, **LOGINS.get(how.get("bind", ""), {}))
        fine = service.table()
        service.start()
        with service.connect() as peer, service.connect() as other:
            peer.send(lookup(table, KEY))
            start = time.monotonic()
            assert other.ask(lookup(fine, KEY)) == found(VALUE)
            assert peer.reply() == RETRY
            assert time.monotonic() - start < 8
            relay.stalled = False
            deadline = time.monotonic() + 20
            while peer.ask(lookup(table, KEY)) != found(VALUE):
                assert time.monotonic() < deadline


LOGINS = {"sasl": {"bind_dn": "pm", "bind_pw": PASSWORD}}


def test_one_connection_carries_all_clients(directory: Slapd) -> None:
    directory.fill_many(1000)
    with Relay(("127.0.0.1", directory.port)) as relay, Service(directory) as service:
        table = service.table(server_host=f"127.0.0.1:{relay.port}")
        service.start()
        with Clients(service, table, count=128, records=1000) as clients:
            clients.until("right", 3000)
        assert clients.wrong == []
        assert relay.accepted == 1


def test_ldaprc_of_the_working_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "ldaprc").write_text("TIMELIMIT 7\n")
    code = (
        "import ctypes; from proxymap.tables.databases.openldap import _entries, _login\n"
        "import os; n = ctypes.c_int()\n"
        "ctypes.CDLL(next(w for w in open('/proc/self/maps').read().split() if '/libldap' in w))"
        ".ldap_get_option(None, 4, ctypes.byref(n)); print(n.value, os.getcwd())"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["0", str(tmp_path)], done.stderr


def test_keys_that_need_no_search_are_answered_while_the_server_is_down(directory: Slapd) -> None:
    with Service(directory) as service:
        table = service.table(server_host=f"127.0.0.1:{free_port()}", domain="b.c")
        service.start()
        with service.connect() as peer:
            for key in (b"", b"a", b"a@other", b"\xff@b.c"):
                assert peer.ask(lookup(table, key)) == NOT_FOUND
            assert peer.ask(lookup(table, KEY)) == RETRY
