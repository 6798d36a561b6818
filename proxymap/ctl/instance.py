"""instance - one Postfix instance: which server answers on its proxymap sockets, and what master.cf says

What cannot be known: the protocol does not name the server, and the sockets are
master's own, so master's children show which server answers. While old
and new ones are there together, nobody can say which of them answered.

Source: master(5), proc(5); master.md 1.1, 2.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from proxymap import __version__
from proxymap.client import Client, Dialect
from proxymap.config.approval import approve
from proxymap.config.settings import Settings, load, seconds
from proxymap.ctl.mastercf import SERVICES, STOCK, Entry, Postfix, entry_of, is_ours, program_of, read_entries
from proxymap.ctl.rehearsal import GREETING
from proxymap.ctl.safety import account_of
from proxymap.errors import BY_STATUS, ConfigError, ProtocolError
from proxymap.tables.types import type_of

STATUS_LIMIT = 5.0  # seconds for any server to answer
THROTTLE = 60  # service_throttle_time's default
KEY = b"proxymapctl-asks"  # looked up to see whether the service works; hardly anybody has it

OURS, STOCKS, OTHER = "proxymap (Python)", "Postfix's proxymap", "another program"


class Instance:
    """One Postfix instance: its configuration and its commands. strict: as load() has it."""

    def __init__(self, config_directory: str, strict: bool = True) -> None:
        self.directory = os.path.abspath(config_directory)
        self.settings, self.main_cf = load(self.directory, strict=strict)
        folders = [self.main_cf.get(name) for name in ("command_directory", "daemon_directory")]
        self.postfix = Postfix(self.directory, *folders)
        self.strict = strict
        if not all(folders) and strict:
            raise ConfigError("postconf was not found: is Postfix installed?")

    @property
    def throttle(self) -> int:
        """For how many seconds master starts a service no more after a process that failed at once."""
        try:
            return seconds(1)(self.main_cf.get("service_throttle_time"))
        except ValueError:
            return THROTTLE

    def socket(self, service: str) -> str:
        return os.path.join(self.settings.queue_directory, "private", service)

    def settings_of(self, entry: Entry) -> Settings:
        """What the service's process gets: master.cf's -o count."""
        if not self.strict:
            return self.settings
        return load(self.directory, entry.overrides, entry.service)[0]

    def approved(self, entry: Entry) -> list[str]:
        """The tables that the service may open."""
        settings, main_cf = self.settings, self.main_cf
        if self.strict:
            settings, main_cf = load(self.directory, entry.overrides, entry.service)
        found = approve(settings, main_cf, entry.service == "proxywrite", lambda text: None)
        return sorted(table.decode("utf-8", "surrogateescape") for table in found)


def own_program() -> str:
    """own_program - the daemon's executable, beside proxymapctl's own file or its interpreter"""
    folders = [os.path.dirname(sys.executable), sysconfig.get_path("scripts")]
    if os.path.basename(sys.argv[0]) == "proxymapctl":
        folders.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))
    for folder in folders:
        if os.path.isfile(os.path.join(folder, STOCK)):
            return os.path.abspath(os.path.join(folder, STOCK))
    raise ConfigError(f"no executable named proxymap in {' or '.join(folders)}; install proxymap again")


# Who answers


class Process(NamedTuple):
    """A child of master that serves proxymap or proxywrite."""

    pid: int
    service: str
    server: str  # OURS, STOCKS or OTHER
    uptime: float  # seconds


def dialect_of(settings: Settings) -> Dialect:
    """dialect_of - what the host's own clients and servers speak"""
    return "3.11" if settings.version >= (3, 11) else "3.6"


def ask(instance: Instance, entry: Entry, limit: float, greeting: bool = False) -> tuple[str, list[Process]]:
    """ask - what the service answers within `limit` seconds, and master's processes for it meanwhile

    A lookup in the first approved table that we serve; else, and from proxywrite, for
    which opening a table may mean to create it, the greeting, as when `greeting`: Postfix's
    own server may die of a damaged table. Raises OSError or ProtocolError. No process
    leaves while the connection stands.
    """
    settings = instance.settings_of(entry)
    path = instance.socket(entry.service)
    tables = [] if greeting or entry.service == "proxywrite" else instance.approved(entry)
    table = next((table for table in tables if type_of(table)), None)
    if table is None:
        with _greeted(path, settings, limit):
            return "greeting", processes_of(instance, entry.service)
    with Client(path, dialect=dialect_of(settings), timeout=limit) as client:
        try:
            found = "OK" if client.lookup(table, KEY) is not None else "NOKEY"
        except tuple(BY_STATUS.values()) as reply:
            found = str(reply).rpartition(" ")[2]
        return f"lookup in {table}: {found}", processes_of(instance, entry.service)


@contextlib.contextmanager
def _greeted(path: str, settings: Settings, limit: float) -> Iterator[None]:
    """A connection whose server has spoken; before Postfix 3.6 servers are silent, and nothing is proved."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(limit)
        connection.connect(path)
        if settings.greets and connection.recv(len(GREETING), socket.MSG_WAITALL) != GREETING:
            raise ProtocolError(f"{path}: no greeting; not a proxymap server?")
        yield


def processes_of(instance: Instance, service: str) -> list[Process]:
    """processes_of - master's children that serve `service`, the oldest first; needs root"""
    path = os.path.join(instance.settings.queue_directory, "pid", "master.pid")
    try:
        with open(path) as file:
            master = int(file.readline())
        found = [_process(pid, instance.postfix.daemon_directory) for pid in _children(master)]
    except (FileNotFoundError, ValueError):
        return []
    return [process for process in found if process is not None and process.service == service]


def _children(parent: int) -> Iterator[int]:
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        with contextlib.suppress(OSError):
            if int(_stat(int(name))[1]) == parent:
                yield int(name)


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on, which stands behind the name in parentheses."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def _process(pid: int, daemon_directory: str) -> Process | None:
    """None if the child has gone, or is no proxymap server."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            words = file.read().split("\0")
        executable = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return None
    program = next((word for word in words[:4] if os.path.basename(word) == STOCK), None)
    if program is None:
        return None
    service = words[words.index("-n") + 1] if "-n" in words[:-1] else STOCK
    return Process(pid, service, _server(executable, daemon_directory), max(age, 0.0))


def _server(executable: str, daemon_directory: str) -> str:
    if os.path.basename(executable).startswith("python"):
        return OURS
    return STOCKS if executable == os.path.realpath(os.path.join(daemon_directory, STOCK)) else OTHER


def described(process: Process) -> str:
    """described - a process for people"""
    return f"{process.server}, pid {process.pid}, up {duration(process.uptime)},"


def duration(seconds: float) -> str:
    """duration - such as 42 s, 5 min, 3 h, 12 days"""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


# status


def status(instance: Instance) -> Iterator[dict[str, Any]]:
    """status - for each service: what master runs, and who answers"""
    entries = read_entries(instance.directory)
    running = instance.postfix.is_running() if os.geteuid() == 0 else None
    for service in SERVICES:
        entry = entry_of(entries, service)
        if entry is None:
            yield {"service": service, "command": None}
            continue
        yield {**_of_command(instance, entry), **_of_processes(instance, entry, running)}


def _of_command(instance: Instance, entry: Entry) -> dict[str, Any]:
    program = program_of(entry.command, instance.postfix.daemon_directory)
    server = STOCKS if entry.command == STOCK else OTHER
    version: str | None = instance.settings.mail_version if server == STOCKS else None
    if is_ours(program):
        server, version = OURS, _version(program, instance.settings.mail_owner)
    return {
        "service": entry.service,
        "command": entry.command,
        "program": os.path.normpath(program),
        "configured": server,
        "version": version,
    }


def _version(program: str, owner: str) -> str | None:
    """What the file says of itself, run as mail_owner; the running process may be of an older one."""
    with contextlib.suppress(ConfigError):
        if os.path.realpath(program) == os.path.realpath(own_program()):
            return __version__
    account = account_of(owner) if os.geteuid() == 0 else None
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STATUS_LIMIT,
            check=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().rpartition(" ")[2] or None


def _of_processes(instance: Instance, entry: Entry, running: bool | None) -> dict[str, Any]:
    """running: does master? None: only root can tell."""
    if not running:
        why = "Postfix is not running" if running is False else "run this as root to see who answers"
        return {"answer": None, "trouble": why, "processes": []}
    stocks = any(process.server == STOCKS for process in processes_of(instance, entry.service))
    greeting = stocks or entry.command == STOCK
    try:
        try:
            answer, processes = ask(instance, entry, STATUS_LIMIT, greeting)
        except ProtocolError:  # a server that was just leaving; Postfix's clients ask again too
            answer, processes = ask(instance, entry, STATUS_LIMIT, greeting)
    except (OSError, ProtocolError) as trouble:
        return {"answer": None, "trouble": str(trouble), "processes": []}
    told = _sandboxes(instance.socket(entry.service)) if any(p.server == OURS for p in processes) else {}
    shown = [
        {"pid": p.pid, "server": p.server, "uptime": round(p.uptime, 1), "sandbox": told.get(p.pid)}
        for p in processes
    ]
    return {"answer": answer, "trouble": None, "processes": shown}


def _sandboxes(socket_path: str) -> dict[int, str]:
    """What each of our processes says of its sandbox; one that is older than this program says nothing."""
    from proxymap.server.control import ask_all

    with contextlib.suppress(OSError):
        return {
            pid: str(reply["ok"])
            for pid, reply in ask_all(socket_path, STATUS_LIMIT, do="sandbox")
            if "ok" in reply
        }
    return {}


def status_line(state: dict[str, Any]) -> str:
    """status_line - a status() for people"""
    if state["command"] is None:
        return f"{state['service']}: no entry in master.cf"
    version = f" {state['version']}" if state["version"] else ""
    line = f"{state['service']}: master runs {state['program']} ({state['configured']}{version}); "
    if state["trouble"]:
        return f"{line}{state['trouble']}"
    answers = [
        f"{p['server']}, pid {p['pid']}, up {duration(p['uptime'])}"
        + (f", sandbox: {p['sandbox']}," if p["sandbox"] else ",")
        for p in state["processes"]
    ]
    return f"{line}{' and '.join(answers) or 'an unknown process'} answers ({state['answer']})"
