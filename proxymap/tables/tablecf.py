"""tablecf - the parameters of one database table: from its .cf file, or from main.cf

A name that begins with `/` or `.` is a file of `name = value` lines, in which
`$` means nothing. Any other name N stands for the parameters `N_name` of
main.cf, expanded. Values are text as in maincf.py. Whatever cannot be used is
a ConfigError that says where it stands and what was expected.

Source: mysql_table(5), sqlite_table(5) ...; as postmap of 3.7.11 reads them.
"""

from __future__ import annotations

import contextlib
import os
import re

from proxymap.base.files import Stamp, stamp_of
from proxymap.config.maincf import ERRORS, TEXT, mask_secrets, read_parameters
from proxymap.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables.base import Host

INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1


class TableCf:
    """The parameters of the table `mapname`."""

    def __init__(self, mapname: bytes, host: Host) -> None:
        self.name = mapname.decode(TEXT, ERRORS)
        self.is_file = self.name.startswith(("/", "."))
        self._parameter = host.parameter
        self._asked: set[str] = set()
        self.files: list[tuple[bytes, Stamp]] = []  # what it was read from
        if self.is_file:
            with contextlib.suppress(OSError):  # which read_parameters tells better
                self.files.append((mapname, stamp_of(os.stat(mapname))))
            self._values, self._lines = read_parameters(self.name, host.warn)

    def text(self, name: str, default: str = "") -> str:
        """text - the value; one that has a default may not be empty"""
        value = self._value(name)
        if value is None:
            return default
        if default and not value:
            raise self.wrong(name, "some text")
        return value

    def required(self, name: str) -> str:
        """required - the value, which must be there and not be empty"""
        value = self._value(name)
        if not value:
            raise self.wrong(name, "some text")
        return value

    def optional(self, name: str) -> str | None:
        """optional - the value, which may be empty; None if there is none"""
        return self._value(name)

    def others(self, *names: str) -> dict[str, str]:
        """others - the values of all other parameters; of a file alone"""
        return {name: value for name, value in self._values.items() if name not in names}

    def integer(self, name: str, default: int, low: int = INT_MIN, high: int = INT_MAX) -> int:
        """integer - a decimal number from low to high"""
        value = self._value(name)
        if value is None:
            return default
        if not re.fullmatch("[+-]?[0-9]{1,20}", value) or not low <= int(value) <= high:
            raise self.wrong(name, f"a number from {low} to {high}")
        return int(value)

    def boolean(self, name: str, default: bool) -> bool:
        """boolean - yes or no, in any case"""
        value = self._value(name)
        if value is None:
            return default
        if value.lower() not in ("yes", "no"):
            raise self.wrong(name, '"yes" or "no"')
        return value.lower() == "yes"

    def unused(self) -> list[str]:
        """unused - file, line and name of what nobody has asked for, such as a name with a typing error"""
        return [self.where(name) for name in self._values if name not in self._asked] if self.is_file else []

    def wrong(self, name: str, expected: str) -> ConfigError:
        """wrong - the error to raise for a value; also for rules that only the caller knows"""
        value = self._value(name)
        found = "is missing" if value is None else f'is "{mask_secrets(value)}"'
        return ConfigError(f"{self.where(name)} {found}; expected {expected}")

    def where(self, name: str) -> str:
        """where - file and line of a parameter, and its name there"""
        if not self.is_file:
            return f"main.cf: parameter {self.name}_{name}"
        return f"{self._lines.get(name, self.name)}: parameter {name}"

    def _value(self, name: str) -> str | None:
        self._asked.add(name)
        if self.is_file:
            return self._values.get(name)
        return self._parameter(f"{self.name}_{name}") or None  # main.cf does not tell empty from not set
