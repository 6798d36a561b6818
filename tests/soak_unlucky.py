"""soak_unlucky - all that hangs, fills up or fails, at random and at once, under load: `make soak-unlucky`

    python tests/soak_unlucky.py [--seconds N] [--seed N] [--only NAME]

16 clients ask an open cdb table that is rebuilt now and then (benchmarks/load.c
with -g: a client ends at the first answer that is wrong, old or RETRY, and when it
is hung up on). Calm times and bad times take turns, so that the longest wait of a
bad time is compared with what the same machine shows without; the difference must
stay under WORSE_MS. In the end memory, threads and descriptors have to return to
what they were after a first round of everything.

As root: the server is then another user's, and limits can be raised again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fix_bdb import write_endless
from fix_ctl import run
from fix_server import (
    ROOT,
    Peer,
    ServerProcess,
    environment,
    found,
    give,
    lookup,
    wait_until,
    write_cdb,
)  # fmt: skip
from oracle import reply
from soak_live import KEYS, Generations, Load, value

CALM, BAD = 10.0, 20.0  # seconds of each, in turn
WORSE_MS = 100.0
RETRY, NOKEY = reply("lookup", "3.6", 2), reply("lookup", "3.6", 1)
HANGING = 20  # tables whose open(2) hangs
TEXT_LINES = 20_000
MB = 1 << 20
SLACK = 48 * MB  # of memory, in the end: what malloc keeps of the worst moment
PUBLIC_FLAGS = 1 << 21 | 0b11111  # SRC_RHS_IS_FILE among them
DEAD_FLAGS = [1 << bit for bit in (0, 1, 2, 6, 7, 8, 14, 16, 19, 21)]


class Wrong(Exception):
    """What must not be, whatever happens."""


def must(true: bool, what: object) -> None:
    if not true:
        raise Wrong(what)


class Unlucky:
    """The server, its tables, and everything bad that can be done to them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.server = ServerProcess(
            own={
                "open_time_limit": "2s",
                "lookup_time_limit": "2s",
                "worker_count": "2",
                "value_size_limit": "1M",
            }
        )
        self.generation = 0
        self.known = self.server.cdb("t", self.content())
        self.generations = Generations(self.server.dir)
        self.short = threading.Lock()  # of memory or descriptors: what is rebuilt then is not opened at once
        self.fifos: list[Path] = []
        self.make_tables()

    def content(self) -> dict[bytes, bytes]:
        return {key.encode(): value(self.generation).encode() for key in KEYS}

    def make_tables(self) -> None:
        server, folder = self.server, self.server.dir
        for i in range(HANGING):
            self.fifos.append(folder / f"fifo{i}")
            os.mkfifo(self.fifos[-1])
            (folder / f"hang{i}.cf").write_text(f"dbpath = {self.fifos[-1]}\nquery = SELECT 1\n")
        self.hanging = [f"sqlite:{folder}/hang{i}.cf".encode() for i in range(HANGING)]
        (folder / "text").write_text("".join(f"Key{i} value{i}\n" for i in range(TEXT_LINES)))
        (folder / "secret").write_text(f"key {folder}/shadow\n")
        (folder / "shadow").write_text("not for you\n")
        (folder / "shadow").chmod(0o600)
        self.text, self.secret = f"texthash:{folder}/text".encode(), f"texthash:{folder}/secret".encode()
        with sqlite3.connect(folder / "db") as database:
            database.execute("CREATE TABLE t (k TEXT)")
        (folder / "long.cf").write_text(f"dbpath = {folder}/db\nquery = SELECT hex(zeroblob(%s))\n")
        self.long = f"sqlite:{folder}/long.cf".encode()
        self.large = server.cdb("large", {b"k": b"v" * (3 * MB), b"small": b"v" * 400_000})
        self.locked = f"hash:{folder}/hash".encode()
        subprocess.run(["postmap", "-i", f"hash:{folder}/hash"], input=b"k v\n", check=True)
        write_endless(folder / "endless.db")
        self.endless = f"btree:{folder}/endless".encode()
        give(folder / "db", folder / "hash.db", folder / "endless.db")
        self.users = b"unix:passwd.byname"
        names = [*self.hanging, self.text, self.secret, self.long, self.locked, self.endless, self.users]
        server.approve(*names)
        library = folder / "slow_users.so"
        source = ROOT / "tests/server/slow_users.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        server.env["LD_PRELOAD"] = str(library)

    def peer(self, limit: float = 20.0) -> Peer:
        """A connection of an attacker, who may be hung up on: OSError or AssertionError."""
        peer = Peer(self.server.path)
        peer.socket.settimeout(limit)
        return peer

    def rebuild(self) -> None:
        if self.short.acquire(blocking=False):
            try:
                self.generation += 1
                write_cdb(self.server.dir / "t.cdb", self.content())
                self.generations.complete(self.generation)
            finally:
                self.short.release()

    # What happens; each must leave nothing behind but what `release` clears up

    def openings_hang(self) -> None:
        with contextlib.ExitStack() as stack:
            for name in self.random.sample(self.hanging, 8):
                stack.enter_context(self.peer()).send(lookup(name, b"k"))
            time.sleep(self.random.uniform(0, 3))

    def openings_end(self) -> None:
        for fifo in self.random.sample(self.fifos, 8):
            self.release(fifo)

    def release(self, fifo: Path) -> None:
        with contextlib.suppress(OSError):
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))

    def verify_spins(self) -> None:
        """libdb, in a process of its own, comes to no end with the file. Other flags do not repeat that."""
        with self.peer() as peer:
            for _ in range(self.random.randrange(1, 10)):
                answer = peer.ask(lookup(self.endless, b"k", flags=sum(self.random.sample(DEAD_FLAGS, 4))))
                must(answer == RETRY, answer)

    def users_fail(self) -> None:
        """The user directory fails at once, or in ten seconds, which is over the limit."""
        with self.peer() as peer, self.peer() as other:
            other.send(lookup(self.users, b"slow"))
            for _ in range(20):
                answer = peer.ask(lookup(self.users, b"lost%d" % self.random.randrange(1000)))
                must(answer == RETRY, answer)
            answer = other.reply()
            must(answer == RETRY, answer)

    def links_in_the_way(self) -> None:
        """Where a server makes its socket, the folder's owner puts links to a file that is not his."""
        precious = self.server.dir / "precious"
        folder = self.server.dir / f"race{self.random.randrange(1 << 30)}"
        folder.mkdir()
        give(folder)
        precious.touch(0o600)
        path = f"unix:{self.server.path}"
        command = [word.replace(path, f"unix:{folder}/s") for word in self.server.command()]
        with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as second:
            until = time.monotonic() + self.random.uniform(1, 3)
            while time.monotonic() < until and second.poll() is None:
                for name in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        (folder / name).unlink()
                        (folder / name).symlink_to(precious)
            second.terminate()
        must(precious.stat().st_mode & 0o777 == 0o600, oct(precious.stat().st_mode))
        shutil.rmtree(folder)

    def flag_words(self) -> None:
        with self.peer() as peer:
            for _ in range(40):
                flags = sum(self.random.sample(DEAD_FLAGS, 4))
                answer = peer.ask(lookup(self.text, b"Key7", "3.11", instance_flags=flags, flags=flags))
                answer = [pair for pair in answer if pair[0] != b"flags"]
                must(answer in (found(b"value7"), NOKEY, RETRY), answer)

    def files_are_asked_for(self) -> None:
        with self.peer() as peer:
            for flags in (PUBLIC_FLAGS, 1 << 21):
                answer = peer.ask(lookup(self.secret, b"key", flags=flags))
                must(b"bm90IGZvciB5b3U" not in answer[1][1], answer)  # "not for you" in base64

    def reload_storm(self) -> None:
        for _ in range(self.random.randrange(1, 300)):
            self.server.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]

    def ask_and_leave(self) -> None:
        with (self.server.dir / "hash.db").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for _ in range(200):
                with self.peer() as peer:
                    peer.send(lookup(self.locked, b"k") * self.random.randrange(1, 3))

    def unfinished_requests(self) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(70):
                peer = stack.enter_context(self.peer())
                with contextlib.suppress(OSError):
                    peer.send(b"request\0lookup\0table\0" + b"x" * 1_000_000)

    def large_values(self) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(self.peer()).send(lookup(self.large, b"small") * 20)  # never read
            with self.peer() as peer:
                must(peer.ask(lookup(self.large, b"k")) == RETRY, "a large value")
                must(peer.ask(lookup(self.long, b"1000000")) == RETRY, "a large value")

    def many_connections(self) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(self.peer())

    def memory_is_short(self) -> None:
        with self.short:
            used = int(Path(f"/proc/{self.server.pid}/statm").read_text().split()[0]) * resource.getpagesize()
            self.server.limit(**{"as": used + self.random.randrange(8 * MB)})
            try:
                self.random.choice((self.flag_words, self.openings_hang, self.reload_storm))()
            finally:
                self.server.limit(**{"as": 1 << 62})

    def descriptors_are_short(self) -> None:
        with self.short:
            self.server.limit(nofile=self.server.descriptors() + self.random.randrange(3))
            try:
                with self.peer(2.0) as peer:
                    answer = peer.ask(lookup(self.users, b"root"))
                    must(answer != NOKEY, answer)
                time.sleep(0.5)
            finally:
                self.server.limit(nofile=4096)

    def forged_control_sockets(self) -> None:
        names = [f"{self.server.path}.{n}.ctl" for n in self.random.sample(range(100_000, 999_999), 5)]
        for name in names:
            Path(name).write_bytes(b"\x1b]0;forged\x07")
        said = run("--socket", self.server.path, "tables")
        for name in names:
            Path(name).unlink(missing_ok=True)
        must(not any(sign in said.stdout + said.stderr for sign in (b"Traceback", b"\x1b")), said)

    def full_disk(self) -> None:
        """The file may not grow: the build fails, and there is no table where there was none."""
        target = self.server.dir / f"full{self.random.randrange(1 << 30)}"
        target.write_text("".join(f"key{i} value\n" for i in range(5000)))
        for maptype in ("lmdb", "cdb"):
            command = [sys.executable, "-m", "proxymap.ctl", "build", f"{maptype}:{target}"]
            built = subprocess.run(
                command, env=environment(), capture_output=True, preexec_fn=small_files, cwd=ROOT, check=False
            )
            must(built.returncode != 0 and b"Traceback" not in built.stderr, built)
            must(not Path(f"{target}.{maptype}").exists(), built)
        target.unlink()

    def second_server(self) -> None:
        second = subprocess.run(
            self.server.command(), env=environment(), capture_output=True, timeout=60, check=False
        )
        must(second.returncode != 0, "two servers on one path")

    def full_output(self) -> None:
        with Path("/dev/full").open("wb") as full:
            said = subprocess.run(
                [sys.executable, "-m", "proxymap.ctl", "--socket", self.server.path, "tables"],
                env=environment(), stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False,
            )  # fmt: skip
        must(not any(sign in said.stderr for sign in (b"Exception ignored", b"Traceback")), said)

    def attacks(self) -> dict[str, Callable[[], None]]:
        return {
            attack.__name__: attack
            for attack in (
                self.openings_hang, self.openings_end, self.flag_words, self.files_are_asked_for,
                self.reload_storm, self.ask_and_leave, self.unfinished_requests, self.large_values,
                self.many_connections, self.memory_is_short, self.descriptors_are_short,
                self.verify_spins, self.users_fail, self.links_in_the_way,
                self.forged_control_sockets, self.full_disk, self.second_server, self.full_output,
                self.rebuild,
            )
        }  # fmt: skip

    def figures(self) -> dict[str, int]:
        return {
            "memory": self.server.resident(), "threads": self.server.threads(),
            "descriptors": self.server.descriptors(),
        }  # fmt: skip


def small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))


class BadTime:
    """Attacks at random from three threads, until `end`."""

    def __init__(self, unlucky: Unlucky, attacks: dict[str, Callable[[], None]]) -> None:
        self.unlucky, self.attacks = unlucky, attacks
        self.done: dict[str, int] = {}
        self.wrong: list[str] = []
        self.ending = False
        self.threads = [threading.Thread(target=self.run) for _ in range(3)]
        for thread in self.threads:
            thread.start()

    def run(self) -> None:
        os.nice(15 - os.nice(0))  # the CPU that attackers take is not the server's doing
        while not self.ending and not self.wrong:
            name = self.unlucky.random.choice(list(self.attacks))
            try:
                with contextlib.suppress(OSError, AssertionError):
                    self.attacks[name]()
            except BaseException as error:
                self.wrong.append(f"{name}: {error!r}")
            self.done[name] = self.done.get(name, 0) + 1

    def end(self) -> None:
        self.ending = True
        for thread in self.threads:
            thread.join()
        assert not self.wrong, self.wrong


def calm(unlucky: Unlucky, seconds: float) -> float:
    """The longest wait in ms; the table is rebuilt now and then, as in a bad time."""
    load = Load(unlucky.server, unlucky.known.decode(), generations=unlucky.generations)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.5)
        unlucky.rebuild()
    return load.end()["max_us"] / 1000


def bad(unlucky: Unlucky, seconds: float, attacks: dict[str, Callable[[], None]]) -> tuple[float, BadTime]:
    load = Load(unlucky.server, unlucky.known.decode(), generations=unlucky.generations)
    attackers = BadTime(unlucky, attacks)
    time.sleep(seconds)
    attackers.end()
    return load.end()["max_us"] / 1000, attackers


def settle(unlucky: Unlucky, wanted: dict[str, int] | None = None) -> dict[str, int]:
    """Let everything go that hangs; figures when nothing changes any more, or is as wanted."""

    def is_over() -> bool:
        for fifo in unlucky.fifos:
            unlucky.release(fifo)
        now = unlucky.figures()
        if wanted is None:
            time.sleep(3)
            return now["threads"] == unlucky.figures()["threads"]
        return (
            now["threads"] <= wanted["threads"] + 4
            and now["descriptors"] <= wanted["descriptors"] + 8
            and now["memory"] < wanted["memory"] + SLACK  # given back within half a minute
        )

    try:
        wait_until(is_over, "memory, threads and descriptors", 90, pause=0.5)
    except AssertionError as error:
        raise AssertionError(f"{error}: {unlucky.figures()}, wanted: {wanted}") from None
    return unlucky.figures()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--only", help="names of attacks, with commas between them")
    options = parser.parse_args()
    unlucky = Unlucky(options.seed)
    attacks = unlucky.attacks()
    if options.only:
        attacks = {name: attacks[name] for name in options.only.split(",")}
    print(f"seed {options.seed}", flush=True)
    try:
        return soak(unlucky, attacks, options.seconds)
    except BaseException:
        shutil.copy(unlucky.server.log_file, "/tmp/soak-unlucky.log")
        print("the server's log is in /tmp/soak-unlucky.log", flush=True)
        raise
    finally:
        unlucky.server.remove()


def soak(unlucky: Unlucky, attacks: dict[str, Callable[[], None]], seconds: float) -> int:
    unlucky.server.start()
    calm(unlucky, 1)
    for attack in attacks.values():
        with contextlib.suppress(OSError, AssertionError):
            attack()
    before = settle(unlucky)
    print(f"after one round of everything: {before}", flush=True)
    until = time.monotonic() + seconds
    longest_calm = longest_bad = 0.0
    done: dict[str, int] = {}
    while time.monotonic() < until:
        longest_calm = max(longest_calm, calm(unlucky, CALM))
        longest, attackers = bad(unlucky, BAD, attacks)
        longest_bad = max(longest_bad, longest)
        for name, times in attackers.done.items():
            done[name] = done.get(name, 0) + times
        print(f"calm {longest_calm:.1f} ms, bad {longest:.1f} ms, {unlucky.figures()}", flush=True)
    after = settle(unlucky, before)
    print(f"attacks: {done}\nin the end: {after}")
    print(f"longest wait: calm {longest_calm:.1f} ms, bad {longest_bad:.1f} ms")
    assert longest_bad < longest_calm + WORSE_MS
    return 0


if __name__ == "__main__":
    sys.exit(main())
