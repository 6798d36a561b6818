"""base - what every table type shares: how it is opened, and what one that answers on a worker must offer

A `.py` type subclasses SlowTable and has `lookup`; the other operations as far
as the type has them. Its methods are called on worker threads, several at a
time for the same table. Errors: TableRetry, TableConfig (errors.py); whatever
else is raised is logged with its traceback and becomes RETRY.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from proxymap.base._fold import fold
from proxymap.base.files import Stamp, folder_fault, stamp_at
from proxymap.tables.flags import FIXED, FOLD_FIX, UTF8_REQUEST

CONTRACT = 1  # of plug-ins; one more when what they may count on changes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.base._watch import Watch
    from proxymap.tables._table import Table


class Host:
    """What tables may know of the host that they are opened on.

    utf8: smtputf8_enable. warn: takes a line for the log, without "warning: ".
    parameter: the value of a main.cf parameter, expanded; "" if it is not set.
    replace_damaged: lmdb_replace_damaged. index_size: lmdb_index_size. watch: what files are
    watched with, or None. inform: takes a line for the log that is no warning. server_limits:
    the parameters for the database server of the table with this name (databases/limits).
    files_refused: why the values of a table may not be names of files (src_rhs_is_file); "" if they may.
    redirect: the name of a table -> that of the one to open in its place (migration.redirection).
    any_bytes: lines of source texts that are not UTF-8 are records, as from Postfix 3.11 on: who asks for
    one is told that its value is of no use, and comes again; up to 3.10 there is no such key.
    outside: why this process may not have what a table needs; "" if it may, as far as one can tell.
    """

    watch: Watch | None = None
    inform: Callable[[str], None] = staticmethod(lambda text: None)
    server_limits: Callable[[bytes], dict[str, int]] = staticmethod(lambda type_name: {})

    files_refused: Callable[[bytes], str] = staticmethod(lambda type_name: "")
    redirect: Callable[[bytes], bytes] = staticmethod(lambda type_name: type_name)
    any_bytes = False
    outside: Callable[[bytes], str] = staticmethod(lambda type_name: "")

    def __init__(
        self,
        utf8: bool = True,
        warn: Callable[[str], None] = lambda text: None,
        parameter: Callable[[str], str] = lambda name: "",
        replace_damaged: bool = True,
        index_size: int = 0,
    ) -> None:
        self.utf8, self.warn, self.parameter, self.replace_damaged = utf8, warn, parameter, replace_damaged
        self.index_size = index_size


class Opening:
    """One table being opened.

    flags: the dictionary flags of the request that opens it. writes: for updates,
    and created if it is missing. member: opens a table that this one is made of,
    such as unionmap's, with the same flags; never raises (see opening.open_table).
    utf8: keys and values are to be UTF-8. doubtful: the file was changed in place, so all
    of it is to be checked. files: what else it depends on, see `reads`.
    """

    def __init__(
        self,
        flags: int,
        writes: bool,
        host: Host,
        member: Callable[[bytes], Table],
        doubtful: bool = False,
    ) -> None:
        self.flags, self.writes, self.host, self.member = flags, writes, host, member
        self.doubtful = doubtful
        self.utf8 = bool(flags & UTF8_REQUEST) and host.utf8
        self.files: list[tuple[bytes, Stamp]] = []

    def reads(self, path: bytes) -> None:
        """Record a file that the table depends on; call before reading it. It need not exist."""
        self.files.append((path, stamp_at(path)))

    def folded(self, key: bytes) -> bytes:
        """A key of the table's text as it has to be stored to be found. Where `utf8` is set, it is UTF-8."""
        if not self.flags & FOLD_FIX:
            return key
        return fold(key, self.utf8)


class SlowTable:
    """A table whose lookups may take long. Keys and values are bytes without NUL.

    Plug-ins subclass it, too, as proxymap.tables.SlowTable; proxymap_tables(5) has what they
    may count on: `lookup`, `sequence`, `explain`, `doubts`, `close`, `has_sequence`, `at_a_time`.
    """

    contract = CONTRACT  # what a plug-in was written for, if it says so
    flags = FIXED  # as an open reply shows them
    fold_bit = FOLD_FIX  # the request flag that has the key folded before lookup sees it
    has_sequence = False  # does it have `sequence`?
    has_updates = False  # does it have `write`?
    files: list[tuple[bytes, Stamp]] = []  # what it was loaded from, as it was then
    at_a_time = 0  # lookups under way at the same time; 0: as many as worker_count says

    def __init__(self, setup: Mapping[str, str] | None = None) -> None:
        """setup: what a plug-in is made with (plugins.python.Setup)."""

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None if there is no such key."""
        raise NotImplementedError

    def lookup_flags(self, key: bytes, flags: int) -> tuple[bytes | None, int]:
        """The same for types that heed dictionary flags: (value, flags afterwards)."""
        return self.lookup(key), flags

    def sequence(self, cursor: int, first: bool) -> tuple[bytes, bytes] | None:
        """The first or the next record, or None at the end. `cursor`: the number of the connection."""
        raise NotImplementedError

    def write(self, changes: list[Change]) -> None:
        """Make all changes, in order, and have them on disk before it returns. See Change."""
        raise NotImplementedError

    def explain(self, key: bytes) -> list[str]:
        """Where the answer comes from, a line each: which row, which statement."""
        return []

    def doubts(self, connect: bool = False) -> Iterable[tuple[str, str, bool]]:
        """What `proxymapctl check` has to say although it opens: (what, remedy, a warning only?) of each.

        connect: try what it gets its answers from.
        """
        return ()

    def close(self) -> None:
        """Let go of connections and files."""


class Change:
    """One update (value: bytes) or delete (value: None), and its outcome.

    `write` sets status (errors.STAT_*) and, where try bits are decided, flags. What a server
    has written are jobs (_jobs.Job), which have the same four attributes.
    """

    def __init__(self, key: bytes, value: bytes | None, flags: int) -> None:
        self.key, self.value, self.flags = key, value, flags
        self.status = 2  # RETRY


def refuse_open_folder(path: str, host: Host) -> None:
    """refuse_open_folder - ValueError with the reason if a table at `path` must not be written to"""
    try:
        fault = folder_fault(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    if fault:
        directory = host.parameter("data_directory") or "/var/lib/postfix"
        raise ValueError(
            f"{path} is not opened for updates: {fault};"
            f" keep tables that Postfix writes in data_directory ({directory})"
        )
