"""mongodb - mongodb:/path/to/file.cf: documents of a MongoDB collection, by PyMongo

A filter in JSON is made of the key. Strings and integers of all documents that it
finds are the answer, in order, also those within arrays.

Not as stock: whatever fails is RETRY, where stock says "no such key" and mail bounces;
all documents count, not the last alone; an empty string counts as in all other types;
expansion_limit is 0 where it is not said, as mongodb_table(5) has it (stock's code: 10);
JSON is looked at when the table is opened.

Source: mongodb_table(5) of Postfix 3.9 to 3.12; network-tables.md 5.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxymap.config.maincf import ERRORS, TEXT, mask_secrets
from proxymap.config.source import split_list
from proxymap.errors import ConfigError, QuestionRefused, TableRetry
from proxymap.tables._template import Program
from proxymap.tables.base import Opening
from proxymap.tables.databases.database import DatabaseTable
from proxymap.tables.databases.doubts import SAMPLE, Doubt
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import BETWEEN, compile_query, filled_with, parted

try:
    import pymongo
    from bson import json_util
    from bson.errors import BSONError
    from pymongo.errors import PyMongoError
except ImportError as error:
    raise ImportError(
        f"mongodb needs PyMongo 4.2 or later ({error}); pip install 'proxymap[mongodb]'"
    ) from error

TIME_LIMIT = 10  # seconds, where lookup_time_limit is not known
ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
REFUSALS = (2, 9, 14, 17, 51, 96)  # error codes of a question: bad value, fails to parse, type mismatch ...
JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def quoted(text: str) -> str:
    """quoted - text as it may stand in a string of JSON"""
    return re.sub(r'["\\\x00-\x1f\x7f]', lambda c: ESCAPES.get(c[0]) or f"\\u{ord(c[0]):04x}", text)


def read_filter(cf: TableCf) -> Program:
    """read_filter - query_filter, with BETWEEN around each part; raises ConfigError"""
    found = compile_query(cf, "query_filter", cf.required("query_filter"))
    try:
        parsed(filled_with(found, SAMPLE))
    except (ValueError, TypeError, BSONError) as error:
        raise cf.wrong("query_filter", f"JSON ({error})") from None
    return parted(found)


def parsed(text: bytes) -> dict[str, Any]:
    """parsed - a document in (extended) JSON; ValueError and its like"""
    found = json_util.loads(text.decode())
    if not isinstance(found, dict):
        raise ValueError("a document in braces is wanted")
    return found


def read_projection(cf: TableCf) -> dict[str, Any]:
    """read_projection - which fields are wanted, from one of two parameters; raises ConfigError"""
    projection, names = cf.text("projection"), cf.text("result_attribute")
    if bool(projection) == bool(names):
        raise cf.wrong("projection", "either projection or result_attribute, and one of them")
    if names:
        wanted = [name.decode(TEXT, ERRORS) for name in split_list(names.encode(TEXT, ERRORS))]
        return {"_id": 0} | dict.fromkeys(wanted, 1)
    try:
        return parsed(projection.encode(TEXT, ERRORS)) | {"_id": 0}
    except (ValueError, TypeError, BSONError) as error:
        raise cf.wrong("projection", f"JSON ({error})") from None


class Mongodb(DatabaseTable):
    """One .cf file."""

    def __init__(self, type_name: bytes, cf: TableCf, opening: Opening) -> None:
        uri, self.projection = cf.required("uri"), read_projection(cf)
        super().__init__(type_name, cf, opening, read_filter(cf), quotes=False)
        self.host = opening.host
        limits = opening.host.server_limits(type_name)
        self.seconds = limits.get("time_limit", TIME_LIMIT)
        try:
            self.client: Any = pymongo.MongoClient(uri, connect=False, tz_aware=False)
            self.collection = self.client[cf.required("dbname")][cf.required("collection")]
        except (PyMongoError, ValueError, TypeError) as error:
            raise ConfigError(mask_secrets(f"{cf.where('uri')}: {error}")) from None

    def close(self) -> None:
        self.client.close()

    def doubts(self, connect: bool = False) -> Iterator[Doubt]:
        if "%" in JSON_STRING.sub("", self.query.text).replace("%%", ""):
            yield (
                "a part of query_filter that is made of the key is not between double quotes: a key from"
                " outside is JSON there", 'write "%s"', True,
            )  # fmt: skip
        if connect:
            try:
                with pymongo.timeout(self.seconds):
                    self.client.admin.command("ping")
            except PyMongoError as error:
                yield mask_secrets(f"{error}"), "see to the server and the login", False

    def statement(self, text: bytes) -> bytes:
        """The filter, quoted for JSON."""
        pieces = text.split(BETWEEN)
        pieces[1::2] = [quoted(part.decode()).encode() for part in pieces[1::2]]
        return b"".join(pieces)

    @contextlib.contextmanager
    def values(self, text: bytes) -> Iterator[Iterator[bytes]]:
        try:
            found = parsed(text)
        except (ValueError, TypeError, BSONError) as error:
            raise QuestionRefused(f"query_filter is no JSON for this key: {error}") from None
        try:
            with pymongo.timeout(self.seconds), self.collection.find(found, self.projection) as cursor:
                yield (value for document in cursor for value in self._values_of(document))
        except (PyMongoError, BSONError, UnicodeError) as error:
            kind = QuestionRefused if getattr(error, "code", None) in REFUSALS else TableRetry
            raise kind(mask_secrets(f"{error}")) from None

    def _values_of(self, document: Mapping[str, Any]) -> Iterator[bytes]:
        for name, value in document.items():
            yield from self._flat(name, value if isinstance(value, list) else [value])

    def _flat(self, name: str, values: Iterable[Any]) -> Iterator[bytes]:
        for value in values:
            if isinstance(value, str):
                yield value.encode()
            elif isinstance(value, int) and not isinstance(value, bool):
                yield b"%d" % value
            elif isinstance(value, list):
                yield from self._flat(name, value)
            else:
                what = type(value).__name__
                self.host.warn(f"failed to retrieve value of '{name}', Unknown result type {what}")


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> Mongodb:
    return Mongodb(type_name, TableCf(mapname, opening.host), opening)
