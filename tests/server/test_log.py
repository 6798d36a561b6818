"""test_log - the form of log lines, how often they come, and where they go"""

from __future__ import annotations

import os
import re
import socket
import syslog
from pathlib import Path

import pytest
from fix_server import LIMIT, ServerProcess, lookup

from proxymap.server import log as log_module
from proxymap.server.log import (
    ALIKE_MAX,
    KINDS_MAX,
    REMEMBERED,
    TEXT_MAX,
    WINDOW,
    Log,
    clean,
    to_postlog,
    to_stderr,
    to_syslog,
)
from proxymap.tables._jobs import LEVEL_ERROR as ERROR
from proxymap.tables._jobs import LEVEL_FATAL as FATAL
from proxymap.tables._jobs import LEVEL_INFO as INFO
from proxymap.tables._jobs import LEVEL_WARNING as WARNING
from proxymap.tables._jobs import Queue


class Clock:
    """Stands for the module time in log.py."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    @staticmethod
    def strftime(form: str) -> str:
        return "Nov 23 06:31:00"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log_module, "time", clock)
    return clock


@pytest.fixture
def lines() -> list[tuple[int, str]]:
    return []


@pytest.fixture
def log(clock: Clock, lines: list[tuple[int, str]]) -> Log:
    return Log([lambda level, line: lines.append((level, line))])


def test_level_stands_before_the_text(log: Log, lines: list[tuple[int, str]]) -> None:
    log.info("a")
    log.warning("b")
    log.error("c")
    log.fatal("d")
    assert lines == [(INFO, "a"), (WARNING, "warning: b"), (ERROR, "error: c"), (FATAL, "fatal: d")]


def test_debug_lines_come_only_with_v(log: Log, lines: list[tuple[int, str]]) -> None:
    log.debug("no")
    log.verbose = 1
    log.debug("yes")
    assert lines == [(INFO, "yes")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines\r\n", "two?lines??"),
        ("\0\x01\x1b[31mred\x7f\x9b", "??" + "?[31mred??"),
        ("caf\u00e9 \u65e5\u672c", "caf\u00e9 \u65e5\u672c"),
        ("\u202etxt.exe\u2028\u200b", "?txt.exe??"),
        (b"\xff\xfe".decode(errors="surrogateescape"), "??"),
        ("a b\tc", "a b?c"),
    ],
)
def test_what_is_not_printable_becomes_a_question_mark(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\u65e5"])
def test_long_line_is_cut_at_a_whole_letter(letter: str) -> None:
    width = len(letter.encode())
    assert clean(letter * 3000) == letter * (TEXT_MAX // width)


def test_line_that_comes_again_is_counted(log: Log, lines: list[tuple[int, str]], clock: Clock) -> None:
    for _ in range(5):
        log.warning("again")
    assert lines == [(WARNING, "warning: again")]
    clock.now += WINDOW
    log.warning("other")
    assert lines[1:] == [(WARNING, "warning: again (repeated 4 times)"), (WARNING, "warning: other")]


def test_count_is_told_without_another_line(log: Log, lines: list[tuple[int, str]], clock: Clock) -> None:
    log.warning("again")
    log.warning("again")
    log.tell_counts(clock.now)
    assert len(lines) == 1
    clock.now += WINDOW
    log.tell_counts(clock.now)
    assert lines[1:] == [(WARNING, "warning: again (repeated 1 times)")]


def test_after_the_window_a_line_is_written_anew(
    log: Log, lines: list[tuple[int, str]], clock: Clock
) -> None:
    for _ in range(3):
        log.warning("line")
        clock.now += WINDOW
    assert lines == [(WARNING, "warning: line")] * 3


def test_same_text_of_another_level_is_another_line(log: Log, lines: list[tuple[int, str]]) -> None:
    log.warning("text")
    log.error("text")
    assert len(lines) == 2


def test_more_different_lines_than_are_remembered_are_written(
    log: Log, lines: list[tuple[int, str]], clock: Clock
) -> None:
    for i in range(3 * REMEMBERED):
        log.warning(f"line {i}")
        clock.now += 0.1
    assert len([line for _, line in lines if "repeated" not in line]) == 3 * REMEMBERED


def test_of_lines_that_begin_alike_a_second_has_a_limited_number(
    log: Log, lines: list[tuple[int, str]], clock: Clock
) -> None:
    for i in range(10 * ALIKE_MAX):
        log.warning(f"/etc/x, line {i}: no good")
        if i == 3 * ALIKE_MAX:
            log.error("something else")
    assert lines.count((ERROR, "error: something else")) == 1
    assert len(lines) == ALIKE_MAX + 1
    clock.now += 1
    log.tell_counts(clock.now)
    left_out = f'warning: {9 * ALIKE_MAX} more lines that begin with "/etc/x, line " were left out'
    assert lines[-1] == (WARNING, left_out)
    log.warning("/etc/x, line 3000: no good")
    assert lines[-1] == (WARNING, "warning: /etc/x, line 3000: no good")


def test_all_kinds_together_are_limited_but_for_the_last_words(
    log: Log, lines: list[tuple[int, str]], clock: Clock
) -> None:
    for i in range(10_000):
        log.warning(f"unexpected attribute {'x' * (i // 100)}-{'y' * (i % 100)} from proxymap socket")
    assert len(lines) <= (KINDS_MAX + 1) * ALIKE_MAX
    log.fatal("the end")
    assert lines[-1] == (FATAL, "fatal: the end")
    clock.now += 1
    log.tell_counts(clock.now)
    assert lines[-1][1].endswith("more lines of many kinds were left out")


def test_exception_is_one_line_that_says_where(log: Log, lines: list[tuple[int, str]]) -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        log.exception("table x")
    (level, line), *more = lines
    assert not more
    assert level == ERROR
    assert line.startswith("error: table x: RuntimeError: two?lines [test_exception")
    assert "test_log.py:" in line


def test_closed_queue_ends_the_log_thread_and_has_counts_told(log: Log, lines: list[tuple[int, str]]) -> None:
    log.warning("again")
    log.warning("again")
    queue = Queue()
    queue.close()
    log.run(queue)
    assert lines[1:] == [(WARNING, "warning: again (repeated 1 times)")]


# Where lines go


def test_line_on_stderr_has_name_and_process(capfd: pytest.CaptureFixture[str]) -> None:
    to_stderr("postfix/proxymap")(WARNING, "warning: text")
    assert capfd.readouterr().err == f"postfix/proxymap[{os.getpid()}]: warning: text\n"


def test_stderr_that_is_gone_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    to_stderr("postfix/proxymap")(WARNING, "warning: text")
    with open(os.devnull, "w") as closed:
        monkeypatch.setattr("sys.stderr", closed)
    to_stderr("postfix/proxymap")(WARNING, "warning: text")


# postlogd's socket is there as long as the process.
for_life = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@for_life
def test_datagram_for_postlogd(tmp_path: Path, clock: Clock) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as postlogd:
        postlogd.bind(str(tmp_path / "p"))
        postlogd.settimeout(LIMIT)
        to_postlog("postfix/proxymap", str(tmp_path / "p"), "mx.example.com")(ERROR, "error: caf\u00e9")
        line = postlogd.recv(5000).decode()
    assert line == f"Nov 23 06:31:00 mx postfix/proxymap[{os.getpid()}]: error: caf\u00e9"


@for_life
def test_datagrams_that_nobody_takes_are_lost_and_delay_nobody(tmp_path: Path, clock: Clock) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as postlogd:
        postlogd.bind(str(tmp_path / "p"))
        write = to_postlog("postfix/proxymap", str(tmp_path / "p"), "mx")
        for i in range(5000):
            write(INFO, f"line {i} " + "x" * 500)
    write(INFO, "after postlogd went")


@for_life
def test_postlogd_that_is_not_there_is_no_trouble(tmp_path: Path, clock: Clock) -> None:
    to_postlog("postfix/proxymap", str(tmp_path / "none"), "mx")(INFO, "text")


def test_syslog_gets_ident_facility_and_level(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(syslog, "openlog", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(syslog, "syslog", lambda *arguments: calls.append(arguments))
    to_syslog("postfix/proxymap", "local3")(WARNING, "warning: text")
    (ident, options, facility), line = calls
    assert ident == "postfix/proxymap"
    assert facility == syslog.LOG_LOCAL3
    assert isinstance(options, int)
    assert options & syslog.LOG_PID
    assert line == (syslog.LOG_WARNING, "warning: text")


# The whole daemon


def test_daemon_counts_repeated_lines_and_cuts_long_ones() -> None:
    with ServerProcess() as server:
        server.start()
        with server.connect() as peer:
            for _ in range(100):
                peer.ask(lookup(b"cdb:/same", b"k"))
            peer.ask(lookup(b"cdb:/" + b"long" * 10_000, b"k"))
            peer.ask(lookup(b"cdb:/\n\xffodd\x1b", b"k"))
        assert server.stop() == 0
        text, lines = server.log(), server.log_lines()
    line = 'warning: request for unapproved table: "cdb:/same"'
    assert text.count(f"{line}\n") == 1
    assert text.count(f"{line} (repeated 99 times)\n") == 1
    assert 'unapproved table: "cdb:/??odd?"' in text
    assert max(len(line) for line in lines) <= TEXT_MAX + len("warning: ")
    assert all(re.match(r"postfix/proxymap\[\d+\]: ", line) for line in text.splitlines())


def test_daemon_logs_to_maillog_file_through_postlogd() -> None:
    with ServerProcess(own={"sandbox": "no"}) as server:  # which is a line of its own
        server.main |= {"maillog_file": f"{server.dir}/maillog", "maillog_file_prefixes": str(server.dir)}
        (server.dir / "public").mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as postlogd:
            postlogd.bind(f"{server.dir}/public/postlog")
            postlogd.settimeout(LIMIT)
            server.start("--log-to", "mail")
            line = postlogd.recv(5000).decode()
            assert re.fullmatch(
                r"\w{3} [ \d]\d \d\d:\d\d:\d\d test postfix/proxymap\[\d+\]: serving .*", line
            )
            with server.connect() as peer:
                peer.ask(lookup(b"cdb:/no", b"k"))
            assert 'warning: request for unapproved table: "cdb:/no"' in postlogd.recv(5000).decode()
            assert server.stop() == 0
        assert server.log() == ""


def test_maillog_file_outside_its_prefixes_is_fatal() -> None:
    with ServerProcess() as server:
        server.main |= {"maillog_file": "/etc/passwd"}
        server.start("--log-to", "mail", wait=False)
        assert server.process is not None
        assert server.process.wait(LIMIT) == 1
        assert "maillog_file_prefixes" in server.log()
