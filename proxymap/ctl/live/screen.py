"""screen - a whole terminal for a command that draws itself anew, and gives the terminal back as it was

Plain ANSI: no terminfo is needed for what every terminal has. A frame is written at
once and waited for, so that on a slow line frames are left out and none queue up.

Source: termios(3), ECMA-48, XTerm Control Sequences (the alternate screen).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from types import FrameType
from typing import Any

BEGIN, END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # alternate screen, no cursor; and back
HOME, TO_END_OF_LINE, BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
BOLD, PLAIN = "\x1b[7m", "\x1b[0m"
QUIT = b"qQ\x03\x04"


def is_terminal() -> bool:
    """is_terminal - can this be drawn on, and keys be read?"""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def size() -> tuple[int, int]:
    """size - columns and lines of the terminal; 80 and 24 where nobody knows"""
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return 80, 24
    return columns or 80, lines or 24


class Screen:
    """Takes the terminal; leaves it as it was, whatever ends the command but kill -9."""

    def __enter__(self) -> Screen:
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._before = termios.tcgetattr(self._in)
        self._wake, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakes = wakes
        self._fd_before = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        handlers: dict[int, Any] = {
            signal.SIGWINCH: lambda *_: None, signal.SIGTERM: _terminate, signal.SIGHUP: _terminate,
            signal.SIGTSTP: self._stop,
        }  # fmt: skip
        self._handlers = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        self._take()
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._wake)
        os.close(self._wakes)
        self._give_back()

    def _take(self) -> None:
        tty.setcbreak(self._in)
        self._write(BEGIN)

    def _give_back(self) -> None:
        try:
            termios.tcflush(self._out, termios.TCOFLUSH)  # what nobody reads would be waited for
            self._write(PLAIN + END)
            termios.tcsetattr(self._in, termios.TCSANOW, self._before)
        except (OSError, termios.error):
            pass  # it is gone

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its terminal, until we are continued."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    def draw(self, lines: list[str], headings: set[int]) -> None:
        """One frame, cut to the terminal's size. headings: lines that stand out, unless NO_COLOR is set."""
        columns, height = size()
        colors = not os.environ.get("NO_COLOR")
        shown = []
        for number, line in enumerate(lines[:height]):
            text = line[:columns]
            if number in headings and colors:
                text = f"{BOLD}{text:<{columns}}{PLAIN}"
            shown.append(text + TO_END_OF_LINE)
        self._write(HOME + "\r\n".join(shown) + BELOW)
        termios.tcdrain(self._out)

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(self._out, data) :]

    def wait(self, seconds: float) -> bool:
        """Until it is time for the next frame, or the size has changed; False if the user wants to leave."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ready = select.select([self._in, self._wake], [], [], left)[0]
            if self._in in ready:
                keys = os.read(self._in, 64)
                if not keys or any(key in QUIT for key in keys):
                    return False
            if self._wake in ready:
                os.read(self._wake, 64)
                return True
        return True


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
