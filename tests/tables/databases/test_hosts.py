"""test_hosts - which host is next, when one is down, and when it is tried again"""

from __future__ import annotations

import pytest

from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.hosts import FIRST_GAP, JITTER, MANY_PROBES, PROOF, RECENT_LEAST, Hosts


def hosts_of(*kinds: str, error_limit: int = 3, longest_gap: float = 10) -> Hosts:
    addresses = [Address(kind, f"{kind}{n}", 0, f"{kind}{n}") for n, kind in enumerate(kinds)]
    return Hosts(addresses, error_limit, probe_interval=1, longest_gap=longest_gap)


def fail(hosts: Hosts, number: int, now: float) -> bool:
    return hosts.failed(hosts.all[number], now - 0.01, now, "it fails")


def test_sockets_come_before_names_and_names_before_uris() -> None:
    hosts = hosts_of("uri", "inet", "unix", "inet")
    chosen = []
    for now in range(1, 5):
        host = hosts.choose()
        assert host is not None
        chosen.append(host.address.kind)
        hosts.failed(host, now, now, "it fails", outright=True)
    assert chosen == ["unix", "inet", "inet", "uri"]
    assert hosts.choose() is None


def test_hosts_of_a_kind_come_in_any_order() -> None:
    first = {hosts_of("inet", "inet", "inet").choose().number for _ in range(200)}  # type: ignore[union-attr]
    assert first == {0, 1, 2}


def test_one_failure_makes_another_host_the_next_and_none_down() -> None:
    hosts = hosts_of("unix", "inet")
    assert not fail(hosts, 0, now=1)
    assert hosts.choose() is hosts.all[1]
    assert not hosts.due(now=100)


def test_host_is_down_after_failures_in_a_row() -> None:
    hosts = hosts_of("inet")
    assert [fail(hosts, 0, now) for now in (1, 2, 3)] == [False, False, True]
    assert hosts.choose() is None


def test_success_ends_the_row() -> None:
    hosts = hosts_of("inet")
    fail(hosts, 0, now=1)
    fail(hosts, 0, now=2)
    assert hosts.succeeded(hosts.all[0], now=3) is None
    assert not fail(hosts, 0, now=4)


def test_host_is_down_when_most_of_what_it_is_asked_fails() -> None:
    """Though it never fails so often in a row."""
    hosts = hosts_of("inet", error_limit=1000)
    host = hosts.all[0]

    def down_after(answers_each: float) -> int:
        for n in range(100):
            now = 100 + n / 10
            if hosts.failed(host, now - 0.01, now, "it breaks", answers=int(n * answers_each), row=False):
                return n + 1
        return 0

    assert down_after(answers_each=0.5) >= RECENT_LEAST / 2
    hosts.succeeded(host, now=1000, answers=0)
    host.proven = 0, 0.0
    assert down_after(answers_each=1.5) == 0


def test_few_or_rare_failures_are_no_outage() -> None:
    hosts = hosts_of("inet", error_limit=1000)
    host = hosts.all[0]
    for n in range(100):
        now = 100.0 + n
        assert not hosts.failed(host, now - 0.01, now, "it breaks", answers=0, row=False)


def test_host_that_is_back_has_to_prove_itself() -> None:
    hosts = hosts_of("inet", error_limit=3)
    for now in (1, 2, 3):
        fail(hosts, 0, now)
    assert hosts.succeeded(hosts.all[0], now=4, answers=7) == 1
    assert hosts.failed(hosts.all[0], 4.5, 5, "it breaks", answers=7 + PROOF - 1)
    assert 2 * (1 - JITTER) <= hosts.all[0].next_probe - 5 <= 2 * (1 + JITTER)
    hosts.succeeded(hosts.all[0], now=8, answers=20)
    assert not hosts.failed(hosts.all[0], 8.5, 9, "it breaks", answers=20 + PROOF)


def test_what_began_before_another_failure_is_the_same_trouble() -> None:
    hosts = hosts_of("inet")
    assert not any(hosts.failed(hosts.all[0], 1.0, 2.0, "cut") for _ in range(10))
    assert hosts.choose() is hosts.all[0]


def test_outage_is_told_once_and_its_length_at_the_end() -> None:
    hosts = hosts_of("inet", error_limit=1)
    assert [fail(hosts, 0, now) for now in (10, 11, 12)] == [True, False, False]
    assert hosts.succeeded(hosts.all[0], now=52) == 42
    assert hosts.choose() is hosts.all[0]


@pytest.mark.parametrize("longest", [3, 10])
def test_probes_come_soon_then_each_second_for_a_minute_then_rarely(longest: int) -> None:
    hosts = hosts_of("inet", error_limit=1, longest_gap=longest)
    now, gaps = 100.0, []
    fail(hosts, 0, now)
    while now < 100 + 4 * MANY_PROBES:
        due = hosts.all[0].next_probe
        assert not hosts.due(due - 0.01)
        assert hosts.due(due) == hosts.all
        gaps.append((due - 100, due - now))
        now = due
        fail(hosts, 0, now)
    assert gaps[0][0] <= FIRST_GAP * (1 + JITTER)
    early = [gap for age, gap in gaps[1:] if age < MANY_PROBES]
    assert max(early) <= 1 + JITTER
    assert min(early) >= 1 - JITTER
    assert longest * (1 - JITTER) <= gaps[-1][1] <= longest * (1 + JITTER)
