"""test_counters - what is counted equals what was asked, through reloads, restarts and kill -9"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_metrics import metrics_text, nonzero, parsed
from fix_server import NOT_FOUND, ServerProcess, found, lookup, request, wait_until

from proxymap.metrics import _counters as c
from proxymap.metrics.files import HEADER, path_beside
from proxymap.metrics.reading import read

RELOADS = 20
ROUNDS = 50


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """The cache is on for rules."""
    with ServerProcess(own={"cache_maptypes": "regexp"}) as server:
        yield server


class Asking:
    """A client that writes down what it was answered. proxywrite has no cache."""

    def __init__(self, server: ServerProcess, service: str) -> None:
        self.server, self.service = server, service
        self.expected: Counter[tuple[str, ...]] = Counter()
        self.refused = 0
        self.cached = service == "proxymap"
        self.plain = server.cdb("c", {b"k": b"v"}) if self.cached else server.lmdb("l", {b"k": b"v"})
        (server.dir / "rules").write_text("/k/ v\n")
        self.rules = f"regexp:{server.dir}/rules".encode()
        self.missing = f"cdb:{server.dir}/missing".encode()
        server.approve(self.missing, self.rules)

    def mix(self, rounds: int) -> None:
        """Found, absent, RETRY, DENY, and from the cache."""
        with self.server.connect() as peer:
            for _ in range(rounds):
                assert peer.ask(lookup(self.plain, b"k")) == found(b"v")
                assert peer.ask(lookup(self.plain, b"absent")) == NOT_FOUND
                assert dict(peer.ask(lookup(self.missing, b"k")))[b"status"] == b"2"
                assert dict(peer.ask(lookup(b"cdb:/unapproved", b"k")))[b"status"] == b"4"
                if self.cached:
                    assert peer.ask(lookup(self.rules, b"k")) == found(b"v")
        self._count(self.plain, "found", "table", rounds)
        self._count(self.plain, "notfound", "table", rounds)
        self._count(self.missing, "retry", "table", rounds)
        if self.cached:
            self._count(self.rules, "found", "table", 1)
            self._count(self.rules, "found", "cache", rounds - 1)
        self.refused += rounds

    def _count(self, table: bytes, result: str, source: str, n: int = 1) -> None:
        self.expected[self.service, table.decode(), result, source] += n

    def check(self) -> None:
        """The counters equal what was asked."""
        counted = parsed(metrics_text("--socket", self.server.path))
        assert nonzero(counted["proxymap_lookups_total"]) == {k: n for k, n in self.expected.items() if n}
        assert nonzero(counted["proxymap_refused_total"]) == {(self.service, "unapproved"): self.refused}


def restart(server: ServerProcess) -> None:
    """After kill -9: its socket is still there."""
    server.stop(signal.SIGKILL)
    os.unlink(server.path)
    server.start(*options(server))


def options(server: ServerProcess) -> list[str]:
    return ["-n", "proxywrite"] if server.main.get("test_writes") else []


def counters_file(server: ServerProcess) -> Path:
    return Path(path_beside(server.path))


@pytest.mark.parametrize("service", ["proxymap", "proxywrite"])
def test_counters_equal_what_was_asked(server: ServerProcess, service: str) -> None:
    if service == "proxywrite":
        server.main["test_writes"] = "1"
    asking = Asking(server, service)
    server.start(*options(server))
    asking.mix(ROUNDS)
    asking.check()
    for number in range(RELOADS):
        reload(server, number, asking.rules if asking.cached else None)
        asking.mix(ROUNDS // 10)
    restart(server)
    asking.mix(ROUNDS)
    asking.check()
    assert server.stop() == 0
    asking.check()  # without a server, too
    counted = parsed(metrics_text("--socket", server.path))
    assert counted["proxymap_starts_total"] == {(service,): 2}
    assert counted["proxymap_reloads_total"] == {(service,): RELOADS}
    assert counted["proxymap_connections_total"] == {(service,): RELOADS + 2}
    assert counted["proxymap_up"] == {(service,): 0}


def reload(server: ServerProcess, before: int, table: bytes | None) -> None:
    """Returns when main.cf was read again, for one time more than before, and the table was opened anew."""
    file, name = str(counters_file(server)), (table or b"").decode()
    openings = read(file).of(c.OF_TABLE, name)[c.OPENINGS]
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: read(file).of(c.OF_SERVICE)[c.RELOADS] > before, "the reload")
    if table:
        wait_until(lambda: read(file).of(c.OF_TABLE, name)[c.OPENINGS] > openings, "the table")


def test_changes_are_counted_each_on_its_own(server: ServerProcess) -> None:
    """Also those that a writer answers on a connection that the loop has lent to it."""
    server.main["test_writes"] = "1"
    table = server.lmdb("t", {b"k": b"v"})
    server.start(*options(server))
    with server.connect() as peer:
        for number in range(ROUNDS):
            peer.ask(request("update", table, key=b"%d" % number, value=b"v"))
        peer.ask(request("delete", table, key=b"0"))
        peer.ask(request("delete", table, key=b"0"))
        peer.ask(request("open", table))
        for function in (0, 1):
            peer.ask(request("sequence", table, function=function))
    counted = parsed(metrics_text("--socket", server.path))
    assert nonzero(counted["proxymap_requests_total"]) == {
        ("proxywrite", table.decode(), *labels): n
        for labels, n in {
            ("open", "found"): 1, ("update", "found"): ROUNDS, ("delete", "found"): 1,
            ("delete", "notfound"): 1, ("sequence", "found"): 2,
        }.items()
    }  # fmt: skip


def test_openings_are_counted(server: ServerProcess) -> None:
    table = server.cdb("c", {b"k": b"v"})
    server.approve(f"cdb:{server.dir}/missing")
    server.start()
    with server.connect() as peer:
        peer.ask(lookup(table, b"k"))
        peer.ask(lookup(f"cdb:{server.dir}/missing".encode(), b"k"))
    counted = parsed(metrics_text("--socket", server.path))
    assert nonzero(counted["proxymap_openings_total"]) == {
        ("proxymap", table.decode(), "done"): 1,
        ("proxymap", f"cdb:{server.dir}/missing", "failed"): 1,
    }


# The file


def ask_once(server: ServerProcess) -> None:
    with server.connect() as peer:
        assert peer.ask(lookup(f"cdb:{server.dir}/c".encode(), b"k")) == found(b"v")


def lookups(server: ServerProcess) -> int:
    cells = read(str(counters_file(server))).of(c.OF_TABLE, f"cdb:{server.dir}/c")
    return cells[c.LOOKUPS + c.FROM_TABLE * 8]


def test_file_is_for_its_owner_alone(server: ServerProcess) -> None:
    server.start(umask=0)
    status = wait_until(lambda: counters_file(server).exists(), "the file") and counters_file(server).stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_blocks * 512 >= c.FILE_SIZE  # no page is missing when the disk is full


@pytest.mark.parametrize("damage", ["short", "other release", "no counters"])
def test_damaged_file_is_set_aside(server: ServerProcess, damage: str) -> None:
    server.cdb("c", {b"k": b"v"})
    server.start()
    ask_once(server)
    assert lookups(server) == 1
    server.stop()
    file = counters_file(server)
    if damage == "short":
        os.truncate(file, 5000)
    else:
        with file.open("r+b") as opened:
            opened.seek(8 if damage == "other release" else 0)
            opened.write(b"\x77" * 4)
    server.start()
    ask_once(server)
    assert lookups(server) == 1
    assert file.with_name("s.metrics.old").exists()
    said = f"warning: {file} is damaged or of another release: set aside as {file}.old, counting from 0"
    assert said in server.log_lines()


def test_file_that_is_cut_kills_nobody(server: ServerProcess) -> None:
    server.cdb("c", {b"k": b"v"})
    server.start()
    ask_once(server)
    os.truncate(counters_file(server), 0)
    for _ in range(3):
        ask_once(server)
    wait_until(lambda: "the file of counters was cut" in server.log(), "the warning")
    assert server.stop() == 0
    assert server.log().count("the file of counters was cut") == 1
    server.start()
    ask_once(server)
    assert lookups(server) == 1


@pytest.mark.parametrize("what", ["folder", "link", "stranger's"])
def test_what_is_in_the_way_keeps_nobody_from_serving(server: ServerProcess, what: str) -> None:
    server.cdb("c", {b"k": b"v"})
    file = counters_file(server)
    if what == "folder":
        file.mkdir()
    elif what == "link":
        file.symlink_to(server.dir / "elsewhere")
    elif os.geteuid():
        pytest.skip("only root can make a stranger's file")
    else:
        file.write_bytes(b"\0" * 100)  # root's
        file.chmod(0o666)
    server.start()
    ask_once(server)
    assert f"warning: counters of this process end with it: {file}: " in server.log()
    assert not (server.dir / "elsewhere").exists()


def test_what_finds_no_room_counts_together_but_by_kind(tmp_path: Path) -> None:
    """In a process of its own, whose rows are used up."""
    file = str(tmp_path / "s.metrics")
    code = f"""if True:
        from proxymap.metrics import _counters as c
        from proxymap.metrics.files import count_in
        count_in({file!r}, "s", print)
        for kind in (c.OF_TABLE, c.OF_SERVER):
            for number in range(1500):
                c.Figures(kind, b"%d" % number).count(7)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    rows = read(file).rows
    of_tables = {name: cells[7] for (kind, name), cells in rows.items() if kind == c.OF_TABLE}
    assert (len(of_tables), of_tables["0"], sum(of_tables.values())) == (1022, 1, 1500)
    assert {key: cells[7] for key, cells in rows.items() if key[0] == c.OF_SERVER} == {
        (c.OF_SERVER, "other"): 1500
    }


def test_processes_of_a_service_count_in_one_file_at_the_same_time(tmp_path: Path) -> None:
    """After a reload the one of before lives until its clients have left."""
    file = str(tmp_path / "s.metrics")
    code = f"""if True:
        from proxymap.metrics import _counters as c
        from proxymap.metrics.files import count_in
        count_in({file!r}, "s", print)
        print("attached", flush=True)
        c.Figures(c.OF_TABLE, b"t").count(7)
        input()
    """
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as old, subprocess.Popen(command, **pipes) as new:
        assert old.stdout is not None
        assert new.stdout is not None
        assert [old.stdout.readline(), new.stdout.readline()] == [b"attached\n"] * 2
        for process in (old, new):
            process.communicate(b"\n")
    assert read(file).rows[c.OF_TABLE, "t"][7] == 2


def test_stranger_s_file_is_not_read(server: ServerProcess) -> None:
    file = counters_file(server)
    file.write_bytes(HEADER.pack(b"PXMCOUNT", c.LAYOUT, 0, b"x").ljust(c.FILE_SIZE, b"\0"))
    if os.geteuid() == 0:
        os.chown(file, 12345, 12345)
        with pytest.raises(ValueError, match="stranger"):
            read(str(file))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="stranger"):
        read(str(file))
