"""mastercf - master.cf: its entries, what master(8) makes of a command, and how to set one

Reading is ours, so that it works where Postfix is not installed; writing is
left to postconf(1), which keeps the other columns.

Source: master(5), postconf(1); the traps of `postfix upgrade-configuration` as
observed with 3.7.11 (master.md 1.6).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

from proxymap.config.maincf import ERRORS, TEXT, Warn
from proxymap.config.source import BLANKS, WORD_BLANKS, logical_lines
from proxymap.ctl.safety import Fault
from proxymap.errors import ConfigError

STOCK = "proxymap"  # the command of both services as Postfix comes
SERVICES = ("proxymap", "proxywrite")
COLUMNS = 8  # service type private unpriv chroot wakeup maxproc command
COMMAND_LIMIT = 60.0  # seconds for one run of a Postfix command


class Entry(NamedTuple):
    """A line of master.cf, with its continuations."""

    where: str  # file and line
    service: str
    type: str
    chroot: str
    process_limit: str
    command: str
    arguments: tuple[str, ...]  # groups without their braces
    columns: tuple[str, ...]  # as they stand, the command last
    line: int  # the number of its first

    @property
    def name(self) -> str:
        """As postconf -M and -F have it."""
        return f"{self.service}/{self.type}"

    @property
    def overrides(self) -> list[str]:
        """The name=value of each -o, which the process gets over main.cf."""
        found: list[str] = []
        for at, argument in enumerate(self.arguments):
            if argument.startswith("argv="):
                break  # of pipe(8): what follows belongs to another program
            if argument == "-o":
                found += self.arguments[at + 1 : at + 2]
            elif argument.startswith("-o"):
                found.append(argument[2:])
        return [override for override in found if "=" in override]


def path_of(config_directory: str) -> str:
    return os.path.join(config_directory, "master.cf")


def read_entries(config_directory: str, warn: Warn = lambda text: None, strict: bool = True) -> list[Entry]:
    """read_entries - all entries, in order; ConfigError for what master would die of, warn() of the rest

    Unless `strict`, lines that are too short are passed over.
    """
    path = path_of(config_directory)
    entries = []
    try:
        with open(path, "rb") as file:
            for number, line in logical_lines(file, path, warn):
                words = split_words(line.decode(TEXT, ERRORS))
                where = f"{path}, line {number}"
                if len(words) < COLUMNS and not strict:
                    continue
                if len(words) < COLUMNS:
                    what = f"{len(words)} columns, expected at least {COLUMNS}"
                    raise ConfigError(f"{where}: {what}; complete the line, or remove it")
                arguments = tuple(words[COLUMNS:])
                columns = tuple(words[:COLUMNS])
                service, kind, _, _, chroot, _, limit, command = columns
                entries.append(
                    Entry(where, service, kind, chroot, limit, command, arguments, columns, number)
                )
    except OSError as trouble:
        raise ConfigError(f"open {path}: {trouble.strerror}; name another folder with -c") from None
    return entries


def split_words(text: str) -> list[str]:
    """split_words - what stands between blanks; `{ ... }` is one word, given without its braces"""
    words: list[str] = []
    while text := text.lstrip(WORD_BLANKS):
        if not text.startswith("{"):
            end = next((at for at, char in enumerate(text) if char in WORD_BLANKS), len(text))
            words.append(text[:end])
            text = text[end:]
            continue
        end = _group_end(text)
        words.append(text[1:end].strip(WORD_BLANKS))
        text = text[end + 1 :]
    return words


def _group_end(text: str) -> int:
    """Where the group that text begins with is closed; the end if it is not."""
    level = 0
    for at, char in enumerate(text):
        level += (char == "{") - (char == "}")
        if not level:
            return at
    return len(text)


# The names that postconf(1) has for columns, and what may stand there.
FIELDS: dict[str, tuple[int, Callable[[str], bool], str]] = {
    "type": (
        1,
        lambda text: text in ("inet", "unix", "unix-dgram", "fifo", "pass"),
        "inet, unix, fifo or pass",
    ),
    "private": (2, lambda text: text in ("y", "n", "-"), "y, n or -"),
    "unprivileged": (3, lambda text: text in ("y", "n", "-"), "y, n or -"),
    "chroot": (4, lambda text: text in ("y", "n", "-"), "y, n or -"),
    "wakeup": (
        5,
        lambda text: _is_number(text.removesuffix("?")),
        "seconds, perhaps with ? behind them, or -",
    ),
    "process_limit": (6, lambda text: _is_number(text), "a number or -"),
}


def _is_number(text: str) -> bool:
    """As postconf has it, for which no digits are a number, too."""
    return text in ("-", "") or (text.isascii() and text.isdigit())


def faulty_fields(entry: Entry) -> Iterator[Fault]:
    """faulty_fields - columns that master(8) dies of, and names that hold what looks like a blank"""
    for name, (at, is_good, expected) in FIELDS.items():
        if not is_good(entry.columns[at]):
            what = f"column {at + 1}, {name}: bad value {entry.columns[at]!a}, of which master would die"
            yield Fault(entry.where, what, f"write {expected}")
    for at in (0, COLUMNS - 1):
        if entry.columns[at] != "".join(entry.columns[at].split()):
            what = f"column {at + 1}: {entry.columns[at]!a} has a blank that is none for Postfix"
            yield Fault(entry.where, what, "type it anew")


def entry_of(entries: list[Entry], service: str) -> Entry | None:
    """entry_of - what master runs for a service: of several entries the last one counts"""
    return next((e for e in reversed(entries) if (e.service, e.type) == (service, "unix")), None)


def only_entry(config_directory: str, service: str) -> Entry:
    """only_entry - the entry to change; ConfigError if there is none, or more than one"""
    found = [e for e in read_entries(config_directory) if (e.service, e.type) == (service, "unix")]
    if not found:
        path = path_of(config_directory)
        raise ConfigError(f'{path}: no entry "{service} unix"; run "postfix upgrade-configuration"')
    if len(found) > 1:
        what = f"{found[0].name} has {len(found)} entries, and only the last one counts"
        raise ConfigError(f"{found[0].where}: {what}; remove the others")
    return found[0]


# Commands


def command_for(program: str, daemon_directory: str) -> str:
    """command_for - what to write in master.cf: master puts $daemon_directory/ before it, absolute or not"""
    return os.path.relpath(os.path.abspath(program), os.path.realpath(daemon_directory))


def program_of(command: str, daemon_directory: str) -> str:
    """program_of - the file that master executes"""
    return os.path.join(daemon_directory, "./" + command)


def is_ours(program: str) -> bool:
    """is_ours - is this file a Python script that runs this project's daemon?"""
    try:
        with open(program, "rb") as file:
            text = file.read(4096)
    except OSError:
        return False
    first = text.partition(b"\n")[0]
    return first.startswith(b"#!") and b"python" in first and b"proxymap" in text.partition(b"\n")[2]


def traps(where: str, command: str) -> Iterator[Fault]:
    """traps - commands that master cannot run, or that `postfix upgrade-configuration` undoes"""
    if command.startswith("/"):
        what = f'master looks for "{command}" below daemon_directory'
        yield Fault(where, what, f'write "{"../" * 4}{command.lstrip("/")}", with as many ../ as lead to /')
    if "proxymap" not in command:
        what = (
            f'"postfix upgrade-configuration" adds a stock entry, as "{command}" does not contain "proxymap"'
        )
        yield Fault(where, what, "let the path end in /proxymap")
    elif os.path.basename(command) != "proxymap":
        what = f'the file "{os.path.basename(command)}" gives another name in the log and to -n'
        yield Fault(where, what, "let the path end in /proxymap", warning=True)
    if "-proxymap" in command:
        what = f'"postfix upgrade-configuration" makes "1proxymap" of "-proxymap" in "{command}"'
        yield Fault(where, what, 'install into a folder without "-proxymap" in its path')


# Writing


def set_command(entry: Entry, command: str, in_place: bool = False) -> None:
    """set_command - have the entry run another command; all else in master.cf stays as it is

    A symbolic link stays one: the file that it leads to is replaced. in_place: write into
    the file itself where it cannot be replaced, as a bind mount. Raises ConfigError.
    """
    path = os.path.realpath(entry.where.rpartition(", line ")[0])
    try:
        with open(path, "rb") as file:
            lines = file.readlines()
        at, span = _place_of_command(entry, lines)
        line = lines[at]
        lines[at] = line[: span[0]] + command.encode(TEXT, ERRORS) + line[span[1] :]
        _replace(path, b"".join(lines), in_place)
    except OSError as trouble:
        raise ConfigError(f"{path}: {trouble.strerror}{BESIDE}") from None


BESIDE = (
    "; where master.cf cannot be changed, run a server beside master, with --listen"
    " unix:$queue_directory/private/NAME, and set proxymap_service_name = NAME in main.cf"
)


def _place_of_command(entry: Entry, lines: list[bytes]) -> tuple[int, tuple[int, int]]:
    """The line and where in it the command stands; ConfigError if the file was replaced meanwhile."""
    left = COLUMNS
    for at in range(entry.line - 1, len(lines)):
        if lines[at].lstrip(BLANKS).startswith(b"#"):
            continue
        for word in re.finditer(b"[^%b]+" % WORD_BLANKS.encode(), lines[at]):
            left -= 1
            if not left and word[0] == entry.command.encode(TEXT, ERRORS):
                return at, word.span()
    raise ConfigError(f"{entry.where}: the file was changed meanwhile; try again")


def _replace(path: str, content: bytes, in_place: bool) -> None:
    """Put a file with the same owner and mode in its place, or write into it."""
    new = path + ".proxymapctl"
    try:
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        status = os.stat(path)
        os.chown(new, status.st_uid, status.st_gid)
        shutil.copystat(path, new)
        os.utime(new)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        if not in_place:
            raise
        with open(path, "r+b") as file:
            file.write(content)
            file.truncate()


# Through postconf(1)


class Postfix(NamedTuple):
    """The commands of one Postfix instance."""

    config_directory: str
    command_directory: str
    daemon_directory: str

    def set_command(self, service: str, command: str) -> list[str]:
        """The postconf command that changes the entry's command and keeps its arguments."""
        value = self.run(self.postconf("-Fh", f"{service}/unix/command")).partition("\n")[0]
        _, blank, arguments = value.partition(" ")
        return self.postconf("-F", f"{service}/unix/command={command}{blank}{arguments}")

    def postconf(self, *arguments: str) -> list[str]:
        return [os.path.join(self.command_directory, "postconf"), "-c", self.config_directory, *arguments]

    def reload(self) -> list[str]:
        return [os.path.join(self.command_directory, "postfix"), "-c", self.config_directory, "reload"]

    def is_running(self) -> bool:
        """Does this instance's master run? Needs root."""
        master = os.path.join(self.daemon_directory, "master")
        command = [master, "-t", "-c", self.config_directory]
        done = subprocess.run(command, capture_output=True, timeout=COMMAND_LIMIT, check=False)
        return done.returncode != 0

    def run(self, command: list[str]) -> str:
        """Standard output; ConfigError with what the command complained of."""
        try:
            done = subprocess.run(command, capture_output=True, timeout=COMMAND_LIMIT, check=True)
        except subprocess.CalledProcessError as trouble:
            lines = trouble.stderr.decode(TEXT, ERRORS).strip().splitlines() or ["the mail log says why"]
            raise ConfigError(f'"{" ".join(command)}" failed: {lines[-1]}') from None
        except (OSError, subprocess.SubprocessError) as trouble:
            raise ConfigError(f'"{" ".join(command)}" failed: {trouble}') from None
        return done.stdout.decode(TEXT, ERRORS)
