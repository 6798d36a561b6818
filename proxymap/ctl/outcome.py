"""outcome - what came of a request: exit statuses of sysexits.h, and the one line that says what is wrong"""

from __future__ import annotations

import sys
from collections.abc import Callable
from errno import ECONNREFUSED, ENOENT, ETIMEDOUT
from typing import NamedTuple, Protocol

from proxymap.errors import BadRequest, NotApproved, ProxymapError, TableConfig, TableRetry

EX_OK, EX_NOTFOUND = 0, 1
EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE = 64, 65, 66, 69
EX_CANTCREAT, EX_IOERR, EX_TEMPFAIL, EX_PROTOCOL, EX_NOPERM, EX_CONFIG = 73, 74, 75, 76, 77, 78
EX_INTERRUPT, EX_PIPE = 128 + 2, 128 + 13

# What a reply means to the administrator: exit status, its name on the wire, what to do.
TROUBLE: dict[type[ProxymapError], tuple[int, str, str]] = {
    TableRetry: (EX_TEMPFAIL, "RETRY", "the table is unavailable for now; the server's log says why"),
    NotApproved: (
        EX_NOPERM,
        "DENY",
        'not approved; list "proxy:{table}" in {parameter} of main.cf, then run "postfix reload"',
    ),
    TableConfig: (
        EX_CONFIG,
        "CONFIG",
        "the table is configured wrongly, or cannot do that; the server's log says why",
    ),
    BadRequest: (EX_PROTOCOL, "BAD", "the server does not accept the request; is this name a table's?"),
}


class Answer(NamedTuple):
    """The outcome for a key: exit status, the reply's name on the wire, the value, a message."""

    status: int
    name: str
    value: bytes | None = None
    trouble: str = ""

    @property
    def is_reply(self) -> bool:
        """The table itself said so."""
        return self.name in ("OK", "NOKEY")

    def __str__(self) -> str:
        if self.value is not None:
            return f'"{self.value.decode("utf-8", "surrogateescape")}"'
        return "not found" if self.is_reply else self.name or "no answer"


class Asked(Protocol):
    """A table that can be asked: on a server (Connection), or opened here (Direct)."""

    def lookup(self, key: bytes) -> bytes | None: ...

    def trouble(self, error: ProxymapError) -> str: ...


def ask(table: Asked, key: bytes) -> Answer:
    """ask - look a key up; whatever a reply can say is an Answer"""
    return answer_of(table, lambda: table.lookup(key))


def answer_of(table: Asked, request: Callable[[], bytes | None]) -> Answer:
    """answer_of - make a request to the table; None from it means not found"""
    try:
        value = request()
    except ValueError:
        return Answer(EX_USAGE, "NOKEY", None, "a key contains a NUL byte: skipped")
    except tuple(TROUBLE) as error:
        status, name, _ = TROUBLE[type(error)]
        return Answer(status, name, None, table.trouble(error))
    return Answer(EX_NOTFOUND, "NOKEY") if value is None else Answer(EX_OK, "OK", value)


def complain(text: str, status: int) -> int:
    """complain - one line on standard error; returns the status"""
    print(f"proxymapctl: {printable(text)}", file=sys.stderr)
    return status


def printable(text: str) -> str:
    """printable - for a terminal: what is no printable character is shown as `?`"""
    return "".join(c if c.isprintable() else "?" for c in text)


def no_process(path: str) -> OSError:
    """no_process - the error where no process serves this socket, or none that can be asked"""
    return OSError(
        ENOENT, "no running server has a control socket there (Postfix's own has none)", f"{path}.*.ctl"
    )


def no_answer(error: OSError) -> str:
    """no_answer - what to tell of a server that cannot be reached"""
    advice = {
        ENOENT: "; start Postfix, or name another socket with --socket",
        ECONNREFUSED: "; start Postfix, or name another socket with --socket",
        ETIMEDOUT: "; it is there but does not answer: the log may say why, such as out of descriptors",
    }.get(error.errno or 0, "")
    return f"no answer from {error.filename}: {error.strerror}{advice}"


def advice_on(error: ProxymapError, table: str, service: str) -> tuple[str, int]:
    """advice_on - what to tell the administrator of an error, and the exit status"""
    if type(error) not in TROUBLE:
        return f"{error}; the server's log may say why", EX_UNAVAILABLE
    status, _, advice = TROUBLE[type(error)]
    parameter = "proxy_write_maps" if service == "proxywrite" else "proxy_read_maps"
    return f"{table}: {advice.format(table=table, parameter=parameter)}", status
