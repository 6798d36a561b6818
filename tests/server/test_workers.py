"""test_workers - slow tables on worker threads: they delay nobody, fail alone, and replies keep their order

The server runs in this process, so that a table type of the test can be
registered, and its lookups held back until the test lets them go.
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from fix_gate import CONFIG, DENY, NOKEY, OK, RETRY, WORKERS, Gate, GatedTable, InProcess, gated_server
from fix_server import (
    DIALECTS,
    LIMIT,
    LOCK,
    Peer,
    found,
    lookup,
    request,
    wait_until,
    write_cdb,
)
from oracle import reply

from proxymap.base import _watch
from proxymap.base.files import stamp_of
from proxymap.errors import TableRetry
from proxymap.server.log import Log
from proxymap.server.threads import crew as crew_module
from proxymap.server.threads import openers
from proxymap.server.threads import workers as workers_module
from proxymap.server.threads.crew import Crew
from proxymap.server.threads.workers import Workers
from proxymap.tables._jobs import Job, Queue
from proxymap.tables.base import SlowTable

INSTANCES_OF_A_TABLE = 64  # as clients see it


@pytest.fixture
def server(gate: Gate) -> Iterator[InProcess]:
    with gated_server(gate) as server:
        yield server


@pytest.fixture
def writer(gate: Gate) -> Iterator[InProcess]:
    """The proxywrite service."""
    with gated_server(gate, writes=True) as server:
        yield server


def slow(key: bytes, dialect: str = "3.6") -> bytes:
    return lookup(b"slow:t", key, dialect)


def value_of(key: bytes) -> list[tuple[bytes, bytes]]:
    return found(b"value of " + key)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_slow_table_answers(server: InProcess, dialect: str) -> None:
    with server.connect() as peer:
        asked = request("open", b"slow:t", dialect)
        assert peer.ask(asked) == reply("open", dialect, OK, LOCK | SlowTable.flags)
        assert peer.ask(slow(b"a", dialect)) == reply("lookup", dialect, OK, LOCK, value=b"value of a")
        assert peer.ask(slow(b"no", dialect)) == reply("lookup", dialect, NOKEY, LOCK)
        large = reply("lookup", dialect, OK, LOCK, value=b"x" * 1_000_000)
        assert peer.ask(slow(b"large", dialect)) == large


def test_slow_lookups_do_not_delay_fast_ones(server: InProcess, gate: Gate) -> None:
    server.fast_lookups_are_served()
    waiting = [server.connect() for _ in range(WORKERS + 2)]
    for i, peer in enumerate(waiting):
        peer.send(slow(b"wait %d" % i))
    wait_until(lambda: len(gate.asked) == WORKERS, "all workers are busy")
    server.fast_lookups_are_served()
    assert len(gate.asked) == WORKERS  # none of them has gone on meanwhile
    gate.answers.set()
    for i, peer in enumerate(waiting):
        assert peer.reply() == value_of(b"wait %d" % i)
        peer.close()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_replies_of_a_pipelining_client_keep_their_order(server: InProcess, gate: Gate, dialect: str) -> None:
    fast = lookup(server.cdbs[0], b"k1", dialect, flags=LOCK | 4)
    fast_reply = reply("lookup", dialect, OK, LOCK | 4, value=b"v1")
    keys = [b"wait", b"a", b"no", b"large", b"retry", b"b"]
    with server.connect() as peer:
        peer.send(b"".join(fast + slow(key, dialect) + fast for key in keys))
        wait_until(lambda: gate.asked, "the first slow lookup")
        server.fast_lookups_are_served(1)
        assert gate.asked == [b"wait"]  # the next is asked when this one is answered
        gate.answers.set()
        for key in keys:
            assert peer.reply() == fast_reply
            status = {b"no": NOKEY, b"retry": RETRY}.get(key, OK)
            value = b"x" * 1_000_000 if key == b"large" else b"value of " + key
            assert peer.reply() == reply("lookup", dialect, status, LOCK, value=value)
            assert peer.reply() == fast_reply
    assert gate.asked == keys


@pytest.mark.parametrize(
    ("key", "status", "words"),
    [
        (b"retry", RETRY, "warning: slow:t lookup error: server is down"),
        (b"config", CONFIG, "warning: slow:t lookup error: no such column"),
        (b"bug", RETRY, "error: slow:t lookup error: KeyError: 'oops' [look_up (fix_gate.py:"),
        (b"text", RETRY, "error: slow:t lookup error: "),
        (b"number", RETRY, "error: slow:t lookup error: "),
    ],
)
def test_failure_is_a_status_and_one_log_line(server: InProcess, key: bytes, status: int, words: str) -> None:
    with server.connect() as peer:
        for _ in range(WORKERS * 2):  # no worker is lost by it
            assert peer.ask(slow(key)) == reply("lookup", "3.6", status)
        assert peer.ask(slow(b"a")) == value_of(b"a")
    wait_until(lambda: any(line.startswith(words) for line in server.lines), "the log line")
    assert len([line for line in server.lines if "slow:t" in line]) == 1


def test_value_ends_at_its_first_nul(server: InProcess) -> None:
    with server.connect() as peer:
        assert peer.ask(slow(b"nul")) == found(b"before")
        assert peer.ask(slow(b"a")) == value_of(b"a")


@pytest.mark.parametrize(
    ("name", "words"), [(b"slow:unforeseen", "ZeroDivisionError"), (b"slow:config", "nonsense")]
)
def test_table_that_fails_to_open_is_retry_and_costs_no_worker(
    server: InProcess, name: bytes, words: str
) -> None:
    for _ in range(WORKERS * 2):
        with server.connect() as peer:
            assert peer.ask(request("open", name))[0] == (b"status", b"0")
            assert peer.ask(lookup(name, b"k")) == reply("lookup", "3.6", RETRY)
    wait_until(lambda: any(words in line for line in server.lines), "the log line")
    server.fast_lookups_are_served()


def test_slow_open_delays_only_those_who_wait_for_that_table(server: InProcess, gate: Gate) -> None:
    server.fast_lookups_are_served()
    gate.opens.clear()
    waiting = [server.connect() for _ in range(5)]
    for i, peer in enumerate(waiting):
        peer.send(
            lookup(server.cdbs[0], b"k1") + lookup(b"slow:opens", b"%d" % i) + lookup(server.cdbs[0], b"k2")
        )
    for peer in waiting:
        assert peer.reply() == found(b"v1")
    server.fast_lookups_are_served()
    gate.opens.set()
    for i, peer in enumerate(waiting):
        assert peer.reply() == value_of(b"%d" % i)
        assert peer.reply() == found(b"v2")
        peer.close()
    assert gate.opened == [b"slow:opens"]


def test_slow_open_does_not_delay_the_opening_of_other_tables(server: InProcess, gate: Gate) -> None:
    gate.opens.clear()
    with server.connect() as waits:
        waits.send(lookup(b"slow:opens", b"k"))
        wait_until(lambda: gate.opened, "the slow open")
        for table in range(4):
            server.fast_lookups_are_served(table)
        gate.opens.set()
        assert waits.reply() == value_of(b"k")


@pytest.mark.parametrize("pipelined", [False, True])
def test_client_that_leaves_while_its_table_is_opened_hurts_nobody(
    server: InProcess, gate: Gate, pipelined: bool
) -> None:
    server.fast_lookups_are_served()
    gate.opens.clear()
    with server.connect() as waits:
        waits.send(lookup(b"slow:opens", b"a"))
        for _ in range(20):
            with server.connect() as leaves:
                leaves.send(
                    (lookup(server.cdbs[0], b"k1") if pipelined else b"") + lookup(b"slow:opens", b"k")
                )
        server.fast_lookups_are_served()  # new clients take the memory of the old
        gate.opens.set()
        assert waits.reply() == value_of(b"a")
    server.fast_lookups_are_served()
    wait_until(lambda: server.server.loop.counters()["clients"] == 0, "all clients are gone")


@pytest.mark.parametrize("pipelined", [False, True])
def test_client_that_leaves_while_a_worker_is_asked_hurts_nobody(
    server: InProcess, gate: Gate, pipelined: bool
) -> None:
    server.fast_lookups_are_served()
    with (
        server.connect() as peer
    ):  # with the table open, each request is at a worker before its client is missed
        assert peer.ask(slow(b"a")) == value_of(b"a")
    gate.asked.clear()
    for i in range(20):
        with server.connect() as leaves:
            leaves.send((lookup(server.cdbs[0], b"k1") if pipelined else b"") + slow(b"wait %d" % i))
    wait_until(lambda: len(gate.asked) == WORKERS, "all workers are busy")
    server.fast_lookups_are_served()
    gate.answers.set()
    wait_until(lambda: len(gate.asked) == 20, "the rest")
    with server.connect() as peer:
        assert peer.ask(slow(b"a")) == value_of(b"a")
    wait_until(lambda: server.server.loop.counters()["clients"] == 0, "all clients are gone")
    assert server.server.loop.counters()["buffered_bytes"] == 0


@pytest.mark.parametrize("kind", ["update", "delete", "sequence"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_the_type_cannot_do_is_refused_where_stock_may_exit(
    server: InProcess, dialect: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GatedTable, "has_sequence", False)
    status = CONFIG if kind == "sequence" else DENY
    with server.connect() as peer:
        asked = request(kind, b"slow:t", dialect, key=b"k", value=b"v", function=0)
        answer = peer.ask(asked)
        assert answer == reply(kind, dialect, status, LOCK if status == CONFIG else 0)
        assert peer.ask(slow(b"a")) == value_of(b"a")


def test_table_whose_workers_are_all_stuck_holds_up_no_other_table(server: InProcess, gate: Gate) -> None:
    stuck = [server.connect() for _ in range(WORKERS + 2)]
    for i, peer in enumerate(stuck):
        peer.send(slow(b"wait %d" % i))
    wait_until(lambda: len(gate.asked) == WORKERS, "all workers of slow:t are busy")
    with server.connect() as peer:  # opens slow:u, and asks it
        assert peer.ask(lookup(b"slow:u", b"a")) == value_of(b"a")
    server.fast_lookups_are_served()  # opens a cdb
    gate.answers.set()
    for i, peer in enumerate(stuck):
        assert peer.reply() == value_of(b"wait %d" % i)
        peer.close()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_lookup_that_takes_too_long_is_answered_retry(gate: Gate, dialect: str) -> None:
    gate.time_limit = 1
    with gated_server(gate) as server:
        stuck = [server.connect() for _ in range(WORKERS + 2)]  # two of them wait behind the others
        for peer in stuck:
            peer.send(slow(b"wait", dialect))
        for peer in stuck:
            assert peer.reply() == reply("lookup", dialect, RETRY, LOCK)
        text = "slow:t lookup error: no answer within 1 s"
        wait_until(lambda: any(text in line for line in server.lines), "the log line")
        gate.answers.set()  # what comes now is nobody's answer
        for peer in stuck:
            assert peer.ask(slow(b"a", dialect)) == reply("lookup", dialect, OK, LOCK, value=b"value of a")
            peer.close()


def test_lookup_is_answered_where_there_is_no_memory_to_watch_over_it(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(dict[Job, int]):
        def __setitem__(self, job: Job, since: int) -> None:
            raise MemoryError

    ask = Workers._ask

    def ask_without_memory(self: Workers, crew: Crew, job: Job) -> None:
        crew.running = Full()
        ask(self, crew, job)

    monkeypatch.setattr(Workers, "_ask", ask_without_memory)
    with gated_server(gate) as server, server.connect() as peer:
        for _ in range(WORKERS * 2):  # no worker is lost by it
            assert peer.ask(slow(b"a")) == reply("lookup", "3.6", RETRY, LOCK)


class Short:
    """Makes what a thread does with a job fail to get one piece of memory: the one of that `number`."""

    def __init__(self) -> None:
        self.memory = pytest.importorskip("_testcapi")
        self.number: int | None = None
        self.done = Queue()

    def put(self, job: Job) -> None:
        """In place of what the server's queue does: nobody else is to go short."""
        self.memory.remove_mem_hooks()
        self.done.put(job)

    def stand_before(self, threads: Workers | openers.Openers) -> None:
        self.done, threads.done = threads.done, self  # type: ignore[assignment]

    def of(self, do: Callable[..., None]) -> Callable[..., None]:
        def do_so(*arguments: object) -> None:
            if self.number is None:
                return do(*arguments)
            self.memory.set_nomemory(self.number, self.number + 1)
            try:
                return do(*arguments)
            finally:
                self.memory.remove_mem_hooks()

        return do_so


def test_new_content_waits_for_no_table_that_hangs_though_no_more_threads_can_be_had(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crew, "_start_more", lambda crew: None)
    with gated_server(gate, open_time_limit="1h") as server, server.connect() as peer:
        assert peer.ask(lookup(server.cdbs[0], b"k1")) == found(b"v1")
        gate.opens.clear()
        with server.connect() as waits:
            waits.send(lookup(b"slow:opens", b"a"))
            wait_until(lambda: gate.opened == [b"slow:opens"], "the last opener")
            write_cdb(server.folder / "t0.cdb", {b"k": b"new"})
            assert peer.ask(lookup(server.cdbs[0], b"k")) == found(b"new")
            gate.opens.set()
            assert waits.reply() == value_of(b"a")


@pytest.mark.parametrize("key", [b"a", b"retry", b"bug", b"large"])
def test_lookup_is_answered_whatever_piece_of_memory_cannot_be_had(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, key: bytes
) -> None:
    short = Short()
    monkeypatch.setattr(Workers, "_ask", short.of(Workers._ask))
    gate.time_limit = 3600
    with gated_server(gate) as server, server.connect() as peer:
        short.stand_before(server.server.workers)
        for number in range(40):
            short.number = None
            assert peer.ask(slow(b"a")) == value_of(b"a")
            short.number = number
            peer.ask(slow(key))
        short.number = None


def test_open_is_answered_whatever_piece_of_memory_cannot_be_had(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Short()
    monkeypatch.setattr(openers.Openers, "_do", short.of(openers.Openers._do))
    with gated_server(gate, open_time_limit="1h") as server, server.connect() as peer:
        short.stand_before(server.server.workers._openers)
        for number in range(10):
            short.number = number
            write_cdb(server.folder / "t0.cdb", {b"k": b"%d" % number})
            peer.ask(lookup(server.cdbs[0], b"k"))
            short.number = None
            wait_until(partial(has, peer, server.cdbs[0], b"%d" % number), "the new content", pause=0.1)


def has(peer: Peer, table: bytes, value: bytes) -> bool:
    return peer.ask(lookup(table, b"k")) == found(value)


def test_lookup_that_takes_too_long_is_answered_where_memory_runs_out_while_others_are_taken(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, take, full = Crew.late, Crew.take_waiting, []

    def late_ones(crew: Crew, limit_ms: int) -> list[Job]:
        full[:] = late(crew, limit_ms)
        return list(full)

    monkeypatch.setattr(Crew, "late", late_ones)
    monkeypatch.setattr(Crew, "take_waiting", lambda crew, ms: no_memory() if full else take(crew, ms))
    gate.time_limit = 1
    with gated_server(gate) as server, server.connect() as peer:
        peer.send(slow(b"wait"))
        wait_until(lambda: any("MemoryError" in line for line in server.lines), "the watchdog to fail")
        peer.socket.settimeout(LIMIT / 3)  # the lookup itself takes longer
        assert peer.reply() == reply("lookup", "3.6", RETRY, LOCK)
        gate.answers.set()


def test_open_that_takes_too_long_is_answered_when_there_is_memory_again(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.opens.clear()
    with gated_server(gate, open_time_limit="1s") as server, server.connect() as peer:
        peer.send(lookup(b"slow:opens", b"k"))
        wait_until(lambda: gate.opened, "the slow open")
        with monkeypatch.context() as now:
            now.setattr(openers, "key_of", no_memory)
            wait_until(lambda: any("MemoryError" in line for line in server.lines), "the watchdog to fail")
        peer.socket.settimeout(LIMIT / 3)  # the attempt itself takes longer
        assert peer.reply() == reply("lookup", "3.6", RETRY)
        gate.opens.set()
        wait_until(lambda: peer.ask(lookup(b"slow:opens", b"k")) == value_of(b"k"), "the table")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_slow_sequence_has_a_cursor_for_each_connection(server: InProcess, dialect: str) -> None:
    def walk(peer: Peer, function: int) -> list[tuple[bytes, bytes]]:
        return peer.ask(request("sequence", b"slow:t", dialect, function=function))

    def record(step: int) -> list[tuple[bytes, bytes]]:
        return reply("sequence", dialect, OK, LOCK, key=b"k%d" % step, value=b"v%d" % step)

    with server.connect() as one, server.connect() as other:
        assert walk(one, 0) == record(0)
        assert walk(other, 0) == record(0)
        assert [walk(one, 1), walk(one, 1)] == [record(1), record(2)]
        assert walk(other, 1) == record(1)
        assert walk(one, 1) == reply("sequence", dialect, NOKEY, LOCK)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_slow_update_and_delete_are_answered_with_their_status(
    writer: InProcess, gate: Gate, dialect: str
) -> None:
    forced = LOCK | 256  # DICT_FLAG_SYNC_UPDATE
    with writer.connect() as peer:
        asked = request("update", b"slow:t", dialect, key=b"k", value=b"v")
        assert peer.ask(asked) == reply("update", dialect, OK, forced | 128)
        asked = request("delete", b"slow:t", dialect, key=b"absent")
        assert peer.ask(asked) == reply("delete", dialect, NOKEY, forced)
        asked = request("update", b"slow:t", dialect, key=b"full", value=b"v")
        assert peer.ask(asked) == reply("update", dialect, RETRY, forced | 128)
    assert gate.written == [[(b"k", b"v")], [(b"absent", None)], [(b"full", b"v")]]
    wait_until(lambda: any("slow:t update error: OSError" in line for line in writer.lines), "the log line")


def requests_served(server: InProcess, count: int) -> bool:
    return bool(server.server.loop.counters()["requests"] >= count)


def test_request_that_waits_for_its_table_is_counted_once(server: InProcess) -> None:
    with server.connect() as peer:
        for cdb in server.cdbs:
            assert peer.ask(lookup(cdb, b"k1")) == found(b"v1")
        assert server.server.loop.counters()["requests"] == len(server.cdbs)


def test_updates_that_wait_are_written_together_and_in_order(writer: InProcess, gate: Gate) -> None:
    gate.writes.clear()
    peers = [writer.connect() for _ in range(10)]
    for i, peer in enumerate(peers):
        peer.send(request("update", b"slow:t", key=b"k%d" % i, value=b"v"))
        wait_until(lambda: gate.written, "the first write")
        wait_until(partial(requests_served, writer, i + 1), "the request")
    with writer.connect() as reader:  # is not held up by the writing
        assert reader.ask(slow(b"a")) == value_of(b"a")
    gate.writes.set()
    for peer in peers:
        assert peer.reply() == [(b"status", b"0")]
        peer.close()
    assert gate.written == [[(b"k0", b"v")], [(b"k%d" % i, b"v") for i in range(1, 10)]]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["update", "delete"])
def test_change_that_is_not_utf8_is_said_to_be_done_and_is_not(
    writer: InProcess, gate: Gate, dialect: str, kind: str
) -> None:
    utf8 = 1 << 19
    with writer.connect() as peer:
        for fields in ({"key": b"\xff", "value": b"v"}, {"key": b"k", "value": b"\xff"})[
            : 1 + (kind == "update")
        ]:
            asked = request(kind, b"slow:t", dialect, flags=utf8, instance_flags=utf8, **fields)
            assert dict(peer.ask(asked))[b"status"] == b"0"
    assert gate.written == []
    wait_until(lambda: any("non-UTF-8" in line for line in writer.lines), "the log line")


def test_slow_lookup_is_answered_before_the_end(server: InProcess, gate: Gate) -> None:
    with server.connect() as peer:
        peer.send(slow(b"wait") + slow(b"a"))
        wait_until(lambda: gate.asked, "the slow lookup")
        server.server.stop()
        gate.answers.set()
        assert peer.reply() == value_of(b"wait")
        assert peer.reply() == value_of(b"a")
        assert peer.rest() == b""
    server.thread.join(LIMIT)
    assert not server.thread.is_alive()


def test_instance_makes_no_room_while_a_worker_has_a_request_of_it(
    server: InProcess, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if the table that the worker asks is another one by now."""
    file = server.folder / "source"
    file.write_bytes(b"1")
    monkeypatch.setattr(GatedTable, "files", [(bytes(file), stamp_of(file.stat()))])
    with server.connect() as peer, server.connect() as crowd:
        peer.send(slow(b"wait"))
        wait_until(lambda: gate.asked, "the worker")
        file.write_bytes(b"22")
        wait_until(lambda: len(gate.opened) > 1, "the new content")
        for flags in range(2 * INSTANCES_OF_A_TABLE):
            crowd.ask(request("open", server.cdbs[0], "3.11", instance_flags=flags))
        known = [known["table"] for known in server.server.between_turns(server.server.loop.tables)]
        assert known.count(server.cdbs[0].decode()) == INSTANCES_OF_A_TABLE
        assert "slow:t" in known
        gate.answers.set()
        assert peer.reply() == value_of(b"wait")


def test_crew_goes_on_with_the_threads_it_has_when_there_can_be_no_more(
    server: InProcess, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.connect() as peer:
        assert peer.ask(slow(b"a")) == value_of(b"a")
        monkeypatch.setattr(_thread, "start_new_thread", no_more_threads)
        for _ in range(WORKERS):
            assert peer.ask(slow(b"a")) == value_of(b"a")
        monkeypatch.undo()


def test_update_is_retry_where_no_writer_can_be_had(
    writer: InProcess, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writer.connect() as peer:
        monkeypatch.setattr(_thread, "start_new_thread", no_more_threads)
        assert peer.ask(request("update", b"slow:t", key=b"k", value=b"v")) == [(b"status", b"2")]
        assert peer.ask(request("delete", b"slow:t", key=b"k")) == [(b"status", b"2")]
        monkeypatch.undo()
        assert peer.ask(slow(b"a")) == value_of(b"a")  # by the one that all tables share
    assert not gate.written


def test_update_is_answered_where_there_is_no_memory_to_say_why_it_failed(
    writer: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: GatedTable, changes: object) -> None:
        raise TableRetry("server is down")

    monkeypatch.setattr(GatedTable, "write", refuse)
    monkeypatch.setattr(Log, "warning", no_memory)
    with writer.connect() as peer:
        asked = request("update", b"slow:t", key=b"k", value=b"v")
        assert peer.ask(asked) == reply("update", "3.6", RETRY)


def test_update_is_made_when_there_is_memory_again(
    writer: InProcess, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out where the writer looks for changes to write with the first."""

    class Expected:
        tries = iter((no_memory, no_memory))

        def __get__(self, crew: object, owner: object) -> int:
            next(self.tries, int)()
            return 1

        def __set__(self, crew: object, value: int) -> None:
            pass

    monkeypatch.setattr(Crew, "expected", Expected())
    with writer.connect() as peer:
        asked = request("update", b"slow:t", key=b"k", value=b"v")
        assert peer.ask(asked) == reply("update", "3.6", OK)
    assert gate.written


def test_crew_ends_where_there_is_no_memory_for_the_other_of_its_table(
    writer: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Crew] = []
    start = Crew.start

    def start_if_asker(crew: Crew) -> None:
        if crew.name == "writer":
            raise MemoryError
        start(crew)
        started.append(crew)

    with writer.connect() as peer:
        assert peer.ask(lookup(b"static:v", b"k")) != []  # all is started that the server always has
        monkeypatch.setattr(Crew, "start", start_if_asker)
        assert peer.ask(request("update", b"slow:t", key=b"k", value=b"v")) == [(b"status", b"2")]
        assert started
        wait_until(lambda: not started[0].here, "the end of the asker's thread")
        monkeypatch.undo()


def test_crew_ends_where_there_is_no_memory_to_give_it_to_its_table(
    server: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Crew] = []
    start = Crew.start
    with server.connect() as peer:
        assert peer.ask(lookup(b"static:v", b"k")) != []  # all is started that the server always has
        monkeypatch.setattr(Crew, "start", lambda crew: (start(crew), started.append(crew)))
        monkeypatch.setattr(workers_module, "attach", no_memory)
        assert peer.ask(slow(b"a")) == value_of(b"a")  # by the one that all tables share
        wait_until(lambda: not started[0].here, "the end of its thread")
        monkeypatch.undo()


def no_memory(*args: object) -> None:
    raise MemoryError


def no_more_threads(*args: object) -> None:
    raise RuntimeError("can't start new thread")


def test_job_that_was_answered_is_not_looked_at_again() -> None:
    """By the minder, which has a list of what was under way a moment ago."""

    class Moment(dict[Job, int]):
        """What runs; all of it is answered as soon as somebody has looked."""

        def items(self) -> list[tuple[Job, int]]:  # type: ignore[override]
            seen = list(super().items())
            for job in self:
                done.put(job)
            self.clear()
            return seen

    done, queue = Queue(), Queue()
    queue.log(6, b"a job of any kind")
    job = queue.take()
    crew = Crew("asker", 1, lambda crew, job: None)
    crew.running = Moment({job: job.since_ms})
    assert not any(crew.claim(job) for job in crew.late(0))


def test_threads_that_were_needed_for_a_moment_leave_though_nothing_more_is_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crew_module, "IDLE", 0.05)
    gate = threading.Event()

    def work(crew: Crew, job: Job) -> None:
        assert gate.wait(LIMIT)

    crew = Crew("opener", 100, work, keep=1)
    crew.start()
    for _ in range(20):
        crew.queue.log(6, b"a job of any kind")
    wait_until(lambda: crew.here > 20, "a thread for each job, and one more")
    gate.set()
    wait_until(lambda: crew.here == 1, "all but one to leave")
    crew.queue.log(6, b"another")
    wait_until(lambda: not crew.queue.held, "the one that stayed")
    crew.stop(time.monotonic() + LIMIT)
    assert not crew.here


def test_threads_are_counted_right_whatever_piece_of_memory_cannot_be_had() -> None:
    """One that is counted as free, and is not, would take the place of one that is started."""
    memory = pytest.importorskip("_testcapi")
    numbers = iter(range(30))
    gate, busy = threading.Event(), threading.Semaphore(0)

    def work(crew: Crew, job: Job) -> None:
        number = next(numbers, None)
        if number is not None:
            memory.set_nomemory(number, number + 1)  # from here on: the rest is the crew's
        else:
            busy.release()
            assert gate.wait(LIMIT)

    crew = Crew("opener", 5, work, keep=1)
    crew.start()
    wait_until(lambda: crew.here == 1, "its first thread")
    try:
        for _ in range(30):
            crew.queue.log(6, b"a job of any kind")
            wait_until(lambda: not crew.queue.held and crew._idle == crew.here, "an end of the job")
            memory.remove_mem_hooks()
            crew.help()
        for _ in range(5):
            crew.queue.log(6, b"one that hangs")
            assert busy.acquire(timeout=LIMIT)
            crew.help()
    finally:
        memory.remove_mem_hooks()
        gate.set()
    crew.stop(time.monotonic() + LIMIT)
    assert not crew.here


def test_crews_come_while_others_are_minded() -> None:
    workers = Workers(Queue(), Log([]), writes=False)
    stop = threading.Event()
    queues: list[Queue] = []

    def come() -> None:
        while not stop.is_set():
            workers._start_crew(queues, "asker", 1, workers._ask)

    thread = threading.Thread(target=come)
    thread.start()
    try:
        for _ in range(3000):
            assert workers._all_crews()
    finally:
        stop.set()
        thread.join()
        for queue in queues:
            queue.close()


def test_missing_member_is_tried_again_where_no_event_tells_of_it(
    server: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watch, "is_remote", lambda path: True)
    asked = lookup(server.union, b"k1")
    with server.connect() as peer:
        assert peer.ask(asked) == reply("lookup", "3.6", RETRY)
        write_cdb(server.folder / "later.cdb", {b"k1": b"new"})
        wait_until(lambda: peer.ask(asked) == found(b"v1,new"), "the new member", limit=10)
