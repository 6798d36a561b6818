"""log - Postfix's log form: where lines go, what they look like, how often

A line is `[level: ]text`, without control characters, at most 2000 bytes. It
goes to stderr, to syslog, or to postlogd (main.cf: maillog_file). Any thread
may log; the loop's own lines come through a queue that `run` empties. A line
that comes again within WINDOW seconds is counted, and the count is told after.

Source: syslog_name(5), postlogd(8); master.md 5.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from proxymap._jobs import LEVEL_ERROR, LEVEL_FATAL, LEVEL_INFO, LEVEL_WARNING, Queue

PREFIX = {LEVEL_FATAL: "fatal: ", LEVEL_ERROR: "error: ", LEVEL_WARNING: "warning: ", LEVEL_INFO: ""}
TEXT_MAX = 2000  # bytes, as Postfix cuts
WINDOW = 10.0  # seconds in which the same line is not written twice
REMEMBERED = 256  # lines in that window; more are written as they come

Sink = Callable[[int, str], None]


def clean(text: str) -> str:
    """One line of printable text: what is not becomes "?", and what is too long is cut."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line.encode()[:TEXT_MAX].decode(errors="ignore")


def to_stderr(ident: str) -> Sink:
    def write(level: int, line: str) -> None:
        try:
            sys.stderr.write(f"{ident}[{os.getpid()}]: {line}\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            pass  # nobody reads: nothing to be done about it

    return write


def to_syslog(ident: str, facility: str) -> Sink:
    """The local syslog; `facility` is one of main.cf:syslog_facility."""
    import syslog

    number = getattr(syslog, f"LOG_{facility.upper()}", syslog.LOG_MAIL)
    syslog.openlog(ident, syslog.LOG_PID | syslog.LOG_NDELAY, number)
    return syslog.syslog


def to_postlog(ident: str, path: str, hostname: str) -> Sink:
    """postlogd's datagram socket; a line that it cannot take at once is lost."""
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
    """Writes lines to its sinks. `verbose` is how often -v was given."""

    def __init__(self, sinks: list[Sink], verbose: int = 0) -> None:
        self.sinks = sinks
        self.verbose = verbose
        self._lock = threading.Lock()
        self._recent: dict[tuple[int, str], tuple[float, int]] = {}

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

    def exception(self, text: str, level: int = LEVEL_ERROR) -> None:
        """The exception being handled, as one line with where it came from."""
        import traceback

        kind, error, trace = sys.exc_info()
        where = " < ".join(
            f"{frame.name} ({os.path.basename(frame.filename)}:{frame.lineno})"
            for frame in reversed(traceback.extract_tb(trace)[-4:])
        )
        self.write(level, f"{text}: {kind.__name__ if kind else 'error'}: {error} [{where}]")

    def write(self, level: int, text: str) -> None:
        line = clean(text)
        now = time.monotonic()
        with self._lock:
            self._tell_counts(now)
            seen = self._recent.get((level, line))
            if seen is not None:
                self._recent[level, line] = (seen[0], seen[1] + 1)
                return
            if len(self._recent) < REMEMBERED:
                self._recent[level, line] = (now, 0)
            self._emit(level, line)

    def tell_counts(self, *, all_of_them: bool = False) -> None:
        """Write how often lines came again whose window is over."""
        with self._lock:
            self._tell_counts(float("inf") if all_of_them else time.monotonic())

    def _tell_counts(self, now: float) -> None:
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
        """Write the loop's lines until its queue is closed. The body of the log thread."""
        while True:
            job = queue.take(WINDOW)
            if job is not None:
                self.write(job.level, job.name.decode(errors="surrogateescape"))
            lost = queue.take_lost()
            if lost:
                self.warning(f"{lost} log lines were lost: they came too fast")
            self.tell_counts(all_of_them=job is None and queue.closed)
            if job is None and queue.closed:
                return
