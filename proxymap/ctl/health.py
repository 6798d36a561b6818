"""health - are lookups answered? It tells a stopped server, a hung loop and a database that is down apart

A lookup through the served socket tells of the loop: it asks a table that the loop answers
itself, since a database may be slow or down for reasons of its own. Which databases are
up is the running process's own word.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from proxymap.client import Client
from proxymap.ctl.figures import answers_of
from proxymap.errors import ProtocolError, ProxymapError

PATIENCE = 2.0  # seconds for an answer
HANGS = f"the server takes connections, but has not answered within {PATIENCE:g} s: its loop hangs"
KEY = "proxymap-health"
DIALECT: dict[str, Any] = {"3.6": "3.6", "3.11": "3.11"}


class Trouble(NamedTuple):
    """What keeps lookups from being answered. served: the server itself is well."""

    what: str
    served: bool = False


def troubles(sockets: list[str], optional: tuple[str, ...] = ()) -> Iterator[Trouble]:
    """troubles - what is wrong with the servers of these sockets

    optional: those of them that need not run, since master starts them when they are asked.
    """
    for path in sockets:
        name = os.path.basename(path)
        if path in optional and not answers_of(path, "figures"):
            continue
        tables = [table for process in answers_of(path, "tables") for table in process]
        fault = _fault_of(path, tables)
        if fault:
            yield Trouble(f"{name}: {fault}")
            continue
        for server in (server for process in answers_of(path, "servers") for server in process):
            if server["state"] == "down":
                yield Trouble(f"{name}: {_down(server)}", served=True)


def _fault_of(path: str, tables: list[dict[str, Any]]) -> str:
    """Why the loop does not answer; empty if it does."""
    usable = [one for one in tables if one["approved"] and one["state"] == "open" and not one["slow"]]
    try:
        if not usable:
            return "" if tables or _greets(path) else HANGS
        table = min(usable, key=lambda one: str(one["table"]))
        with Client(path, dialect=DIALECT[table["dialect"]], timeout=PATIENCE) as client:
            client.lookup(table["table"], KEY)
    except TimeoutError:
        return HANGS
    except ProtocolError as error:
        return f"no answer: {error}"
    except ProxymapError:
        return ""  # an answer, if a sad one
    except OSError as error:
        return f"no server answers at {path}: {error.strerror or error}"
    return ""


def _greets(path: str) -> bool:
    """Does a new connection hear from the server? Where it does not speak first, its process does."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(PATIENCE)
        peer.connect(path)
        with contextlib.suppress(TimeoutError):
            return peer.recv(1) != b""
    return bool(answers_of(path, "figures"))


def _down(server: dict[str, Any]) -> str:
    """Which server, and why."""
    reasons = {host["last_error"] for host in server["hosts"] if host["last_error"]}
    count = len(server["tables"])
    tables = f"{count} table{'s' if count != 1 else ''}"
    return f"{server['server']} is down, used by {tables}: {'; '.join(sorted(reasons)) or 'no host is up'}"
