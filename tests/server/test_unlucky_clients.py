"""test_unlucky_clients - clients that leave, fill descriptors or buffers, or want too much, harm no other"""

from __future__ import annotations

import fcntl
import os
import resource
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from fix_ctl import run
from fix_server import Peer, ServerProcess, found, give, lookup, wait_until
from oracle import reply

RETRY = reply("lookup", "3.6", 2)
DESCRIPTORS = 120
TURNS = 5000  # of the loop


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        yield server


def sqlite_table(server: ServerProcess, query: str) -> bytes:
    file = server.dir / "database"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE t (k TEXT, v TEXT)")
    database.close()
    give(file)
    (server.dir / "sqlite.cf").write_text(f"dbpath = {file}\nquery = {query}\n")
    server.approve(name := f"sqlite:{server.dir}/sqlite.cf".encode())
    return name


@contextmanager
def locked_table(server: ServerProcess) -> Iterator[bytes]:
    """A hash table that any client may lock, since the world may read it: each lookup waits."""
    db = pytest.importorskip("berkeleydb").db
    file = server.dir / "hash.db"
    handle = db.DB()
    handle.open(str(file), dbtype=db.DB_HASH, flags=db.DB_CREATE)
    handle.put(b"k", b"v")
    handle.close()
    give(file)
    server.approve(name := f"hash:{server.dir}/hash".encode())
    server.own.update(lookup_time_limit="1h", worker_count="1")
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(name, b"k")) == found(b"v")
    with file.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield name


@pytest.mark.parametrize("behind", [False, True])
def test_clients_of_a_table_that_hangs_hold_no_descriptor_when_they_are_gone(
    server: ServerProcess, behind: bool
) -> None:
    """Whether or not more requests have come behind the one that waits."""
    known = server.cdb("known", {b"k": b"v"})
    with locked_table(server) as hangs, server.connect() as peer:
        assert peer.ask(lookup(known, b"k")) == found(b"v")
        before = server.descriptors()
        for i in range(60):
            with server.connect() as one:
                one.send(lookup(hangs, b"%d" % i))
                if behind:
                    peer.ask(lookup(known, b"k"))  # so that it is parked by now
                    one.send(lookup(hangs, b"k"))
        wait_until(lambda: server.descriptors() <= before, "descriptors of clients that are gone")
        assert peer.ask(lookup(known, b"k")) == found(b"v")


def test_requests_that_wait_for_answers_of_one_table_have_a_limit(server: ServerProcess) -> None:
    server.own["waiting_limit"] = "3"
    with locked_table(server) as hangs, ExitStack() as stack:
        asking = [stack.enter_context(server.connect()) for _ in range(4)]
        for one in asking:
            one.send(lookup(hangs, b"k"))
        assert asking[-1].reply() == RETRY


def test_clients_leave_descriptors_for_tables(server: ServerProcess) -> None:
    """However many there are; those that are accepted later have lost nothing."""
    first, later = server.cdb("first", {b"k": b"1"}), server.cdb("later", {b"k": b"2"})
    server.start(preexec_fn=few_descriptors)
    with server.connect() as peer, ExitStack() as stack:
        assert peer.ask(lookup(first, b"k")) == found(b"1")
        crowd = [stack.enter_context(Peer(server.path, greeted=False)) for _ in range(DESCRIPTORS)]
        server.wait_log("kept for tables")
        assert peer.ask(lookup(later, b"k")) == found(b"2")
        for one in crowd:
            one.send(lookup(first, b"k"))
        for one in crowd[: DESCRIPTORS // 2]:
            one.close()
        for one in crowd[DESCRIPTORS // 2 :]:
            assert one.reply()[0][0] == b"protocol"
            assert one.reply() == found(b"1")


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))


def test_buffers_of_unfinished_requests_are_taken_first_the_largest_before_all(server: ServerProcess) -> None:
    """Not those of a client that reads slowly, though they are larger."""
    known = server.cdb("known", {b"k": b"v", b"long": b"v" * 100_000})
    server.own.update(buffer_size_limit="1M", request_size_limit="512K")
    server.start()
    with ExitStack() as stack:
        honest = [stack.enter_context(server.connect()) for _ in range(4)]
        asked = lookup(known, b"k" * 400)
        for one in honest[:3]:
            one.send(asked[:300])
        honest[3].send(lookup(known, b"long") * 40)  # and does not read yet
        for _ in range(40):
            one = stack.enter_context(server.connect())
            with suppress(OSError):  # it may be hung up on by then
                one.send(b"request\0lookup\0table\0" + b"x" * 100_000)
        server.wait_log("hanging up on a client that has an unfinished request")
        for one in honest[:3]:
            one.send(asked[300:])
            assert one.reply() == reply("lookup", "3.6", 1)
        for _ in range(40):
            assert honest[3].reply() == found(b"v" * 100_000)


def test_value_over_the_limit_is_retry_where_a_worker_found_it(server: ServerProcess) -> None:
    name = sqlite_table(server, "SELECT hex(zeroblob(%s))")
    server.own["value_size_limit"] = "1024"
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(name, b"600")) == RETRY
        assert peer.ask(lookup(name, b"500")) == found(b"0" * 1000)
    server.wait_log("value over value_size_limit")
    assert "damaged" not in server.log()


def test_value_over_the_limit_is_no_damage(server: ServerProcess) -> None:
    name = server.cdb("t", {b"k": b"v", b"long": b"v" * 2000})
    server.own["value_size_limit"] = "1024"
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(name, b"long")) == RETRY
        assert peer.ask(lookup(name, b"k")) == found(b"v")
    server.wait_log("value over value_size_limit")
    assert "damaged" not in server.log()


def test_memory_that_is_short_for_a_moment_is_retry_and_then_all_is_well(server: ServerProcess) -> None:
    """Tables are opened for the first time, with threads of their own, where neither can be had."""
    known = server.cdb("known", {b"k": b"v"})
    tables = []
    for i in range(10):
        (server.dir / f"{i}.cf").write_text(f"dbpath = {server.dir}/database{i}\nquery = SELECT '%s'\n")
        sqlite3.connect(server.dir / f"database{i}").close()
        (server.dir / f"database{i}").touch()
        give(server.dir / f"database{i}")
        tables.append(f"sqlite:{server.dir}/{i}.cf".encode())
    server.approve(*tables)
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(known, b"k")) == found(b"v")
        for i, table in enumerate(tables):
            used = int(Path(f"/proc/{server.pid}/statm").read_text().split()[0]) * resource.getpagesize()
            server.limit(**{"as": used + i * (1 << 20)})
            assert peer.ask(lookup(table, b"1")) in (RETRY, found(b"1"))
            assert peer.ask(lookup(known, b"k")) == found(b"v")
            server.limit(**{"as": 1 << 62})
        for table in tables:
            wait_until(partial(is_answered, peer, table), "an answer", pause=0.1)
    assert server.stop() == 0


def is_answered(peer: Peer, table: bytes) -> bool:
    return peer.ask(lookup(table, b"1")) == found(b"1")


def test_reload_of_a_configuration_that_is_a_pipe_fails_and_does_not_wait(server: ServerProcess) -> None:
    known = server.cdb("known", {b"k": b"v"})
    server.start()
    main_cf = server.dir / "main.cf"
    main_cf.rename(server.dir / "kept")
    os.mkfifo(main_cf)
    assert b"not a regular file" in run("--socket", server.path, "reload").stderr
    main_cf.unlink()
    (server.dir / "kept").rename(main_cf)
    assert run("--socket", server.path, "reload").returncode == 0
    with server.connect() as peer:
        assert peer.ask(lookup(known, b"k")) == found(b"v")


# While the file $REFUSE is there, no connection is accepted, and its size is the number of attempts.
REFUSING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
static long refusals;
int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    if (access(getenv("REFUSE"), F_OK) == 0) {
        truncate(getenv("REFUSE"), ++refusals);
        errno = EPERM;
        return -1;
    }
    return ((__typeof__(&accept4)) dlsym(RTLD_NEXT, "accept4"))(fd, address, size, flags);
}
"""


def test_connections_that_the_system_refuses_are_tried_again_after_a_pause(
    server: ServerProcess, tmp_path: Path
) -> None:
    """Not in each turn of the loop: the listener stays readable."""
    (tmp_path / "refusing.c").write_text(REFUSING)
    library, refuse = tmp_path / "refusing.so", server.dir / "refuse"
    command = ["cc", "-shared", "-fPIC", "-w", "-o", library, tmp_path / "refusing.c", "-ldl"]
    subprocess.run(command, check=True)
    server.env.update(LD_PRELOAD=str(library), REFUSE=str(refuse))
    server.own["sandbox_writes"] = str(server.dir)  # where that library writes
    table = server.cdb("t", {b"k": b"v"})
    server.start()
    with server.connect() as peer:
        refuse.touch()
        give(refuse)
        with Peer(server.path, greeted=False) as late:
            wait_until(lambda: refuse.stat().st_size >= 2, "attempts")
            before = refuse.stat().st_size
            for _ in range(TURNS):
                assert peer.ask(lookup(table, b"k")) == found(b"v")
            assert refuse.stat().st_size - before < TURNS // 10
            server.wait_log("accept connection: Operation not permitted; pausing")
            refuse.unlink()
            assert late.reply() == [(b"protocol", b"proxymap_protocol")]
