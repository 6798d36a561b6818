"""test_openers - tables that hang in opening hold up no other, and have a time limit; the old is closed"""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fix_ctl import run
from fix_server import LIMIT, Peer, ServerProcess, found, lookup, wait_until, write_cdb
from oracle import reply

RETRY = reply("lookup", "3.6", 2)
HANGING = 12  # three times as many as worker_count


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess(own={"open_time_limit": "2s"}) as server:
        yield server


def hanging_tables(server: ServerProcess, count: int) -> list[bytes]:
    """sqlite tables whose open(2) waits: their database is a FIFO that nobody writes to."""
    names = []
    for i in range(count):
        os.mkfifo(server.dir / f"fifo{i}")
        (server.dir / f"{i}.cf").write_text(f"dbpath = {server.dir}/fifo{i}\nquery = SELECT 1\n")
        names.append(f"sqlite:{server.dir}/{i}.cf".encode())
    server.approve(*names)
    return names


def test_tables_that_hang_in_opening_hold_up_no_other_and_are_retry(server: ServerProcess) -> None:
    known, other = server.cdb("known", {b"k": b"old"}), server.cdb("other", {b"k": b"v"})
    text = server.dir / "text"
    text.write_text("k v\n")
    server.approve(texthash := f"texthash:{text}".encode())
    names = hanging_tables(server, HANGING)
    server.start()
    with server.connect() as peer, ExitStack() as stack:
        assert peer.ask(lookup(known, b"k")) == found(b"old")
        waiting = [stack.enter_context(server.connect()) for _ in names]
        for one, name in zip(waiting, names, strict=True):
            one.send(lookup(name, b"k"))
        assert peer.ask(lookup(other, b"k")) == found(b"v")
        assert peer.ask(lookup(texthash, b"k")) == found(b"v")
        write_cdb(Path(known[4:].decode() + ".cdb"), {b"k": b"new"})
        assert peer.ask(lookup(known, b"k")) == found(b"new")
        for one in waiting:
            assert one.reply() == RETRY
    server.wait_log("not open within 2 s")


def test_table_that_hangs_is_retry_at_once_until_it_is_open(server: ServerProcess) -> None:
    (name,) = hanging_tables(server, 1)
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(name, b"k")) == RETRY
        threads = server.threads()
        for _ in range(20):
            assert peer.ask(lookup(name, b"k")) == RETRY
        assert server.threads() <= threads + 1  # an opener that is free
        fifo = os.open(server.dir / "fifo0", os.O_WRONLY)  # the attempt goes on, and fails
        os.close(fifo)
        (server.dir / "0.cf").write_text(f"dbpath = {server.dir}/db\nquery = SELECT 1\n")
        os.close(os.open(server.dir / "db", os.O_CREAT | os.O_WRONLY))
        wait_until(lambda: peer.ask(lookup(name, b"k")) == found(b"1"), "the table", pause=0.2)


def test_what_is_known_of_a_table_says_that_it_is_being_opened(server: ServerProcess) -> None:
    (name,) = hanging_tables(server, 1)
    server.own["open_time_limit"] = "1h"
    server.start()
    with Peer(server.path) as peer:
        peer.send(lookup(name, b"k"))
        wait_until(lambda: b"being opened" in run("--socket", server.path, "tables").stdout, "the state")


def test_clients_that_ask_and_leave_hold_no_descriptor(server: ServerProcess) -> None:
    (name,) = hanging_tables(server, 1)
    known = server.cdb("known", {b"k": b"v"})
    server.own["open_time_limit"] = "1h"
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(known, b"k")) == found(b"v")
        before = server.descriptors()
        for _ in range(50):
            with server.connect() as one:
                one.send(lookup(name, b"k"))
        wait_until(lambda: server.descriptors() <= before + 5, "descriptors of clients that are gone")
        assert peer.ask(lookup(known, b"k")) == found(b"v")


def test_more_requests_than_may_wait_for_a_table_are_retry(server: ServerProcess) -> None:
    (name,) = hanging_tables(server, 1)
    server.own.update(open_time_limit="1h", waiting_limit="3")
    server.start()
    with ExitStack() as stack:
        asking = [stack.enter_context(server.connect()) for _ in range(4)]
        for one in asking:
            one.send(lookup(name, b"k"))
        ready, _, _ = select.select([one.socket for one in asking], [], [], LIMIT)
        (answered,) = [one for one in asking if one.socket in ready]
        assert answered.reply() == RETRY


# stat(2) of what has "dead" in its name does not return while there is a file called "hang" beside it.
DEAD_SERVER = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
int inotify_init1(int flags) { return flags < 0 ? flags : -1; }
int stat(const char *path, struct stat *s)
{
    char hang[200];
    const char *dead = strstr(path, "/dead");
    if (dead && dead - path < 100) {
        memcpy(hang, path, dead - path);
        strcpy(hang + (dead - path), "/hang");
        while (access(hang, F_OK) == 0)
            usleep(10000);
    }
    return fstatat(AT_FDCWD, path, s, 0);
}
int stat64(const char *path, struct stat64 *s)
{
    return stat(path, (struct stat *) s);
}
"""


def test_tables_on_a_dead_file_server_hold_up_no_other(server: ServerProcess, tmp_path: Path) -> None:
    """No event tells of changes there: somebody has to look, and may never return."""
    dead, alive = server.cdb("dead", {b"k": b"old"}), server.cdb("alive", {b"k": b"v"})
    (tmp_path / "dead.c").write_text(DEAD_SERVER)
    library = server.dir / "dead.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "dead.c"], check=True)
    server.env["LD_PRELOAD"] = str(library)
    server.start()
    with server.connect() as peer, server.connect() as waiting:
        assert peer.ask(lookup(dead, b"k")) == found(b"old")
        assert peer.ask(lookup(alive, b"k")) == found(b"v")
        (server.dir / "hang").touch()
        waiting.send(lookup(dead, b"k"))
        for _ in range(20):
            assert peer.ask(lookup(alive, b"k")) == found(b"v")
        assert waiting.reply() == RETRY
        server.wait_log("not looked at within 2 s")
        assert peer.ask(lookup(dead, b"k")) == RETRY  # at once, from here on
        write_cdb(server.dir / "dead.cdb", {b"k": b"new"})
        (server.dir / "hang").unlink()
        wait_until(lambda: peer.ask(lookup(dead, b"k")) == found(b"new"), "the table", pause=0.2)


# While the file $SHORT is there, the loop may have one thing of a job's size, and then no other.
SHORT_OF_MEMORY = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <unistd.h>
void *__libc_calloc(size_t, size_t);
static int had;
void *calloc(size_t count, size_t size)
{
    if (count == 1 && size > 256 && size < 512 && gettid() == getpid()) {
        if (access(getenv("SHORT"), F_OK) == 0 && had++)
            return NULL;
    }
    return __libc_calloc(count, size);
}
"""


def test_table_is_closed_where_there_is_no_memory_to_have_that_done(
    server: ServerProcess, tmp_path: Path
) -> None:
    name = server.cdb("t", {b"k": b"0"})
    (tmp_path / "short.c").write_text(SHORT_OF_MEMORY)
    library, short = server.dir / "short.so", server.dir / "short"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "short.c"], check=True)
    server.env.update(LD_PRELOAD=str(library), SHORT=str(short))
    server.start()
    maps = Path(f"/proc/{server.pid}/maps")
    with server.connect() as peer:
        assert peer.ask(lookup(name, b"k")) == found(b"0")
        assert "t.cdb" in maps.read_text()
        short.touch()
        write_cdb(server.dir / "t.cdb", {b"k": b"1"})
        assert peer.ask(lookup(name, b"k")) == found(b"1")
        wait_until(lambda: maps.read_text().count("t.cdb") == 1, "the old content to be let go of")
