"""test_open_table - open_table: the one way to a table, which never raises"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from weakref import WeakValueDictionary

import pytest
from contract import NOKEY, OK, RETRY, cdb_image, found, lmdb_image
from fix_postfix import StockPostfix, dialect, release, unavailable
from fix_server import FOLD_FIX, LOCK, ROOT, Peer, ServerProcess, environment, lookup, request

from proxymap.base._watch import Watch
from proxymap.tables import base, opening
from proxymap.tables._table import Slow, Surrogate, Table
from proxymap.tables.flags import FOLD_MUL, PATTERN, UTF8_REQUEST
from proxymap.tables.memory import texthash
from proxymap.tables.opening import open_table
from proxymap.tables.types import GONE, TABLE_TYPES, TableType

LIMIT = 30.0  # seconds; for a machine that is very busy
IMAGES = {"cdb": cdb_image, "lmdb": lmdb_image}

each_file_type = pytest.mark.parametrize("maptype", IMAGES)


def file_of(maptype: str, place: Path, value: bytes) -> bytes:
    """Make a table; returns its type_name."""
    new = place / "new"
    new.write_bytes(IMAGES[maptype]([(b"key", value)]))
    os.rename(new, place / f"t.{maptype}")
    return f"{maptype}:{place}/t".encode()


def is_surrogate(table: object, *reason: str) -> bool:
    assert isinstance(table, Surrogate)
    assert table.flags == PATTERN
    assert table.lookup(b"key")[0] == RETRY
    assert table.sequence() == []
    assert not table.changed
    assert table.reason is not None
    text = table.reason.decode(errors="surrogateescape")
    assert all(part in text for part in reason), text
    return True


@each_file_type
def test_every_file_type_is_listed_and_opens(tmp_path: Path, maptype: str) -> None:
    assert maptype in TABLE_TYPES
    name = file_of(maptype, tmp_path, b"1")
    table = open_table(name)
    assert table.reason is None
    assert table.type_name == name
    assert found(table, b"key") == b"1"


@each_file_type
def test_open_table_is_shared(tmp_path: Path, maptype: str) -> None:
    name = file_of(maptype, tmp_path, b"1")
    table = open_table(name)
    assert open_table(name) is table
    assert open_table(name, 540736) is table


@each_file_type
def test_replaced_file_is_another_table(tmp_path: Path, maptype: str) -> None:
    name = file_of(maptype, tmp_path, b"old")
    old = open_table(name)
    file_of(maptype, tmp_path, b"new")
    new = open_table(name)
    assert new is not old
    assert found(old, b"key") == b"old"
    assert found(new, b"key") == b"new"
    assert open_table(name) is new


@each_file_type
def test_table_nobody_holds_is_closed(tmp_path: Path, maptype: str) -> None:
    name = file_of(maptype, tmp_path, b"1")

    def descriptors() -> int:
        gc.collect()
        return sum(
            os.path.samefile(f"/proc/self/fd/{fd}", tmp_path / f"t.{maptype}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        )

    table = open_table(name)
    assert descriptors() == 1
    del table
    assert descriptors() == 0


@each_file_type
def test_missing_file(tmp_path: Path, maptype: str) -> None:
    name = f"{maptype}:{tmp_path}/none".encode()
    file = f"{tmp_path}/none.{maptype}"
    assert is_surrogate(open_table(name), f"open database {file}: No such file or directory")


@each_file_type
def test_file_that_appears_later_is_opened(tmp_path: Path, maptype: str) -> None:
    name = f"{maptype}:{tmp_path}/t".encode()
    surrogate = open_table(name)
    assert is_surrogate(surrogate)
    file_of(maptype, tmp_path, b"1")
    assert found(open_table(name), b"key") == b"1"


@each_file_type
@pytest.mark.parametrize("kind", ["empty", "directory", "fifo", "text", "loop"])
def test_what_is_no_table(tmp_path: Path, maptype: str, kind: str) -> None:
    path = tmp_path / f"t.{maptype}"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)  # must not block
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(b"text\n" * 2000 if kind == "text" else b"")
    assert is_surrogate(open_table(f"{maptype}:{tmp_path}/t".encode()), f"t.{maptype}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@each_file_type
def test_file_that_must_not_be_read(tmp_path: Path, maptype: str) -> None:
    name = file_of(maptype, tmp_path, b"1")
    (tmp_path / f"t.{maptype}").chmod(0)
    assert is_surrogate(open_table(name), "Permission denied")


@pytest.mark.parametrize("name", [b"nosuch:x", b"CDB:x", b"../cdb:x", b"os:x"])
def test_unknown_type(name: bytes) -> None:
    maptype = name.partition(b":")[0].decode()
    assert is_surrogate(open_table(name), f"unsupported dictionary type: {maptype}")


@pytest.mark.parametrize("name", [b":x", b":", b"", b"cdb", b"cdb:", b"static:"])
def test_empty_type_or_name(name: bytes) -> None:
    assert is_surrogate(open_table(name), f'expecting "type:name" form instead of "{name.decode()}"')


def test_type_that_is_not_there_answers_as_stock() -> None:
    """Without the UTF-8 layer: a key that is not UTF-8 is RETRY, too. Not so where a table does not open."""
    if reason := unavailable():
        pytest.skip(reason)
    names = ["nosuch:x", "lmdb:/nonexistent/t", "unionmap:{nosuch:x}", "pipemap:{static:a, nosuch:x}"]
    listed = ", ".join(f"proxy:{name}" for name in names)
    flags = LOCK | FOLD_FIX | UTF8_REQUEST

    def replies(peer: Peer, name: bytes) -> list[object]:
        asked = [lookup(name, key, flags=flags) for key in (b"k", b"k\xff")]
        opened = peer.ask(request("open", name, flags=flags))
        if release() >= (3, 11) or name.startswith(b"lmdb"):
            # From 3.11 on a bit that no client obeys; and a client of 3.6 is told that keys are looked up.
            opened = opened[:1]
        return [opened, *(peer.ask(one) for one in asked)]

    with StockPostfix({"proxy_read_maps": listed}) as stock, ServerProcess() as server:
        server.approve(*names)
        server.start()
        for name in names:
            with stock.connect() as theirs, server.connect(dialect()) as ours:
                assert replies(ours, name.encode()) == replies(theirs, name.encode()), name


def test_type_of_strange_bytes() -> None:
    assert is_surrogate(open_table(b"\xff\xfe:x"), "unsupported dictionary type: \udcff\udcfe")


def test_file_name_of_strange_bytes(tmp_path: Path) -> None:
    place = bytes(tmp_path) + b"/\xff\xe9"
    assert is_surrogate(open_table(b"cdb:" + place), "\udcff\udce9.cdb: No such file")
    Path(os.fsdecode(place + b".cdb")).write_bytes(cdb_image([(b"key", b"1")]))
    assert found(open_table(b"cdb:" + place), b"key") == b"1"


@pytest.mark.parametrize("maptype", GONE)
def test_type_that_is_gone_names_another(maptype: str) -> None:
    assert is_surrogate(open_table(f"{maptype}:x".encode()), f"unsupported dictionary type: {maptype}; use ")


def test_read_only_type_is_not_opened_for_updates(tmp_path: Path) -> None:
    name = file_of("cdb", tmp_path, b"1")
    assert is_surrogate(open_table(name, writes=True), f"{name.decode()} map requires O_RDONLY access mode")


def test_slow_table_shows_its_own_flags() -> None:
    class Answers(base.SlowTable):
        flags = PATTERN
        fold_bit = FOLD_MUL

    answers = Answers()
    table = Slow(b"slow:x", answers)
    assert table.flags == PATTERN
    assert table.answers is answers
    assert table.reason is None
    assert table.generation == 0
    assert not table.changed
    with pytest.raises(TypeError):
        table.sequence()


def test_generation_of_a_file_that_never_changes_in_place(tmp_path: Path) -> None:
    table = open_table(file_of("cdb", tmp_path, b"1"))
    assert table.generation == 0
    assert table.lookup(b"key")[0] == OK
    assert table.lookup(b"none")[0] == NOKEY


@pytest.mark.parametrize("maptype", ["hash", "btree"])
def test_missing_package_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch, maptype: str) -> None:
    monkeypatch.setitem(sys.modules, "berkeleydb", None)
    monkeypatch.delitem(sys.modules, "proxymap.tables.indexed.bdb", raising=False)
    table = open_table(f"{maptype}:/t".encode())
    assert is_surrogate(table, "berkeleydb", "libdb5.3-dev", "pip install 'berkeleydb>=", "lmdb or cdb")


def test_library_that_fails_as_nobody_expects_keeps_no_server_from_starting() -> None:
    """Its tables are RETRY, the log and proxymapctl say why, and other tables answer."""
    with ServerProcess() as server:
        server.env = {"PYTHONPATH": f"{server.dir}:{ROOT}"}
        library, path = server.dir / "redis.py", server.dir / "r.cf"
        library.write_text("Connection = Conection\n")
        path.write_text("uri = redis://127.0.0.1\n")
        name, other = f"redis:{path}".encode(), server.cdb("t", {b"k": b"v"})
        server.approve(name)
        server.start()
        with server.connect() as peer:
            assert peer.ask(lookup(name, b"k")) == [(b"status", b"2"), (b"value", b"")]
            assert peer.ask(lookup(other, b"k")) == [(b"status", b"0"), (b"value", b"v")]
        fault = f"NameError: name 'Conection' is not defined ({library}, line 1)"
        server.wait_log(f"error: open redis:{path}: {fault}")
        done = subprocess.run(
            [sys.executable, "-m", "proxymap.ctl.main", "query", "--direct", name, "k"],
            env=environment(**server.env), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert fault in done.stderr
        assert "Traceback" not in done.stderr


def test_new_content_is_not_taken_that_an_unexpected_fault_keeps_from_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").write_text("key 1\n")
    name = f"texthash:{tmp_path}/t".encode()
    table = open_table(name)
    assert found(table, b"key") == b"1"
    (tmp_path / "t").write_text("key 22\n")

    def fail(*arguments: object) -> None:
        raise NameError("oops")

    monkeypatch.setattr(texthash, "open_table", fail)
    assert open_table(name) is table
    assert "NameError: oops" in table.trouble
    monkeypatch.undo()
    (tmp_path / "t").write_text("key 333\n")
    assert found(open_table(name), b"key") == b"333"


def test_table_that_is_being_closed_is_not_found_open(monkeypatch: pytest.MonkeyPatch) -> None:
    closing, close = threading.Event(), threading.Event()

    class Answers(base.SlowTable):
        def close(self) -> None:
            closing.set()
            assert close.wait(LIMIT)

    module = types.ModuleType("proxymap.tables.closing")
    module.open_table = lambda *args: Answers()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "proxymap.tables.closing", module)
    monkeypatch.setitem(TABLE_TYPES, "closing", TableType("closing"))
    held = [open_table(b"closing:x")]
    old = held[0].answers
    dropping = threading.Thread(target=held.clear)
    dropping.start()
    assert closing.wait(LIMIT)
    other = open_table(b"closing:x")
    close.set()
    dropping.join()
    assert other.answers is not old


def test_what_clients_ask_for_leaves_nothing_behind() -> None:
    for flags in range(0, 1 << 16, 1 << 10):
        open_table(b"unionmap:{static:a}", flags)
    assert not opening._openers
    assert not opening._waiting


def test_two_that_name_each_other_and_are_opened_at_once_wait_for_no_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = threading.Barrier(2)

    def open_ring(type_name: bytes, mapname: bytes, opening: base.Opening) -> base.SlowTable:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(LIMIT)  # each of them is being opened, and no thread comes a second time
        both.abort()
        opening.member(b"ring:b" if mapname == b"a" else b"ring:a")
        return base.SlowTable()

    module = types.ModuleType("proxymap.tables.ring")
    module.open_table = open_ring  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "proxymap.tables.ring", module)
    monkeypatch.setitem(TABLE_TYPES, "ring", TableType("ring"))
    opened: list[Table] = []
    threads = [
        threading.Thread(target=lambda name=name: opened.append(open_table(name)), daemon=True)
        for name in (b"ring:a", b"ring:b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    reasons = [table.reason for table in opened if table.reason is not None]
    assert len(opened) == 2
    assert len(reasons) == 1
    assert b"refers to itself through ring:" in reasons[0]
    assert not opening._openers
    assert not opening._waiting


def watching() -> base.Host:
    host = base.Host()
    host.watch = Watch()
    return host


def test_file_that_is_being_written_is_not_taken_before_the_loop_has_seen_the_event(tmp_path: Path) -> None:
    """Its time of change says nothing: its writer may be slow."""
    file, host = tmp_path / "t", watching()
    assert host.watch is not None
    file.write_text("key old\n")
    os.utime(file, (1, 1))
    name = b"texthash:%b" % bytes(file)
    old = open_table(name, host=host)
    with file.open("w") as writing:
        writing.write("key new\n")
        writing.flush()
        os.utime(file, (2, 2))
        assert open_table(name, host=host, settle=True) is old
        assert host.watch.was_taken()  # the loop has to look: those events may be of other tables, too
        assert not host.watch.was_taken()
        writing.write("other new\n")
    assert host.watch.take()
    assert found(open_table(name, host=host, settle=True), b"other") == b"new"


def test_file_that_is_just_being_cut_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows the new size before the new time of change, and before the event."""
    file = tmp_path / "t"
    file.write_text("key old\n")
    os.utime(file, (1, 1))
    name = b"texthash:%b" % bytes(file)
    old = open_table(name)
    file.write_text("")
    os.utime(file, (1, 1))
    assert old.torn

    def go_on(seconds: float) -> None:
        if seconds:
            file.write_text("key new\n")
            os.utime(file, (2, 2))

    monkeypatch.setattr(opening.time, "sleep", go_on)
    assert found(open_table(name), b"key") == b"new"


@each_file_type
def test_where_a_link_led_before_is_not_watched_for_ever(tmp_path: Path, maptype: str) -> None:
    host = watching()
    assert host.watch is not None
    watched = []
    for step in range(30):
        (tmp_path / f"v{step}").mkdir()
        file_of(maptype, tmp_path / f"v{step}", b"%d" % step)
        (tmp_path / "new").symlink_to(f"v{step}")
        (tmp_path / "new").rename(tmp_path / "now")
        table = open_table(f"{maptype}:{tmp_path}/now/t".encode(), host=host)
        assert found(table, b"key") == b"%d" % step
        watches = Path(f"/proc/self/fdinfo/{host.watch.fd}").read_text().count("inotify wd")
        watched.append((host.watch.names, watches))
    assert watched[-1] == watched[10]
    del table
    (tmp_path / "other").write_text("")
    open_table(b"texthash:%b/other" % bytes(tmp_path), host=host)
    assert host.watch.names < watched[-1][0]


@pytest.mark.parametrize("name", ["cdb:{}/t", "texthash:{}/t", "regexp:{}/t", "sqlite:{}/t"])
def test_file_that_cannot_be_opened_is_watched(tmp_path: Path, name: str) -> None:
    host = watching()
    assert host.watch is not None
    table = open_table(name.format(tmp_path).encode(), host=host)
    assert table.reason is not None
    assert not table.changed
    for file in ("t", "t.cdb"):
        (tmp_path / file).write_text("text")
    assert host.watch.take()
    assert table.changed


def test_flags_that_make_no_difference_to_a_text_share_one_table(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_text("key value\nother value\n")
    name = b"texthash:%b" % bytes(file)
    words = [
        sum(1 << bit for i, bit in enumerate((0, 1, 6, 7, 8, 14, 16, 19)) if n >> i & 1) for n in range(256)
    ]
    tables = [open_table(name, word) for word in words]
    assert len({id(table) for table in tables}) == 1
    file.write_text("key new\n")
    os.utime(file, (1, 1))
    tables = [open_table(name, word) for word in words]
    assert len({id(table) for table in tables}) == 1
    assert found(tables[-1], b"key") == b"new"


def test_flags_that_make_a_difference_have_tables_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_text("Key value\nKey second\n")
    name = b"texthash:%b" % bytes(file)
    ignore, replace, fold = (
        open_table(name, 1 << 1),
        open_table(name, 1 << 7),
        open_table(name, 1 << 1 | 1 << 14),
    )
    assert found(ignore, b"Key") == b"value"
    assert found(replace, b"Key") == b"second"
    assert found(fold, b"key") == b"value"
    assert open_table(name).reason is not None


@pytest.mark.parametrize("error", ["EIO", "EMFILE", "ENOMEM"])
def test_new_content_is_not_refused_for_a_fault_that_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """The caller goes on with the old, and comes again."""
    file = tmp_path / "t"
    file.write_text("key old\n")
    name = b"texthash:%b" % bytes(file)
    old = open_table(name)
    file.write_text("key newer\n")

    def failing(path: bytes, public: bool = False) -> None:
        raise OSError(getattr(errno, error), "it passes", path)

    with monkeypatch.context() as patch:
        patch.setattr(texthash, "read_file", failing)
        assert open_table(name).reason is not None
    assert found(old, b"key") == b"old"
    assert found(open_table(name), b"key") == b"newer"


def test_others_can_open_it_whatever_piece_of_memory_could_not_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = pytest.importorskip("_testcapi")
    opened: list[Table] = [open_table(name := file_of("cdb", tmp_path, b"v"))]  # with all that is loaded once
    for number in range(150):
        monkeypatch.setattr(opening, "_open", WeakValueDictionary())
        opened.clear()
        with contextlib.suppress(MemoryError):
            memory.set_nomemory(number, number + 1)
            open_table(name)
        memory.remove_mem_hooks()
        other = threading.Thread(target=lambda: opened.append(open_table(name)), daemon=True)
        other.start()
        other.join(LIMIT)
        assert [table.reason for table in opened] == [None]
