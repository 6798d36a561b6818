"""standalone - a life: own or systemd's socket, READY=1, SIGTERM and SIGINT

Source: sd_notify(3), sd_listen_fds(3), unix(7).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator

from proxymap.config.maincf import MainCf
from proxymap.config.settings import Settings
from proxymap.errors import ConfigError
from proxymap.server.daemon import Daemon
from proxymap.server.log import Log
from proxymap.server.master import account, load_what_is_needed_later

Load = Callable[[], tuple[Settings, MainCf]]

BACKLOG = 4096  # connections that wait for accept; the kernel cuts it to net.core.somaxconn
SOCKET_MODE = 0o666  # as Postfix: the folder decides who may connect
LISTEN_FDS_START = 3
PIPE_SIZE = 4096  # bytes; what a pipe holds at least
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
        server = Daemon(
            settings, main_cf, log, [sock.fileno() for sock in sockets], writes=writes,
            control=control if isinstance(control, str) else None,
        )  # fmt: skip
        server.load = load

        def ready() -> None:
            listeners.publish()
            notify("READY=1")
            log.info(f"serving {listen or 'the sockets of systemd'} for {settings.config_directory}/main.cf")

        with obey_signals(server):
            server.run(ready)


def become_unprivileged(settings: Settings, user: str) -> None:
    """Started as root: be `user`, or mail_owner, for good, before anything is served or written.

    Raises ConfigError if that cannot be, or if another user wants to be `user`.
    """
    where = "--user" if user else "parameter mail_owner"
    if os.geteuid() != 0:
        if user and account(user, where).pw_uid != os.geteuid():
            raise ConfigError(f"--user {user}: only root can become another user")
        return
    owner = account(user or settings.mail_owner, where)
    load_what_is_needed_later((), writes=True, all_types=True)
    os.setgid(owner.pw_gid)
    os.initgroups(owner.pw_name, owner.pw_gid)
    os.setuid(owner.pw_uid)
    os.environ["HOME"] = owner.pw_dir  # where libpq looks for certificates, and may not look in root's


def enter_queue_directory(settings: Settings, log: Log) -> None:
    """A relative table name is relative to the queue directory, as in Postfix."""
    try:
        os.chdir(settings.queue_directory)
    except OSError as error:
        where = f"queue_directory {settings.queue_directory}"
        log.warning(f"{where}: {error.strerror}; relative table names will not work")


class Listeners:
    """Listening sockets. `publish` lets clients find them: from then on somebody must accept."""

    def __init__(self, sockets: list[socket.socket], path: str | None = None) -> None:
        self.sockets, self.path = sockets, path

    def publish(self) -> None:
        """Raises ConfigError if that cannot be done."""


class OwnSocket(Listeners):
    """A new socket at `path`; until it is published it has another name beside that.

    Only who holds the lock on PATH.lock looks at PATH and puts a socket there, so that of two
    servers that start at the same time one gives up. Others may have a say in the folder: nothing
    that is found there is opened or changed by its name. Raises ConfigError if PATH cannot be had.
    """

    path: str

    def __init__(self, path: str) -> None:
        super().__init__([], path)
        self._private = os.path.join(os.path.dirname(path), f".{os.getpid()}")
        self._lock = _locked(f"{path}.lock")
        try:
            refuse_occupied(path)
            sock = _bound(self._private)
            self._inode = os.lstat(self._private).st_ino
            self.sockets = [sock]
        except OSError as error:
            raise ConfigError(f"--listen unix:{path}: {error.strerror or error}") from None
        finally:
            if not self.sockets:
                self._unlock()

    def publish(self) -> None:
        try:
            os.rename(self._private, self.path)
        except OSError as error:
            raise ConfigError(f"--listen unix:{self.path}: {error.strerror}") from None
        self._unlock()

    def close(self) -> None:
        """Remove the socket, if it is still this one."""
        for name in (self._private, self.path):
            with contextlib.suppress(OSError):
                if os.lstat(name).st_ino == self._inode:
                    os.unlink(name)
        self._unlock()
        self.sockets[0].close()

    def _unlock(self) -> None:
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.unlink(f"{self.path}.lock")
            os.close(self._lock)
            self._lock = -1


@contextlib.contextmanager
def own_socket(listen: str) -> Iterator[Listeners]:
    """A new socket at PATH ("unix:PATH"), removed at the end. Raises ConfigError if PATH cannot be had."""
    kind, _, path = listen.partition(":")
    if kind != "unix" or not path:
        raise ConfigError(f'--listen "{listen}": expected unix:PATH')
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > PATH_MAX:
        raise ConfigError(f"--listen {listen}: a socket's path has at most {PATH_MAX} bytes")
    with contextlib.closing(OwnSocket(path)) as own:
        yield own


def _locked(path: str) -> int:
    """The descriptor of a new file at path, locked; ConfigError if somebody has it locked."""
    where = f"--listen unix:{path.removesuffix('.lock')}"
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise ConfigError(f"{where}: cannot lock {path}: {error.strerror}{advice(error, path)}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise ConfigError(f"{where}: another server is starting there") from None
        except FileNotFoundError:
            pass  # the holder has removed it
        os.close(fd)


def advice(error: OSError, path: str) -> str:
    """What to do about a folder that is not there, or not the server's."""
    if error.errno not in (errno.EACCES, errno.ENOENT):
        return ""
    user = pwd.getpwuid(os.geteuid()).pw_name
    return f"; {user} needs a folder of its own: install -d -o {user} {os.path.dirname(path)}"


def _bound(path: str) -> socket.socket:
    """A listening socket at path, where a killed server of our number may have left one. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, f"{path} is in the way: remove it, and see who puts such files there")
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    umask = os.umask(0)
    try:
        os.fchmod(sock.fileno(), SOCKET_MODE)  # not by the path: another's link may be there by then
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def refuse_occupied(path: str) -> None:
    """ConfigError if PATH is no socket, or one that somebody serves. Raises OSError."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"--listen unix:{path}: this file is no socket; not touching it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        result = probe.connect_ex(path)
    if result == errno.EACCES:
        raise ConfigError(
            f"--listen unix:{path}: this socket is another user's; remove it if nobody serves it"
        )
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
        with contextlib.suppress(BlockingIOError):  # one is pending, which will see what is new as well
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
        while os.read(told, PIPE_SIZE):
            _reload(server)

    threading.Thread(target=run, name="reloader", daemon=True).start()
    return wake


def _reload(server: Daemon) -> None:
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        server.reload()
    except ConfigError:
        pass  # which is in the log
    except Exception as error:  # whatever it is: the thread must live
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
