"""safety - may root run this program? Every file and folder that has a say in it, and mail_owner's access

master(8) starts the daemon as root, and Python then reads the program, the
interpreter and modules, all before the privileges are dropped: a user who
may write to one of them, or to a folder on the way to one, is root. After the drop
mail_owner has to reach them too.

What this cannot see: access control beyond modes and owners, what is written to
a file system from another host, and what changes afterwards.

Source: path_resolution(7), execve(2); Python's site module; master.md 1.1, 1.5.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from proxymap.base.files import path_steps, user_name
from proxymap.errors import ConfigError

T = TypeVar("T")

FIRST_LINE_LIMIT = 255  # bytes of a "#!" line that Linux reads (BINPRM_BUF_SIZE)
FAULT_LIMIT = 10  # lines; a folder of somebody else's has thousands of files
PROBE_LIMIT = 60.0  # seconds
MODULE_SUFFIXES = (".py", ".pyc", ".so", ".pth", ".zip")

# Told by the interpreter itself, as the daemon would run: the path that it looks for modules, what it has
# loaded for our program, and every file that is mapped, shared libraries among them.
PROBE = """\
import sys
if not sys.flags.safe_path: sys.path[0] = sys.argv[1]
import json, proxymap, proxymap.main
modules = [module for module in sys.modules.values() if getattr(module, "__file__", None)]
maps = [line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if line.count("/")]
print(json.dumps({"path": sys.path, "package": list(proxymap.__path__), "executable": sys.executable,
    "files": [module.__file__ for module in modules] + [name for name in maps if name[0] == "/"]}))
"""
# What master(8) leaves of the environment.
ENVIRONMENT = {"LANG": "C", "MAIL_CONFIG": "/etc/postfix"}


class Fault(NamedTuple):
    """Something that is wrong, and what to do about it. `warning`: it works all the same."""

    where: str
    what: str
    remedy: str
    warning: bool = False

    def line(self) -> str:
        return f"{'warning: ' if self.warning else ''}{self.where}: {self.what}; {self.remedy}"


class Seen(NamedTuple):
    """What PROBE tells."""

    path: list[str]
    package: list[str]
    executable: str
    files: list[str]


def faults_of_program(program: str, owner: str) -> list[Fault]:
    """faults_of_program - why master must not run `program`; empty if it may

    owner: mail_owner. Needs root to be sure of anything. Nothing is run before it has
    been found safe: first mail_owner runs the interpreter, root only when that was clean.
    """
    inspector = Inspector()
    found = list(_of_script(program, inspector))
    if found:
        return found[:FAULT_LIMIT]
    command = interpreter_of(program)
    for user in (owner, None) if os.geteuid() == 0 else (None,):
        try:
            seen = _probe(command, program, user)
        except ProbeFailed as trouble:
            return [_unusable(program, command[0], owner, str(trouble))]
        found = list(_of_modules(seen, program, inspector))
        if found:
            return found[:FAULT_LIMIT]
    return _unreachable([program, command[0], *_package_files(seen), *seen.files], owner)


# The script and its interpreter


def interpreter_of(program: str) -> list[str]:
    """The interpreter that the program's first line names, and its one argument; empty if it names none."""
    with open(program, "rb") as file:
        line = file.readline(FIRST_LINE_LIMIT + 2).rstrip(b"\n")
    return os.fsdecode(line[2:]).strip().split(None, 1) if line.startswith(b"#!") else []


def _of_script(program: str, inspector: Inspector) -> Iterator[Fault]:
    yield from inspector.faults(program)
    try:
        with open(program, "rb") as file:
            line = file.readline(FIRST_LINE_LIMIT + 2).rstrip(b"\n")
    except OSError as trouble:
        yield Fault(program, str(trouble.strerror), "install proxymap again")
        return
    if not os.access(program, os.X_OK):
        yield Fault(program, "is not executable", f"chmod 755 {program}")
    command = interpreter_of(program)
    if not command:
        yield Fault(program, "does not begin with #! and an interpreter", "install proxymap with pip")
    elif len(line) > FIRST_LINE_LIMIT:
        what = f"its #! line is longer than the {FIRST_LINE_LIMIT} bytes that Linux reads"
        yield Fault(program, what, "install into a folder with a shorter name")
    elif not os.path.basename(command[0]).startswith("python"):
        what = f"its #! line runs {command[0]}, which finds its Python by other means"
        remedy = "put the absolute path of the interpreter there; a shorter folder name makes pip do so"
        yield Fault(program, what, remedy)
    else:
        yield from inspector.faults(command[0])
        folder = os.path.dirname(command[0])
        for beside in (folder, os.path.dirname(folder)):
            if os.path.lexists(os.path.join(beside, "pyvenv.cfg")):
                yield from inspector.faults(os.path.join(beside, "pyvenv.cfg"))


class Inspector:
    """Follows paths as the kernel does, and tells once for each what others could change."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def faults(self, path: str) -> Iterator[Fault]:
        """The path itself, all folders on the way to it, and the same for each symlink on that way."""
        try:
            for step in path_steps(path):
                yield from self._one(step)
        except OSError:
            yield Fault(path, "goes through too many symlinks", "point it at the file itself")

    def tree(self, folder: str) -> Iterator[Fault]:
        """Every folder below, and every file that Python might run; a bad folder stands for its contents."""
        found = list(self.faults(folder))
        yield from found
        if found or not os.path.isdir(folder):
            return
        for entry in sorted(os.scandir(os.path.realpath(folder)), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from self.tree(entry.path)
            elif entry.name.endswith(MODULE_SUFFIXES):
                yield from self.faults(entry.path) if entry.is_symlink() else self._one(entry.path)

    def _one(self, path: str) -> Iterator[Fault]:
        if path in self._known:
            return
        self._known.add(path)
        try:
            status = os.lstat(path)
        except OSError:
            return  # not there, and nobody can put it there, as its folder has been looked at
        if status.st_uid:
            what = f"belongs to {user_name(status.st_uid)}, and root would run it"
            yield Fault(path, what, f"chown root {path}")
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022:
            what = f"others may write to it (mode {stat.S_IMODE(status.st_mode):o}), and root would run it"
            yield Fault(path, what, f"chmod go-w {path}, or install elsewhere")


# What the interpreter loads


class ProbeFailed(Exception):
    """The interpreter did not run, or could not load our package; the text says why."""


def _probe(command: list[str], program: str, user: str | None) -> Seen:
    """Run PROBE by the program's interpreter, as `user` if that is not us."""
    arguments = [*command, "-B", "-c", PROBE, os.path.dirname(os.path.realpath(program))]
    account = account_of(user) if user else None
    try:
        done = subprocess.run(
            arguments,
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_LIMIT,
            check=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if account else None,
        )
        return Seen(**json.loads(done.stdout))
    except subprocess.CalledProcessError as trouble:
        lines = trouble.stderr.decode(errors="replace").strip().splitlines() or ["no word of why"]
        raise ProbeFailed(lines[-1]) from None
    except (OSError, subprocess.SubprocessError, ValueError) as trouble:
        raise ProbeFailed(str(trouble)) from None


def _unusable(program: str, interpreter: str, owner: str, reason: str) -> Fault:
    """Why PROBE failed: most often mail_owner cannot reach the interpreter."""
    for fault in _unreachable([program, interpreter], owner):
        return fault
    return Fault(program, f"cannot be started: {reason}", "install proxymap again")


def _of_modules(seen: Seen, program: str, inspector: Inspector) -> Iterator[Fault]:
    for folder in [*seen.package, *seen.path]:
        yield from inspector.tree(os.path.join("/", folder))
    for path in [seen.executable, *seen.files]:
        yield from inspector.faults(path)


def _package_files(seen: Seen) -> list[str]:
    """Modules of our package: some are loaded late, by mail_owner."""
    return [
        os.path.join(folder, name)
        for top in seen.package
        for folder, _, names in os.walk(top)
        for name in names
        if name.endswith((".py", ".so"))
    ]


# mail_owner


def _unreachable(paths: Iterable[str], owner: str) -> list[Fault]:
    """What mail_owner may not read, the folder to blame in place of its contents."""
    blamed = as_user(owner, lambda: sorted({closed for path in paths if (closed := first_closed(path))}))
    remedy = f"let {owner} in, for example with chmod a+rX, or install elsewhere"
    return [Fault(path, f"{owner} may not read it", remedy) for path in blamed[:FAULT_LIMIT]]


def first_closed(path: str, mode: int = os.R_OK) -> str | None:
    """first_closed - the first folder on the way to `path` that this process may not enter, or path itself"""
    if os.access(path, mode):
        return None
    real = os.path.realpath(path)
    folder = "/"
    for part in real.strip("/").split("/")[:-1]:
        folder = os.path.join(folder, part)
        if os.path.isdir(folder) and not os.access(folder, os.X_OK):
            return folder
    return real


def as_user(name: str, call: Callable[[], T]) -> T:
    """as_user - call() in a child that has become that user for good; its result must fit JSON

    Where we are not root, the child stays who we are.
    """
    account = account_of(name)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            if os.geteuid() == 0:
                os.initgroups(name, account.pw_gid)
                os.setgid(account.pw_gid)
                os.setuid(account.pw_uid)
                os.environ.pop("HOME", None)  # master(8) sets none
            with open(writing, "w", encoding="utf-8", errors="surrogateescape") as pipe:
                json.dump(call(), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="surrogateescape") as pipe:
        text = pipe.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise ConfigError(f"checking as {name} failed; standard error says why")
    result: T = json.loads(text)
    return result


def account_of(name: str) -> pwd.struct_passwd:
    """account_of - the user called mail_owner, or ConfigError"""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"parameter mail_owner: there is no user {name}") from None
