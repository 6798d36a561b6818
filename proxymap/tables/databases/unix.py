"""unix - the system's users and groups: unix:passwd.byname and unix:group.byname

Asked through NSS, which may be slow: on a worker. A value is the line that
passwd(5) or group(5) would have.

A source that fails looks like a user that does not exist: getpwnam(3) says "not found" if a later
source of nsswitch.conf does. So before a name is said to be missing, three questions: did
getpwnam_r(3) report an error, can /etc/passwd be read where nsswitch.conf names it, and is uid 0
(gid 0) there? Otherwise the answer is RETRY.

Source: getpwnam(3), getgrnam(3), nsswitch.conf(5); tables.md 5; tried with glibc 2.36.
"""

import ctypes
import errno
import grp
import os
import pwd
from collections.abc import Callable

from proxymap.base.nsswitch import sources_of
from proxymap.errors import TableRetry
from proxymap.tables.base import Opening, SlowTable

ENTRY_SIZE = 256  # bytes; struct passwd and struct group are smaller
TEXT_SIZE = 1 << 16  # bytes of an entry's texts
MISSING = (0, errno.ENOENT, errno.ESRCH)  # what getpwnam_r returns if there is no such user
READ_SIZE = 1 << 16  # bytes

_libc = ctypes.CDLL(None)


class Passwd(SlowTable):
    """unix:passwd.byname: name:passwd:uid:gid:gecos:dir:shell"""

    def lookup(self, key: bytes) -> bytes | None:
        try:
            user = pwd.getpwnam(os.fsdecode(key))
        except KeyError:
            see_sources("passwd", _libc.getpwnam_r, key)
            self.see_root()
            return None
        return b":".join(os.fsencode(str(field)) for field in user)

    def see_root(self) -> None:
        try:
            pwd.getpwuid(0)
        except KeyError:
            raise TableRetry("the passwd database has no uid 0: it is out of reach") from None


class Group(SlowTable):
    """unix:group.byname: name:passwd:gid:member,member"""

    def lookup(self, key: bytes) -> bytes | None:
        try:
            group = grp.getgrnam(os.fsdecode(key))
        except KeyError:
            see_sources("group", _libc.getgrnam_r, key)
            self.see_root()
            return None
        fields = (group.gr_name, group.gr_passwd, str(group.gr_gid), ",".join(group.gr_mem))
        return b":".join(os.fsencode(str(field)) for field in fields)

    def see_root(self) -> None:
        try:
            grp.getgrgid(0)
        except KeyError:
            raise TableRetry("the group database has no gid 0: it is out of reach") from None


def see_sources(database: str, find: Callable[..., int], key: bytes) -> None:
    """TableRetry if a source that could know the name has failed. find: getpwnam_r or getgrnam_r."""
    texts = ctypes.create_string_buffer(TEXT_SIZE)
    found = ctypes.c_void_p()
    entry = ctypes.create_string_buffer(ENTRY_SIZE)
    error = find(key, entry, texts, ctypes.c_size_t(TEXT_SIZE), ctypes.byref(found))
    if error not in MISSING:
        raise TableRetry(f"the {database} database: {os.strerror(error)}")
    if found.value is not None:
        raise TableRetry(f"the {database} database has an entry now that it did not have a moment ago")
    try:
        if {"files", "compat"} & set(sources_of(database)):
            with open(f"/etc/{database}", "rb") as file:
                while file.read(READ_SIZE):
                    pass
    except OSError as failure:
        raise TableRetry(f"{failure.filename or f'/etc/{database}'}: {failure.strerror}") from None


TABLES = {b"passwd.byname": Passwd, b"group.byname": Group}


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> SlowTable:
    if mapname not in TABLES:
        raise ValueError(f"unknown table: {os.fsdecode(type_name)}")
    return TABLES[mapname]()
