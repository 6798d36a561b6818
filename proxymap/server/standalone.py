"""standalone - a life: own or systemd's socket, READY=1, SIGTERM and SIGINT

Source: sd_notify(3), sd_listen_fds(3), unix(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator

from proxymap.config.maincf import MainCf
from proxymap.config.settings import Settings
from proxymap.errors import ConfigError
from proxymap.server.log import Log
from proxymap.server.shell import Server

Load = Callable[[], tuple[Settings, MainCf]]

BACKLOG = 4096  # connections that wait for accept; the kernel cuts it to net.core.somaxconn
SOCKET_MODE = 0o666  # as Postfix: the folder decides who may connect
LISTEN_FDS_START = 3
PATH_MAX = 107  # bytes of a socket's path; unix(7)


def run(
    settings: Settings, main_cf: MainCf, log: Log, *, listen: str | None, writes: bool, load: Load
) -> None:
    """Serve `listen` ("unix:PATH"; None: the sockets that systemd hands over) until SIGTERM or SIGINT.

    load: reads the configuration anew.
    """
    with own_socket(listen) if listen else inherited_sockets() as listeners:
        enter_queue_directory(settings, log)
        sockets = listeners.sockets
        control = listeners.path or sockets[0].getsockname()
        server = Server(
            settings, main_cf, log, [sock.fileno() for sock in sockets], writes=writes,
            control=control if isinstance(control, str) else None,
        )  # fmt: skip
        server.load = load

        def ready() -> None:
            listeners.publish()
            notify("READY=1")
            log.info(f"serving {listen or 'the sockets of systemd'} for {settings.config_directory}/main.cf")

        with stop_on_signals(server):
            server.run(ready)


def enter_queue_directory(settings: Settings, log: Log) -> None:
    """A relative table name is relative to the queue directory, as in Postfix."""
    try:
        os.chdir(settings.queue_directory)
    except OSError as error:
        where = f"queue_directory {settings.queue_directory}"
        log.warning(f"{where}: {error.strerror}; relative table names will not work")


class Listeners:
    """Listening sockets. `publish` lets clients find them: from then on somebody must accept."""

    def __init__(
        self, sockets: list[socket.socket], private: str | None = None, path: str | None = None
    ) -> None:
        self.sockets, self.private, self.path = sockets, private, path

    def publish(self) -> None:
        if self.private and self.path:
            os.rename(self.private, self.path)


@contextlib.contextmanager
def own_socket(listen: str) -> Iterator[Listeners]:
    """A new socket at PATH, removed at the end. Raises ConfigError if PATH cannot be had.

    It is bound to a name beside PATH and renamed when it is served, so that no
    client finds it too early; a stale socket of an earlier run is replaced.
    """
    kind, _, path = listen.partition(":")
    if kind != "unix" or not path:
        raise ConfigError(f'--listen "{listen}": expected unix:PATH')
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > PATH_MAX:
        raise ConfigError(f"--listen {listen}: a socket's path has at most {PATH_MAX} bytes")
    refuse_occupied(path)
    private = os.path.join(os.path.dirname(path), f".{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if os.path.exists(private) and stat.S_ISSOCK(os.lstat(private).st_mode):
            os.unlink(private)  # a killed server had our number
        sock.bind(private)
        os.chmod(private, SOCKET_MODE)
        sock.listen(BACKLOG)
        inode = os.stat(private).st_ino
    except OSError as error:
        sock.close()
        raise ConfigError(f"--listen {listen}: {error.strerror or error}") from None
    try:
        yield Listeners([sock], private, path)
    finally:
        for name in (private, path):
            with contextlib.suppress(OSError):
                if os.stat(name).st_ino == inode:
                    os.unlink(name)
        sock.close()


def refuse_occupied(path: str) -> None:
    """ConfigError if PATH is no socket, or one that somebody serves."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"--listen unix:{path}: this file is no socket; not touching it")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"--listen unix:{path}: {error.strerror}") from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        result = probe.connect_ex(path)
    if result != errno.ECONNREFUSED:
        raise ConfigError(f"--listen unix:{path}: another server is listening there; stop it first")


@contextlib.contextmanager
def inherited_sockets() -> Iterator[Listeners]:
    """The sockets that systemd's .socket unit opened for us."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit() or int(count) < 1:
        raise ConfigError("no socket to serve: give --listen unix:PATH, or start from a systemd .socket unit")
    sockets = [socket.socket(fileno=fd) for fd in range(LISTEN_FDS_START, LISTEN_FDS_START + int(count))]
    for sock in sockets:
        os.set_inheritable(sock.fileno(), False)
        sock.setblocking(False)
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    yield Listeners(sockets)


@contextlib.contextmanager
def stop_on_signals(server: Server) -> Iterator[None]:
    """SIGTERM and SIGINT stop the server after its pending replies. SIGHUP reloads.

    Afterwards they do nothing: whoever sends them again has what he wants, and a process that
    is about to end with 0 should not end with a signal.
    """

    def stop(*_: object) -> None:
        notify("STOPPING=1")
        server.stop()

    def reload(*_: object) -> None:
        threading.Thread(target=_reload, args=(server,), name="reload", daemon=True).start()

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


def _reload(server: Server) -> None:
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        server.reload()
    except ConfigError:
        pass  # which is in the log
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
