"""test_pool - connections that tables share: threads, limits, the minder, lookups that are late

Over pretended servers (fix_fake), which count, and stay silent on demand.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from fix_fake import FakeMySQL, FakePostgreSQL, FakeServer
from fix_server import wait_until

from proxymap.base import threads
from proxymap.errors import STAT_NOKEY, STAT_OK, TableRetry
from proxymap.tables.base import Host
from proxymap.tables.databases.served import ServedTable
from proxymap.tables.opening import open_table

RECORDS = {"a": ["1"], "b": ["2", "3"]}
LIMITS = {"connect_time_limit": 1, "time_limit": 2, "connection_limit": 4}


class Place:
    """Tables over a pretended server, in this process."""

    def __init__(self, server: FakeServer, folder: Path) -> None:
        self.server, self.folder, self.limits = server, folder, dict(LIMITS)
        self.warned: list[str] = []
        self.informed: list[str] = []
        self.host = Host(warn=self.warned.append)
        self.host.inform = self.informed.append
        self.host.server_limits = lambda type_name: self.limits

    def table(self, name: str = "t", **parameters: str) -> ServedTable:
        path = self.folder / f"{name}.cf"
        given = {
            "hosts": f"127.0.0.1:{self.server.port}", "user": "pm", "password": "x", "dbname": "mail",
            "query": "SELECT v FROM t WHERE k = '%s'",
        } | parameters  # fmt: skip
        path.write_text("".join(f"{key} = {value}\n" for key, value in given.items()))
        table = open_table(f"{self.server.maptype}:{path}".encode(), host=self.host)
        assert isinstance(table, ServedTable), table.reason
        return table

    def threads(self) -> set[str]:
        """Of this server."""
        return {thread.name for thread in threading.enumerate() if f":{self.server.port}" in thread.name}


@pytest.fixture(params=[FakeMySQL, FakePostgreSQL], ids=["mysql", "pgsql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with request.param(RECORDS) as server:
        found = Place(server, tmp_path)
        yield found
        gc.collect()
        wait_until(lambda: not found.threads(), "the end of the threads")


@contextlib.contextmanager
def asking(table: ServedTable, key: bytes, count: int) -> Iterator[list[Future[tuple[int, int, bytes]]]]:
    """So many lookups at the same time."""
    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(table.ask, key, 0) for _ in range(count)]


def test_tables_with_the_same_login_share_connections_and_threads(place: Place) -> None:
    first, second = place.table("one"), place.table("two", query="SELECT v FROM u WHERE k = '%s'")
    for _ in range(5):
        assert first.ask(b"a", 0) == (STAT_OK, 0, b"1")
        assert second.ask(b"b", 0) == (STAT_OK, 0, b"2,3")
    assert first.server is second.server
    assert place.server.log_ins == 1
    assert len(place.threads()) == 2


def test_lookups_leave_no_references(place: Place) -> None:
    table = place.table()
    table.ask(b"a", 0)
    before = sys.getrefcount(table)
    for _ in range(5):
        table.ask(b"a", 0)
        table.explain(b"a")
    assert sys.getrefcount(table) == before


@pytest.mark.parametrize(
    "other", [{"user": "other"}, {"password": "y"}, {"dbname": "other"}, {"idle_interval": "9"}]
)
def test_another_login_has_connections_of_its_own(place: Place, other: dict[str, str]) -> None:
    first, second = place.table("one"), place.table("two", **other)
    assert first.ask(b"a", 0) == second.ask(b"a", 0)
    assert first.server is not second.server
    assert place.server.log_ins == 2


def test_threads_and_connections_end_with_the_last_table(place: Place) -> None:
    first, second = place.table("one"), place.table("two")
    first.ask(b"a", 0)
    del first
    gc.collect()
    assert second.ask(b"a", 0) == (STAT_OK, 0, b"1")
    del second
    gc.collect()
    wait_until(lambda: not place.threads(), "the end of the threads")
    wait_until(lambda: place.server.open == 0, "the end of the connections")


def test_no_more_connections_than_the_limit(place: Place) -> None:
    place.server.delay = 0.02
    table = place.table()
    most = 0
    with asking(table, b"a", 64) as answers:
        while not all(answer.done() for answer in answers):
            most = max(most, place.server.open)
            time.sleep(0.001)
    assert {answer.result() for answer in answers} == {(STAT_OK, 0, b"1")}
    assert 1 < most <= LIMITS["connection_limit"]


def test_thread_that_dies_at_once_is_a_failure_like_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when memory is short: the pool does not wait for it, and tries again."""
    start, asked = _thread.start_new_thread, []

    def die_at_first(run: Callable[[], None], args: tuple[()]) -> None:
        asked.append(run)
        if len(asked) > 1:
            start(run, args)

    monkeypatch.setattr(_thread, "start_new_thread", die_at_first)
    monkeypatch.setattr(threads, "ARRIVAL", 0.1)
    assert place.table().ask(b"a", 0) == (STAT_OK, 0, b"1")
    assert len(asked) == 2


def test_slow_question_is_retry_in_time_and_the_server_is_up(place: Place) -> None:
    table = place.table()
    assert table.ask(b"a", 0) == (STAT_OK, 0, b"1")
    place.server.manner = "slow"
    began = time.monotonic()
    with pytest.raises(TableRetry):
        table.ask(b"a", 0)
    assert time.monotonic() - began < LIMITS["time_limit"] + 5
    place.server.manner = "answer"
    assert table.ask(b"b", 0) == (STAT_OK, 0, b"2,3")
    assert not any("is down" in line for line in place.warned)


def test_server_that_answers_no_question_is_down(place: Place) -> None:
    """Though it lets us log in."""
    place.limits |= {"time_limit": 20}
    table = place.table()
    assert table.ask(b"a", 0) == (STAT_OK, 0, b"1")
    place.server.manner = "silent"
    with pytest.raises(TableRetry):
        table.ask(b"a", 0)
    assert any("is down: no connection within 1s" in line for line in place.warned)
    place.server.manner = "answer"
    wait_until(lambda: place.informed, "the end of the outage")
    assert table.ask(b"b", 0) == (STAT_OK, 0, b"2,3")


def test_server_that_breaks_most_questions_is_down(place: Place) -> None:
    """It lets us log in each time, so there never are failures in a row."""
    table = place.table()
    assert table.ask(b"a", 0) == (STAT_OK, 0, b"1")
    place.server.manner = "hollow"

    def is_down() -> bool:
        with pytest.raises(TableRetry):
            table.ask(b"a", 0)
        return any("is down" in line for line in place.warned)

    wait_until(is_down, "the outage")
    place.server.manner = "answer"
    wait_until(lambda: place.informed, "the end of the outage")
    assert answer_soon(table, b"b") == (STAT_OK, 0, b"2,3")


def answer_soon(table: ServedTable, key: bytes) -> tuple[int, int, bytes]:
    answers = []

    def answered() -> bool:
        with contextlib.suppress(TableRetry):
            answers.append(table.ask(key, 0))
        return bool(answers)

    wait_until(answered, "an answer", pause=0.05)
    return answers[0]


def test_second_tries_have_a_budget(place: Place) -> None:
    """Each answer breaks its connection: a second try for some, then RETRY at once."""
    place.limits |= {"connection_limit": 1}  # a spare one, not used yet, would need no second try
    table = place.table()
    place.limits |= {"retry_budget": 0}
    stingy = place.table("stingy")
    for each, tries in ((table, 1), (stingy, 0)):
        assert each.ask(b"a", 0) == (STAT_OK, 0, b"1")
        place.server.manner = "close"
        with pytest.raises(TableRetry):
            each.ask(b"a", 0)
        assert each.server.pool.driver.figures["retries"] == tries
        place.server.manner = "answer"


def test_server_is_told_how_long_a_question_may_take(place: Place) -> None:
    if place.server.maptype != "mysql":
        pytest.skip("libpq cancels a question that is late")
    table = place.table()
    assert table.ask(b"a", 0) == (STAT_OK, 0, b"1")
    assert any(b"max_statement_time" in sql and b", 2), 2)" in sql for sql in place.server.orders)


def test_others_answer_for_a_driver_that_does_not(place: Place) -> None:
    """What the minder does: queued lookups and those under way are answered once, and never again."""
    place.limits |= {"time_limit": 30, "connection_limit": 1, "connect_time_limit": 30}
    table = place.table()
    assert table.ask(b"a", 0) == (STAT_OK, 0, b"1")
    place.server.manner = "silent"
    with asking(table, b"a", 8) as answers:
        wait_until(lambda: table.server.pool.driver.figures["waiting"] == 7, "lookups that wait")
        time.sleep(0.2)
        assert not table.server.give_up_late(20_000)
        assert table.server.give_up_late(100) == [table] * 8
        assert not table.server.give_up_late(100)
        for answer in answers:
            with pytest.raises(TableRetry):
                answer.result(10)
    place.server.manner = "answer"
    place.server.cut()  # a driver that is back learns of it only now
    assert table.ask(b"b", 0) == (STAT_OK, 0, b"2,3")


def test_late_lookup_of_a_table_that_is_gone_hurts_nobody(place: Place) -> None:
    place.limits |= {"time_limit": 1}
    table, other = place.table("one"), place.table("two")
    place.server.manner = "silent"
    with pytest.raises(TableRetry):
        table.ask(b"a", 0)
    del table
    gc.collect()
    place.server.manner = "answer"
    assert other.ask(b"a", 0) == (STAT_OK, 0, b"1")


def test_refused_keys_need_no_server(place: Place) -> None:
    table = place.table(query="SELECT v FROM t WHERE k = '%u' AND d = '%d'")
    place.server.leave()
    assert table.ask(b"no address", 0)[0] == STAT_NOKEY
    with pytest.raises(TableRetry):
        table.ask(b"a@example.com", 0)
    assert table.ask(b"no address", 0)[0] == STAT_NOKEY
    place.server.listen()


def test_those_who_ask_again_at_once_are_refused_in_batches(place: Place) -> None:
    """During an outage; else clients that try again would take the CPU from all other tables."""
    table = place.table()
    place.server.leave()
    with pytest.raises(TableRetry):
        table.ask(b"a", 0)
    wait_until(lambda: place.warned, "the outage")
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(TableRetry):
            table.ask(b"a", 0)
    assert time.monotonic() - began > 49 * 0.005
    place.server.listen()


def test_outage_is_one_line_and_its_end_another(place: Place) -> None:
    table, other = place.table("one"), place.table("two")
    assert table.ask(b"a", 0) == other.ask(b"a", 0)
    place.server.leave()
    for _ in range(20):
        with pytest.raises(TableRetry):
            table.ask(b"a", 0)
    place.server.listen()
    wait_until(lambda: place.informed, "the end of the outage")
    assert table.ask(b"a", 0) == (STAT_OK, 0, b"1")
    shown = f"{place.server.maptype} server inet:127.0.0.1:{place.server.port}"
    assert [line.partition(": ")[0] for line in place.warned] == [f"{shown} is down"]
    assert place.warned[0].endswith("; used by 2 tables")
    assert place.informed[0].startswith(f"{shown} is up again after ")
