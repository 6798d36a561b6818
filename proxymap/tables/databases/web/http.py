"""http - http:/path/to/file.cf: what an HTTP server answers to a key

The parts of the key are quoted for the URL, behind its host. 200: found; 404 and 204: no such
key; everything else is RETRY, also an answer 200 without a value: a wrong "no" would bounce mail.
Redirects are not followed. Certificates are verified.

    result      of an answer 200
    body        all of it, without a line end at its end
    line N      its Nth line; "line" is the first
    /a/0/b      of JSON: where this pointer leads; null and [] say "no such key"

Source: proxymap_tables(5), http; RFC 3986 (URLs), RFC 6901 (pointers), RFC 9110 (headers).
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 for names of hosts; after chroot it cannot be imported
import ipaddress
import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from proxymap import __version__
from proxymap.base.files import read_file
from proxymap.config.maincf import ERRORS, TEXT
from proxymap.config.source import split_list, unbraced
from proxymap.errors import ConfigError, QuestionRefused, TableRetry
from proxymap.tables._template import Program
from proxymap.tables.base import Opening
from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.database import DatabaseTable
from proxymap.tables.databases.doubts import SAMPLE, Doubt, of_files, of_unused
from proxymap.tables.databases.limits import server_limits
from proxymap.tables.databases.web.site import Tls, site_for
from proxymap.tables.tablecf import TableCf
from proxymap.tables.template import BETWEEN, compile_query, filled_with, parted

PORTS = {"http": 80, "https": 443}
SIZE_LIMIT = 1 << 20  # bytes of an answer
HOST = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(?=/)", re.IGNORECASE)
PLAIN = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
VISIBLE = re.compile(r"[\t -~\x80-\xff]*")
# What says how a message is sent, and is ours to say.
RESERVED = {
    "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect",
    "keep-alive", "proxy-connection", "accept-encoding", "range",
}  # fmt: skip


def read_url(cf: TableCf) -> tuple[str, Address, Program]:
    """read_url - scheme, address, and what is asked there; raises ConfigError"""
    text = cf.required("url")
    begin = HOST.match(text)
    if begin is None:
        raise cf.wrong("url", "http:// or https://, a host, perhaps a port, then a path that begins with /")
    scheme, host = begin[1].lower(), begin[2].strip("[]")
    port = int(begin[3] or PORTS[scheme])
    found = compile_query(cf, "url", text[begin.end() :])
    for plain, _ in found.pieces:
        if not PLAIN.fullmatch(plain):
            raise cf.wrong("url", "characters of a URL; others as %% and two hexadecimal digits, no #")
    if leaves_its_folder(filled_with(found, SAMPLE)):
        raise cf.wrong("url", "a path without . and ..")
    return scheme, Address("url", host, port, f"{begin[2]}:{port}"), found


def leaves_its_folder(target: bytes) -> bool:
    """leaves_its_folder - would a server that resolves . and .. in the path be asked for something else?"""
    path = unquote_to_bytes(target.partition(b"?")[0])
    return any(step in (b".", b"..") for step in re.split(rb"[/\\]", path))


def read_headers(cf: TableCf, opening: Opening) -> dict[str, str]:
    """read_headers - of the parameter, and of the file that another names; raises ConfigError

    No error says what a header holds.
    """
    found = {"User-Agent": f"proxymap/{__version__}"}
    with_braces = cf.text("headers").encode(TEXT, ERRORS)
    for item in split_list(with_braces):
        try:
            line = unbraced(item).decode(TEXT, ERRORS).strip()
        except ValueError:
            raise ConfigError(
                f"{cf.where('headers')}: expected {{ Name: value }} {{ Name: value }}"
            ) from None
        add_header(found, line, cf.where("headers"))
    if path := cf.text("headers_file"):
        opening.reads(os.fsencode(path))
        try:
            content, _ = read_file(os.fsencode(path))
        except OSError as error:
            raise ConfigError(f"{cf.where('headers_file')}: open {path}: {error.strerror}") from None
        for number, line in enumerate(content.decode("latin-1").split("\n"), 1):
            if line and not line.startswith("#"):
                add_header(found, line, f"{path}, line {number}")
    return found


def add_header(headers: dict[str, str], line: str, place: str) -> None:
    """add_header - "Name: value"; raises ConfigError for what is none, or could be taken for more than one"""
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not colon or not TOKEN.fullmatch(name):
        raise ConfigError(f"{place}: expected a header, Name: value")
    if not VISIBLE.fullmatch(value):
        raise ConfigError(f"{place}: header {name} has a character that a header cannot have, such as CR")
    if name.lower() in RESERVED:
        raise ConfigError(f"{place}: header {name} is made by this program; take it away")
    if any(name.lower() == other.lower() for other in headers if other != "User-Agent"):
        raise ConfigError(f"{place}: header {name} is there twice")
    for other in [other for other in headers if other.lower() == name.lower()]:
        del headers[other]
    headers[name] = value


class Result:
    """The parameter `result`: what of an answer is the value."""

    def __init__(self, cf: TableCf) -> None:
        text = cf.text("result", "body")
        line = re.fullmatch(r"line(?: +([1-9][0-9]{0,5}))?", text)
        self._line = int(line[1] or 1) if line else 0
        self._pointer: list[str] | None = None
        if text.startswith("/") and not re.search("~(?![01])", text):
            self._pointer = [step.replace("~1", "/").replace("~0", "~") for step in text[1:].split("/")]
        elif text != "body" and not line:
            raise cf.wrong("result", "body, line, line N, or a JSON pointer, which begins with /")
        self.text = text

    def values(self, body: bytes) -> list[bytes]:
        """Of the body of an answer 200; none: there is no such key. Raises QuestionRefused"""
        if self._pointer is not None:
            found = self._in_json(body)
        elif self._line:
            found = [(body.split(b"\n") + [b""] * self._line)[self._line - 1].removesuffix(b"\r")]
        else:
            found = [body.removesuffix(b"\n").removesuffix(b"\r")]
        if b"" in found or any(b"\0" in value for value in found):
            raise QuestionRefused(f"the value ({self.text}) of an answer 200 is empty, or has a NUL byte")
        return found

    def _in_json(self, body: bytes) -> list[bytes]:
        try:
            found = json.loads(body.decode())
        except (ValueError, RecursionError):
            raise QuestionRefused("an answer 200 is no JSON in UTF-8") from None
        for step in self._pointer or ():
            if isinstance(found, dict) and step in found:
                found = found[step]
            elif (
                isinstance(found, list) and re.fullmatch("0|[1-9][0-9]{0,8}", step) and int(step) < len(found)
            ):
                found = found[int(step)]
            else:
                raise QuestionRefused(f"the JSON of an answer 200 has no {self.text}")
        if found is None:
            return []
        return [self._as_bytes(value) for value in (found if isinstance(found, list) else [found])]

    def _as_bytes(self, value: Any) -> bytes:
        try:
            if isinstance(value, int) and not isinstance(value, bool):
                return b"%d" % value
            if isinstance(value, str):
                return value.encode()
        except ValueError:  # a half of a surrogate pair, or a number of many thousand digits
            pass
        raise QuestionRefused(f"{self.text} is neither text nor a whole number in the JSON of an answer 200")


class Http(DatabaseTable):
    """One .cf file."""

    def __init__(self, type_name: bytes, cf: TableCf, opening: Opening) -> None:
        self.scheme, self.address, query = read_url(cf)
        self.method = cf.text("method", "GET")
        if self.method not in ("GET", "POST"):
            raise cf.wrong("method", "GET or POST")
        self.headers, self.of_answer = read_headers(cf, opening), Result(cf)
        self.headers_file = cf.text("headers_file")
        self.size_limit = cf.integer("size_limit", SIZE_LIMIT, low=1)
        self.tls = Tls(*(cf.text(f"tls_{name}") for name in ("CAfile", "CApath", "cert_file", "key_file")))
        super().__init__(type_name, cf, opening, parted(query), utf8=False, quotes=False)
        limits = self.limits = server_limits(opening.host, type_name)
        self.seconds = min(cf.integer("timeout", limits.time_limit, low=1), limits.time_limit)
        try:
            self.server = site_for(self.scheme, self.address, self.tls, limits, opening.host)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{cf.where('tls_CAfile')} and its like: {error}") from None
        self.server.tables.add(self)
        self.unused = cf.unused()

    @property
    def at_a_time(self) -> int:
        return self.limits.connection_limit

    def doubts(self, connect: bool = False) -> Iterator[Doubt]:
        yield from of_unused(self.unused)
        yield from of_files((f"tls_{name}", path) for name, path in zip(Tls._fields, self.tls, strict=True))
        if self.headers_file and os.stat(self.headers_file).st_mode & 0o004:
            yield (
                f"headers_file: every user may read {self.headers_file}",
                f"chown root:postfix {self.headers_file}; chmod 640 {self.headers_file}", True,
            )  # fmt: skip
        if self.scheme == "http" and self.headers_file and not is_here(self.address.host):
            yield "what is in headers_file goes over the network as plain text", "use https in url", True
        if connect and self.method == "GET":
            sample = self.statement(filled_with(self.query, SAMPLE)).decode()
            try:
                self.server.ask(self.method, sample, self.headers, self.size_limit, self.seconds)
            except TableRetry as error:
                yield f"{error}", "see to the server, the url and the headers", False

    def statement(self, text: bytes) -> bytes:
        """The target of the request, quoted for a URL."""
        pieces = text.split(BETWEEN)
        pieces[1::2] = [quote(part, safe="").encode() for part in pieces[1::2]]
        return b"".join(pieces)

    @contextlib.contextmanager
    def values(self, text: bytes) -> Iterator[Iterator[bytes]]:
        if leaves_its_folder(text):
            yield iter(())
            return
        body = self.server.ask(self.method, text.decode(), self.headers, self.size_limit, self.seconds)
        yield iter(() if body is None else self.of_answer.values(body))


def is_here(host: str) -> bool:
    """is_here - is it this computer?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def open_table(type_name: bytes, mapname: bytes, opening: Opening) -> Http:
    return Http(type_name, TableCf(mapname, opening.host), opening)
