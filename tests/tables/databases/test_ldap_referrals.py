"""test_ldap_referrals - chase_referrals = yes: entries that lie with another server, beside stock's proxymap

Two private servers: below REFS of the first are parts that lie with the second.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from fix_database import free_port
from fix_pair import Pair
from fix_postfix import type_missing, unavailable
from fix_relay import Relay
from fix_rows import RETRY, Rows, wait_for
from fix_server import NOT_FOUND, found, lookup, wait_until
from fix_slapd import BASE, Entry, Slapd, entry
from fix_slapd import unavailable as slapd_unavailable
from fix_sql import Service, served

REASON = slapd_unavailable()
STOCK_REASON = unavailable() or type_missing("ldap")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

REFS = f"ou=refs,{BASE}"  # entries, and referrals that work
DEAD = f"ou=dead,{BASE}"  # the same, and one that does not
TWICE = f"ou=twice,{BASE}"  # two referrals to one place
FAR = f"ou=far,{BASE}"  # of the second server
CHASING = {"chase_referrals": "yes"}


def folder(dn: str) -> Entry:
    return dn, {"objectClass": ["organizationalUnit"], "ou": [dn.partition(",")[0].partition("=")[2]]}


def referral(dn: str, *urls: str) -> Entry:
    name = dn.partition(",")[0].partition("=")[2]
    return dn, {"objectClass": ["referral", "extensibleObject"], "ou": [name], "ref": list(urls)}


def fill(near: Slapd, far: Slapd) -> None:
    """Both serve the same base, so that an entry's name says nothing of where it is."""
    here, there, nowhere = near.address(), far.address(), f"ldap://127.0.0.1:{free_port()}"
    far.add(
        folder(FAR), folder(f"ou=deeper,{FAR}"),
        entry("f1", FAR, mailacceptinggeneralid=["far@b.c", "both@b.c"], maildrop="far box"),
        entry("f2", f"ou=deeper,{FAR}", mailacceptinggeneralid="deep@b.c", maildrop="deep box"),
        entry("f3", f"ou=closed,{BASE}", mailacceptinggeneralid="closed@b.c", maildrop="closed box"),
        referral(f"ou=back,{FAR}", f"{here}/ou=more,{BASE}"),
        referral(f"ou=circle,{BASE}", f"{here}/ou=circle,{BASE}"),
    )  # fmt: skip
    near.add(
        folder(REFS), folder(DEAD), folder(f"ou=more,{BASE}"),
        entry("n1", REFS, mailacceptinggeneralid=["near@b.c", "both@b.c"], maildrop="near box"),
        entry("n2", REFS, mailacceptinggeneralid="group@b.c", inner=[f"cn=f1,ou=there,{REFS}"]),
        entry("n5", REFS, mailacceptinggeneralid="dangling@b.c", maildrop="dangling box",
              inner=[f"cn=nobody,{REFS}"]),
        entry("n3", DEAD, mailacceptinggeneralid="near@b.c", maildrop="near box"),
        entry("n4", f"ou=more,{BASE}", mailacceptinggeneralid="back@b.c", maildrop="back box"),
        referral(f"ou=there,{REFS}", f"{there}/{FAR}"),
        referral(f"ou=shut,{BASE}", f"{there}/ou=closed,{BASE}"),
        referral(f"ou=gone,{DEAD}", f"{nowhere}/{FAR}"),
        referral(f"ou=second,{BASE}", f"{nowhere}/{FAR}", f"{there}/{FAR}"),
        referral(f"ou=lost,{BASE}", f"{nowhere}/{FAR}"),
        referral(f"ou=circle,{BASE}", f"{there}/ou=circle,{BASE}"),
        folder(TWICE), referral(f"ou=one,{TWICE}", f"{there}/{FAR}"),
        referral(f"ou=other,{TWICE}", f"{there}/{FAR}"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def far() -> Iterator[Slapd]:
    with Slapd() as server:
        yield server


@pytest.fixture(scope="module")
def near(far: Slapd) -> Iterator[Slapd]:
    with Slapd() as server:
        fill(server, far)
        yield server


@pytest.fixture(scope="module")
def ldap(near: Slapd) -> Iterator[Rows]:
    if STOCK_REASON is not None:
        pytest.skip(STOCK_REASON)
    with Pair("ldap", in_a_life=30) as pair:
        yield Rows(pair, near)


# Beside stock


def test_values_of_the_other_server(ldap: Rows) -> None:
    assert ldap.value(b"far@b.c", search_base=REFS, **CHASING) == b"far box"
    assert ldap.value(b"deep@b.c", search_base=REFS, **CHASING) == b"deep box"
    assert ldap.value(b"near@b.c", search_base=REFS, **CHASING) == b"near box"
    assert ldap.value(b"both@b.c", search_base=REFS, **CHASING) == b"near box,far box"
    assert ldap.value(b"absent@b.c", search_base=REFS, **CHASING) is None


def test_without_chase_referrals_they_are_ignored(ldap: Rows) -> None:
    assert ldap.value(b"both@b.c", search_base=REFS) == b"near box"
    assert ldap.value(b"far@b.c", search_base=REFS) is None


def test_base_that_is_a_referral(ldap: Rows) -> None:
    for base in (f"ou=there,{REFS}", f"ou=deeper,ou=there,{REFS}", f"ou=second,{BASE}"):
        assert ldap.value(b"deep@b.c", search_base=base, **CHASING) == b"deep box"
    assert ldap.value(b"absent@b.c", search_base=f"ou=there,{REFS}", **CHASING) is None


def test_base_that_is_a_dead_referral_is_retry(ldap: Rows) -> None:
    ldap.fails("Search error 10: Referral", search_base=f"ou=lost,{BASE}", **CHASING)


def test_scopes(ldap: Rows) -> None:
    for scope in ("one", "base"):
        name = ldap.table(search_base=REFS, scope=scope, **CHASING)
        for key in (b"far@b.c", b"deep@b.c", b"near@b.c", b"both@b.c"):
            ldap.same(name, key)
    name = ldap.table(search_base=f"ou=there,{REFS}", scope="one", **CHASING)
    assert ldap.same(name, b"far@b.c") == found(b"far box")
    assert ldap.same(name, b"deep@b.c") == NOT_FOUND


def test_referral_to_a_referral(ldap: Rows) -> None:
    assert ldap.value(b"back@b.c", search_base=REFS, **CHASING) == b"back box"


def test_circle_is_retry_at_once(ldap: Rows) -> None:
    name = ldap.table(search_base=f"ou=circle,{BASE}", **CHASING)
    start = time.monotonic()
    assert ldap.ours(name, b"far@b.c") == RETRY
    assert time.monotonic() - start < 5


def test_two_referrals_to_one_place_are_no_circle(ldap: Rows) -> None:
    """Stock searches there once, or, seldom, twice: if the first search is over by then."""
    name = ldap.table(search_base=TWICE, **CHASING)
    assert ldap.ours(name, b"deep@b.c") == found(b"deep box")
    assert ldap.stock(name, b"deep@b.c") in (found(b"deep box"), found(b"deep box,deep box"))
    assert ldap.same(name, b"absent@b.c") == NOT_FOUND


def test_special_value_that_lies_elsewhere(ldap: Rows) -> None:
    special = {"special_result_attribute": "inner"}
    assert ldap.value(b"group@b.c", search_base=REFS, **special, **CHASING) == b"far box"


def test_special_value_that_is_nowhere_is_skipped_with_a_warning(ldap: Rows) -> None:
    special = {"special_result_attribute": "inner"}
    name = ldap.table(search_base=REFS, **special, **CHASING)
    assert ldap.same(name, b"dangling@b.c") == found(b"dangling box")
    wait_for(ldap.pair.ours.log, 0, f"{name.decode()}: DN cn=nobody,{REFS} not found, skipping")


def test_the_other_server_is_asked_without_login(ldap: Rows) -> None:
    ldap.fails("Search error 50: Insufficient access", search_base=f"ou=shut,{BASE}", **CHASING)


def test_limits(ldap: Rows) -> None:
    limited = {"search_base": REFS, "expansion_limit": "1"} | CHASING
    ldap.fails("Query size limit", key=b"both@b.c", **limited)
    assert ldap.value(b"far@b.c", **limited) == b"far box"


def test_dead_referral_does_no_harm_where_something_is_found(ldap: Rows) -> None:
    assert ldap.value(b"near@b.c", search_base=DEAD, **CHASING) == b"near box"


def test_intended_difference_nothing_found_and_a_dead_referral_is_retry(ldap: Rows) -> None:
    """Stock bounces mail for whoever is known to the server that it cannot reach."""
    name = ldap.table(search_base=DEAD, **CHASING)
    assert ldap.stock(name, b"far@b.c") == NOT_FOUND
    assert ldap.ours(name, b"far@b.c") == RETRY
    wait_for(ldap.pair.ours.log, 0, "lookup error: referral to ldap://127.0.0.1")


# Ours alone


@pytest.fixture
def service(near: Slapd) -> Iterator[Service]:
    with served(near, {"lookup_time_limit": "4s", "server_connect_time_limit": "1s"}) as made:
        yield made


def chasing(service: Service, **others: str) -> bytes:
    return service.table(search_base=REFS, **CHASING, **others)


def test_both_servers_have_one_connection_for_one_client(service: Service, near: Slapd, far: Slapd) -> None:
    with Relay(("127.0.0.1", near.port)) as relay:
        table = chasing(service, server_host=f"127.0.0.1:{relay.port}")
        service.start()
        before = far.figure("cn=Total,cn=Connections")
        with service.connect() as peer:
            for _ in range(20):
                assert peer.ask(lookup(table, b"both@b.c")) == found(b"near box,far box")
        assert relay.accepted == 1
        # Two referrals lead there, over one connection; the rest are the figures' own.
        assert far.figure("cn=Total,cn=Connections") - before <= 3


def test_connections_cut_meanwhile_cost_nothing(service: Service, near: Slapd, far: Slapd) -> None:
    table = chasing(service)
    service.start()
    with service.connect() as peer:
        for server in (near, far, near):
            assert peer.ask(lookup(table, b"both@b.c")) == found(b"near box,far box")
            server.restart()
        assert peer.ask(lookup(table, b"both@b.c")) == found(b"near box,far box")


def test_silent_server_of_a_referral_holds_up_nobody_else(service: Service, far: Slapd) -> None:
    table, other = chasing(service), service.table(search_base=f"ou=more,{BASE}", **CHASING)
    service.start()
    far.pause()
    try:
        with service.connect() as peer, service.connect() as neighbour:
            peer.send(lookup(table, b"far@b.c"))
            start = time.monotonic()
            assert neighbour.ask(lookup(other, b"back@b.c")) == found(b"back box")
            assert not peer.answered(), "it waited for the referral"
            assert peer.reply() == RETRY
            assert time.monotonic() - start < 4 + 10
    finally:
        far.resume()
    wait_until(lambda: service.ask(table, b"far@b.c") == found(b"far box"), "the answer", 30)
    assert "is down" not in service.log()  # of the table's own server nothing is wrong


@pytest.mark.parametrize("how", [{}, {"start_tls": "yes"}, {"bind": "sasl", "sasl_mechs": "DIGEST-MD5"}])
def test_server_that_hangs_is_retry_in_time_and_then_used_again(
    service: Service, near: Slapd, how: dict[str, str]
) -> None:
    with Relay(("127.0.0.1", near.port)) as relay:
        login = {"bind_dn": "pm"} if "bind" in how else {}
        table = chasing(service, server_host=f"127.0.0.1:{relay.port}", **how, **login)
        service.start()
        relay.stalled = True
        start = time.monotonic()
        assert service.ask(table, b"far@b.c") == RETRY
        assert time.monotonic() - start < 4 + 10
        service.wait_log("is down: ")
        relay.stalled = False
        wait_until(lambda: service.ask(table, b"far@b.c") == found(b"far box"), "the answer", 30)
        service.wait_log("is up again after ")


@contextlib.contextmanager
def endless() -> Iterator[int]:
    """The port of a directory that finds entries without end."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                asker, _ = listening.accept()
                with asker, contextlib.suppress(OSError):
                    asker.recv(4096)  # the login, number 1
                    asker.sendall(bytes.fromhex("300c020101 61070a010004000400"))
                    asker.recv(4096)  # the search, number 2
                    while not over.is_set():
                        asker.sendall(bytes.fromhex("3009020102 640404003000") * 5000)

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_answer_without_end_is_given_up(service: Service) -> None:
    with endless() as port:
        table = chasing(service, server_host=f"127.0.0.1:{port}", timeout="1")
        service.start()
        assert service.ask(table, b"far@b.c") == RETRY
        service.wait_log("no answer within 1s")


def test_dead_referrals_leak_nothing(service: Service) -> None:
    table = service.table(search_base=DEAD, **CHASING)
    service.start()
    with service.connect() as peer:
        for number in range(60):
            assert peer.ask(lookup(table, b"far%d@b.c" % number)) == RETRY
            if number == 10:
                before = service.descriptors()
        assert service.descriptors() <= before
