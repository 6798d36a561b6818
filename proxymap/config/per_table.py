"""per_table - parameters of proxymap.cf that a table type, or one table, may have for itself

    cache_ttl = 10s                 all tables
    mysql_cache_ttl = 1m            tables of one type
    table_options = { mysql:/etc/postfix/a.cf, cache_ttl=5m, server_connection_limit=8 }

The most particular counts. Source: postconf(5), check_policy_service, for the form
of table_options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from proxymap.config.maincf import ERRORS, TEXT, split_parameter
from proxymap.config.source import split_list, split_words, unbraced, without_proxy
from proxymap.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Types whose answers age: they are asked over time, and no file tells when they change.
AGEING = (
    *("mysql", "pgsql", "ldap", "mongodb", "sqlite", "memcache", "socketmap", "tcp"),
    *("redis", "http", "python"),
    *("unix", "hash", "btree", "unionmap", "pipemap"),
)
# Types that are opened anew, or tell of a new generation, whenever an answer may have changed.
EXACT = ("cdb", "lmdb", "texthash", "inline", "cidr", "pcre", "regexp")


def exact_types(value: str) -> tuple[str, ...]:
    """exact_types - for cache_maptypes: a list of types that the cache may stand in front of for ever"""
    found = tuple(split_words(value))
    for name in found:
        if name in AGEING:
            raise ValueError(f"table types without {name}, whose answers age: set {name}_cache_ttl")
        if name not in EXACT:
            raise ValueError(f"some of {' '.join(EXACT)}")
    return found


def names_by_type(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """names_by_type - {"mysql_cache_ttl": ("mysql", "cache_ttl"), ...}"""
    return {f"{maptype}_{name}": (maptype, name) for name in names for maptype in AGEING}


def table_options(text: str, names: Iterable[str], place: str) -> dict[bytes, dict[str, str]]:
    """table_options - the value of that parameter -> options of each table; raises ConfigError

    names: the parameters that may stand there.
    """
    known = set(names)
    found: dict[bytes, dict[str, str]] = {}
    for item in split_list(text.encode(TEXT, ERRORS)):
        try:
            table, *options = (part.strip() for part in unbraced(item).split(b","))
        except ValueError as trouble:
            raise ConfigError(f"{place}: {trouble}; expected {{ type:name, parameter=value, ... }}") from None
        if b":" not in table:
            shown = table.decode(TEXT, ERRORS)
            raise ConfigError(f'{place}: "{shown}"; expected a table, type:name, before its parameters')
        values = found.setdefault(without_proxy(table), {})
        for option in filter(None, options):
            name, value = split_parameter(option.decode(TEXT, ERRORS), place)
            if name not in known:
                raise ConfigError(f"{place}: unknown parameter {name}; expected {' '.join(sorted(known))}")
            values[name] = value
    return found


class PerTable:
    """The values, converted. types: of whole types; tables: of single ones."""

    def __init__(
        self,
        general: Mapping[str, Any],
        types: Mapping[str, Mapping[str, Any]],
        tables: Mapping[bytes, Mapping[str, Any]],
    ) -> None:
        self._general, self._types, self._tables = general, types, tables

    def of(self, type_name: bytes) -> dict[str, Any]:
        """All parameters of this kind, as they count for the table."""
        maptype = type_name.partition(b":")[0].decode(TEXT, ERRORS)
        return {**self._general, **self._types.get(maptype, {}), **self._tables.get(type_name, {})}

    def group(self, prefix: str, type_name: bytes) -> dict[str, Any]:
        """Those whose names begin like this, without that, as they count for the table."""
        values = self.of(type_name).items()
        return {name.removeprefix(prefix): value for name, value in values if name.startswith(prefix)}
