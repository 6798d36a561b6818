"""inline - a table that stands in its own name: inline:{name=value, {name = value with blanks}}

Source: inline_table(5), DATABASE_README; the words for what is wrong as Postfix 3.7 has them.
"""

import os

from proxymap.tables.memory._records cimport Records, RecordsTable

from proxymap.base._fold import is_utf8
from proxymap.config.source import BLANKS, base64_of_files, key_end, split_braced, unbraced
from proxymap.tables.flags import RHS_IS_FILE


def open_table(bytes type_name, bytes mapname, opening) -> RecordsTable:
    wanted = "filename" if opening.flags & RHS_IS_FILE else "value"
    try:
        held = read(mapname, opening)
    except ValueError as error:
        shown = os.fsdecode(type_name)
        raise ValueError(f'{error}: "{shown}"; need "inline:{{name={wanted}...}}"') from None
    return RecordsTable(type_name, held)


def read(bytes mapname, opening) -> Records:
    """The items as records, of which the last of equal names counts; ValueError with the reason."""
    held = Records()
    if opening.utf8 and not is_utf8(mapname):
        raise ValueError("bad UTF-8 syntax")
    try:
        items = split_braced(mapname) if mapname != b"{}" else None
    except ValueError:
        items = None
    if items is None:
        raise ValueError("bad syntax")
    if not items:
        raise ValueError("empty table")
    for item in items:
        if item.startswith(b"{"):
            item = unbraced(item).strip(BLANKS)
        name, value = split_item(item)
        if opening.flags & RHS_IS_FILE:
            value = base64_of_files(value)
        held.put(opening.folded(name), value, True)
    return held


def split_item(bytes item) -> tuple:
    """name=value, perhaps with blanks around the = -> (name, value)"""
    if not item:
        raise ValueError("no key found; expected format: key = value")
    end = key_end(item, BLANKS + b"=")
    if end < 0:
        raise ValueError("unbalanced '\"'")
    rest = item[end:].lstrip(BLANKS)
    if not rest.startswith(b"="):
        raise ValueError("missing '=' after attribute name")
    return item[:end], rest[1:].strip(BLANKS)
