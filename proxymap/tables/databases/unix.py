"""unix - the system's users and groups: unix:passwd.byname and unix:group.byname

Asked through NSS, which may be slow: on a worker. A value is the line that
passwd(5) or group(5) would have. A directory that is out of reach looks like a
user that does not exist; so when a name is missed, uid 0 (gid 0) must be there,
or the answer is RETRY.

Source: getpwnam(3), getgrnam(3); tables.md 5.
"""

import grp
import os
import pwd

from proxymap.errors import TableRetry
from proxymap.tables.base import Opening, SlowTable


class Passwd(SlowTable):
    """unix:passwd.byname: name:passwd:uid:gid:gecos:dir:shell"""

    def lookup(self, key: bytes) -> bytes | None:
        try:
            user = pwd.getpwnam(os.fsdecode(key))
        except KeyError:
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
            self.see_root()
            return None
        fields = (group.gr_name, group.gr_passwd, str(group.gr_gid), ",".join(group.gr_mem))
        return b":".join(os.fsencode(str(field)) for field in fields)

    def see_root(self) -> None:
        try:
            grp.getgrgid(0)
        except KeyError:
            raise TableRetry("the group database has no gid 0: it is out of reach") from None


TABLES = {b"passwd.byname": Passwd, b"group.byname": Group}


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> SlowTable:
    if mapname not in TABLES:
        raise ValueError(f"unknown table: {os.fsdecode(type_name)}")
    return TABLES[mapname]()
