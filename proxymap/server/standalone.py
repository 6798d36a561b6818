"""standalone - a life: own or systemd's socket, READY=1, SIGTERM and SIGINT

Source: sd_notify(3), sd_listen_fds(3), unix(7).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

from proxymap.config.approval import approve
from proxymap.config.maincf import MainCf
from proxymap.config.settings import Settings
from proxymap.errors import ConfigError
from proxymap.server.daemon import Daemon
from proxymap.server.launch import account_to_run_as, enter_queue_directory, load_what_is_needed_later
from proxymap.server.log import Log
from proxymap.server.sandbox.confine import confine, load_sandbox
from proxymap.server.sockets import inherited_sockets, own_socket
from proxymap.tables.types import load_types

Load = Callable[[], tuple[Settings, MainCf]]

PIPE_SIZE = 4096  # bytes; what a pipe holds at least
PAUSE = 0.1  # seconds, when the reloader's pipe cannot be read


def run(
    settings: Settings, main_cf: MainCf, log: Log, *, listen: str | None, writes: bool, load: Load
) -> None:
    """Serve `listen` ("unix:PATH"; None: the sockets that systemd hands over) until SIGTERM or SIGINT.

    load: reads the configuration anew.
    """
    with own_socket(listen) if listen else inherited_sockets() as listeners:
        try:
            enter_queue_directory(settings)
        except ConfigError as error:
            log.warning(f"{error}; relative table names will not work")
        sockets = listeners.sockets
        control = listeners.path or sockets[0].getsockname()
        server = Daemon(
            settings, main_cf, log, [sock.fileno() for sock in sockets], writes=writes,
            control=control if isinstance(control, str) else None,
        )  # fmt: skip
        load_types(server.approved, writes=writes)  # now: after an upgrade in place they might not fit
        confine(server, settings, main_cf, socket=server.beside, publishes=bool(listen))
        server.load = load

        def ready() -> None:
            listeners.publish()
            notify("READY=1")
            log.info(f"serving {listen or 'the sockets of systemd'} for {settings.config_directory}/main.cf")

        with obey_signals(server):
            server.run(ready)


def become_unprivileged(settings: Settings, main_cf: MainCf, user: str, *, writes: bool) -> None:
    """Started as root: be `user`, or mail_owner, for good, before anything is served or written.

    Raises ConfigError if that cannot be, or if another user wants to be `user`.
    """
    where = "--user" if user else "parameter mail_owner"
    if os.geteuid() != 0:
        if user and account_to_run_as(user, where).pw_uid != os.geteuid():
            raise ConfigError(f"--user {user}: only root can become another user")
        return
    owner = account_to_run_as(user or settings.mail_owner, where)
    approved = approve(settings, main_cf, writes, lambda warning: None)  # the Daemon says it
    load_what_is_needed_later(approved, writes=True, all_types=True)
    load_sandbox(settings)
    os.setgid(owner.pw_gid)
    os.initgroups(owner.pw_name, owner.pw_gid)
    os.setuid(owner.pw_uid)
    os.environ["HOME"] = owner.pw_dir  # where libpq looks for certificates, and may not look in root's


@contextlib.contextmanager
def obey_signals(server: Daemon) -> Iterator[None]:
    """SIGTERM and SIGINT stop the server after its pending replies. SIGHUP reloads.

    Afterwards they do nothing: a repeated signal asks for what is already happening, and a process
    that is about to end with 0 should not end with a signal.
    """
    wake_reloader = start_reloader(server)

    def stop(*_: object) -> None:
        notify("STOPPING=1")
        server.stop()

    def reload(*_: object) -> None:
        with contextlib.suppress(OSError):  # full: one is pending, which will see what is new as well
            os.write(wake_reloader, b"\0")

    actions = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
    for number, action in actions.items():
        signal.signal(number, action)
    signal.set_wakeup_fd(server.signal_fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        for number in actions:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)


def start_reloader(server: Daemon) -> int:
    """Start the thread that reloads; returns the pipe that wakes it.

    It exists from the start on, since later no thread may be to be had. All signals that come
    during a reload are one more reload.
    """
    told, wake = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(wake, False)
    fcntl.fcntl(wake, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def run() -> None:
        while True:
            try:
                if not os.read(told, PIPE_SIZE):
                    return
                _reload(server)
            except OSError:  # whatever it is: the thread must live
                time.sleep(PAUSE)

    threading.Thread(target=run, name="reloader", daemon=True).start()
    return wake


def _reload(server: Daemon) -> None:
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        server.reload()
    except ConfigError:
        pass  # which is in the log
    except Exception as error:
        server.log.exception("reload failed; going on with the previous configuration", error=error)
    finally:
        notify("READY=1")


def notify(message: str) -> None:
    """Tell systemd, if it started us."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    if path.startswith("@"):
        path = "\0" + path[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(path)
        sock.send(message.encode())
