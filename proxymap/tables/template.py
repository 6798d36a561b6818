"""template - what database tables ask for a key, and what they make of the values

A query is a template that is filled from the key, and not sent if the key lacks
what a template wants. Each value goes through result_format; what comes of it
is joined by commas.

            in a query (of the key)     in result_format
    %s      the key                     the value
    %u %d   before and after its `@`    the same of the value
    %S %U %D                            of the key, in both
    %1..%9  labels of its domain,       of the key, in both
            from the right
    %%      a percent sign

Here a template is read and checked; _template.pyx runs it, database.pyx has the rest.

Source: mysql_table(5), ldap_table(5) ...; as postmap of 3.7.11 does it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proxymap.config.maincf import ERRORS, TEXT
from proxymap.tables._template import (
    NO_PART,
    PART_DOMAIN,
    PART_KEY,
    PART_LABEL,
    PART_USER,
    PART_VALUE,
    PART_VALUE_DOMAIN,
    PART_VALUE_USER,
    Program,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables.tablecf import TableCf

OF_KEY = {"S": PART_KEY, "U": PART_USER, "D": PART_DOMAIN}
LABELS = {str(n): PART_LABEL + n - 1 for n in range(1, 10)}
IN_QUERY = OF_KEY | LABELS | {"s": PART_KEY, "u": PART_USER, "d": PART_DOMAIN}
IN_RESULT = OF_KEY | LABELS | {"s": PART_VALUE, "u": PART_VALUE_USER, "d": PART_VALUE_DOMAIN}
BETWEEN = b"\0"  # no key has it

# A comment, or a string or name with its quotes: E'...' of PostgreSQL counts as plain text.
QUOTED = re.compile(
    r"""--[^\n]* | /\*.*?\*/ | \b[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^'\\]|\\.|'')*'
        | "[^"]*" | `[^`]*` | \$(\w*)\$.*?\$\1\$""",
    re.DOTALL | re.VERBOSE,
)


def compile_text(text: str, parts: Mapping[str, int]) -> Program:
    """compile_text - what a template says; ValueError (what was expected) for a `%` that means nothing"""
    pieces: list[tuple[bytes, int]] = []
    plain = ""
    for before, letter in re.findall(r"([^%]*)(%.?|\Z)", text, flags=re.DOTALL):
        plain += before
        if letter == "%%":
            plain += "%"
        elif letter[1:] in parts and letter[1:]:
            pieces.append((plain.encode(TEXT, ERRORS), parts[letter[1]]))
            plain = ""
        elif letter:
            raise ValueError(f'a template, in which "{letter}" means nothing (a percent sign is "%%")')
    return Program(text, [*pieces, (plain.encode(TEXT, ERRORS), NO_PART)])


def parts_outside_quotes(text: str) -> list[str]:
    """parts_outside_quotes - what of a query, such as "%s", does not stand between single quotes

    Only there does quoting make of it a part of a string, and not of the statement. Where a
    backslash quotes in a string, it is taken to do so: of E'...' and the like nothing is said.
    """
    plain = QUOTED.sub(lambda found: "" if found[0].startswith("'") else found[0], text)
    return [f"%{letter}" for letter in re.findall(r"%([^%]|%)", plain) if letter != "%"]


def compile_query(cf: TableCf, name: str, text: str) -> Program:
    """compile_query - the query template that the parameter `name` holds; raises ConfigError"""
    return _compile(cf, name, text, IN_QUERY)


def parted(found: Program) -> Program:
    """parted - the same with BETWEEN before and after each part, for those who quote by themselves"""
    last = len(found.pieces) - 1
    pieces = [
        ((BETWEEN if at else b"") + plain + (BETWEEN if at < last else b""), part)
        for at, (plain, part) in enumerate(found.pieces)
    ]
    return Program(found.text, pieces)


def filled_with(found: Program, sample: bytes) -> bytes:
    """filled_with - its text, with the sample for each part"""
    return b"".join(plain + (sample if part != NO_PART else b"") for plain, part in found.pieces)


def query_of(cf: TableCf, *, functions: bool = False, utf8: bool = True) -> Program:
    """query_of - the query, from its parameter or from those that came before it; raises ConfigError

    functions: may select_function be given? utf8: has the text to be UTF-8?
    """
    name, text = "query", cf.text("query")
    if not text and functions and (function := cf.optional("select_function")) is not None:
        name, text = "select_function", f"SELECT {function}('%s')"
    elif not text:
        name, table = "table", cf.text("table")
        if not table:
            raise cf.wrong("query", "an SQL statement")
        select, where = cf.required("select_field"), cf.required("where_field")
        text = f"SELECT {select} FROM {table} WHERE {where} = '%s' {cf.text('additional_conditions')}"
    if utf8:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise cf.wrong(name, "text in UTF-8") from None
    return compile_query(cf, name, text)


def compile_result(cf: TableCf) -> Program:
    """compile_result - result_format; raises ConfigError"""
    return _compile(cf, "result_format", cf.text("result_format", "%s"), IN_RESULT)


def _compile(cf: TableCf, name: str, text: str, parts: Mapping[str, int]) -> Program:
    try:
        return compile_text(text, parts)
    except ValueError as trouble:
        raise cf.wrong(name, str(trouble)) from None
