"""site - an HTTP server as tables share it: connections, by urllib3, and whether it is down

All tables with the same scheme, host, port and TLS files share one. The time limit of a
request is one for all of it, however slowly the answer comes: each recv gets what is left.

A connection is used again only after an answer whose end was certain. While the server is
down nobody asks it but a thread in the background, which connects and no more.

Source: RFC 9110, RFC 9112; the documentation of urllib3 2 and of ssl.
"""

from __future__ import annotations

import http.client
import io
import math
import socket
import ssl
import threading
import time
from collections.abc import Collection, Hashable, Mapping
from typing import Any, NamedTuple
from weakref import WeakSet, WeakValueDictionary

from proxymap.base.packages import how_to_install
from proxymap.base.threads import start_thread
from proxymap.errors import QuestionRefused, TableRetry
from proxymap.metrics._counters import ANSWERS, LATE, SHED
from proxymap.tables.databases.addresses import Address
from proxymap.tables.databases.hosts import Hosts
from proxymap.tables.databases.limits import ServerLimits
from proxymap.tables.databases.reports import Reports, given_by, queues_of

try:
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.exceptions import (
        ConnectTimeoutError,
        EmptyPoolError,
        HTTPError,
        NewConnectionError,
        ProtocolError,
        ReadTimeoutError,
    )
except ImportError as error:
    raise ImportError(f"http needs urllib3 2 or later ({error}); {how_to_install('http')}") from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables._table import Table
    from proxymap.tables.base import Host

OF_QUESTION = (400, 405, 406, 409, 410, 411, 413, 414, 415, 416, 417, 421, 422, 431)  # not of the server
BROKEN = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)  # perhaps while it was idle
PIECE = 65536  # bytes to read at a time
SHARE = 0.2  # that the latest answer has in the mean


class _Clock(threading.local):
    """When the thread's request has to be over, by time.monotonic."""

    until = math.inf


_clock = _Clock()


class _InTime:
    """A socket that waits no longer than the request may take."""

    def recv_into(self, *arguments: Any) -> int:
        left = _clock.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(None if left == math.inf else left)  # type: ignore[attr-defined]
        count: int = super().recv_into(*arguments)  # type: ignore[misc]
        return count


class _Socket(_InTime, socket.socket):
    """Without TLS."""


class _TlsSocket(_InTime, ssl.SSLSocket):
    """With TLS."""


class _Lines(io.BufferedReader):
    """What an answer's lines are read from; one that was cut, or a head without its end, is an error."""

    inside = False  # has a line come since the latest empty one?

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n") and len(line) != size and (line or self.inside):
            raise http.client.HTTPException("the answer was cut")
        self.inside = line not in (b"\r\n", b"\n", b"")
        return line


class _Answer(http.client.HTTPResponse):
    """http.client takes a connection's end for that of the head: what was cut after "404" is a 404 to it."""

    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.fp: Any = _Lines(self.fp.detach())


class _Kept:
    """A connection of a pool, which is not used again when it is too old, or has something to say."""

    sock: Any
    born = used = 0.0

    def __init__(self, *arguments: Any, limits: ServerLimits, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.limits = limits

    response_class: Any = _Answer

    def request(self, *arguments: Any, **others: Any) -> None:
        self.used = time.monotonic()
        super().request(*arguments, **others)  # type: ignore[misc]

    @property
    def is_connected(self) -> bool:
        now = time.monotonic()
        if now - self.used > self.limits.idle_limit or now - self.born > self.limits.age_limit:
            return False
        fine: bool = super().is_connected  # type: ignore[misc]
        return fine and not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending())


class _Connection(_Kept, HTTPConnection):
    def connect(self) -> None:
        super().connect()
        plain = self.sock
        seconds = plain.gettimeout()
        self.sock = _Socket(fileno=plain.detach())
        self.sock.settimeout(seconds)
        self.born = time.monotonic()


class _TlsConnection(_Kept, HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.born = time.monotonic()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Tls(NamedTuple):
    """Files, as paths; "" where they are not said. Without ca_file and ca_path: the host's own."""

    ca_file: str = ""
    ca_path: str = ""
    cert_file: str = ""
    key_file: str = ""

    def context(self) -> ssl.SSLContext:
        """Certificates and names are verified, always. Raises OSError"""
        context = ssl.create_default_context(cafile=self.ca_file or None, capath=self.ca_path or None)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13 refuses many private authorities
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file or None, password=lambda: "")
        context.sslsocket_class = _TlsSocket
        return context


class Figures:
    """What is counted of a site; Reports asks for it."""

    def __init__(self, limit: int, tables: Collection[Table]) -> None:
        self.asks, self._tables = self, tables
        self.figures: dict[str, Any] = {
            "open": 0, "limit": limit, "asking": 0, "busy": 0, "waiting": 0, "mean_ms": 0.0,
            "answers": 0, "late": 0, "shed": 0,
        }  # fmt: skip

    @property
    def given(self) -> tuple[int, int]:
        """See given_by."""
        return given_by(self._tables)

    def answered(self, seconds: float) -> None:
        figures = self.figures
        share = SHARE if figures["answers"] else 1
        figures["answers"] += 1
        figures["mean_ms"] += (seconds * 1000 - figures["mean_ms"]) * share


class Site:
    """One server. Any thread."""

    def __init__(self, scheme: str, address: Address, tls: Tls, limits: ServerLimits, host: Host) -> None:
        self.limits, self.address = limits, address
        self._options: dict[str, Any] = {"host": address.host, "port": address.port, "limits": limits}
        if scheme == "https":
            self._options["ssl_context"] = tls.context()
        pool = _TlsPool if scheme == "https" else _Pool
        self._pool: Any = pool(**self._options, maxsize=limits.connection_limit, block=True, retries=False)
        self.hosts = Hosts([address], limits.error_limit, limits.probe_interval, limits.longest_gap)
        self.tables: WeakSet[Table] = WeakSet()
        self._count = Figures(limits.connection_limit, self.tables)
        self._reports = Reports(
            "http", self.hosts, self._count, self.tables, host.warn, host.inform,  # type: ignore[arg-type]
        )  # fmt: skip
        self._lock = threading.Lock()
        self._closed = threading.Event()

    # What workers want of a server

    def describe(self) -> dict[str, object]:
        """What is known of it, for the administrator; times in seconds."""
        with self._lock:
            kept = self._pool.pool
            idle = [] if kept is None else [conn for conn in list(kept.queue) if conn and not conn.is_closed]
            asking, limit = self._count.figures["asking"], self.limits.connection_limit
            self._count.figures["busy"] = busy = min(asking, limit)
            self._count.figures["open"] = len(idle) + busy
            self._count.figures["waiting"] = (
                asking - busy + sum(queue.held for queue in queues_of(self.tables))
            )
            return self._reports.describe(time.monotonic())

    def give_up_late(self, limit_ms: int) -> list[Table]:
        """Nothing: workers ask it, and their lookups are given up there."""
        return []

    def close(self, until: float) -> None:
        self._closed.set()
        self._pool.close()

    # Asking

    def ask(
        self, method: str, target: str, headers: Mapping[str, str], size_limit: int, seconds: float
    ) -> bytes | None:
        """The body of an answer 200; None: 404 or 204. TableRetry or QuestionRefused: everything else."""
        host, began = self.hosts.all[0], time.monotonic()
        with self._lock:
            if host.down_since is not None:
                self._count.figures["shed"] += 1
                self._reports.row.count(SHED)
                raise TableRetry(f"{self.address.shown} is down: {host.reason}")
            self._count.figures["asking"] += 1
        try:
            body = self._ask(method, target, headers, size_limit, began + seconds)
        except EmptyPoolError:
            with self._lock:
                self._count.figures["shed"] += 1
            limit = self.limits.connection_limit
            raise TableRetry(f"{self.address.shown}: all {limit} connections are busy") from None
        except TableRetry as error:  # the server has answered
            self._answered(began)
            raise type(error)(f"{self.address.shown}: {error}") from None
        except (HTTPError, OSError, http.client.HTTPException, ValueError) as error:
            late = isinstance(error, ReadTimeoutError | TimeoutError)
            reason = f"no answer within {seconds:g}s" if late else self._reason(error)
            self._failed(began, reason, late)
            raise TableRetry(f"{self.address.shown}: {reason}") from None
        finally:
            with self._lock:
                self._count.figures["asking"] -= 1
        self._answered(began)
        return body

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
            return f"no connection within {self.limits.connect_time_limit}s"
        return in_one_line(error)

    def _ask(
        self, method: str, target: str, headers: Mapping[str, str], size_limit: int, until: float
    ) -> bytes | None:
        _clock.until = until
        again = method == "GET"  # if a kept connection has broken: such a question does no harm twice
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            timeout = Timeout(connect=min(left, self.limits.connect_time_limit), read=left)
            try:
                response = self._pool.urlopen(
                    method, target, headers=dict(headers), retries=False, redirect=False, timeout=timeout,
                    pool_timeout=left, assert_same_host=False, preload_content=False, decode_content=False,
                )  # fmt: skip
                break
            except ProtocolError as error:
                if not again or not isinstance(error.args[-1], BROKEN):
                    raise
                again = False
        whole = False
        try:
            body = body_of(response, size_limit)
            whole = True
        finally:
            end(response, whole)
        return body

    def _answered(self, began: float) -> None:
        now = time.monotonic()
        with self._lock:
            self._count.answered(now - began)
            self._reports.row.count(ANSWERS)
            host = self.hosts.all[0]
            if host.down_since is None and (host.failures or host.up_since is None):
                self.hosts.succeeded(host, now, self._count.figures["answers"])

    def _failed(self, began: float, reason: str, late: bool) -> None:
        with self._lock:
            host = self.hosts.all[0]
            self._count.figures["late"] += late
            self._reports.row.count(LATE, late)
            answers = self._count.figures["answers"]
            if self.hosts.failed(host, began, time.monotonic(), reason, answers=answers):
                self._reports.down(host, reason)
                self._probe_later()

    # While it is down

    def _probe_later(self) -> None:
        try:
            start_thread(f"http {self.address.shown}", self._probe)
        except (RuntimeError, MemoryError):  # no thread is to be had: then it is asked
            self.hosts.all[0].down_since = None

    def _probe(self) -> None:
        """Connect until that works."""
        host = self.hosts.all[0]
        while True:
            pause = max(0.01, host.next_probe - time.monotonic())
            if self._closed.wait(pause) or not self.tables:
                host.down_since = None  # a table that comes now asks it
                return
            began, limit = time.monotonic(), self.limits.connect_time_limit
            connection = self._pool.ConnectionCls(**self._options, timeout=limit)
            _clock.until = began + limit
            try:
                connection.connect()
            except Exception as error:  # whatever it is: nobody else looks whether the host is back
                with self._lock:
                    self.hosts.failed(host, began, time.monotonic(), self._reason(error), outright=True)
                continue
            finally:
                connection.close()
            with self._lock:
                outage = self.hosts.succeeded(host, time.monotonic(), self._count.figures["answers"])
                if outage is not None:
                    self._reports.up(host, outage)
            return


def body_of(response: Any, size_limit: int) -> bytes | None:
    """body_of - what an answer says, or None for "no such key"; its end must be certain"""
    status = response.status
    if status == 204:
        return None
    if status not in (200, 404):
        known = http.client.responses.get(status, "")
        text = f"status {status} {known}".rstrip()
        if 300 <= status < 400:
            text += ", which is not followed"
        raise (QuestionRefused if status in OF_QUESTION else TableRetry)(text)
    encoding = response.headers.get("content-encoding", "identity").lower()
    if status == 200 and not is_sized(response):
        raise TableRetry(
            "the answer does not say how long it is (Content-Length, or chunks), or does so twice"
        )
    pieces, size = [], 0
    while is_sized(response) and (piece := response.read(min(PIECE, size_limit + 1 - size))):
        size += len(piece)
        if size > size_limit:
            raise QuestionRefused(f"the answer is longer than size_limit ({size_limit} bytes)")
        pieces.append(piece)
    if status == 404:
        return None
    if encoding != "identity":
        raise TableRetry("the answer is encoded (Content-Encoding), which was not asked for")
    return b"".join(pieces)


def is_sized(response: Any) -> bool:
    """is_sized - does it tell its own end, so that one which was cut is not taken for whole?"""
    length = response.headers.get("content-length")
    if response.chunked:  # for urllib3 already if that is one coding of several, which nobody undoes
        return length is None and response.headers["transfer-encoding"].strip().lower() == "chunked"
    return length is not None and length.isdecimal() and length.isascii()


def end(response: Any, whole: bool) -> None:
    """end - keep the connection for the next question, or close it where it may have more to say"""
    if response.status == 204:
        headers = response.headers
        whole = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        if whole:
            response.read(1)  # has it seen that there is nothing
    else:
        whole = whole and is_sized(response)
    connection = response.connection
    if not whole:
        if connection is not None:
            connection.close()
        response.close()
    response.release_conn()


def in_one_line(error: BaseException) -> str:
    """in_one_line - what urllib3 says, without the objects' names and addresses"""
    while isinstance(error, HTTPError) and (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = "".join(char if char.isprintable() else " " for char in f"{error}")
    return f"{type(error).__name__}: {' '.join(text.split())}"[:200].rstrip(": ")


_sites: WeakValueDictionary[Hashable, Site] = WeakValueDictionary()
_lock = threading.Lock()


def site_for(scheme: str, address: Address, tls: Tls, limits: ServerLimits, host: Host) -> Site:
    """site_for - the site that all who ask for the same share. Raises OSError for TLS files"""
    key = scheme, address, tls, limits
    with _lock:
        site = _sites.get(key)
        if site is None:
            site = _sites[key] = Site(scheme, address, tls, limits, host)
        return site
