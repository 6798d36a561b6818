"""log - Postfix's log form: where lines go, what they look like, how often

A line is `[level: ]text`, without control characters, at most 2000 bytes. It
goes to stderr, to syslog, or to postlogd (main.cf: maillog_file). While the
server runs, every thread's lines go through one queue, which the log thread
empties (`run`): a destination that is slow or full delays nobody else. A line
that comes again within WINDOW seconds is counted, and the count logged after.
Of lines that begin alike only so many are written in a second: nobody can fill
the disk, and what else there is to say is still said.

Source: syslog_name(5), postlogd(8); master.md 5.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from proxymap.metrics._counters import LOG_LOST, OF_SERVICE, Figures, is_damaged
from proxymap.tables._jobs import LEVEL_ERROR, LEVEL_FATAL, LEVEL_INFO, LEVEL_WARNING, Queue

PREFIX = {LEVEL_FATAL: "fatal: ", LEVEL_ERROR: "error: ", LEVEL_WARNING: "warning: ", LEVEL_INFO: ""}
TEXT_MAX = 2000  # bytes, as Postfix cuts
WINDOW = 10.0  # seconds in which the same line is not written twice
FRAMES = 4  # functions that are named, of those that an exception came through
REMEMBERED = 256  # lines in that window; more are written as they come
SECOND = 1.0
ALIKE_MAX = 50  # lines of one kind in a second; the others are counted
KINDS_MAX = 20  # kinds of lines counted apart in a second; all others are one more

KIND_ENDS = frozenset('0123456789":')
KIND_LENGTH = 60  # letters

STDERR = 2

Sink = Callable[[int, str], None]


def clean(text: str) -> str:
    """One line of printable text: what is not becomes "?", and what is too long is cut."""
    # A list, as a generator is a function: see tables/opening.
    line = "".join([c if c.isprintable() else "?" for c in text])
    return line.encode()[:TEXT_MAX].decode(errors="ignore")


def kind_of(line: str) -> str:
    """What lines of one kind begin with: all up to the first number, quotation mark or colon."""
    for at, c in enumerate(line[:KIND_LENGTH]):
        if c in KIND_ENDS:
            return line[:at]
    return line[:KIND_LENGTH]


def to_stderr(ident: str) -> Sink:
    """A line that stderr does not take at once, since nobody reads it, is lost."""
    import select

    def write(level: int, line: str) -> None:
        try:
            if select.select([], [STDERR], [], 0)[1]:
                os.write(STDERR, f"{ident}[{os.getpid()}]: {line}\n".encode())
        except (OSError, ValueError):
            pass  # closed

    return write


def to_syslog(ident: str, facility: str) -> Sink:
    """The local syslog; `facility` is one of main.cf:syslog_facility."""
    import syslog

    number = getattr(syslog, f"LOG_{facility.upper()}", syslog.LOG_MAIL)
    syslog.openlog(ident, syslog.LOG_PID | syslog.LOG_NDELAY, number)
    return syslog.syslog


def to_postlog(ident: str, path: str, hostname: str) -> Sink:
    """postlogd's datagram socket; a line that it cannot take at once is lost."""
    import socket

    host = hostname.partition(".")[0] or "amnesiac"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except OSError:
        pass  # as with Postfix's own daemons: no postlogd, no record

    def write(level: int, line: str) -> None:
        stamp = time.strftime("%b %d %H:%M:%S")
        try:
            sock.send(f"{stamp} {host} {ident}[{os.getpid()}]: {line}".encode())
        except OSError:
            pass

    return write


class Log:
    """Writes lines to its sinks, or to `queue` while there is one. `verbose` is how often -v was given."""

    def __init__(self, sinks: list[Sink], verbose: int = 0) -> None:
        self.sinks = sinks
        self.verbose = verbose
        self.queue: Queue | None = None
        self._recent: dict[tuple[int, str], tuple[float, int]] = {}
        self._kinds: dict[str, int] = {}  # lines of each in this second
        self._since = 0.0  # when it began

    def fatal(self, text: str) -> None:
        self.write(LEVEL_FATAL, text)

    def error(self, text: str) -> None:
        self.write(LEVEL_ERROR, text)

    def warning(self, text: str) -> None:
        self.write(LEVEL_WARNING, text)

    def info(self, text: str) -> None:
        self.write(LEVEL_INFO, text)

    def debug(self, text: str) -> None:
        if self.verbose:
            self.write(LEVEL_INFO, text)

    def exception(self, text: str, level: int = LEVEL_ERROR, error: BaseException | None = None) -> None:
        """The exception being handled (or `error`), as one line with where it came from."""
        error = error or sys.exception()
        self.write(level, f"{text}: {type(error).__name__}: {error} [{_where(error)}]")

    def write(self, level: int, text: str) -> None:
        if self.queue is not None:
            self.queue.log(level, text.encode(errors="replace"))
        else:
            self._write(level, text)

    def _write(self, level: int, text: str) -> None:
        line = clean(text)
        now = time.monotonic()
        self.tell_counts(now)
        seen = self._recent.get((level, line))
        if seen is not None:
            self._recent[level, line] = (seen[0], seen[1] + 1)
            return
        if level == LEVEL_FATAL or self._is_allowed(line, now):
            if len(self._recent) < REMEMBERED:
                self._recent[level, line] = (now, 0)
            self._emit(level, line)

    def _is_allowed(self, line: str, now: float) -> bool:
        """Has this second room for one more of its kind?"""
        if now - self._since >= SECOND:
            self._tell_left_out(now)
        kind = kind_of(line)
        if kind not in self._kinds and len(self._kinds) >= KINDS_MAX:
            kind = ""
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        return self._kinds[kind] <= ALIKE_MAX

    def _tell_left_out(self, now: float) -> None:
        """Write how many lines of each kind were too many, and begin another second."""
        for kind, count in self._kinds.items():
            if count > ALIKE_MAX:
                what = f'that begin with "{kind}"' if kind else "of many kinds"
                self._emit(LEVEL_WARNING, f"{count - ALIKE_MAX} more lines {what} were left out")
        self._kinds.clear()
        self._since = now

    def tell_counts(self, now: float) -> None:
        """Write how often lines came again whose window is over, and how many were left out."""
        if self._kinds and now - self._since >= SECOND:
            self._tell_left_out(now)
        while self._recent:
            (level, line), (since, again) = next(iter(self._recent.items()))
            if now - since < WINDOW:
                return
            del self._recent[level, line]
            if again:
                self._emit(level, f"{line} (repeated {again} times)")

    def _emit(self, level: int, line: str) -> None:
        for sink in self.sinks:
            sink(level, PREFIX[level] + line)

    def run(self, queue: Queue) -> None:
        """Write what comes through the queue until that is closed and empty. The body of the log thread."""
        damaged = False
        while (job := queue.take(WINDOW)) is not None or not queue.closed:
            if job is not None:
                self._write(job.status, job.name.decode(errors="surrogateescape"))
            if lost := queue.take_lost():
                Figures(OF_SERVICE, b"").count(LOG_LOST, lost)
                self._write(LEVEL_WARNING, f"{lost} log lines were lost: they came too fast")
            if not damaged and (damaged := is_damaged()):
                self._write(LEVEL_WARNING, "the file of counters was cut: what is counted may be lost")
            self.tell_counts(time.monotonic())
        self.tell_counts(float("inf"))


def _where(error: BaseException | None) -> str:
    """The innermost functions that an exception came through, which the module traceback is too big for."""
    frames: list[str] = []
    step = error.__traceback__ if error else None
    while step is not None:
        code = step.tb_frame.f_code
        frames.insert(0, f"{code.co_name} ({os.path.basename(code.co_filename)}:{step.tb_lineno})")
        step = step.tb_next
    return " < ".join(frames[:FRAMES])
