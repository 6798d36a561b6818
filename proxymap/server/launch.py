"""launch - what both lives need before they serve: the account to run as, modules to import by then"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from collections.abc import Iterable
from importlib import import_module

from proxymap.base.files import stamp_at
from proxymap.config.settings import Settings
from proxymap.errors import ConfigError
from proxymap.server import _loop
from proxymap.server.log import Log
from proxymap.tables.types import TABLE_TYPES, load_types

# What is imported where it is used, since a start does not need it: by control, the log, a reload, tables.
USED_LATER = ("binascii", "difflib", "encodings.idna", "json", "re", "select", "socket", "unicodedata")


class Start:
    """What master told us on the command line; the letters are those of multi_server(3)."""

    def __init__(self) -> None:
        self.chroot = False  # -c
        self.not_daemon = False  # -d
        self.debug = False  # -D
        self.transport = ""  # -t
        self.unprivileged = False  # -u
        self.sockets = 1  # -s
        self.on_stdin = False  # -S


def account_to_run_as(name: str, where: str) -> pwd.struct_passwd:
    """The account to run as, which `where` names. ConfigError if there is none, or if it is root's."""
    try:
        owner = pwd.getpwnam(name)
        grp.getgrgid(owner.pw_gid)
    except KeyError:
        raise ConfigError(f"{where}: no such user, or no such group: {name}") from None
    if owner.pw_uid == 0 or owner.pw_gid == 0:
        raise ConfigError(f"{where}: {name} is privileged")
    return owner


def enter_queue_directory(settings: Settings) -> None:
    """A relative table name is relative to it, as in Postfix. ConfigError if that cannot be."""
    try:
        os.chdir(settings.queue_directory)
    except OSError as error:
        raise ConfigError(f"queue_directory {settings.queue_directory}: {error.strerror}") from None


def load_what_is_needed_later(approved: Iterable[bytes], *, writes: bool, all_types: bool) -> None:
    """Import it now: after chroot nothing can be, and mail_owner may not be allowed to.

    The types of the tables that are approved, and of their members; or all types that are not heavy, too.
    """
    light = [name for name, maptype in TABLE_TYPES.items() if all_types and not maptype.heavy]
    load_types([*approved, *light], writes=writes)
    if all_types or not open_to_all(os.__file__):
        for name in USED_LATER:
            import_module(name)
    time.tzset()


def open_to_all(path: str) -> bool:
    """May every user read this file?"""
    path = os.path.realpath(path)
    may = stat.S_IROTH
    while os.stat(path).st_mode & may:
        if path == "/":
            return True
        path, may = os.path.dirname(path), stat.S_IXOTH
    return False


class Installation:
    """Is it still the one that this process was loaded from? Looks at a file that every upgrade replaces.

    After an upgrade in place a module that is loaded late may not fit those that were loaded
    before: Cython says "binary incompatibility", and the table answers RETRY.
    """

    def __init__(self, log: Log) -> None:
        self._log, self._file = log, os.fsencode(_loop.__file__)
        self._stamp = stamp_at(self._file)
        self._told = False

    def look(self) -> None:
        """Say once in the log that it has changed. A folder that cannot be seen any more is no change."""
        stamp = stamp_at(self._file)
        if self._told or not any(stamp) or not any(self._stamp) or stamp == self._stamp:
            return
        self._told = True
        folder = os.path.dirname(os.path.dirname(_loop.__file__))
        self._log.warning(
            f"the installation in {folder} has changed since this process started: restart it"
            ' (under master: "postfix reload"), or tables of types that it has not loaded yet may not open'
        )
