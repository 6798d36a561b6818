"""master - a life: child of Postfix's master(8)

master starts us as root, in the queue directory, with nothing in the
environment but a few names, stderr on /dev/null, and these descriptors: 3 and 4
(flow control, not ours to use), 5 (the status channel), 6 and up (the listening
sockets). 5 and 6 are shared with master and our siblings, flags included: no
library that switches them to blocking may get them.

End-of-file on 5 is the only word that we get of a reload or of master's end.

Source: multi_server(3), master(5); master.md.
"""

from __future__ import annotations

import os
import signal
import stat

from proxymap.config.maincf import MainCf
from proxymap.config.settings import Settings
from proxymap.errors import ConfigError
from proxymap.server.daemon import Daemon
from proxymap.server.launch import Start, account_to_run_as, enter_queue_directory, load_what_is_needed_later
from proxymap.server.log import Log
from proxymap.server.sandbox.confine import confine, load_sandbox

FLOW_FDS = (3, 4)
STATUS_FD = 5
FIRST_LISTEN_FD = 6
STDIN_FD = 0
DRAIN_LIMIT = 0.9  # seconds for pending replies: until we are gone master starts no successor
WATCHDOG_MAX = 60.0  # seconds; master never replaces a child that hangs: daemon_timeout is too long


def run(
    settings: Settings, main_cf: MainCf, log: Log, start: Start, *, service_name: str, writes: bool
) -> None:
    """Serve until master, SIGTERM, max_idle or max_use ends it. Raises ConfigError before it serves."""
    listeners: list[int] = []
    life = {"max_use": 1}
    if not start.on_stdin:
        listeners = list(range(FIRST_LISTEN_FD, FIRST_LISTEN_FD + start.sockets))
        check_descriptors(start, listeners)
        life = {
            "status_fd": STATUS_FD,
            "generation": int(os.environ.get("GENERATION", "0"), 8),
            "max_idle": settings.max_idle,
            "max_use": settings.max_use,
        }
    enter_queue_directory(settings)
    control = None if start.on_stdin else f"private/{service_name}"  # in queue_directory
    server = Daemon(
        settings, main_cf, log, listeners, writes=writes, control=control, service=service_name, **life
    )
    load_what_is_needed_later(server.approved, writes=writes, all_types=start.chroot)
    load_sandbox(settings)
    drop_privileges(settings, start)
    if writes:
        start_session()
    if start.debug:
        run_debugger(main_cf)
    confine(server, settings, main_cf, socket=control)
    server.drain_limit = DRAIN_LIMIT
    stop_on_sigterm(server)
    server.start_watchdog(min(settings.daemon_timeout, WATCHDOG_MAX))
    if start.on_stdin:
        server.loop.add_client(os.dup(STDIN_FD))
    where = "standard input" if start.on_stdin else f"private/{service_name}"
    server.run(lambda: log.info(f"serving {where} for {settings.config_directory}/main.cf"))


def check_descriptors(start: Start, listeners: list[int]) -> None:
    """ConfigError if we were not started by master."""
    if start.transport not in ("unix", "inet", "pass"):
        raise ConfigError(f'-t "{start.transport}": expected unix; this program is started by master(8)')
    if not start.not_daemon and os.isatty(STDIN_FD):
        raise ConfigError("do not run this command by hand; give --listen unix:PATH to run without master(8)")
    for fd in (STATUS_FD, *listeners):
        try:
            usable = stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError:
            usable = False
        if not usable:
            raise ConfigError(f"descriptor {fd} is no socket: not started by master(8)")
    for fd in (*FLOW_FDS, STATUS_FD, *listeners):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            pass  # 3 and 4 need not be there


def drop_privileges(settings: Settings, start: Start) -> None:
    """setgid, initgroups, chroot, setuid: in Postfix's order, and for good."""
    owner = account_to_run_as(settings.mail_owner, "parameter mail_owner")
    if start.unprivileged and os.geteuid() == 0:
        os.setgid(owner.pw_gid)
        os.initgroups(settings.mail_owner, owner.pw_gid)
    if start.chroot:
        os.chroot(settings.queue_directory)
        os.chdir("/")
    if start.unprivileged and os.geteuid() == 0:
        os.setuid(owner.pw_uid)


def start_session() -> None:
    """proxywrite survives `postfix stop` until its update is done: it leaves at end-of-file."""
    try:
        os.setsid()
    except PermissionError:
        pass  # we lead one already


def run_debugger(main_cf: MainCf) -> None:
    """-D: start main.cf:debugger_command with process_name and process_id in its environment."""
    command = main_cf.get("debugger_command")
    if command:
        import subprocess

        names = {"process_name": "proxymap", "process_id": str(os.getpid())}
        subprocess.Popen(["/bin/sh", "-c", command], env={**os.environ, **names})


def stop_on_sigterm(server: Daemon) -> None:
    """master's word when the service has left master.cf; until we are gone it does nothing but wait."""

    def stop(*_: object) -> None:
        server.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.set_wakeup_fd(server.signal_fd, warn_on_full_buffer=False)
