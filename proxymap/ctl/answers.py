"""answers - what a service answers for each table that main.cf uses, before the switch and after it

Asked as Postfix's own clients ask: the greeting first, then open, then a lookup,
in the dialect of the installed release. What was OK or NOKEY before must not be
RETRY, DENY, BAD or silence afterwards. Before, an understudy is asked: of a damaged
table Postfix's own server dies, and master starts the next one a minute later.

Source: proxymap(8), postconf(1).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from proxymap.client import Client
from proxymap.config.approval import approved_tables
from proxymap.ctl.instance import KEY, Instance, dialect_of
from proxymap.ctl.mastercf import Entry, program_of
from proxymap.ctl.rehearsal import understudy
from proxymap.errors import BY_STATUS, ConfigError, ProtocolError
from proxymap.tables.types import type_of

GOOD = ("OK", "NOKEY")
SILENCE = "no answer"
ALL_LIMIT = 60.0  # seconds for all tables of a service, before the switch
TABLE_LIMIT = 12.0  # seconds for one table: longer than lookup_time_limit, after which ours says RETRY
AGAIN_LIMIT = 10.0  # seconds for a table that has just been opened to become better
PAUSE = 0.2  # seconds between two tries


class Asked(NamedTuple):
    """A table of a service, whose entry says with which -o it runs."""

    entry: Entry
    table: str


def of_service(instance: Instance, entry: Entry) -> tuple[dict[Asked, str], int]:
    """of_service - what the service's command answers now, and how many tables it could not be asked"""
    found: dict[Asked, str] = {}
    tables = [Asked(entry, table) for table in _tables(instance, entry)]
    until = time.monotonic() + ALL_LIMIT
    program = program_of(entry.command, instance.postfix.daemon_directory)
    with contextlib.suppress(OSError), understudy(program, entry, instance.settings_of(entry)) as start:
        path = start()
        while len(found) < len(tables) and time.monotonic() < until:
            asked = tables[len(found)]
            found[asked] = _answer(instance, asked, path)
            if found[asked] == SILENCE:
                path = start()
    return found, len(tables) - len(found)


def worse(instance: Instance, before: dict[Asked, str]) -> list[str]:
    """worse - the tables that were answered before and are not any more, each with a remedy"""
    until = time.monotonic() + AGAIN_LIMIT
    told = []
    for asked, was in before.items():
        if was not in GOOD:
            continue
        path = instance.socket(asked.entry.service)
        now = _answer(instance, asked, path)
        while now not in GOOD and time.monotonic() < until:
            time.sleep(PAUSE)
            now = _answer(instance, asked, path)
        if now not in GOOD:
            what = f"{asked.entry.service}: {asked.table} was answered {was}, and is answered {now} by ours"
            told.append(f"{what}; {_remedy(instance, asked.table)}")
    return told


def _answer(instance: Instance, asked: Asked, path: str) -> str:
    """The status of a lookup at the socket, or SILENCE."""
    dialect = dialect_of(instance.settings_of(asked.entry))
    try:
        with Client(path, dialect=dialect, timeout=TABLE_LIMIT) as client:
            return "OK" if client.lookup(asked.table, KEY) is not None else "NOKEY"
    except tuple(BY_STATUS.values()) as reply:
        return str(reply).rpartition(" ")[2]
    except (OSError, ProtocolError):
        return SILENCE


def _tables(instance: Instance, entry: Entry) -> list[str]:
    """Those that the service may be asked for, by our reading of main.cf or by Postfix's own."""
    writes = entry.service == "proxywrite"
    name = "proxy_write_maps" if writes else "proxy_read_maps"
    found = dict.fromkeys(instance.approved(entry))
    found.update(dict.fromkeys(_named_by_postconf(instance, name)))
    if not writes:
        found.update(dict.fromkeys(_used(instance)))
        return list(found)
    return [table for table in found if _is_there(table)]  # to open another would create it


def _named_by_postconf(instance: Instance, name: str) -> Iterator[str]:
    """The list as postconf expands it, should we not understand something in it."""
    try:
        value = instance.postfix.run(instance.postfix.postconf("-xh", name))
    except ConfigError:
        return
    for table in approved_tables(value.rstrip("\n"), name, False, lambda text: None):
        yield os.fsdecode(table)


def _used(instance: Instance) -> Iterator[str]:
    """What main.cf and the -o of master.cf name for reading, approved or not."""
    from proxymap.ctl.checks import WRITTEN, read_site, uses

    for use in uses(read_site(instance.directory)):
        if use.parameter not in WRITTEN:
            yield use.table


def _is_there(table: str) -> bool:
    known = type_of(table)
    path = table.partition(":")[2]
    return (
        known is not None and bool(known.suffix) and os.path.exists(path + os.fsdecode(known.suffix or b""))
    )


def _remedy(instance: Instance, table: str) -> str:
    """What check says of it."""
    from proxymap.ctl.checks import check

    for fault in check(instance.directory):
        if table in fault.what and not fault.warning:
            return f"{fault.what}: {fault.remedy}"
    return "the mail log says why"
