"""migration - hash: and btree: tables that lead to tables of other types: non_bdb_migration_level

From Postfix 3.11 on main.cf may say so, and each program of Postfix then opens
the other table. enable-reindex means enable-redirect here: the file is built by
postmap, or by the service that Postfix asks for it.

Source: NON_BERKELEYDB_README of Postfix 3.11; tables.md 4.5.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

from proxymap.config.settings import Settings
from proxymap.errors import ProxymapError
from proxymap.tables.base import Host
from proxymap.tables.opening import open_table
from proxymap.tables.types import TABLE_TYPES, load_types

SINCE = (3, 11)


def redirection(settings: Settings, host: Host) -> Callable[[bytes], bytes]:
    """redirection - the function for Host.redirect: a table's name -> the name of the table to open

    It raises ValueError with the reason where the table cannot be opened. Types are
    imported now, while that can be done.
    """
    if settings.version < SINCE or settings.non_bdb_migration_level == "disable":
        return Host.redirect
    defaults = {"hash": settings.default_database_type, "btree": settings.default_cache_db_type}
    load_types(defaults.values())

    @cache
    def successor(maptype: str) -> str:
        name = _custom(settings.non_bdb_custom_mapping, maptype, host) or defaults[maptype]
        if name in defaults:
            raise ValueError(f"mapping from '{maptype}' to legacy type '{name}'")
        if name not in TABLE_TYPES:
            raise ValueError(f"mapping to unsupported database type: '{name}'")
        return name

    @cache
    def redirect(type_name: bytes) -> bytes:
        maptype, _, mapname = os.fsdecode(type_name).partition(":")
        if maptype not in defaults:
            return type_name
        new = f"{successor(maptype)}:{mapname}"
        host.inform(f"redirecting {maptype}:{mapname} to {new}")
        return os.fsencode(new)

    return redirect


def _custom(mapping: str, maptype: str, host: Host) -> str:
    """What the table non_bdb_custom_mapping says of the type; empty: nothing."""
    if not mapping:
        return ""
    if mapping.startswith(("hash:", "btree:")):
        raise ValueError(f"non_bdb_custom_mapping must not use legacy type: '{mapping.partition(':')[0]}'")
    try:
        return os.fsdecode(
            open_table(os.fsencode(mapping), host=Host(host.utf8, host.warn)).answer(maptype.encode(), 0)
            or b""
        )
    except ProxymapError as error:
        raise ValueError(f"non_bdb_custom_mapping: {error}") from error
