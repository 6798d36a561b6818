"""python - python:/path/to/file.cf: a class of the administrator's own, which answers in Python

The contract is SlowTable (tables/base.py), for plug-ins `proxymap.tables.SlowTable`. What a
plug-in does wrong is RETRY for that lookup, with the line of its code in the log.

A plug-in that ran out of memory or descriptors is given up and made anew: what it
has kept is let go.

Source: proxymap_tables(5), python; the contract's version is CONTRACT.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading

from proxymap.config.maincf import read_parameters
from proxymap.errors import ConfigError, ProxymapError, TableRetry
from proxymap.tables.base import CONTRACT, Opening, SlowTable
from proxymap.tables.blame import blame
from proxymap.tables.flags import FOLD_FIX
from proxymap.tables.plugins.loading import Loaded, loaded, name_of, preload, refuse_foreign
from proxymap.tables.tablecf import TableCf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


RUN_OUT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class OtherTable:
    """A table that a plug-in asks; opened anew when its file has changed."""

    def __init__(self, name: bytes, opening: Opening) -> None:
        self._name, self._opening = name, opening
        self._table = opening.member(name)

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None if there is no such key. TableRetry, TableConfig: the table has no answer."""
        if self._table.changed or self._table.reason is not None:
            self._table = self._opening.member(self._name)
        flags = self._table.opened_flags(self._opening.flags | FOLD_FIX, self._opening.host.utf8)
        answer: bytes | None = self._table.answer(key, flags)
        return answer


class Setup(dict[str, str]):
    """What a plug-in is made with: the parameters of its .cf file, but for module and class, as text.

    warn: takes a line for the log. table: another table that it may ask, by "type:name"; it need
    not be approved.
    """

    def __init__(self, type_name: bytes, parameters: dict[str, str], opening: Opening) -> None:
        super().__init__(parameters)
        self._opening, self._name = opening, os.fsdecode(type_name)

    def __missing__(self, name: str) -> str:
        raise ConfigError(f"parameter {name} is missing")

    def warn(self, text: str) -> None:
        self._opening.host.warn(f"{self._name}: {text}")

    def table(self, name: str) -> OtherTable:
        return OtherTable(os.fsencode(name), self._opening)


class PluginTable(SlowTable):
    """Asks the plug-in, and takes the blame for it."""

    def __init__(self, type_name: bytes, source: Loaded, name: str, setup: Setup) -> None:
        self._source, self._class, self._setup = source, name, setup
        self._lock = threading.Lock()
        self._plugin: SlowTable | None = None
        made = self._plugin = self._make()
        self.flags, self.fold_bit = int(made.flags), int(made.fold_bit)
        self.has_sequence, self.at_a_time = bool(made.has_sequence), max(0, int(made.at_a_time))
        self.shown = f"class {name} of {source.path}"

    def lookup(self, key: bytes) -> bytes | None:
        plugin = None
        try:
            plugin = self._ready()
            return checked(plugin.lookup(key))
        except BaseException as error:
            raise self._trouble(error, plugin) from None

    def sequence(self, cursor: int, first: bool) -> tuple[bytes, bytes] | None:
        plugin = None
        try:
            plugin = self._ready()
            record = plugin.sequence(cursor, first)
            if record is None:
                return None
            key, value = map(checked, record)
            if key is None or value is None:
                raise TypeError("sequence returned None in a record")
            return key, value
        except BaseException as error:
            raise self._trouble(error, plugin) from None

    def explain(self, key: bytes) -> list[str]:
        try:
            return [f"answered by {self.shown}", *map(str, self._ready().explain(key))]
        except BaseException as error:
            return [f"{self.shown}: {self._trouble(error, self._plugin)}"]

    def doubts(self, connect: bool = False) -> Iterable[tuple[str, str, bool]]:
        try:
            return [
                (f"{what}", f"{remedy}", bool(only)) for what, remedy, only in self._ready().doubts(connect)
            ]
        except BaseException as error:
            return [(f"{self._trouble(error, self._plugin)}", "correct the plug-in", False)]

    def close(self) -> None:
        plugin, self._plugin = self._plugin, None
        self._part_from(plugin)

    def _part_from(self, plugin: SlowTable | None) -> None:
        if plugin is not None:
            try:
                plugin.close()
            except BaseException as error:
                self._setup.warn(f"close: {blame(error, self._source.path)}")

    def _make(self) -> SlowTable:
        made = class_of(self._source, self._class)(self._setup)
        if not isinstance(made, SlowTable):
            raise ConfigError(f"{self._class} of {self._source.path} is no proxymap.tables.SlowTable")
        return made

    def _ready(self) -> SlowTable:
        """The plug-in; made anew if it was given up."""
        if (plugin := self._plugin) is not None:
            return plugin
        with self._lock:
            if self._plugin is None:
                self._source = self._source.anew()
                self._plugin = self._make()
            return self._plugin

    def _trouble(self, error: BaseException, plugin: SlowTable | None) -> ProxymapError:
        """What to raise in its place. plugin: whose error it is; None: it could not be made."""
        if isinstance(error, ProxymapError):
            return error
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in RUN_OUT):
            text = blame(error, self._source.path)
            error.__traceback__ = None  # which holds what the lookup has made
            self._give_up(plugin)
            return TableRetry(f"{text}; the plug-in is made anew")
        return TableRetry(blame(error, self._source.path))

    def _give_up(self, plugin: SlowTable | None) -> None:
        """Let go of all that the plug-in has kept, unless another lookup did: the next plug-in is well."""
        with self._lock:
            if self._plugin is not plugin:
                return
            self._plugin = None
            if self._source.code is not None:
                sys.modules.pop(name_of(self._source.path), None)
                self._source = self._source._replace(module=type(sys)("given up"))
        self._part_from(plugin)
        gc.collect()


def checked(value: object) -> bytes | None:
    """checked - what a plug-in may answer: bytes without NUL, or None. Raises TypeError, ValueError"""
    if value is None:
        return None
    if not isinstance(value, bytes):
        raise TypeError(f"the answer is {type(value).__name__}; expected bytes or None")
    if b"\0" in value:
        raise ValueError("the answer has a NUL byte")
    return value


def class_of(source: Loaded, name: str) -> Callable[[Setup], object]:
    """class_of - the class that makes the table. Raises ConfigError"""
    found = getattr(source.module, name, None)
    if not callable(found):
        raise ConfigError(f"{source.path} has no class {name}; expected one, or its name in parameter class")
    contract = getattr(found, "contract", CONTRACT)
    if contract != CONTRACT:
        raise ConfigError(
            f"{name} of {source.path} is written for version {contract} of the contract; this is {CONTRACT}"
        )
    made: Callable[[Setup], object] = found
    return made


def preload_tables(mapnames: Iterable[bytes]) -> None:
    """preload_tables - load the modules of these tables now; see loading.preload"""
    found = []
    for mapname in mapnames:
        try:
            refuse_foreign(os.fsdecode(mapname))
            values, _ = read_parameters(os.fsdecode(mapname), lambda text: None)
            found.append((mapname, values["module"]))
        except (OSError, ConfigError, KeyError):
            continue  # opening it will tell
    preload(found)


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> SlowTable:
    cf = TableCf(mapname, opening.host)
    if not mapname.startswith(b"/"):
        raise ConfigError(f"{cf.name}: expected the path of a .cf file, which begins with /")
    refuse_foreign(cf.name)
    name = cf.required("module")
    path = name
    try:
        source = loaded(mapname, name, opening.reads)
        path = source.path
        setup = Setup(type_name, cf.others("module", "class"), opening)
        made = PluginTable(type_name, source, source.attr or cf.text("class", "Table"), setup)
    except (ConfigError, ProxymapError) as error:
        raise ConfigError(f"{cf.where('module')}: {error}") from None
    except BaseException as error:  # whatever the code does: this is what it has done
        raise ConfigError(f"{cf.where('module')}: {blame(error, path)}") from None
    made.files = cf.files
    return made
