"""oracle - the protocol once more, slowly and simply, to check _codec by

Nothing is shared with _codec. A request is a list of (name, value) pairs.
Source: wire.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Attributes = list[tuple[bytes, bytes]]
BLANKS = b" \t\n\v\f\r"
INT_MAX = 2147483647
SEEN_ATTRIBUTES = 7  # an instance_flags behind these does not make a request one of 3.11

# What follows request and table, in each dialect.
FIELDS = {
    "3.6": {
        "open": ["flags"],
        "lookup": ["flags", "key"],
        "update": ["flags", "key", "value"],
        "delete": ["flags", "key"],
        "sequence": ["flags", "function"],
    },
    "3.11": {
        "open": ["instance_flags"],
        "lookup": ["instance_flags", "flags", "key"],
        "update": ["instance_flags", "flags", "key", "value"],
        "delete": ["instance_flags", "flags", "key"],
        "sequence": ["instance_flags", "flags", "function"],
    },
}
REPLIES = {
    "3.6": {
        "open": ["flags"],
        "lookup": ["value"],
        "update": [],
        "delete": [],
        "sequence": ["key", "value"],
    },
    "3.11": {
        "open": ["flags"],
        "lookup": ["flags", "value"],
        "update": ["flags"],
        "delete": ["flags"],
        "sequence": ["flags", "key", "value"],
    },
}
# Bits of the flags that are no part of what tells instances apart; tables.md 2.1.
REQUEST_BITS = sum(1 << bit for bit in (0, 1, 6, 7, 8, 11, 12, 13, 14, 15, 19))
IMPLEMENTATION_BITS = sum(1 << bit for bit in (4, 5, 18))


def encode(attributes: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(name + b"\0" + value + b"\0" for name, value in attributes) + b"\0"


def take_string(data: bytes) -> tuple[bytes, bytes] | None:
    """The first string and what follows its NUL."""
    at = data.find(b"\0")
    return None if at < 0 else (data[:at], data[at + 1 :])


def take_list(data: bytes) -> tuple[Attributes, bytes] | None:
    """The first attribute list and what follows it; None while it is incomplete."""
    attributes: Attributes = []
    while True:
        taken = take_string(data)
        if taken is None:
            return None
        name, data = taken
        if name == b"":
            return attributes, data
        taken = take_string(data)
        if taken is None:
            return None
        value, data = taken
        attributes.append((name, value))


def number(text: bytes) -> int | None:
    while text and text[0] in BLANKS:
        text = text[1:]
    if text[:1] == b"+":
        text = text[1:]
    if not text or any(byte not in b"0123456789" for byte in text):
        return None
    value = int(text)
    return value if value <= INT_MAX else None


def dialect_of(attributes: Attributes) -> str:
    """Requests of 3.11 have instance_flags before flags."""
    names = [name for name, _ in attributes[1:SEEN_ATTRIBUTES] if name in (b"instance_flags", b"flags")]
    return "3.11" if names[:1] == [b"instance_flags"] else "3.6"


def parse(attributes: Attributes) -> tuple[str, dict[str, Any]]:
    """The verdict, and for "ok" the fields."""
    if not attributes or attributes[0][0] != b"request":
        return "silent", {}
    kind = attributes[0][1].decode("latin-1")
    if kind not in FIELDS["3.6"]:
        return "unknown", {}
    dialect = dialect_of(attributes)
    wanted = ["table", *FIELDS[dialect][kind]]
    given = attributes[1 : 1 + len(wanted)]
    if [name for name, _ in given] != [name.encode() for name in wanted]:
        return "bad", {}
    fields: dict[str, Any] = {"request": kind, "dialect": dialect}
    for name, value in given:
        if name in (b"flags", b"instance_flags", b"function"):
            numeric = number(value)
            if numeric is None or (name == b"function" and numeric not in (0, 1)):
                return "bad", {}
            fields[name.decode()] = numeric
        else:
            fields[name.decode()] = value
    if dialect == "3.6":
        fields["inst_flags"] = fields["flags"] & ~(REQUEST_BITS | IMPLEMENTATION_BITS)
    else:
        fields["inst_flags"] = fields.pop("instance_flags")
        fields.setdefault("flags", fields["inst_flags"])
    return "ok", fields


def reply(
    kind: str, dialect: str, status: int, flags: int = 0, key: bytes = b"", value: bytes = b""
) -> Attributes:
    values = {"flags": b"%d" % (flags % 2**32), "key": key, "value": value}
    if status != 0:
        values["key"] = values["value"] = b""
    return [
        (b"status", b"%d" % status),
        *((name.encode(), values[name]) for name in REPLIES[dialect][kind]),
    ]
