"""takeover - put our daemon in charge of master(8)'s proxymap services, or back what was there before

    is it safe? -> does it start? -> what is answered now? -> master.cf's command -> postfix reload
    -> does it answer on the socket? -> as well as what was there before?

Any failure of `enable` leaves master.cf, or puts it back, as it was. `disable`
ends with the command of before in master.cf, whatever else fails.

Source: postconf(1), master(5); master.md 1.6, 2.3.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import time
from collections.abc import Generator, Iterator, Sequence

from proxymap.config.maincf import read_parameters
from proxymap.ctl import answers
from proxymap.ctl.instance import OURS, STATUS_LIMIT, STOCKS, Instance, ask, described, own_program
from proxymap.ctl.mastercf import (
    SERVICES,
    STOCK,
    Entry,
    command_for,
    is_ours,
    only_entry,
    program_of,
    read_entries,
    set_command,
    traps,
)
from proxymap.ctl.rehearsal import rehearse
from proxymap.ctl.safety import Fault, faults_of_program
from proxymap.errors import ConfigError, ProtocolError
from proxymap.tables.types import type_of

MEMORY = "proxymap.previous"  # in config_directory, which is root's: what `disable` is to put back
ANSWER_LIMIT = 15.0  # seconds for the right server to answer after a reload, if master does not throttle
AFTER_THROTTLE = 15.0  # the same, when its throttle is over
PAUSE = 0.05  # seconds between two tries


class Prevented(Exception):
    """Nothing was changed, for these reasons."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(str(faults))
        self.faults = faults


class Failed(Exception):
    """It was tried and did not work; the text says why, and what master.cf has now."""


def enable(instance: Instance, services: Sequence[str], dry_run: bool, force: bool = False) -> Iterator[str]:
    """enable - let master run our daemon for these services; tells what it does. Raises Prevented or Failed.

    force: even if tables that were answered are not any more.
    """
    program = own_program()
    command = command_for(program, instance.postfix.daemon_directory)
    reasons = [fault for fault in traps(program, command) if not fault.warning]
    reasons += faults_of_program(program, instance.settings.mail_owner)
    if reasons:
        raise Prevented(reasons)
    _need_root(dry_run)
    with contextlib.nullcontext() if dry_run else _alone(instance):
        yield from _put_in_charge(instance, services, program, command, dry_run, force)


def _put_in_charge(
    instance: Instance, services: Sequence[str], program: str, command: str, dry_run: bool, force: bool
) -> Iterator[str]:
    entries = [only_entry(instance.directory, service) for service in services]
    if os.geteuid() == 0:
        reasons = [fault for e in entries for fault in rehearse(program, e, instance.settings_of(e))]
        if reasons:
            raise Prevented(reasons)
    memory = _remembered(instance)
    changes = []
    for entry in entries:
        yield from _warnings(instance, entry)
        if entry.command == command:
            yield f"{entry.service}: {program} is in charge already"
            continue
        changes.append((entry, command))
        _keep(memory, instance, entry)
    if dry_run:
        yield from _commands(instance, changes)
    elif changes:
        yield from _enable(instance, changes, memory, force)


def disable(instance: Instance, services: Sequence[str], dry_run: bool) -> Iterator[str]:
    """disable - let master run what it ran before enable(); tells what it does. Raises Prevented or Failed.

    services: none named are those that are enabled.
    """
    _need_root(dry_run)
    memory = _remembered(instance)
    changes = []
    found = [entry for entry in read_entries(instance.directory, strict=False) if entry.type == "unix"]
    enabled = [entry for entry in found if entry.service in SERVICES and _is_enabled(instance, entry)]
    for service in services or sorted({entry.service for entry in enabled}) or [STOCK]:
        entries = [entry for entry in found if entry.service == service]
        ours = [entry for entry in entries if entry in enabled]
        if not entries:
            yield f'{service}: no entry in master.cf; run "postfix upgrade-configuration"'
        elif not ours:
            yield f"{service}: not enabled: the command in master.cf is {entries[-1].command}"
        else:
            back = memory.pop(ours[0].name, STOCK)
            if not _can_run(instance, back):
                yield f"{service}: {back}, which was there before, cannot be run; back to Postfix's own"
                back = STOCK
            changes += [(entry, back) for entry in ours]
    if dry_run:
        yield from _commands(instance, changes)
    elif changes:
        yield from _disable(instance, changes, memory)


@contextlib.contextmanager
def _alone(instance: Instance) -> Iterator[None]:
    """While this is at work no other `enable` may be, which would put back what it found where it fails."""
    directory = os.open(instance.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = 'another "proxymapctl enable" is at work'
            raise Prevented([Fault("master.cf", what, "try again when that has ended")]) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(directory)


def _need_root(dry_run: bool) -> None:
    if not dry_run and os.geteuid() != 0:
        raise Prevented(
            [Fault("master.cf", "only root may change it", "run this as root, or with --dry-run")]
        )


def _is_enabled(instance: Instance, entry: Entry) -> bool:
    """Ours is in charge, or it was and is gone or spoilt, as by an installation that was cut short."""
    if entry.command == STOCK:
        return False
    program = program_of(entry.command, instance.postfix.daemon_directory)
    if is_ours(program) or not _can_run(instance, entry.command):
        return True
    with contextlib.suppress(ConfigError, OSError):
        return os.path.samefile(program, own_program())
    return False


def _can_run(instance: Instance, command: str) -> bool:
    """Is there a program for master to execute?"""
    program = program_of(command, instance.postfix.daemon_directory)
    return command == STOCK or (os.path.isfile(program) and os.access(program, os.X_OK))


def _warnings(instance: Instance, entry: Entry) -> Iterator[str]:
    for table in instance.approved(entry):
        if type_of(table) is None:
            yield f"warning: {entry.service}: {table} is of no type that is served: mail is deferred (RETRY)"


Changes = list[tuple[Entry, str]]


def _commands(instance: Instance, changes: Changes) -> Iterator[str]:
    """Commands that have the same effect, where master.cf is no symbolic link."""
    for entry, command in changes:
        yield shlex.join(instance.postfix.set_command(entry.service, command))
    if changes:
        yield shlex.join(instance.postfix.reload())


def _enable(instance: Instance, changes: Changes, memory: dict[str, str], force: bool) -> Iterator[str]:
    with _all_back_on_failure(instance, changes):
        before = {} if force else (yield from _answers(instance, [entry for entry, _ in changes]))
        answered = _answering(instance, [entry for entry, _ in changes])
        _write_memory(instance, memory)  # first: even if this is killed, disable knows what was there
        for entry, command in changes:
            set_command(entry, command)
        outcome = yield from _reload(instance, changes, answered)
        worse = answers.worse(instance, before)
        if worse:
            raise _NoAnswer("; ".join(worse))
    yield from outcome


def _answers(instance: Instance, entries: Sequence[Entry]) -> Generator[str, None, dict[answers.Asked, str]]:
    """What is answered before the switch; nothing if Postfix is not running."""
    found: dict[answers.Asked, str] = {}
    for entry in entries if instance.postfix.is_running() else ():
        known, left = answers.of_service(instance, entry)
        found |= known
        if left:
            yield f"warning: {entry.service}: {left} tables are not compared: no answer, or not in time"
    return found


def _answering(instance: Instance, entries: Sequence[Entry]) -> frozenset[str]:
    """The services that answer now, and so are not throttled."""
    found = set()
    for entry in entries if instance.postfix.is_running() else ():
        with contextlib.suppress(OSError, ProtocolError):
            ask(instance, entry, STATUS_LIMIT, greeting=True)
            found.add(entry.service)
    return frozenset(found)


def _disable(instance: Instance, changes: Changes, memory: dict[str, str]) -> Iterator[str]:
    for entry, command in changes:
        set_command(entry, command, in_place=True)
    with contextlib.suppress(OSError):
        _write_memory(instance, memory)
    try:
        yield from (yield from _reload(instance, changes))
    except (_NoAnswer, ConfigError) as error:
        raise Failed(f'master.cf is as it was before "enable", but {error}') from None


def _reload(
    instance: Instance, changes: Changes, answered: frozenset[str] = frozenset()
) -> Generator[str, None, list[str]]:
    """Tell a running master, and see who answers for each service.

    answered: those that did before; if they are silent now, no throttle of before is waited out.
    """
    last = {entry.service: command for entry, command in changes}
    if not instance.postfix.is_running():
        return [f"{service}: {command} from the next start on" for service, command in last.items()]
    instance.postfix.run(instance.postfix.reload())
    outcome = []
    for service, command in last.items():
        answer = yield from _verify(instance, service, command, service not in answered)
        outcome.append(f"{service}: {answer}")
    return outcome


@contextlib.contextmanager
def _all_back_on_failure(instance: Instance, changes: Changes) -> Iterator[None]:
    """Puts the commands back if the block is left by an exception; those of ours become Failed."""
    memory = _remembered(instance)
    try:
        yield
    except BaseException as error:
        more = _put_back(instance, changes, memory) or "master.cf is as it was before"
        if isinstance(error, KeyboardInterrupt):
            raise Failed(f"interrupted; {more}") from None
        if isinstance(error, _Silent):
            more += f"; master starts a server again within {instance.throttle} s (service_throttle_time)"
        if isinstance(error, (_NoAnswer, ConfigError, OSError)):
            raise Failed(f"{error}; {more}") from None
        raise


def _put_back(instance: Instance, changes: Changes, memory: dict[str, str]) -> str:
    """Have all as it was; returns what did not work, if anything."""
    postfix = instance.postfix
    try:
        changed = False
        for entry, command in changes:
            now = only_entry(instance.directory, entry.service)
            if now.command == command:
                set_command(now, entry.command)
                changed = True
    except (ConfigError, OSError) as trouble:
        return f"and master.cf could not be put back: {trouble}"
    with contextlib.suppress(OSError):
        _write_memory(instance, memory)
    with contextlib.suppress(ConfigError):  # perhaps it is what has just failed
        if changed and postfix.is_running():
            postfix.run(postfix.reload())
    return ""


class _NoAnswer(Exception):
    """No answer, or not from the server that it should come from; the text says what was seen."""


class _Silent(_NoAnswer):
    """Nobody is there: the new server has failed, and master throttles the service."""


def _verify(instance: Instance, service: str, command: str, patient: bool) -> Generator[str, None, str]:
    """Ask until the server that `command` starts is the only one there; who it is and what it said.

    A service whose process failed at once is started anew only when its throttle is over;
    `patient` if one of before may be on.
    """
    program = program_of(command, instance.postfix.daemon_directory)
    wanted = STOCKS if command == STOCK else OURS if is_ours(program) else None
    answer, seen, silent = _wait_for(instance, service, wanted, ANSWER_LIMIT)
    waited = ANSWER_LIMIT
    if not answer and silent and patient:
        limit = instance.throttle + AFTER_THROTTLE
        yield (
            f"{service}: no server yet ({seen}); after one that failed, master waits"
            f" for {instance.throttle} s (service_throttle_time); waiting at most {limit:.0f} s"
        )
        answer, seen, silent = _wait_for(instance, service, wanted, limit)
        waited += limit
    if answer:
        return answer
    what = f"{service}: no answer from {os.path.normpath(program)} within {waited:.0f} s ({seen})"
    raise (_Silent if silent else _NoAnswer)(f"{what}; the mail log says why")


def _wait_for(
    instance: Instance, service: str, wanted: str | None, limit: float
) -> tuple[str | None, str, bool]:
    """What is answered by the wanted server, or None; what was seen instead; was that nobody?"""
    entry = [e for e in read_entries(instance.directory, strict=False) if e.name == f"{service}/unix"][-1]
    deadline = time.monotonic() + limit
    seen, silent = "", True
    while (left := deadline - time.monotonic()) > 0:
        try:
            left = max(round(left, 1), PAUSE)
            answer, processes = ask(instance, entry, left, greeting=wanted == STOCKS)
        except (OSError, ProtocolError) as trouble:
            seen, silent = getattr(trouble, "strerror", None) or str(trouble), True
        else:
            servers = {process.server for process in processes}
            if servers and (wanted is None or servers == {wanted}):
                return f"{' and '.join(map(described, processes))} answers ({answer})", "", False
            seen, silent = f"{' and '.join(sorted(servers)) or 'an unknown process'} answers", False
        time.sleep(PAUSE)
    return None, seen, silent


# What was there before


def _remembered(instance: Instance) -> dict[str, str]:
    """service/type -> command; what is not there was the stock one."""
    path = os.path.join(instance.directory, MEMORY)
    return read_parameters(path, lambda text: None, strict=False)[0]


def _keep(memory: dict[str, str], instance: Instance, entry: Entry) -> None:
    """Remember the command that enable replaces; an earlier installation of ours is not worth it."""
    if entry.command == STOCK:
        memory.pop(entry.name, None)
    elif not _is_enabled(instance, entry):
        memory[entry.name] = entry.command


def _write_memory(instance: Instance, memory: dict[str, str]) -> None:
    path = os.path.join(instance.directory, MEMORY)
    if not memory:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    with open(path + ".new", "w") as file:
        file.write("# Written by proxymapctl: what its `disable` puts back in master.cf.\n")
        file.writelines(f"{name} = {command}\n" for name, command in memory.items())
    os.replace(path + ".new", path)
