"""inject_faults - have each system call of a running server fail, one at a time, and see that it recovers

    python tests/inject_faults.py [--calls openat,mmap] [--errors ENOMEM,EIO]

A private server is given work: lookups on kept and new connections, files that
are replaced, tables that are opened for the first time, lookups by workers, a
reload. First strace(1) notes which system calls that takes; then, for each of
them and for each error, some calls fail: the first, the second, the fifth, or
all of them while strace is attached. During that a reply may be RETRY, or the
connection may close; what it says otherwise must be right. When strace is gone
everything must be as before within LIMIT seconds, in the same process.

What need not recover is in EXCUSED, with the reason. A write to an eventfd, the
word that an answer is there, has no such error and never fails: of `write` only
those to what else is open when strace comes. Not a test of pytest: it takes
minutes, and needs strace and the right to trace. `make inject`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fix_server import GREETING, Peer, ServerProcess, found, lookup, wait_until, write_cdb
from oracle import reply

ERRORS = "ENOMEM", "EMFILE", "EIO", "ENOSPC", "EINTR"
WHEN = "1", "3", "1+"
RETRY = reply("lookup", "3.6", 2)
LIMIT = 15.0  # seconds in which all is to be as before
IDLE = 7.0  # seconds after which a thread that is one too many has left
PAUSE = 1.5  # seconds for a call that a reload makes, or what follows it
RARE = {"madvise", "munmap"}  # calls that are made as late as that
TABLES = 2500  # names that are approved, each for one table that is opened for the first time
ERRORLESS = "the kernel has no errors for it"
NEVER = "the kernel has no such error for it, and libc ends the process, since its locks are void then"

# (system call, error or *, when or *): why it need not recover.
EXCUSED = {
    **{
        (
            "epoll_wait",
            error,
            "*",
        ): "the kernel has no such error for it; the process ends, and is started anew"
        for error in ERRORS
        if error != "EINTR"
    },
    ("epoll_wait", "EINTR", "1+"): "a strace that lets go meanwhile leaves ENOSYS behind, for which as above",
    **{
        ("brk", error, "*"): "where it fails the kernel returns the break as it was, whatever the reason"
        for error in ERRORS
        if error != "ENOMEM"
    },
    ("munmap", "*", "*"): "libc calls abort() where it cannot unmap the stack of a thread that has ended",
    **{
        (call, "*", "*"): ERRORLESS
        for call in ("getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "umask")
    },
    ("rseq", "*", "*"): "it begins a thread; libc ends the process (rseq registration failed)",
    ("futex", "*", "*"): NEVER,
    ("exit", "*", "*"): "does not return",
    ("exit_group", "*", "*"): "does not return",
    ("rt_sigreturn", "*", "*"): "does not return",
    ("restart_syscall", "*", "*"): "strace alone makes it",
}


class Work:
    """A server, and what it is asked in one round."""

    def __init__(self) -> None:
        self.server = ServerProcess(own={"worker_count": "2", "open_time_limit": "5s"})
        self.round = 0
        self.known = self.server.cdb("known", {b"k": b"0"})
        self.text = self.server.dir / "text"
        self.text.write_text("k 0\n")
        self.texthash = f"texthash:{self.text}".encode()
        self.sqlite = f"sqlite:{self.server.dir}/sqlite.cf".encode()
        (self.server.dir / "sqlite.cf").write_text(f"dbpath = {self.server.dir}/db\nquery = SELECT '%s'\n")
        (self.server.dir / "db").touch()
        names = [f"cdb:{self.server.dir}/t{i}" for i in range(TABLES)]
        self.server.approve(self.texthash, self.sqlite, *names)
        self.change()
        self.server.start()
        wait_until(self.is_well, "the server", LIMIT)

    def change(self) -> None:
        """What the next questions are about: replaced files, and one table that is new."""
        self.round += 1
        value = b"%d" % self.round
        write_cdb(self.server.dir / "known.cdb", {b"k": value})
        write_cdb(self.server.dir / f"t{self.round}.cdb", {b"k": value})
        new = self.server.dir / "text.new"
        new.write_text(f"k {self.round}\n")
        new.rename(self.text)

    def reload(self) -> None:
        self.server.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]

    def questions(self) -> list[tuple[bytes, bytes, bytes]]:
        value = b"%d" % self.round
        new = f"cdb:{self.server.dir}/t{self.round}".encode()
        return [(self.known, b"k", value), (new, b"k", value), (self.texthash, b"k", value),
                (self.sqlite, value, value)]  # fmt: skip

    def ask_all(self, patient: bool) -> list[str]:
        """What is not right yet, over one new connection. A value that is neither right nor old is a lie."""
        wrong = []
        with (
            contextlib.suppress(OSError, EOFError, AssertionError),
            Peer(self.server.path, greeted=False) as peer,
        ):
            peer.socket.settimeout(LIMIT if patient else 1.0)
            peer.read_exactly(len(GREETING))
            for table, key, value in self.questions():
                answer = peer.ask(lookup(table, key))
                if answer == found(value):
                    continue
                wrong.append(f"{table.decode()}: {answer}")
                older = [found(b"%d" % i) for i in range(self.round)]
                if answer != RETRY and answer not in older:
                    raise SystemExit(f"a wrong answer: {wrong[-1]}\n{self.server.log()}")
            return wrong
        return ["the connection closed, or no answer came in time"]

    def is_well(self) -> bool:
        if not self.server.alive():
            status = self.server.process.poll()  # type: ignore[union-attr]
            raise SystemExit(f"the server has ended, status {status}\n{self.server.log()[-4000:]}")
        return not self.ask_all(patient=True)


@contextlib.contextmanager
def strace(pid: int, *options: str) -> Iterator[Path]:
    """strace attached to all threads; gives the file that it writes to."""
    output = Path(f"/tmp/inject-{os.getpid()}")
    tracer = subprocess.Popen(
        ["strace", "-f", "-qqq", "-o", str(output), *options, "-p", str(pid)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: is_traced(pid), "strace to attach")
        yield output
    finally:
        tracer.send_signal(signal.SIGINT)
        try:
            tracer.wait(10)
        except subprocess.TimeoutExpired:  # strace 6.1 waits now and then for a thread that has ended
            tracer.kill()
            tracer.wait()
        wait_until(lambda: not is_traced(pid), "strace to detach")


def is_traced(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    return False


def calls_made(work: Work) -> dict[str, int]:
    """Which system calls a round takes, with a reload and the end of idle threads, and how many of each."""
    with strace(work.server.pid) as output:
        work.change()
        wait_until(work.is_well, "the first round", LIMIT)
        work.reload()
        time.sleep(IDLE)
        work.ask_all(patient=True)
    made: dict[str, int] = {}
    for line in output.read_text().splitlines():
        if match := re.match(r"\d+ +(\w+)\(", line):
            made[match[1]] = made.get(match[1], 0) + 1
    return made


def try_one(work: Work, call: str, error: str, when: str) -> bool:
    """Did the call fail at all? Ends the script if the server does not recover."""
    fault = "retval=0" if call == "brk" else f"error={error}"  # libc takes an error for the new break
    options = [f"--trace={call}", f"--inject={call}:{fault}:when={when}"]
    if call == "write":
        options += [f"--trace-path={path}" for path in open_but_eventfds(work.server.pid)]
    with strace(work.server.pid, *options) as output:
        work.change()
        work.ask_all(patient=False)
        work.reload()
        work.ask_all(patient=False)
        until = time.monotonic() + (IDLE if call in RARE else PAUSE)
        while not (failed := "(INJECTED)" in output.read_text()) and time.monotonic() < until:
            work.ask_all(patient=False)
            time.sleep(0.2)
    well_again(work)
    return failed


def open_but_eventfds(pid: int) -> set[str]:
    """What its descriptors lead to, as strace names it."""
    paths = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            paths.add(os.readlink(link))
    return {path for path in paths if "eventfd" not in path}


def well_again(work: Work) -> None:
    """An ENOSYS, which strace leaves behind where it lets go amid a call, says that a file will not do."""
    try:
        wait_until(work.is_well, "the server to be well again", LIMIT)
    except AssertionError as error:
        if os.strerror(errno.ENOSYS) in work.server.log():
            work.change()
            wait_until(work.is_well, "the server to take another file", LIMIT)
            return
        raise SystemExit(f"{error}; {work.ask_all(patient=True)}\n{work.server.log()[-3000:]}") from None


def excuse(call: str, error: str, when: str) -> str | None:
    for (of_call, of_error, of_when), reason in EXCUSED.items():
        if of_call == call and of_error in ("*", error) and of_when in ("*", when):
            return reason
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", help="only these system calls, with commas between them")
    parser.add_argument("--errors", default=",".join(ERRORS))
    options = parser.parse_args()
    work = Work()
    tried = failed = 0
    lost, unmet = [], []
    try:
        made = calls_made(work)
        print(
            "system calls of one round:", " ".join(f"{call}:{count}" for call, count in sorted(made.items()))
        )
        for call in options.calls.split(",") if options.calls else sorted(made):
            before = tried, failed
            for error in options.errors.split(","):
                for when in WHEN:
                    if (reason := excuse(call, error, when)) is not None:
                        print(f"{call} {error} when={when}: left out: {reason}")
                        continue
                    tried += 1
                    try:
                        failed += try_one(work, call, error, when)
                    except (SystemExit, AssertionError) as trouble:
                        lost.append(f"{call} {error} when={when}")
                        print(f"NOT RECOVERED: {lost[-1]}: {trouble}", flush=True)
                        work.server.remove()
                        work = Work()
            if tried > before[0] and failed == before[1]:
                unmet.append(call)
            print(f"{call}: {tried} tried so far, {failed} met a call", flush=True)
    finally:
        work.server.remove()
        Path(f"/tmp/inject-{os.getpid()}").unlink(missing_ok=True)
    print(f"{tried} tried, {failed} met a call, not recovered: {', '.join(lost) or 'none'}")
    print(f"calls that did not come again: {', '.join(unmet) or 'none'}")
    return bool(lost or unmet)


if __name__ == "__main__":
    sys.exit(main())
