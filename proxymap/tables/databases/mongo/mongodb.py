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
from weakref import finalize

from proxymap.base.packages import how_to_install
from proxymap.base.threads import start_thread
from proxymap.config.maincf import ERRORS, TEXT, mask_secrets
from proxymap.config.source import split_list
from proxymap.errors import ConfigError, QuestionRefused, TableRetry
from proxymap.tables._template import Program
from proxymap.tables.base import Host, Opening
from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.crewed import CrewedServer, crewed_server
from proxymap.tables.databases.database import DatabaseTable
from proxymap.tables.databases.doubts import SAMPLE, Doubt
from proxymap.tables.databases.hosts import ConnectFailed
from proxymap.tables.databases.limits import ServerLimits, server_limits
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import BETWEEN, compile_query, filled_with, parted

try:
    import pymongo
    from bson import json_util
    from bson.errors import BSONError
    from pymongo.errors import ConnectionFailure, OperationFailure, ProtocolError, PyMongoError
except ImportError as error:
    raise ImportError(f"mongodb needs PyMongo 4.2 or later ({error}); {how_to_install('mongodb')}") from error

ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
REFUSALS = (2, 9, 14, 17, 51, 96)  # error codes of a question: bad value, fails to parse, type mismatch ...
LOGIN_FAILED = (11, 18)  # error codes: no such user, authentication failed
JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def quoted(text: str) -> str:
    """quoted - text as it may stand in a string of JSON"""
    return re.sub(r'["\\\x00-\x1f\x7f]', lambda c: ESCAPES.get(c[0]) or f"\\u{ord(c[0]):04x}", text)


def read_filter(cf: TableCf) -> tuple[Program, dict[str, Any]]:
    """read_filter - query_filter with BETWEEN around each part, and for SAMPLE; raises ConfigError"""
    found = compile_query(cf, "query_filter", cf.required("query_filter"))
    try:
        return parted(found), parsed(filled_with(found, SAMPLE))
    except (ValueError, TypeError, BSONError) as error:
        raise cf.wrong("query_filter", f"JSON ({error})") from None


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


class MongoServer(CrewedServer):
    """A server, or a set of replicas: what a URI names. PyMongo picks one, and asks once more by itself."""

    def __init__(self, uri: str, limits: ServerLimits, host: Host) -> None:
        """Raises PyMongoError and its like for a faulty URI."""
        super().__init__("mongodb", [Address("uri", uri, 0, shown_uri(uri))], limits, host)
        self.client: Any = pymongo.MongoClient(uri, connect=False, tz_aware=False)
        finalize(self, _part_from, self.client).atexit = False

    def probe(self, address: Address) -> None:
        with pymongo.timeout(self.limits.connect_time_limit), telling():
            self.client.admin.command("ping")

    @contextlib.contextmanager
    def find(self, table: Mongodb, wanted: dict[str, Any]) -> Iterator[Any]:
        """The documents; whatever fails is TableRetry."""
        seconds = self.limits.time_limit
        collection = self.client[table.dbname][table.collection]
        with (
            self.asking(), pymongo.timeout(seconds), telling(),
            collection.find(wanted, table.projection) as cursor,
        ):  # fmt: skip
            yield cursor


def _part_from(client: Any) -> None:
    """Whoever lets the last table go does not wait: PyMongo asks the server to end its sessions."""
    with contextlib.suppress(RuntimeError, MemoryError):
        start_thread("parting", client.close)


def shown_uri(uri: str) -> str:
    """shown_uri - without login and options"""
    scheme, _, rest = uri.partition("://")
    where = rest.partition("?")[0].rpartition("@")[2].partition("/")[0]
    return f"{scheme}://{where}"


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """telling - what PyMongo raises becomes an error of the server, or of the question"""
    try:
        yield
    except (ConnectionFailure, ProtocolError) as error:
        text = mask_secrets(f"{error}".partition(", Timeout: ")[0])  # a description of all members follows
        raise (TimeoutError if error.timeout else ConnectFailed)(text) from None
    except OperationFailure as error:
        text = mask_secrets(f"{error}")
        if error.code in LOGIN_FAILED:
            raise ConnectFailed(text) from None
        raise (QuestionRefused if error.code in REFUSALS else TableRetry)(text) from None
    except (PyMongoError, BSONError, UnicodeError) as error:
        raise TableRetry(mask_secrets(f"{error}")) from None


class Mongodb(DatabaseTable):
    """One .cf file."""

    server: MongoServer

    def __init__(self, type_name: bytes, cf: TableCf, opening: Opening) -> None:
        uri, self.projection = cf.required("uri"), read_projection(cf)
        query, self.sample = read_filter(cf)
        super().__init__(type_name, cf, opening, query, quotes=False, fixed=False)
        self.host = opening.host
        limits = server_limits(opening.host, type_name)
        self.dbname, self.collection = cf.required("dbname"), cf.required("collection")
        try:
            server = crewed_server(("mongodb", uri, limits), lambda: MongoServer(uri, limits, opening.host))
            assert isinstance(server, MongoServer)
            server.client[self.dbname][self.collection]  # the names may be no names
        except (PyMongoError, ValueError, TypeError) as error:
            raise ConfigError(mask_secrets(f"{cf.where('uri')}: {error}")) from None
        self.serve(server)

    def doubts(self, connect: bool = False) -> Iterator[Doubt]:
        if "%" in JSON_STRING.sub("", self.query.text).replace("%%", ""):
            yield (
                "a part of query_filter that is made of the key is not between double quotes: a key from"
                " outside is JSON there", 'write "%s"', True,
            )  # fmt: skip
        if connect:
            seconds = self.server.limits.connect_time_limit
            try:
                with pymongo.timeout(seconds), self.server.find(self, self.sample) as found:
                    next(found, None)
            except TableRetry as error:
                yield f"{error}", "see to the server, the login and the query", False

    def statement(self, text: bytes) -> bytes:
        """The filter, quoted for JSON."""
        pieces = text.split(BETWEEN)
        pieces[1::2] = [quoted(part.decode()).encode() for part in pieces[1::2]]
        return b"".join(pieces)

    def explain(self, key: bytes) -> list[str]:
        return [*super().explain(key), f"asked at {self.server.shown}"]

    @contextlib.contextmanager
    def values(self, text: bytes) -> Iterator[Iterator[bytes]]:
        try:
            wanted = parsed(text)
        except (ValueError, TypeError, BSONError) as error:
            raise QuestionRefused(f"query_filter is no JSON for this key: {error}") from None
        with self.server.find(self, wanted) as found:
            yield (value for document in found for value in self._values_of(document))

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
