"""checks - everything that the configuration can get wrong, found without a running server

CHECKS is the list: each is one small function that is given a Site and yields
Faults. A warning is a fault that mail survives.

Tables are opened by a child process that has become mail_owner, in
queue_directory, as the daemon opens them; without root they are opened as who
we are, and a warning says so.

Source: proxymap(8), master(5), postconf(5), "proxymap" in local(8) and virtual(8); master.md 1.6.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 for names of hosts; mail_owner may not be allowed to import it
import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from proxymap.base.files import folder_fault
from proxymap.config.approval import approve, approved_tables
from proxymap.config.maincf import UNUSABLE, MainCf, split_parameter
from proxymap.config.settings import WRITE_MAPS, Settings, load
from proxymap.config.source import split_braced, without_proxy
from proxymap.ctl.mastercf import (
    SERVICES,
    STOCK,
    Entry,
    entry_of,
    faulty_fields,
    is_ours,
    path_of,
    program_of,
    read_entries,
    traps,
)
from proxymap.ctl.safety import Fault, account_of, as_user, faults_of_program, first_closed
from proxymap.ctl.sensitive import SENSITIVE, proxied_in_vain, unproxied
from proxymap.errors import ConfigError
from proxymap.tables.base import Host
from proxymap.tables.migration import redirection
from proxymap.tables.opening import open_table
from proxymap.tables.types import GONE, TABLE_TYPES, load_types, type_of

FAULTY = "faulty lines: "  # begins the reason of a table that opens without some of its lines
CLOSE = "close it; all that follows is taken for a part of the name"
LISTS = {"proxymap": "proxy_read_maps", "proxywrite": "proxy_write_maps"}
WRITTEN = frozenset(WRITE_MAPS.replace("$", " ").split())  # parameters whose tables Postfix changes
INDEXED = {name for name, maptype in TABLE_TYPES.items() if maptype.suffix}  # types whose file is built
COMPOSITE = {name for name, maptype in TABLE_TYPES.items() if maptype.module.startswith("composite.")}


class Service(NamedTuple):
    """proxymap or proxywrite, as its process would be configured."""

    name: str
    entry: Entry | None
    settings: Settings
    main_cf: MainCf
    tables: tuple[str, ...]  # approved


class Site(NamedTuple):
    """All that is checked. `main_cf` is without master.cf's -o."""

    settings: Settings
    main_cf: MainCf
    entries: list[Entry]
    services: dict[str, Service]
    daemon_directory: str
    complaints: tuple[str, ...]  # what reading it has warned of
    connect: bool = False  # are the servers of tables tried, too?


class Look(NamedTuple):
    """What came of opening a table.

    reason: why it does not open, or None; closed: the path behind that. doubts: (what, remedy, a
    warning only?) of each.
    """

    reason: str | None
    closed: str | None
    doubts: list[tuple[str, str, bool]]


class Use(NamedTuple):
    """A place that names a proxy: table."""

    where: str
    parameter: str
    table: str


def check(config_directory: str, *, connect: bool = False) -> list[Fault]:
    """check - all faults and warnings; what cannot be read at all is the only one

    connect: log in to the database servers, and have each query explained.
    """
    try:
        site = read_site(os.path.abspath(config_directory))._replace(connect=connect)
    except ConfigError as trouble:
        return [_unusable(trouble)]
    faults = []
    for one in CHECKS:
        try:
            faults += list(one(site))
        except ConfigError as trouble:
            faults.append(_unusable(trouble))
    return list(dict.fromkeys(faults))


def _unusable(trouble: ConfigError) -> Fault:
    where, _, what = str(trouble).partition(": ")
    return Fault(where, what or "cannot be used", "put that right, then check again")


def as_json(fault: Fault) -> dict[str, Any]:
    """as_json - one object for one fault"""
    level = "warning" if fault.warning else "fault"
    return {"level": level, "where": fault.where, "what": fault.what, "remedy": fault.remedy}


def read_site(directory: str) -> Site:
    """read_site - main.cf, proxymap.cf and master.cf; ConfigError for what the daemon would die of"""
    complaints: dict[str, None] = {}

    def warn(text: str) -> None:
        complaints[text] = None

    settings, main_cf = load(directory, warn=warn)
    entries = read_entries(directory, warn)
    services = {name: _service(directory, name, entry_of(entries, name), warn) for name in SERVICES}
    return Site(settings, main_cf, entries, services, main_cf.get("daemon_directory"), tuple(complaints))


def _service(directory: str, name: str, entry: Entry | None, warn: Callable[[str], None]) -> Service:
    settings, main_cf = load(directory, entry.overrides if entry else (), name, warn=warn)
    approved = approve(settings, main_cf, name == "proxywrite", warn)
    tables = sorted(table.decode("utf-8", "surrogateescape") for table in approved)
    return Service(name, entry, settings, main_cf, tuple(tables))


# Files


def _complaints(site: Site) -> Iterator[Fault]:
    """What readers warned of: double entries, blanks, braces that do not fit."""
    for complaint in site.complaints:
        where, _, what = complaint.partition(": ")
        if what.endswith(UNUSABLE):
            yield Fault(where, what, "put that right")
        else:
            yield Fault(where, what or complaint, "Postfix reads on, perhaps not as meant", warning=True)


def _who_checks(site: Site) -> Iterator[Fault]:
    account_of(site.settings.mail_owner)
    if os.geteuid() != 0:
        what = f"tables and folders were tried as this user, not as {site.settings.mail_owner}"
        yield Fault("proxymapctl", what, "run this as root", warning=True)


def _folders(site: Site) -> Iterator[Fault]:
    """The sockets' folder, for clients that are chrooted or not."""
    queue, owner = site.settings.queue_directory, site.settings.mail_owner
    private = os.path.join(queue, "private")
    if not os.path.isdir(queue):
        yield Fault(
            site.main_cf.where("queue_directory"), f"no folder {queue}", "create it, or correct the name"
        )
    elif not os.path.isdir(private):
        yield Fault(private, "no such folder", 'run "postfix check", which makes it')
    elif closed := as_user(owner, lambda: first_closed(private, os.R_OK | os.X_OK)):
        yield Fault(
            closed, f"{owner} may not enter it, so no client reaches {private}", "correct owner and mode"
        )


# master.cf


def _entries(site: Site) -> Iterator[Fault]:
    """Missing and double entries."""
    seen: dict[str, Entry] = {}
    for entry in site.entries:
        if entry.name in seen:
            what = (
                f"second entry for {entry.name}, the first is on {seen[entry.name].where}; the last one wins"
            )
            yield Fault(entry.where, what, "remove all but one")
        seen[entry.name] = entry
    for name in SERVICES:
        if f"{name}/unix" not in seen:
            path = path_of(site.settings.config_directory)
            yield Fault(path, f"no entry {name}/unix", 'run "postfix upgrade-configuration"')


def _fields(site: Site) -> Iterator[Fault]:
    """Columns of which master dies, whichever service has them."""
    for entry in site.entries:
        yield from faulty_fields(entry)


def _columns(site: Site) -> Iterator[Fault]:
    """Process limit and chroot."""
    for entry in _served(site):
        if entry.service == "proxywrite" and entry.process_limit != "1":
            what = f"process limit {entry.process_limit}: several writers at a time damage tables"
            yield Fault(entry.where, what, "postconf -F proxywrite/unix/process_limit=1")
        if entry.chroot == "y":
            what = f"{entry.service} is chrooted, and opens only tables below {site.settings.queue_directory}"
            yield Fault(entry.where, what, f"postconf -F {entry.name}/chroot=n", warning=True)


def _commands(site: Site) -> Iterator[Fault]:
    """What master would run, and whether it may."""
    for entry in _served(site):
        yield from traps(entry.where, entry.command)
        program = program_of(entry.command, site.daemon_directory)
        if not site.daemon_directory or entry.command.startswith("/"):
            continue
        if not os.access(program, os.X_OK):
            what = f"{os.path.normpath(program)} is not there, or not executable"
            yield Fault(entry.where, what, "proxymapctl disable, or install it again")
        elif entry.command != STOCK and is_ours(program):
            yield from faults_of_program(program, site.settings.mail_owner)


def _served(site: Site) -> Iterator[Entry]:
    for service in site.services.values():
        if service.entry is not None:
            yield service.entry


def _without_effect(site: Site) -> Iterator[Fault]:
    """What Postfix's own server obeys and ours does not."""
    name = "daemon_table_open_error_is_fatal"
    if site.main_cf.get(name).lower() == "yes":
        what = f"{name} has no effect here: for one table that cannot be opened the server serves all others"
        yield Fault(site.main_cf.where(name), what, "watch the mail log for such tables", warning=True)


# Parameters that name proxy: tables


def uses(site: Site) -> Iterator[Use]:
    """uses - every proxy: table that main.cf or a -o of master.cf names, but for the two lists, and where"""
    yield from _uses_in(site.main_cf, _names_of_uses(site.main_cf))
    for entry in site.entries:
        names = [split_parameter(override, "-o")[0] for override in entry.overrides]
        if names:
            directory = site.settings.config_directory
            main_cf = MainCf(directory, entry.overrides, {"service_name": entry.service})
            for use in _uses_in(main_cf, names):
                yield use._replace(where=f"{entry.where}, -o {use.parameter}")


def _names_of_uses(main_cf: MainCf) -> list[str]:
    """Parameters to look at. What others refer to is seen there; by itself it may be a part of a name."""
    names = dict.fromkeys([*main_cf.raw, "local_recipient_maps"])  # its default has a proxy: in it
    text = " ".join(value for name, value in main_cf.raw.items() if name not in LISTS.values())
    referred = set(re.findall(r"\$[{(]?(\w+)", text))
    return [name for name in names if name not in LISTS.values() and name not in referred]


def _uses_in(main_cf: MainCf, names: list[str]) -> Iterator[Use]:
    for name in names:
        for table in sorted(approved_tables(main_cf.get(name), name, False, lambda text: None)):
            yield Use(main_cf.where(name), name, table.decode("utf-8", "surrogateescape"))


def _approval(site: Site) -> Iterator[Fault]:
    """proxy: tables that the service would refuse."""
    for service in site.services.values():
        name = LISTS[service.name]
        if _lacks_brace(service.main_cf.raw.get(name, "")):
            yield Fault(service.main_cf.where(name), f"{name}: missing '}}'", CLOSE)
    for use in uses(site):
        service = site.services["proxywrite" if use.parameter in WRITTEN else "proxymap"]
        if _lacks_brace(use.table):
            what = f"{use.parameter}: missing '}}' in proxy:{use.table}"
            yield Fault(use.where, what, CLOSE)
        elif use.table not in service.tables and use.parameter not in SENSITIVE:
            parameter = LISTS[service.name]
            what = f"{use.parameter} has proxy:{use.table}, which {parameter} does not approve"
            yield Fault(use.where, what, f"add proxy:{use.table} to {parameter} in main.cf")


def _lacks_brace(table: str) -> bool:
    """Is a brace open at its end? Then a list of tables has been cut off there, too."""
    return table.count("{") > table.count("}")


def _sensitive(site: Site) -> Iterator[Fault]:
    """Parameters whose tables must not be proxied, and tables that have to be."""
    yield from proxied_in_vain(site.main_cf)
    yield from unproxied(site.main_cf, _names_of_uses(site.main_cf))


# Tables


def _tables(site: Site) -> Iterator[Fault]:
    """Does each approved table open?"""
    places = {part: f"{use.where}, {use.parameter}" for use in uses(site) for part in _parts(use.table)}
    for service in site.services.values():
        default = f"{service.main_cf.where(LISTS[service.name])}, {LISTS[service.name]}"
        parts = [part for table in service.tables for part in _parts(table)]
        tables = [table for table in dict.fromkeys(parts) if not _lacks_brace(table)]  # told by _approval
        served = [table for table in tables if type_of(table) is not None]
        load_types(served)  # mail_owner may not be allowed to
        looks = as_user(
            site.settings.mail_owner,
            lambda s=service, t=served: _looks(s, t, site.connect),  # type: ignore[misc]
        )
        for table in tables:
            where = places.get(table, default)
            if table not in served:
                yield _of_type(where, table)
                continue
            reason, closed, doubts = looks[table]
            if reason is not None:
                yield _unopened(where, table, site.settings, reason, closed)
            else:
                yield from _old(where, table, site.settings.queue_directory)
            yield from (Fault(where, f"{table}: {what}", remedy, warning) for what, remedy, warning in doubts)


def _written(site: Site) -> Iterator[Fault]:
    """Tables for updates that are not where Postfix keeps what it writes."""
    service = site.services["proxywrite"]
    data = os.path.realpath(service.main_cf.get("data_directory"))
    where = f"{service.main_cf.where(LISTS[service.name])}, {LISTS[service.name]}"
    for table in service.tables:
        known = type_of(table)
        if known is None or not known.writable or not known.suffix:
            continue
        file = os.path.realpath(os.path.join(service.settings.queue_directory, _file_of(table)))
        if os.path.commonpath([data, file]) != data:
            what = f"{table}: {file} is written to, but is not in data_directory ({data})"
            yield Fault(where, what, f"keep it in {data}", warning=True)


def _parts(table: str) -> list[str]:
    """The tables that a composite is made of, or the table itself."""
    maptype, _, name = table.partition(":")
    if maptype in COMPOSITE:
        with contextlib.suppress(ValueError):
            members = [os.fsdecode(without_proxy(member)) for member in split_braced(os.fsencode(name))]
            if members and all(":" in member for member in members):
                return [part for member in members for part in _parts(member)]
    return [table]


def _looks(service: Service, tables: list[str], connect: bool) -> dict[str, Look]:
    """As mail_owner: open each table."""
    with contextlib.suppress(OSError):  # told by _folders
        os.chdir(service.settings.queue_directory)
    return {table: _look(service, table, connect) for table in tables}


def _look(service: Service, table: str, connect: bool) -> Look:
    """Looking must not create or mend a table, so none that has a file is opened for updates."""
    writes = service.name == "proxywrite"
    if writes and (known := type_of(table)) is not None and known.writable:
        if known.suffix and (reason := _unwritable(os.path.realpath(_file_of(table)))) != "":
            return Look(reason, first_closed(_file_of(table)) if reason else None, [])
        writes = known.remote
    warnings: list[str] = []
    host = Host(service.settings.smtputf8_enable, warnings.append, service.main_cf.get)
    host.redirect = redirection(service.settings, host)
    opened = open_table(table.encode("utf-8", "surrogateescape"), writes=writes, host=host)
    if opened.reason is None and opened.faults:
        return Look(f"{FAULTY}{'; '.join(warnings)}", None, [])
    if opened.reason is None:
        return Look(opened.survey(), None, list(opened.doubts(connect)))
    return Look(opened.reason.decode("utf-8", "surrogateescape"), first_closed(_file_of(table)), [])


def _unwritable(path: str) -> str | None:
    """Why a table cannot be opened for updates; empty: it can; None: it is created when it is needed."""
    try:
        if fault := folder_fault(path):
            return f"{fault}, and updates are refused"
    except OSError as error:
        return f"open database {path}: {error.strerror}"
    if not os.path.lexists(path):
        return None
    return "" if os.access(path, os.R_OK | os.W_OK) else f"open database {path}: Permission denied"


def _file_of(table: str) -> str:
    known = type_of(table)
    return table.partition(":")[2] + os.fsdecode(known.suffix or b"" if known else b"")


def _of_type(where: str, table: str) -> Fault:
    maptype = table.partition(":")[0]
    if maptype in GONE:
        return Fault(where, f"{table}: Postfix has no type {maptype} any more", f"use {GONE[maptype]}")
    return Fault(
        where, f"{table}: unknown table type {maptype}", f"use one of {' '.join(sorted(TABLE_TYPES))}"
    )


def _unopened(where: str, table: str, settings: Settings, reason: str, closed: str | None) -> Fault:
    """The cause behind a reason, as far as files tell."""
    maptype = table.partition(":")[0]
    name = os.path.join(settings.queue_directory, table.partition(":")[2])
    file = os.path.join(settings.queue_directory, _file_of(table))
    if reason.startswith(FAULTY):
        return Fault(where, f"{table}: {reason}", "correct the lines: a new process would serve without them")
    if "O_RDONLY" in reason:
        return Fault(where, f"{table}: type {maptype} cannot be updated", "use lmdb in proxy_write_maps")
    if reason.endswith("updates are refused"):
        return Fault(where, f"{table}: {reason}", "keep it in data_directory")
    if maptype in INDEXED and not os.path.lexists(file):
        if os.path.exists(name):
            return Fault(where, f"{table}: {file} was never built from {name}", f"postmap {table}")
        return Fault(where, f"{table}: there is no {file}, nor {name} to build it from", "correct the name")
    if closed is not None and reason.endswith(os.strerror(errno.EACCES)):
        what = (
            f"{table}: {settings.mail_owner} may not {'enter' if os.path.isdir(closed) else 'read'} {closed}"
        )
        return Fault(where, what, f"chmod o+{'x' if os.path.isdir(closed) else 'r'} {closed}")
    if "install " in reason:
        return Fault(where, f"{table}: {reason}", "install it")
    if maptype == "lmdb":  # postmap opens what is there, and fails as we do
        build = (
            f"rm {file} && postmap {table}" if os.path.exists(name) else f"rm {file}, and have it made anew"
        )
        return Fault(where, f"{table}: {reason}", build)
    return Fault(where, f"{table}: {reason}", f"postmap {table}" if maptype in INDEXED else "correct it")


def _old(where: str, table: str, queue_directory: str) -> Iterator[Fault]:
    """Was the source changed after the table was built?"""
    source = os.path.join(queue_directory, table.partition(":")[2])
    built = os.path.join(queue_directory, _file_of(table))
    try:
        older = source != built and os.stat(built).st_mtime < os.stat(source).st_mtime
    except OSError:
        return
    if older:
        yield Fault(where, f"{table}: {built} is older than {source}", f"postmap {table}", warning=True)


CHECKS: list[Callable[[Site], Iterator[Fault]]] = [
    _complaints,
    _who_checks,
    _folders,
    _entries,
    _fields,
    _columns,
    _commands,
    _without_effect,
    _approval,
    _sensitive,
    _tables,
    _written,
]
