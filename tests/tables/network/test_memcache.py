"""test_memcache - memcache tables over a real memcached, and over one that misbehaves; with a backup, too"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_memcached import Memcached, unavailable, write_cf
from fix_scripted import Scripted
from fix_server import FOLD_FIX, wait_until
from fix_tables import Logged, change
from fix_tables import opened as opened_table

from proxymap.errors import STAT_NOKEY, STAT_OK, STAT_RETRY, TableRetry
from proxymap.tables._table import Table
from proxymap.tables.base import Change
from proxymap.tables.network import doubts
from proxymap.tables.opening import open_table

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
opened = functools.partial(opened_table, writes=True)


@pytest.fixture(scope="module")
def memcached() -> Iterator[Memcached]:
    with Memcached() as server:
        yield server


@pytest.fixture
def table(memcached: Memcached, tmp_path: Path) -> Table:
    """Alone, with keys of its own."""
    return opened(memcached.table(tmp_path / "t.cf", key_format=f"{tmp_path.name}-%s"))


@pytest.fixture
def backed(memcached: Memcached, tmp_path: Path) -> Table:
    tmp_path.chmod(0o700)
    parameters = {"key_format": f"{tmp_path.name}-%s", "backup": f"lmdb:{tmp_path}/backup"}
    return opened(memcached.table(tmp_path / "b.cf", **parameters))


def stored(table: Table, tmp_path: Path, memcached: Memcached, key: bytes) -> bytes | None:
    return memcached.get(f"{tmp_path.name}-".encode() + key)


# Keys and values


@pytest.mark.parametrize("value", [b"v", b"", b" a b ", b"a\r\nb\r\nEND\r\n", b"\xff", b"x" * 10240])
def test_values_come_back(table: Table, value: bytes) -> None:
    assert change(table, b"k", value) == STAT_OK
    assert table.answer(b"k", 0) == value


def test_absent_key(table: Table) -> None:
    assert table.answer(b"k", 0) is None
    assert change(table, b"k", None) == STAT_NOKEY


def test_deleted_key(table: Table) -> None:
    change(table, b"k", b"v")
    assert change(table, b"k", None) == STAT_OK
    assert table.answer(b"k", 0) is None


def test_value_ends_at_a_nul(table: Table) -> None:
    change(table, b"k", b"a\0b")
    assert table.answer(b"k", 0) == b"a"


def test_changes_of_one_key_are_made_in_order(table: Table) -> None:
    changes = [Change(b"k", b"%d" % n, 0) for n in range(20)]
    table.write(changes)
    assert {each.status for each in changes} == {STAT_OK}
    assert table.answer(b"k", 0) == b"19"


@pytest.mark.parametrize("key", [b"", b"a b", b"a\tb", b"a\nb", b"a\x01", b"a\x7f"])
def test_key_that_memcached_cannot_have(memcached: Memcached, tmp_path: Path, key: bytes) -> None:
    logged = Logged()
    table = opened(memcached.table(tmp_path / "t.cf"), logged)
    assert table.answer(key, 0) is None
    assert change(table, key, b"v") == STAT_NOKEY
    assert "skipping update for name" in logged.lines[0]


def test_key_that_is_too_long_is_retry(table: Table) -> None:
    with pytest.raises(TableRetry):
        table.answer(b"x" * 250, 0)
    assert change(table, b"x" * 250, b"v") == STAT_RETRY


def test_keys_are_folded_by_fold_fix(table: Table) -> None:
    change(table, b"key", b"v")
    assert table.answer(b"KEY", FOLD_FIX) == b"v"
    assert table.answer(b"KEY", 0) is None


@pytest.mark.parametrize(
    ("key_format", "key", "asked"),
    [
        ("%s", b"u@x.y", b"u@x.y"), ("%u-%d", b"u@x.y", b"u-x.y"), ("%2.%1-%U", b"u@x.y", b"x.y-u"),
        ("%u", b"whole", b"whole"), ("%S-%D", b"u@x.y", b"u@x.y-x.y"), ("a%%", b"k", b"a%"),
        ("%d", b"u", None), ("%3", b"u@x.y", None), ("", b"u", None), ("a %s", b"u", None),
    ],
)  # fmt: skip
def test_key_format(tmp_path: Path, key_format: str, key: bytes, asked: bytes | None) -> None:
    with Scripted("memcache", {}) as server:
        name = write_cf(tmp_path / "t.cf", memcache=server.endpoint, key_format=key_format)
        assert opened(name).answer(key, 0) is None
        assert server.questions == ([] if asked is None else [asked])


def test_address_of_ipv6(tmp_path: Path) -> None:
    with Scripted("memcache", {}, host="::1") as server:
        table = opened(write_cf(tmp_path / "t.cf", memcache=server.endpoint))
        assert change(table, b"k", b"v") == STAT_OK
        assert table.answer(b"k", 0) == b"v"


@pytest.mark.parametrize("digest", ["sha256", "SHA256", "md5"])
def test_key_digest(tmp_path: Path, digest: str) -> None:
    with Scripted("memcache", {}) as server:
        table = opened(write_cf(tmp_path / "t.cf", memcache=server.endpoint, key_digest=digest))
        for key in (b"k", b"with blank", b"x" * 300):
            assert change(table, key, b"v") == STAT_OK
            assert table.answer(key, 0) == b"v"
            assert server.questions.pop() == hashlib.new(digest, key).hexdigest().encode()
        assert table.answer(b"", 0) is None


def test_domain(tmp_path: Path) -> None:
    with Scripted("memcache", {b"u@here": b"v", b"here": b"v"}) as server:
        table = opened(write_cf(tmp_path / "t.cf", memcache=server.endpoint, domain="here, !there"))
        assert table.answer(b"u@here", 0) == b"v"
        for key in (b"u@there", b"here", b"@here", b"u@elsewhere"):
            assert table.answer(key, 0) is None
        assert server.questions == [b"u@here"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"memcache": "127.0.0.1:1"}, {"memcache": "udp:h:1"}, {"key_format": "%x"}, {"timeout": "2s"},
        {"max_try": "0"}, {"retry_pause": "0"}, {"line_size_limit": "0"}, {"data_size_limit": "0"},
        {"key_digest": "nosuch"}, {"key_digest": "shake_128"},
    ],
)  # fmt: skip
def test_parameter_that_cannot_be_is_a_surrogate(tmp_path: Path, parameters: dict[str, str]) -> None:
    table = open_table(write_cf(tmp_path / "t.cf", **parameters))
    assert table.reason is not None
    assert next(iter(parameters)).encode() in table.reason


def test_ttl_that_memcached_takes_for_a_date_is_told(tmp_path: Path) -> None:
    table = opened(write_cf(tmp_path / "t.cf", ttl=3_000_000))
    assert any("30 days" in what for what, _, _ in table.doubts())


# Servers that misbehave

ODD = {
    b"noend": (b"VALUE noend 0 1\r\nv\r\n", b"v"), b"badend": (b"VALUE badend 0 1\r\nv\r\nend\r\n", b"v"),
    b"lf": (b"VALUE lf 0 1\nv\r\nEND\n", b"v"), b"flags": (b"VALUE flags 77 1\r\nv\r\nEND\r\n", b"v"),
}  # fmt: skip
WRONG = {
    b"other": b"VALUE another 0 1\r\nv\r\nEND\r\n",
    b"long": b"VALUE long 0 10241\r\n" + b"x" * 10241 + b"\r\nEND\r\n",
    b"line": b"VALUE line 0 1" + b" " * 2000 + b"\r\nv\r\nEND\r\n", b"neg": b"VALUE neg 0 -1\r\nEND\r\n",
    b"nan": b"VALUE nan 0 x\r\nEND\r\n", b"error": b"ERROR\r\n", b"client": b"CLIENT_ERROR x\r\n",
    b"server": b"SERVER_ERROR x\r\n", b"case": b"end\r\n", b"lfdata": b"VALUE lfdata 0 1\r\nv\nEND\r\n",
    b"cut": b"VALUE cut 0 10\r\nv", b"nothing": b"",
}  # fmt: skip


def test_odd_answers_are_understood(tmp_path: Path) -> None:
    with Scripted("memcache", {}) as server:
        table = opened(write_cf(tmp_path / "t.cf", memcache=server.endpoint))
        for key, (raw, value) in ODD.items():
            server.raw[key] = raw
            assert table.answer(key, 0) == value, key


@pytest.mark.parametrize("key", WRONG)
def test_wrong_answers_are_retry_at_once(tmp_path: Path, key: bytes) -> None:
    with Scripted("memcache", {}) as server:
        server.raw[key] = WRONG[key]
        table = opened(write_cf(tmp_path / "t.cf", memcache=server.endpoint, timeout=100))
        with pytest.raises(TableRetry):
            table.answer(key, 0)


def test_silence_ends_at_the_timeout(memcached: Memcached, tmp_path: Path) -> None:
    with Memcached() as own:
        table = opened(own.table(tmp_path / "t.cf", timeout=1))
        own.pause()
        with pytest.raises(TableRetry, match="time limit exceeded"):
            table.answer(b"k", 0)
        own.resume()
        wait_until(lambda: change(table, b"k", b"v") == STAT_OK, "its return")


def test_server_that_is_silent_for_long_is_left_until_it_answers(tmp_path: Path) -> None:
    with Memcached() as own:
        table = opened(own.table(tmp_path / "t.cf", timeout=1))
        own.pause()
        for _ in range(3):
            with pytest.raises(TableRetry):
                table.answer(b"k", 0)
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(TableRetry):
                table.answer(b"k", 0)
        assert time.monotonic() - began < 20  # stock: 500 s
        own.resume()
        wait_until(lambda: change(table, b"k", b"v") == STAT_OK, "its return")


# Backup


def test_backup_has_what_memcached_has_not(backed: Table, memcached: Memcached, tmp_path: Path) -> None:
    change(backed, b"k", b"v")
    assert stored(backed, tmp_path, memcached, b"k") == b"v"
    memcached.ask(b"delete %b-k" % tmp_path.name.encode())
    assert backed.answer(b"k", 0) == b"v"
    assert stored(backed, tmp_path, memcached, b"k") == b"v"  # again
    assert backed.answer(b"no", 0) is None


def test_backup_is_changed_too_and_its_answer_counts(backed: Table) -> None:
    assert change(backed, b"k", b"v") == STAT_OK
    assert backed.backup.answer(b"k", backed.backup_flags) == b"v"
    assert change(backed, b"k", b"w") == STAT_OK  # it replaces
    assert change(backed, b"k", None) == STAT_OK
    assert backed.backup.answer(b"k", backed.backup_flags) is None
    assert change(backed, b"k", None) == STAT_NOKEY


def test_sequence_is_the_backups(backed: Table) -> None:
    keys = {b"a", b"b", b"c"}
    for key in keys:
        change(backed, key, b"v")
    assert backed.answers.sequence(1, True) is not None
    assert {backed.answers.sequence(2, not n)[0] for n in range(3)} == keys
    assert backed.answers.sequence(2, False) is None


def test_value_that_is_too_long_leaves_no_old_one(table: Table, backed: Table) -> None:
    for one, status in ((table, STAT_NOKEY), (backed, STAT_OK)):
        change(one, b"k", b"old")
        assert change(one, b"k", b"x" * 10241) == status
        assert one.answer(b"k", 0) == (None if one is table else b"x" * 10241)


def test_memcached_that_is_down_leaves_the_backup(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with Memcached() as own:
        table = opened(own.table(tmp_path / "t.cf", backup=f"lmdb:{tmp_path}/backup"))
        change(table, b"k", b"old")
        own.kill()
        assert table.answer(b"k", 0) == b"old"
        assert table.answer(b"no", 0) is None
        assert change(table, b"k", b"new") == STAT_OK
        assert table.answer(b"k", 0) == b"new"


def test_backup_that_cannot_open_is_retry_for_what_memcached_has_not(
    memcached: Memcached, tmp_path: Path
) -> None:
    name = memcached.table(tmp_path / "t.cf", backup=f"cdb:{tmp_path}/missing")
    table = opened(name, writes=False)
    memcached.put(b"hit", b"v")
    assert table.answer(b"hit", 0) == b"v"
    with pytest.raises(TableRetry):
        table.answer(b"miss", 0)


def test_refused_change_is_not_followed_by_the_old_value(tmp_path: Path) -> None:
    """memcached can neither store nor delete: the key is answered from the backup."""
    tmp_path.chmod(0o700)
    with Scripted("memcache", {}) as server:
        table = opened(
            write_cf(tmp_path / "t.cf", memcache=server.endpoint, backup=f"lmdb:{tmp_path}/backup")
        )
        change(table, b"k", b"old")
        server.manner = "error"
        assert change(table, b"k", b"new") == STAT_OK
        assert server.records[b"k"] == b"old"
        server.manner = "answer"
        assert table.answer(b"k", 0) == b"new"

        def is_clean() -> bool:
            assert table.answer(b"k", 0) == b"new"
            return table.doubts_count == 0

        wait_until(is_clean, "the old value's end")
        assert server.records.get(b"k") in (None, b"new")


def test_changes_and_lookups_at_once_leave_no_old_value(backed: Table) -> None:
    """What a lookup puts into memcached never overtakes a change."""
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            backed.answer(b"k", 0)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for n in range(100):
            change(backed, b"k", b"%d" % n)
            assert backed.answer(b"k", 0) == b"%d" % n
            change(backed, b"k", None)
            assert backed.answer(b"k", 0) is None
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


# What memcached does late


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with Scripted("memcache", {}) as server:
        yield server


def over(server: Scripted, tmp_path: Path, *, backed: bool) -> Table:
    tmp_path.chmod(0o700)
    backup = {"backup": f"lmdb:{tmp_path}/backup"} if backed else {}
    return opened(write_cf(tmp_path / "t.cf", memcache=server.endpoint, timeout=1, **backup))


def let_go(server: Scripted) -> None:
    server.held = ()
    server.go.set()


def wait_until_certain(table: Table, key: bytes, value: bytes | None) -> None:
    """Meanwhile it is answered as it should be."""

    def is_certain() -> bool:
        assert table.answer(key, 0) == value
        return not table.doubtful

    wait_until(is_certain, "the end of doubts")


@pytest.mark.parametrize("late", [b"set", b"delete"])
@pytest.mark.parametrize("latest", [b"new", None])
def test_change_that_memcached_makes_late_does_not_undo_a_later_one(
    scripted: Scripted, tmp_path: Path, late: bytes, latest: bytes | None
) -> None:
    table = over(scripted, tmp_path, backed=True)
    change(table, b"k", b"first")
    scripted.held = [late]
    assert change(table, b"k", b"late" if late == b"set" else None) == STAT_OK
    assert table.endpoint.figures["open"] == 0
    scripted.held = ()
    assert change(table, b"k", b"new") == STAT_OK
    assert latest is not None or change(table, b"k", None) == STAT_OK
    assert table.answer(b"k", 0) == latest
    let_go(scripted)
    wait_until(lambda: not table.endpoint.owing, "the late answer")
    wait_until_certain(table, b"k", latest)
    assert scripted.records.get(b"k") in (None, latest)


@pytest.mark.parametrize("late", [b"set", b"delete"])
def test_without_a_backup_no_change_is_confirmed_that_a_late_one_may_undo(
    scripted: Scripted, tmp_path: Path, late: bytes
) -> None:
    table = over(scripted, tmp_path, backed=False)
    change(table, b"k", b"first")
    scripted.held = [late]
    assert change(table, b"k", b"late" if late == b"set" else None) == STAT_RETRY
    scripted.held = ()
    assert change(table, b"k", b"new") == STAT_RETRY
    assert change(table, b"other", b"v") == STAT_OK
    let_go(scripted)
    wait_until(lambda: change(table, b"k", b"new") == STAT_OK, "the late answer")
    assert table.answer(b"k", 0) == b"new"
    assert not table.doubtful


def test_without_a_backup_a_late_delete_after_a_failed_store_undoes_nothing(
    scripted: Scripted, tmp_path: Path
) -> None:
    table = over(scripted, tmp_path, backed=False)
    scripted.manner, scripted.held = "error", [b"delete"]
    assert change(table, b"k", b"v") == STAT_RETRY
    scripted.manner = "answer"
    assert change(table, b"k", b"new") == STAT_RETRY
    let_go(scripted)
    wait_until(lambda: change(table, b"k", b"new") == STAT_OK, "the late answer")
    assert table.answer(b"k", 0) == b"new"


def test_value_of_the_backup_that_memcached_takes_late_is_not_answered_after_a_change(
    scripted: Scripted, tmp_path: Path
) -> None:
    table = over(scripted, tmp_path, backed=True)
    change(table, b"k", b"old")
    scripted.records.clear()
    scripted.held = [b"add"]
    assert table.answer(b"k", 0) == b"old"
    scripted.held = ()
    assert change(table, b"k", None) == STAT_OK
    let_go(scripted)
    wait_until(lambda: b"k" in scripted.records, "the late value")
    wait_until_certain(table, b"k", None)
    assert b"k" not in scripted.records


def test_changes_that_are_late_take_no_more_connections_than_there_may_be(
    scripted: Scripted, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    logged = Logged()
    logged.host.server_limits = lambda type_name: {"connection_limit": 2}
    name = write_cf(
        tmp_path / "t.cf", memcache=scripted.endpoint, timeout=1, backup=f"lmdb:{tmp_path}/backup"
    )
    table = opened(name, logged)
    scripted.held = [b"set"]
    assert {change(table, b"k%d" % n, b"v") for n in range(4)} == {STAT_OK}
    assert scripted.waiting == table.endpoint.owing == 2
    assert [table.answer(b"k%d" % n, 0) for n in range(4)] == [b"v"] * 4


def test_late_change_whose_connection_breaks_is_over(scripted: Scripted, tmp_path: Path) -> None:
    table = over(scripted, tmp_path, backed=True)
    scripted.held = [b"set"]
    change(table, b"k", b"v")
    assert table.endpoint.owing == 1
    scripted.held = ()
    scripted.hang_up()
    wait_until_certain(table, b"k", b"v")


def test_doubts_outlive_the_table_being_opened_anew(scripted: Scripted, tmp_path: Path) -> None:
    table = over(scripted, tmp_path, backed=True)
    change(table, b"k", b"old")
    scripted.held = [b"set"]
    change(table, b"k", b"new")
    scripted.held = ()
    (tmp_path / "t.cf").write_text((tmp_path / "t.cf").read_text() + "max_try = 3\n")
    anew = opened(table.type_name)
    assert anew is not table
    assert scripted.records[b"k"] == b"old"
    assert anew.answer(b"k", 0) == b"new"


def test_memcached_that_was_stopped_does_not_bring_old_values_back(tmp_path: Path) -> None:
    """What was sent to it meanwhile it makes when it goes on, on several threads."""
    tmp_path.chmod(0o700)
    keys = [b"k%d" % n for n in range(20)]
    with Memcached() as own:
        table = opened(own.table(tmp_path / "t.cf", timeout=1, backup=f"lmdb:{tmp_path}/backup"))
        table.write([Change(key, b"old", 0) for key in keys])
        for turn in range(3):
            own.pause()
            table.write([Change(key, b"late", 0) for key in keys])
            own.resume()
            value = b"%d" % turn
            table.write([Change(key, value, 0) for key in keys])
            for key in keys:
                assert table.answer(key, 0) == value
            for key in keys:
                wait_until_certain(table, key, value)
            assert {own.get(key) for key in keys} <= {None, value}


def test_key_that_is_too_long_for_memcached_is_the_backups_alone(backed: Table) -> None:
    assert change(backed, b"x" * 300, b"v") == STAT_OK
    assert backed.answer(b"x" * 300, 0) == b"v"
    assert not backed.doubtful


def test_more_doubts_than_are_kept_are_doubts_of_all_keys(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts, "DOUBTS_MAX", 2)
    table = over(scripted, tmp_path, backed=True)
    scripted.records[b"other"] = b"old"
    scripted.manner = "error"
    for n in range(3):
        change(table, b"k%d" % n, b"v")
    scripted.manner = "answer"
    assert table.answer(b"other", 0) is None
