"""test_proxywrite - the read-write service: what was answered OK is there, whatever happens next"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import soak_writes
from fix_postfix import StockPostfix, dialect, unavailable
from fix_server import (
    DIALECTS,
    LOCK,
    TRY0,
    TRY1,
    Peer,
    ServerProcess,
    environment,
    give,
    lookup,
    request,
    wait_until,
)
from oracle import Attributes

FAULTS = Path(__file__).with_name("faults.c")
EIO, ENOSPC = 5, 28
ROUNDS = 3  # of kill -9; `make soak` has 200
BURST = 40  # requests without pause, so that a writer keeps the connection (see _lent)
REQUESTS = int(os.environ.get("PROXYMAP_REQUESTS", "3000"))  # compared with the stock server's answers

needs_postmap = pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")


class Writing(ServerProcess):
    """A proxywrite server with the approved table `table`, in FILE `file`."""

    def __init__(self, place: str = "", maptype: str = "lmdb") -> None:
        super().__init__()
        self.name = self.dir / place / "w"
        self.file = self.name.with_suffix(".lmdb")
        self.table = f"{maptype}:{self.name}".encode()
        self.approve(self.table)

    def run(self, **keywords: object) -> Writing:
        self.start("-n", "proxywrite", **keywords)  # type: ignore[arg-type]
        return self

    def stored(self) -> dict[bytes, bytes]:
        """What stock's postmap reads."""
        done = subprocess.run(["postmap", "-s", self.table], capture_output=True, timeout=60, check=True)
        return dict(line.split(b"\t") for line in done.stdout.splitlines())  # type: ignore[misc]


@pytest.fixture
def writing() -> Iterator[Writing]:
    with Writing() as server:
        yield server


def update(table: bytes, key: bytes, value: bytes, dialect: str = "3.6", **fields: int) -> bytes:
    return request("update", table, dialect, key=key, value=value, **fields)


def status(reply: Attributes) -> int:
    return int(dict(reply)[b"status"])


OK, NOKEY, RETRY, CONFIG = 0, 1, 2, 5


# What is said


@pytest.mark.parametrize("dialect", DIALECTS)
def test_update_lookup_delete(writing: Writing, dialect: str) -> None:
    table = writing.table
    with writing.run().connect() as one, writing.connect() as two:
        assert status(one.ask(update(table, b"k", b"v", dialect, flags=12))) == OK
        assert dict(two.ask(lookup(table, b"k", dialect, flags=12)))[b"value"] == b"v"
        assert status(two.ask(request("delete", table, dialect, key=b"k", flags=12))) == OK
        assert status(one.ask(lookup(table, b"k", dialect, flags=12))) == NOKEY
        assert status(one.ask(request("delete", table, dialect, key=b"k", flags=12))) == NOKEY


def test_several_requests_in_one_piece_are_done_in_order(writing: Writing) -> None:
    table = writing.table
    pieces = []
    for i in range(50):
        pieces += [update(table, b"k", b"%d" % i), lookup(table, b"k")]
    with writing.run().connect() as peer:
        peer.send(b"".join(pieces))
        for i in range(50):
            assert status(peer.reply()) == OK
            assert dict(peer.reply())[b"value"] == b"%d" % i


def test_whoever_says_no_more_after_an_update_is_hung_up_on(writing: Writing) -> None:
    """On a server that nobody else wakes, though its reply was sent without the loop."""
    with writing.run().connect() as peer:
        assert status(peer.ask(update(writing.table, b"k", b"v"))) == OK
    for i in range(20):
        with writing.connect() as peer:
            peer.send(update(writing.table, b"k", b"%d" % i))
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.rest() == b"status\x000\0\0"


def test_updates_that_come_while_the_table_is_opened_are_all_answered(writing: Writing) -> None:
    """On a server that nobody else wakes."""
    tables = [b"%b%d" % (writing.table, i) for i in range(10)]
    writing.approve(*tables)
    writing.run()
    for table in tables:
        with writing.connect() as peer:
            peer.send(update(table, b"k", b"1"))
            peer.send(update(table, b"k", b"2"))
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.rest() == 2 * b"status\x000\0\0"


@pytest.mark.parametrize(
    "table", [b"cdb:%b/c", b"texthash:%b/t", b"inline:{k=v}", b"pcre:%b/p", b"unionmap:{}"]
)
def test_table_that_cannot_be_updated_is_retry_and_told(writing: Writing, table: bytes) -> None:
    writing.cdb("c", {b"k": b"v"})
    table = table.replace(b"%b", os.fsencode(writing.dir))
    writing.approve(table)
    with writing.run().connect() as peer:
        assert status(peer.ask(request("open", table, flags=0))) == OK
        for asked in (update(table, b"k", b"v"), request("delete", table, key=b"k"), lookup(table, b"k")):
            assert status(peer.ask(asked)) == RETRY
        assert status(peer.ask(update(writing.table, b"k", b"v"))) == OK
    why = "a table that has to be rebuilt whole leaves storage inconsistent between updates"
    writing.wait_log(
        f"{table.decode()} map requires O_RDONLY access mode{f': {why}' * table.startswith(b'cdb')}"
    )
    assert writing.alive()


@pytest.mark.parametrize("table", [b"static:x"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_intended_difference_what_cannot_be_deleted_is_config(
    writing: Writing, table: bytes, dialect: str
) -> None:
    writing.approve(table)
    with writing.run().connect() as peer:
        assert status(peer.ask(request("open", table, dialect, instance_flags=0))) == OK
        assert (
            status(peer.ask(request("delete", table, dialect, key=b"k", flags=0, instance_flags=0))) == CONFIG
        )
        assert status(peer.ask(update(writing.table, b"k", b"v", dialect, flags=12))) == OK
    writing.wait_log(table.decode())


@pytest.mark.parametrize("key", [b"x" * 511, b"x" * 5000])
def test_intended_difference_a_key_that_is_too_long_is_config(writing: Writing, key: bytes) -> None:
    with writing.run().connect() as peer:
        assert status(peer.ask(update(writing.table, key, b"v"))) == CONFIG
        assert status(peer.ask(lookup(writing.table, key))) == NOKEY
        assert status(peer.ask(update(writing.table, b"k", b"v"))) == OK


def test_deleting_the_current_record_while_walking(writing: Writing) -> None:
    """As verify(8) and postscreen(8) clean up."""
    table = writing.table
    with writing.run().connect() as peer, writing.connect() as other:
        for i in range(100):
            peer.ask(update(table, b"k%03d" % i, b"%d" % i))
        seen = []
        record = dict(peer.ask(request("sequence", table, function=0)))
        while record[b"status"] == b"0":
            seen.append(record[b"key"])
            if int(record[b"value"]) % 2:
                assert status(other.ask(request("delete", table, key=record[b"key"]))) == OK
            record = dict(peer.ask(request("sequence", table, function=1)))
        assert seen == [b"k%03d" % i for i in range(100)]
        assert status(peer.ask(lookup(table, b"k001"))) == NOKEY


@needs_postmap
def test_two_servers_on_one_table_wait_for_each_other(writing: Writing) -> None:
    with Writing() as second, contextlib.ExitStack() as stack:
        second.approve(writing.table)
        peers = [stack.enter_context(server.run().connect()) for server in (writing, second)]
        for i in range(100):
            for number, peer in enumerate(peers):
                peer.send(update(writing.table, b"%d-%d" % (number, i), b"v"))
            assert [status(peer.reply()) for peer in peers] == [OK, OK]
        assert len(writing.stored()) == 200
        assert not list(writing.dir.glob("*.corrupt-*"))


def test_foreign_folder_is_refused_and_told(writing: Writing) -> None:
    writing.dir.chmod(0o777)
    with writing.run().connect() as peer:
        assert status(peer.ask(request("open", writing.table, flags=0))) == OK
        assert status(peer.ask(update(writing.table, b"k", b"v"))) == RETRY
    writing.wait_log(f"others may write to the folder {writing.dir}")
    writing.wait_log("keep tables that Postfix writes in data_directory (/var/lib/postfix)")
    assert not writing.file.exists()


def test_damaged_table_is_set_aside_and_told_once(writing: Writing) -> None:
    writing.file.write_bytes(b"no table" * 1000)
    give(writing.file)
    with writing.run().connect() as peer:
        for i in range(10):
            assert status(peer.ask(update(writing.table, b"k%d" % i, b"v"))) == OK
    writing.wait_log("set aside as")
    assert len(list(writing.dir.glob("w.lmdb.corrupt-*"))) == 1
    assert writing.log().count("set aside as") == 1


def test_damaged_table_is_kept_on_request(writing: Writing) -> None:
    writing.own["lmdb_replace_damaged"] = "no"
    writing.file.write_bytes(b"no table" * 1000)
    give(writing.file)
    with writing.run().connect() as peer:
        assert status(peer.ask(update(writing.table, b"k", b"v"))) == RETRY
    writing.wait_log("set lmdb_replace_damaged = yes")
    assert writing.file.read_bytes() == b"no table" * 1000


# Whatever happens next


@needs_postmap
@pytest.mark.parametrize("maptype", ["lmdb", "hash", "btree"])
@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("clients", [1, soak_writes.CLIENTS])
def test_nothing_answered_is_lost_by_kill(maptype: str, seed: int, clients: int) -> None:
    assert soak_writes.kill_round(random.Random(seed), maptype, clients) >= clients


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted: {done.stderr.strip()}")
    give(path)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@needs_postmap
def test_full_disk_is_no_lie_and_no_end() -> None:
    with Writing("full") as writing, small_disk(writing.dir / "full", "1m"):
        ballast = writing.dir / "full" / "ballast"
        ballast.write_bytes(bytes(500_000))
        answered: dict[bytes, bytes] = {}
        with writing.run().connect() as peer:
            replies = []
            for i in range(60):
                key, value = b"k%d" % i, b"%d" % i * 10_000
                replies.append(status(peer.ask(update(writing.table, key, value))))
                if replies[-1] == OK:
                    answered[key] = value
            assert set(replies) == {OK, RETRY}
            assert writing.stored().items() >= answered.items()
            ballast.unlink()
            assert status(peer.ask(update(writing.table, b"k59", b"room"))) == OK
            assert writing.stored().items() >= (answered | {b"k59": b"room"}).items()
        assert not list(writing.file.parent.glob("*.corrupt-*"))
        writing.wait_log("update error")


@needs_postmap
def test_disk_that_is_full_from_the_start() -> None:
    with Writing("full") as writing, small_disk(writing.dir / "full", "64k"):
        ballast = writing.dir / "full" / "ballast"
        with contextlib.suppress(OSError):
            ballast.write_bytes(bytes(100_000))
        with writing.run().connect() as peer:
            assert status(peer.ask(update(writing.table, b"k", b"v"))) == RETRY
            ballast.unlink()
            wait_until(
                lambda: status(peer.ask(update(writing.table, b"k", b"v"))) == OK, "the table opened again"
            )
        assert writing.stored() == {b"k": b"v"}
        assert not list(writing.file.parent.glob("*.corrupt-*"))


class Faulty(Writing):
    """With faults.c loaded."""

    def __init__(self, library: Path) -> None:
        super().__init__()
        self.orders = self.dir / "faults"
        self.library = library

    def run(self, **keywords: object) -> Writing:
        preload = {"LD_PRELOAD": str(self.library), "FAULTS": str(self.orders)}
        return super().run(env=environment(**preload), **keywords)

    def order(self, text: str) -> None:
        new = self.orders.with_suffix(".new")
        new.write_text(text)
        new.rename(self.orders)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    path = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", path, FAULTS, "-ldl"], check=True)
    return path


@pytest.fixture
def faulty(library: Path) -> Iterator[Faulty]:
    with Faulty(library) as server:
        yield server


@needs_postmap
@pytest.mark.parametrize("call", ["sync", "head", "pages"])
@pytest.mark.parametrize("error", [EIO, ENOSPC])
def test_failed_write_is_retry_and_the_next_one_works(faulty: Faulty, call: str, error: int) -> None:
    answered: dict[bytes, bytes] = {}
    with faulty.run().connect() as peer:
        for i in range(30):
            faulty.order(f"{call} {error}" if i % 3 == 1 else "none 0")
            key, value = b"k%d" % (i % 7), b"%d" % i
            got = status(peer.ask(update(faulty.table, key, value)))
            assert got == (RETRY if i % 3 == 1 else OK)
            if got == OK:
                answered[key] = value
            else:
                answered.pop(key, None)  # it may be the old value or the new one
        assert faulty.stored().items() >= answered.items()
    assert os.strerror(error) in faulty.log()
    assert not list(faulty.dir.glob("*.corrupt-*"))


@needs_postmap
def test_all_that_were_to_be_committed_together_are_retry(faulty: Faulty) -> None:
    with contextlib.ExitStack() as stack:
        faulty.run()
        peers = [stack.enter_context(faulty.connect()) for _ in range(8)]
        assert status(peers[0].ask(update(faulty.table, b"first", b"1"))) == OK
        stall(faulty, peers[0])
        for i, peer in enumerate(peers[1:]):
            peer.send(update(faulty.table, b"k%d" % i, b"v"))
        faulty.order(f"sync {EIO}")
        assert [status(peer.reply()) for peer in peers] == [RETRY] * 8
        faulty.order("none 0")
        assert [status(peer.ask(update(faulty.table, b"later", b"2"))) for peer in peers] == [OK] * 8
    assert faulty.stored() == {b"first": b"1", b"later": b"2"}


def stall(server: Faulty, peer: Peer) -> None:
    """Have an update of `peer` be under way, its sync stalled."""
    server.order("sync stall")
    peer.send(update(server.table, b"stalled", b"new"))
    wait_until(server.orders.with_suffix(".stalled").exists, "the sync to stall")


def test_lookups_go_on_from_the_last_commit_while_a_sync_stalls(faulty: Faulty) -> None:
    faulty.run()
    with faulty.connect() as one, faulty.connect() as two, faulty.connect() as three:
        assert status(one.ask(update(faulty.table, b"stalled", b"old"))) == OK
        stall(faulty, one)
        three.send(update(faulty.table, b"waits", b"1"))
        for _ in range(100):
            assert dict(two.ask(lookup(faulty.table, b"stalled")))[b"value"] == b"old"
            assert status(two.ask(lookup(faulty.table, b"waits"))) == NOKEY
        assert silent(one)
        assert silent(three)
        faulty.order("none 0")
        assert status(one.reply()) == status(three.reply()) == OK
        assert dict(two.ask(lookup(faulty.table, b"stalled")))[b"value"] == b"new"


def silent(peer: Peer) -> bool:
    """Has no reply come so far?"""
    peer.socket.setblocking(False)
    try:
        peer.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        peer.socket.setblocking(True)
    return False


# Beside the stock server


def random_requests(
    rng: random.Random, count: int, instances: list[int]
) -> Iterator[tuple[str, dict[str, bytes | int]]]:
    """What does not kill the stock server, and where we do not differ on purpose.

    It is sent the name of the latest record of a sequence, so as not to go on
    from one that was deleted (tables.md 4.7), nor from nowhere.
    """
    current: dict[int, bytes | None] = {}
    kinds = ["lookup", "lookup", "open", "update", "update", "delete", "sequence"]
    for number in range(count):
        instance = rng.choice(instances)
        flags = instance | rng.choice([0, LOCK, LOCK, LOCK | 1 << 14])
        if dialect() == "3.11" and not instance:
            instance = TRY0 | TRY1  # without either, the server of 3.11 ends
            flags |= instance
        kind = rng.choice(["update", "delete"] if number // BURST % 3 else kinds)
        key = b"k%d" % rng.randrange(40)
        key = rng.choice([key, key, key.upper(), b"\xff\xfe" + key, key + b"x" * 400])
        fields: dict[str, bytes | int] = {"flags": flags, "instance_flags": instance}
        if kind == "open":
            yield kind, fields
            continue
        if kind == "sequence":
            fields["function"] = rng.choice([0, 1, 1, 1]) if current.get(instance) is not None else 0
            found = yield kind, fields
            current[instance] = found
            continue
        fields["key"] = key
        if kind == "update":
            fields["value"] = rng.choice([b"", b"v", b"%d" % rng.randrange(1000), b"long" * 800, b"\xe4"])
        if kind == "delete":
            current = {i: at for i, at in current.items() if at is not None and at.lower() != key.lower()}
        yield kind, fields


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.parametrize("maptype", ["lmdb", "hash", "btree"])
def test_random_requests_are_answered_as_by_the_stock_server(maptype: str) -> None:
    if maptype != "lmdb":
        pytest.importorskip("berkeleydb", reason="berkeleydb is not installed")
    main = {"proxy_write_maps": f"proxy:{maptype}:$data_directory/w"}
    with StockPostfix(main) as postfix, Writing(maptype=maptype) as writing:
        stock_table = f"{maptype}:{postfix.data_dir}/w".encode()
        with writing.run().connect() as ours, Peer(postfix.socket("proxywrite")) as stock:
            # Stock's instances of a Berkeley DB file have a memory each, and write over one another.
            instances = [0, 0, 0, TRY0, TRY1] if maptype == "lmdb" else [0]
            rng = random.Random(maptype)
            requests = random_requests(rng, REQUESTS, instances)
            kind, fields = next(requests)
            burst: list[tuple[bytes, Attributes]] = []
            with contextlib.suppress(StopIteration):
                while True:
                    expected = stock.ask(request(kind, stock_table, dialect(), **fields))  # type: ignore[arg-type]
                    burst.append((request(kind, writing.table, dialect(), **fields), expected))  # type: ignore[arg-type]
                    if len(burst) == BURST:
                        ask_in_a_row(rng, ours, burst)
                        burst.clear()
                    key = dict(expected).get(b"key") or None
                    kind, fields = requests.send(key)  # type: ignore[attr-defined]
            ask_in_a_row(rng, ours, burst)
        assert writing.stored() == stored_by(postfix, stock_table)


def ask_in_a_row(rng: random.Random, peer: Peer, burst: list[tuple[bytes, Attributes]]) -> None:
    """Without pause, now and then several in one piece, or one in two."""
    at = 0
    while at < len(burst):
        some = burst[at : at + rng.choice([1] * 20 + [2, 3])]
        data = b"".join(asked for asked, _ in some)
        cut = rng.randrange(len(data)) if rng.random() < 0.05 else 0
        peer.send(data[:cut])
        peer.send(data[cut:])
        for asked, expected in some:
            assert peer.reply() == expected, asked
        at += len(some)


def stored_by(postfix: StockPostfix, table: bytes) -> dict[bytes, bytes]:
    done = postfix.postmap("-s", table.decode())
    return dict(line.split(b"\t") for line in done.stdout.splitlines())  # type: ignore[misc]
