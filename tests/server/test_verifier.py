"""test_verifier - hash and btree where the server's user may not run Python: who verifies their files"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_bdb import write_endless
from fix_postfix import StockPostfix, unavailable
from fix_server import LIMIT, ROOT, ServerProcess, found, give, lookup, wait_until
from oracle import reply

import proxymap

berkeleydb = pytest.importorskip("berkeleydb")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="nothing is closed to the user who starts the server")
needs_postfix = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

RETRY = reply("lookup", "3.6", 2)
MASTER = """\
postlog    unix-dgram n - n - 1 postlogd
proxymap   unix  -  -  y  -  -  {command}
"""


def write_hash(path: Path, value: bytes) -> None:
    """A new file, put in place by a rename."""
    new = path.with_suffix(".new")
    records = berkeleydb.db.DB()
    records.open(str(new), dbtype=berkeleydb.db.DB_HASH, flags=berkeleydb.db.DB_CREATE)
    records.put(b"k\0", value + b"\0")
    records.close()
    give(new)
    new.rename(path)


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


class ClosedServer(ServerProcess):
    """Its Python is in a folder that is open to root only. Tables: hash:t (sound), btree:endless."""

    def __init__(self) -> None:
        super().__init__()
        closed = self.dir / "closed"
        closed.mkdir(mode=0o700)
        shutil.copy(os.path.realpath(sys.executable), closed / "python3")
        (closed / "pyvenv.cfg").write_text(f"home = {sysconfig.get_config_var('BINDIR')}\n")
        packages = os.path.dirname(os.path.dirname(os.path.realpath(berkeleydb.__file__)))
        self.env["PYTHONPATH"] = f"{ROOT}:{packages}"
        write_hash(self.dir / "t.db", b"v")
        write_endless(self.dir / "endless.db")
        give(self.dir / "endless.db")
        self.good, self.endless = f"hash:{self.dir}/t".encode(), f"btree:{self.dir}/endless".encode()
        self.approve(self.good, self.endless)

    def command(self, *arguments: str) -> list[str]:
        return [str(self.dir / "closed/python3"), *super().command(*arguments)[1:]]

    def others(self) -> list[int]:
        """The processes besides the server that have its Python."""
        found = []
        for link in Path("/proc").glob("[0-9]*/exe"):
            with contextlib.suppress(OSError):
                if os.readlink(link) == f"{self.dir}/closed/python3":
                    found.append(int(link.parent.name))
        return [pid for pid in found if pid != self.pid]

    def verifier(self) -> int:
        """The one that waits for files, and not one that it has forked for a file."""
        found = self.others()
        (pid,) = [pid for pid in found if parent(pid) not in found]
        return pid


@pytest.fixture
def closed() -> Iterator[ClosedServer]:
    with ClosedServer() as server:
        server.start()
        yield server


@as_root
def test_file_with_which_libdb_comes_to_no_end_is_refused(closed: ClosedServer) -> None:
    """And nobody is at it afterwards, in the server or elsewhere."""
    verifier = closed.verifier()
    with closed.connect() as peer, closed.connect() as other:
        peer.send(lookup(closed.endless, b"k"))
        assert other.ask(lookup(closed.good, b"k")) == found(b"v")
        assert peer.reply() == RETRY
    closed.wait_log("damaged: libdb comes to no end with it")
    wait_until(lambda: closed.others() == [verifier], "the end of who verifies it")


@as_root
def test_verifier_has_nothing_of_the_server_and_ends_with_it(closed: ClosedServer) -> None:
    pid = closed.verifier()
    leads = {number: os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
    assert sorted(leads) == ["0", "1", "2"]
    assert leads["0"].startswith("socket:")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # which the whole group may get
        os.kill(pid, number)
    with closed.connect() as peer:
        assert peer.ask(lookup(closed.good, b"k")) == found(b"v")
    assert closed.verifier() == pid
    closed.stop(signal.SIGKILL)
    wait_until(lambda: gone(pid), "the verifier's end")


@as_root
def test_file_is_not_verified_in_the_server_when_the_verifier_was_killed(closed: ClosedServer) -> None:
    with closed.connect() as peer:
        assert peer.ask(lookup(closed.good, b"k")) == found(b"v")
        os.kill(closed.verifier(), signal.SIGKILL)
        write_hash(closed.dir / "t.db", b"new")
        assert peer.ask(lookup(closed.good, b"k")) == RETRY
    closed.wait_log("no process can be had to verify it")
    wait_until(lambda: not closed.others(), "the end of all others")


@as_root
def test_verifier_that_was_killed_is_no_zombie(closed: ClosedServer) -> None:
    pid = closed.verifier()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(pid), "its end")


@needs_postfix
def test_table_in_a_chroot(command: str) -> None:
    """There is no Python in it, and no /proc."""
    with StockPostfix(
        {"proxy_read_maps": "proxy:hash:t proxy:btree:endless"}, MASTER.format(command=command)
    ) as instance:
        write_hash(instance.queue_dir / "t.db", b"v")
        write_endless(instance.queue_dir / "endless.db")
        for name in ("t.db", "endless.db"):
            (instance.queue_dir / name).chmod(0o644)
        with proxymap.Client(instance.socket("proxymap"), timeout=LIMIT) as client:
            assert client.lookup("hash:t", "k") == b"v"
            with pytest.raises(proxymap.TableRetry):
                client.lookup("btree:endless", "k")
        wait_until(lambda: "libdb comes to no end with it" in instance.log(), "the line in the log")
