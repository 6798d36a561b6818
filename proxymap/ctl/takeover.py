"""takeover - put our daemon in charge of master(8)'s proxymap services, or back what was there before

    is it safe? -> does it start? -> master.cf's command -> postfix reload -> does it answer on the socket?

Any failure on that way leaves master.cf, or puts it back, as it was.

Source: postconf(1), master(5); master.md 1.6.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator, Sequence

from proxymap.config.maincf import read_parameters
from proxymap.ctl.instance import OURS, STOCKS, Instance, ask, described, own_program
from proxymap.ctl.mastercf import STOCK, Entry, command_for, is_ours, only_entry, program_of, traps
from proxymap.ctl.rehearsal import rehearse
from proxymap.ctl.safety import Fault, faults_of_program
from proxymap.errors import ConfigError, ProtocolError
from proxymap.tables.types import type_of

MEMORY = "proxymap.previous"  # in config_directory, which is root's: what `disable` is to put back
ANSWER_LIMIT = 15.0  # seconds for the right server to answer after a reload
PAUSE = 0.05  # seconds between two tries


class Refused(Exception):
    """Nothing was changed, for these reasons."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(str(faults))
        self.faults = faults


class Failed(Exception):
    """It was tried, it did not work, and all is as it was before; the text says why."""


def enable(instance: Instance, services: Sequence[str], dry_run: bool) -> Iterator[str]:
    """enable - let master run our daemon for these services; tells what it does. Raises Refused or Failed."""
    program = own_program()
    command = command_for(program, instance.postfix.daemon_directory)
    reasons = [fault for fault in traps(program, command) if not fault.warning]
    reasons += faults_of_program(program, instance.settings.mail_owner)
    if reasons:
        raise Refused(reasons)
    _need_root(dry_run)
    entries = [only_entry(instance.directory, service) for service in services]
    if os.geteuid() == 0:
        reasons = [fault for e in entries for fault in rehearse(program, e, instance.settings_of(e))]
    if reasons:
        raise Refused(reasons)
    memory = _remembered(instance)
    changes = {}
    for entry in entries:
        yield from _warnings(instance, entry)
        if entry.command == command:
            yield f"{entry.service}: {program} is in charge already"
            continue
        changes[entry.service] = command
        _keep(memory, instance, entry)
    yield from _change(instance, changes, memory, dry_run)


def disable(instance: Instance, services: Sequence[str], dry_run: bool) -> Iterator[str]:
    """disable - let master run what it ran before enable(); tells what it does. Raises Refused or Failed."""
    _need_root(dry_run)
    memory = _remembered(instance)
    changes = {}
    for entry in [only_entry(instance.directory, service) for service in services]:
        if _is_enabled(instance, entry):
            changes[entry.service] = memory.pop(entry.name, STOCK)
        else:
            yield f"{entry.service}: not enabled: the command in master.cf is {entry.command}"
    yield from _change(instance, changes, memory, dry_run)


def _need_root(dry_run: bool) -> None:
    if not dry_run and os.geteuid() != 0:
        raise Refused([Fault("master.cf", "only root may change it", "run this as root, or with --dry-run")])


def _is_enabled(instance: Instance, entry: Entry) -> bool:
    """Ours is in charge, or it was and is gone: its package has been removed."""
    program = program_of(entry.command, instance.postfix.daemon_directory)
    return entry.command != STOCK and (is_ours(program) or not os.path.exists(program))


def _warnings(instance: Instance, entry: Entry) -> Iterator[str]:
    for table in instance.approved(entry):
        if type_of(table) is None:
            yield f"warning: {entry.service}: {table} is not served yet: clients get RETRY, mail is deferred"


def _change(
    instance: Instance, changes: dict[str, str], memory: dict[str, str], dry_run: bool
) -> Iterator[str]:
    """Set the command of each service, reload, and verify that the right server answers."""
    postfix = instance.postfix
    commands = [postfix.set_command(service, command) for service, command in changes.items()]
    if dry_run:
        yield from map(shlex.join, commands)
        if commands:
            yield shlex.join(postfix.reload())
    elif commands:
        with _all_back_on_failure(instance, list(changes)):
            for command in commands:
                postfix.run(command)
            _write_memory(instance, memory)
            outcome = _reload(instance, changes)
        yield from outcome


def _reload(instance: Instance, changes: dict[str, str]) -> list[str]:
    """Tell a running master, and see who answers for each service."""
    if not instance.postfix.is_running():
        return [f"{service}: {command} from the next start on" for service, command in changes.items()]
    instance.postfix.run(instance.postfix.reload())
    return [f"{service}: {_verify(instance, service, command)}" for service, command in changes.items()]


@contextlib.contextmanager
def _all_back_on_failure(instance: Instance, services: Sequence[str]) -> Iterator[None]:
    """Puts the commands back if the block is left by an exception; those of ours become Failed."""
    postfix = instance.postfix
    memory = _remembered(instance)
    commands = {service: only_entry(instance.directory, service).command for service in services}
    try:
        yield
    except BaseException as error:
        for service, command in commands.items():
            postfix.run(postfix.set_command(service, command))
        _write_memory(instance, memory)
        with contextlib.suppress(ConfigError):  # perhaps it is what has just failed
            if postfix.is_running():
                postfix.run(postfix.reload())
        if isinstance(error, (_NoAnswer, ConfigError)):
            raise Failed(f"{error}; master.cf is as it was before") from None
        raise


class _NoAnswer(Exception):
    """No answer, or not from the server that it should come from; the text says what was seen."""


def _verify(instance: Instance, service: str, command: str) -> str:
    """Ask until the server that `command` starts is the only one there; who it is and what it said."""
    entry = only_entry(instance.directory, service)
    program = program_of(command, instance.postfix.daemon_directory)
    wanted = STOCKS if command == STOCK else OURS if is_ours(program) else None
    deadline = time.monotonic() + ANSWER_LIMIT
    seen = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer, processes = ask(instance, entry, left)
        except (OSError, ProtocolError) as trouble:
            seen = str(trouble)
        else:
            servers = {process.server for process in processes}
            if servers and (wanted is None or servers == {wanted}):
                return f"{' and '.join(map(described, processes))} answers ({answer})"
            seen = f"{' and '.join(sorted(servers)) or 'an unknown process'} answers"
        time.sleep(PAUSE)
    raise _NoAnswer(
        f"{service}: no answer from {program} within {ANSWER_LIMIT:.0f} s ({seen}); the mail log says why"
    )


# What was there before


def _remembered(instance: Instance) -> dict[str, str]:
    """service/type -> command; what is not there was the stock one."""
    path = os.path.join(instance.directory, MEMORY)
    return read_parameters(path, lambda text: None)[0] if os.path.exists(path) else {}


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
