"""entering - a server goes into its sandbox, for good, before it starts its threads; what is outside then

Landlock withholds rights from the thread that asks for it, and from what that starts: nothing
that is started later gets out. What a table needs that came after that, the process cannot be
given: the table is refused with the reason, and answers come from its previous content, if there is one.

Source: landlock(7).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec

from proxymap.server.log import Log
from proxymap.server.sandbox import _landlock
from proxymap.server.sandbox.needs import Needs
from proxymap.server.sandbox.policy import READ, WRITE, Policy
from proxymap.tables.types import TABLE_TYPES

NEEDED_TO_WRITE = 2  # the first ABI that lets files be moved between folders at all
REMEDY = "see sandbox in proxymap.cf(5), and restart the server"


class Sandbox:
    """What this process may do from now on. entered: is it in force? shown: as the log has it."""

    def __init__(self, policy: Policy, updates: bool) -> None:
        self._policy, self._updates = policy, updates
        self._verifies = False  # is there the process that hash and btree need? see tables/types, stand_by
        self._roots: dict[str, tuple[int, int, int]] = {}  # path -> device, inode, rights
        self.entered = False
        self.shown = "none"

    def enter(self, log: Log) -> None:
        """Go in, as far as the kernel can do that; where it cannot, a warning says so. Never raises."""
        try:
            abi = _landlock.abi()
            if self._updates and abi < NEEDED_TO_WRITE:
                raise OSError(0, "its Landlock is too old for a server that writes")
            self._restrict(abi)
        except Exception as error:
            why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            self.shown = f"none: the kernel has no Landlock for us ({why})"
            log.warning(f"sandbox = yes, and going on without: the kernel has no Landlock for us ({why})")
            return
        self.entered = True
        self._verifies = f"proxymap.tables.{TABLE_TYPES['hash'].module}" in sys.modules
        self.shown = self._describe(abi)
        log.info(f"sandbox: {self.shown}")
        if abi < _landlock.ALL_THREADS_SINCE and (before := _threads() - 1) > 0:
            log.warning(f"sandbox: {before} threads that plug-ins started before are outside it")

    def outside(self, type_name: bytes, parameter: Callable[[str], str]) -> str:
        """Why this table cannot be used by this process; "" if it can, as far as its parameters tell."""
        if not self.entered:
            return ""
        needs = Needs(parameter, updates=self._updates)
        needs.tables(os.fsdecode(type_name))
        missing = [path for path in sorted(needs.reads) if not self._allows(path, READ)]
        missing += [f"to write in {path}" for path in sorted(needs.writes) if not self._allows(path, WRITE)]
        if needs.types & {"hash", "btree"} and not self._verifies and find_spec("berkeleydb"):
            missing.append("a process that verifies its file")  # without the package the table names that
        if self._policy.ports is not None:
            missing += [f"port {port}" for port in sorted(needs.ports - self._policy.ports)]
            missing += [f"any port ({needs.any_port})"] if needs.any_port else []
        if not missing:
            return ""
        return f"it needs {', '.join(missing)}, which the sandbox of this process does not allow; {REMEDY}"

    def _restrict(self, abi: int) -> None:
        ports = self._policy.ports if abi >= _landlock.TCP_SINCE else None
        net = 0 if ports is None else _landlock.CONNECT_TCP | _landlock.BIND_TCP
        rights = _landlock.rights_of(abi)
        ruleset = _landlock.create(rights, net, _scopes(abi))
        try:
            for path, access in self._policy.rights.items():
                with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
                    self._allow(ruleset, path, access & rights)
            for port in ports or ():
                _landlock.allow_port(ruleset, port, _landlock.CONNECT_TCP)
            _landlock.restrict(ruleset, _landlock.ALL_THREADS if abi >= _landlock.ALL_THREADS_SINCE else 0)
        finally:
            os.close(ruleset)

    def _allow(self, ruleset: int, path: str, access: int) -> None:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISDIR(status.st_mode):
                access &= _landlock.OF_FILES
            _landlock.allow_beneath(ruleset, fd, access)
            self._roots[path] = status.st_dev, status.st_ino, access
        finally:
            os.close(fd)

    def _allows(self, path: str, access: int) -> bool:
        """What is not there needs no right; a folder that was made anew is another one."""
        if not os.path.exists(path):
            return True
        if not os.path.isdir(path):
            access &= _landlock.OF_FILES
        found = 0
        step = path
        while True:
            if root := self._roots.get(step):
                with suppress(OSError):
                    status = os.stat(step)
                    found |= root[2] if (status.st_dev, status.st_ino) == root[:2] else 0
            if step == "/" or not step:
                return not access & _landlock.rights_of(1) & ~found
            step = os.path.dirname(step)

    def _describe(self, abi: int) -> str:
        writes = sorted(path for path, (*_, access) in self._roots.items() if access & _landlock.MAKE_REG)
        connects = "all TCP ports"
        if self._policy.ports is not None and abi >= _landlock.TCP_SINCE:
            connects = f"TCP ports {' '.join(map(str, sorted(self._policy.ports)))}"
        elif self._policy.any_port:
            connects += f" ({self._policy.any_port})"
        return f"Landlock ABI {abi}; writes in {' '.join(writes) or 'no folder'}; connects to {connects}"


def _scopes(abi: int) -> int:
    """No signals to other processes, nor connections to their abstract sockets, unless systemd's is one."""
    if abi < _landlock.SCOPES_SINCE:
        return 0
    abstract = os.environ.get("NOTIFY_SOCKET", "").startswith("@")
    return _landlock.SIGNALS | (0 if abstract else _landlock.ABSTRACT_SOCKETS)


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1
