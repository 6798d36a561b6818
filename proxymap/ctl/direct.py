"""direct - a table opened in this process, as postmap -q does; why a server may answer otherwise

Nothing of a server or of an installed Postfix is needed. Flags and folding are
postmap's; main.cf, if there is one, says whether keys are UTF-8, and has the
parameters of tables that are named after them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from proxymap.base import _fold
from proxymap.ctl.safety import as_user
from proxymap.errors import ProxymapError, TableConfig, TableRetry
from proxymap.tables._table import SLOW_SEQUENCE
from proxymap.tables.base import Host
from proxymap.tables.flags import DUP_WARN, FOLD_FIX, LOCK, UTF8_ACTIVE, UTF8_REQUEST
from proxymap.tables.migration import redirection
from proxymap.tables.opening import open_table

if TYPE_CHECKING:
    from proxymap.config.maincf import MainCf
    from proxymap.config.settings import Settings
    from proxymap.tables._table import Table

    Configuration = tuple[Settings, MainCf] | None

POSTMAP = DUP_WARN | LOCK | FOLD_FIX | UTF8_REQUEST


class Direct:
    """A table, opened here. Trouble is TableRetry or TableConfig, and says what it is."""

    def __init__(self, table: str, configuration: Configuration, warn: Callable[[str], None]) -> None:
        """configuration: of an installed Postfix, or None."""
        self.table, self._settings, host = table, None, Host(warn=warn)
        if configuration is not None:
            self._settings, main_cf = configuration
            host = Host(self._settings.smtputf8_enable, warn, main_cf.get)
            host.redirect = redirection(self._settings, host)
            host.any_bytes = self._settings.takes_any_bytes
        self._opened = self._open(host)
        self._flags = self._opened.opened_flags(POSTMAP, host.utf8)
        if self._flags & UTF8_ACTIVE:
            _fold.load()

    def _open(self, host: Host) -> Table:
        return open_table(os.fsencode(self.table), POSTMAP, host=host)

    def lookup(self, key: bytes) -> bytes | None:
        if b"\0" in key:
            raise ValueError("a key contains a NUL byte")
        return self._opened.answer(key, self._flags)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every record."""
        table = self._opened
        if table.reason is not None:
            raise TableRetry(os.fsdecode(table.reason))
        if table.slow & SLOW_SEQUENCE:
            first = iter([True])
            return iter(lambda: table.answers.sequence(0, next(first, False)), None)
        try:
            return iter(table.sequence())
        except TypeError:
            raise TableConfig("tables of this type cannot be listed") from None

    def explain(self, key: bytes) -> list[str]:
        """Where the answer comes from, a line each."""
        folded = self._opened.fold(key, self._flags)
        if folded is None:
            return ["the key is not UTF-8"]
        with contextlib.suppress(ProxymapError):  # lookup has told it
            return self._opened.explain(folded)
        return []

    @property
    def files(self) -> list[bytes]:
        """What it was opened from."""
        return self._opened.files

    def trouble(self, error: Exception) -> str:
        return f"{self.table}: {error}"

    def why_not_there(self) -> str:
        """What keeps the server from a table that we can use: who and where it is; as root, what it sees."""
        if self._settings is None:
            return "it may be another user, in another folder"
        owner, folder = self._settings.mail_owner, self._settings.queue_directory
        if os.geteuid() != 0:
            return f"it runs as {owner}, in {folder}"
        reason = as_user(owner, lambda: self._reason_in(folder))
        return (
            f"{owner}, in {folder}: {reason or 'the table opens, so look for a chroot jail or an old server'}"
        )

    def _reason_in(self, folder: str) -> str | None:
        """In a process of its own: why the table cannot be opened there."""
        del self._opened  # or it would be found open
        with contextlib.suppress(OSError):
            os.chdir(folder)
        reason = self._open(Host()).reason
        return None if reason is None else os.fsdecode(reason)

    def __enter__(self) -> Direct:
        return self

    def __exit__(self, *details: object) -> None:
        pass
