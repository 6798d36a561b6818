"""loading - code of the administrator's: may we run it? Loaded anew for each table that is opened

A file is compiled and run here, for each table by itself. What is installed is
imported, and again when its file has changed.

The code may be loaded while we are root (`preload`). So it has to belong to root, or to
the user who has started us, and nobody else may be able to change it.

Source: path_resolution(7); the entry points of the Python Packaging User Guide.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
import time
from importlib import import_module, reload
from types import CodeType, ModuleType
from typing import NamedTuple

from proxymap.base.files import NO_FILE, Stamp, path_steps, read_file, stamp_at, user_name
from proxymap.base.threads import start_thread
from proxymap.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GROUP = "proxymap.tables"  # of entry points
STARTED_BY = os.getuid()  # root, where the privileges are dropped later
PRELOAD_LIMIT = 5.0  # seconds that the server's start waits for all that is loaded

_preloaded: dict[bytes, Loaded] = {}  # by the name of the table; for its first opening
_tried: set[bytes] = set()  # those too that could not be loaded, or not in time
_imported: dict[str, Stamp] = {}  # modules that were imported by name, as their files were then
_locks: dict[str, threading.Lock] = {}  # of packages: an import that hangs holds up no other's


class Loaded(NamedTuple):
    """What the parameter `module` stands for.

    stamp: of its file when it was read. attr: the class that its name has said; "". code: of a file.
    """

    module: ModuleType
    path: str
    stamp: Stamp
    attr: str
    code: CodeType | None

    def anew(self) -> Loaded:
        """The same, run once more; what is installed stays as it is."""
        return self if self.code is None else self._replace(module=_run(self.code, self.path))


def refuse_foreign(path: str) -> None:
    """refuse_foreign - ConfigError if somebody but root has a say in the file: itself, folders, links

    Root's own folders in which everybody may create files, such as /tmp, are no danger to what is
    root's there; only the file itself must not lie in one.
    """
    steps = list(path_steps(path))
    folder = os.path.dirname(os.path.realpath(path))
    for step in steps:
        status = os.lstat(step)
        if status.st_uid not in (0, STARTED_BY):
            raise ConfigError(
                f"{step} belongs to {user_name(status.st_uid)}, who could change what is run;"
                f" chown root {step}"
            )
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX and step != folder
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022 and not sticky:
            mode = f"{stat.S_IMODE(status.st_mode):o}"
            raise ConfigError(
                f"others may write to {step} (mode {mode}), and change what is run; chmod go-w {step}"
            )


def load(name: str, reads: Callable[[bytes], None] = lambda path: None) -> Loaded:
    """load - the module of that path or name. ConfigError, or whatever its code raises

    reads: is told the file, before it is read.
    """
    return _load_file(name, reads) if "/" in name else _load_installed(name, reads)


def _load_file(path: str, reads: Callable[[bytes], None]) -> Loaded:
    if not path.startswith("/"):
        raise ConfigError(f"{path}: expected a path that begins with /, or the name of a module")
    reads(os.fsencode(path))
    try:
        refuse_foreign(path)
        content, stamp = read_file(os.fsencode(path))
        refuse_foreign(path)  # what was read was theirs if it is so now
    except OSError as error:
        raise ConfigError(f"open {error.filename or path}: {error.strerror}") from None
    code = compile(content, path, "exec", dont_inherit=True)
    return Loaded(_run(code, path), path, stamp, "", code)


def _run(code: CodeType, path: str) -> ModuleType:
    module = ModuleType(name_of(path))
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses and the like look for names
    exec(code, module.__dict__)
    return module


def name_of(path: str) -> str:
    """name_of - what the module of a file is called in sys.modules"""
    return f"plugin:{path}"


def _load_installed(name: str, reads: Callable[[bytes], None]) -> Loaded:
    """An entry point of our group, or a module that can be imported; MODULE:CLASS names a class, too."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP, name=name):
        name = entry.value
    name, _, attr = name.partition(":")
    with _locks.setdefault(name.partition(".")[0], threading.Lock()):
        path = _place_of(name)
        reads(os.fsencode(path))
        stamp = stamp_at(os.fsencode(path))
        known = name in sys.modules
        module = import_module(name)
        if known and name in _imported and stamp not in (_imported[name], NO_FILE):
            module = reload(module)
        _imported[name] = stamp
    return Loaded(module, path, stamp, attr.strip(), None)


def _place_of(name: str) -> str:
    """The file of a module, which nobody but root can change, nor the packages that it is in."""
    from importlib.util import find_spec

    path = ""
    parts = name.split(".")
    for at in range(1, len(parts) + 1):
        prefix = ".".join(parts[:at])
        try:
            spec = find_spec(prefix)  # imports the packages before it, which have been looked at
        except (ImportError, ValueError) as error:
            raise ConfigError(f"module {name}: {error}") from None
        if spec is None:
            raise ConfigError(f"there is no module {prefix}, nor an entry point {name} of {GROUP}")
        folders = list(spec.submodule_search_locations or ())
        for place in [spec.origin] if spec.has_location and spec.origin else folders:
            refuse_foreign(place)
            path = place
        if spec.has_location and spec.cached:  # which is run in the file's place
            for compiled in (spec.cached, os.path.dirname(spec.cached)):
                if os.path.lexists(compiled):
                    refuse_foreign(compiled)
                    break
    if not path:
        raise ConfigError(f"module {name} is a part of Python itself")
    return path


def preload(tables: Iterable[tuple[bytes, str]]) -> None:
    """preload - load the modules of tables, each (table, module), while that can be done; their opening tells

    Each is loaded by a thread of its own, so that code which hangs does not keep the server from
    starting: it goes on, without privileges, and the table is loaded once more when it is opened.
    """
    until = time.monotonic() + PRELOAD_LIMIT
    for table, name in tables:
        if table in _tried:
            continue
        _tried.add(table)
        done = threading.Event()

        def run(table: bytes = table, name: str = name, done: threading.Event = done) -> None:
            with contextlib.suppress(BaseException):
                _preloaded[table] = load(name)
            done.set()

        with contextlib.suppress(RuntimeError):
            start_thread(f"loading {name}", run)
            done.wait(max(0.0, until - time.monotonic()))


def loaded(table: bytes, name: str, reads: Callable[[bytes], None]) -> Loaded:
    """loaded - the module of a table that is being opened: that loaded before, if it is still the same"""
    before = _preloaded.pop(table, None)
    if before is not None and stamp_at(os.fsencode(before.path)) in (before.stamp, NO_FILE):
        reads(os.fsencode(before.path))
        return before
    return load(name, reads)
