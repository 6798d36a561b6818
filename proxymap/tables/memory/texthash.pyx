"""texthash - a postmap source file, held in memory

Loaded when it is opened, and again when a client opens it after the file has
changed. Faulty lines are skipped with a warning; a duplicate key spoils the
whole table, unless the client that opens it wants it otherwise.

Source: postmap(1), "TABLE FORMAT"; tables.md 4.1; the warnings as Postfix 3.7 words them.
"""

import io
import os

from proxymap.tables.memory._records cimport Records, RecordsTable

from proxymap.base._fold import is_utf8
from proxymap.tables.memory._plain import PlainLines
from proxymap.base.files import read_file
from proxymap.config.source import RecordError, base64_of_files, logical_lines, split_record
from proxymap.tables.flags import DUP_IGNORE, DUP_REPLACE, DUP_WARN, FOLD_FIX, RHS_IS_FILE, UTF8_REQUEST


cdef class TexthashTable(RecordsTable):
    cdef object source

    def __cinit__(self, bytes type_name, Records held not None, source):
        self.source = source
        self.loaded_from(source.files)
        self.faults = source.faults

    def explain(self, bytes key not None) -> list:
        """The lines that have the key, in the file as it is now."""
        return [
            f"{self.source.name}, line {number}: {os.fsdecode(value)}"
            for number, written, value in self.source.records(read_file(self.source.path)[0], say_nothing)
            if self.source.opening.folded(written) == key
        ]


def say_nothing(text):
    """Without the warnings that were logged before."""


class Source:
    """A file, and what to make of it."""

    def __init__(self, path, opening):
        self.path, self.name, self.opening = path, os.fsdecode(path), opening
        self.files = []
        self.faults = 0
        self.heeded = -1

    def warn(self, text):
        self.faults += 1
        self.opening.host.warn(text)

    def records(self, content, warn, first=1):
        """(line number, key as it is written, value); warns of what is no record."""
        for number, line in logical_lines(io.BytesIO(content), self.name, warn, first):
            try:
                if self.opening.utf8 and not self.opening.host.any_bytes and not is_utf8(line):
                    raise RecordError(f'non-UTF-8 input "{os.fsdecode(line)}"')
                key, value = split_record(line)
            except RecordError as error:
                warn(f"{self.name}, line {number}: {error} -- ignoring this line")
                continue
            if key.endswith(b":"):
                warn(f'{self.name}, line {number}: record is in "key: value" format; is this an alias file?')
            if self.opening.flags & RHS_IS_FILE:
                try:
                    value = base64_of_files(value)
                except ValueError as error:
                    warn(f"{self.name}, line {number}: {error}: skipping this entry")
                    continue
            yield number, key, value


def load(source) -> Records:
    """What the file holds. Raises OSError; ValueError for a duplicate that nobody has a rule for."""
    content, stamp = read_file(source.path)
    source.heeded = heeded_by(content, source.opening.flags)
    source.files.append((source.path, stamp))
    held = Records()
    opening = source.opening
    flags = opening.flags
    replace = flags & DUP_REPLACE and not flags & DUP_IGNORE
    duplicates = flags & (DUP_IGNORE | DUP_REPLACE)
    odd = [(1, content)] if flags & RHS_IS_FILE else PlainLines(
        content, held, fold=flags & FOLD_FIX, replace=replace, duplicates=duplicates
    )
    for first, lines in odd:
        for number, key, value in source.records(lines, source.warn, first):
            if not held.put(opening.folded(key), value, replace) and not duplicates:
                text = f'{source.name}, line {number}: duplicate entry: "{os.fsdecode(key)}"'
                if not flags & DUP_WARN:
                    raise ValueError(text)
                source.warn(text)
                source.heeded = -1
    return held


def heeded_by(content, flags) -> int:
    """Which flags make a difference to what the file holds, while no key is in it twice?"""
    moot = 0
    if not flags & (DUP_IGNORE | DUP_REPLACE):
        moot |= DUP_WARN | DUP_IGNORE | DUP_REPLACE  # else it is not known whether a key was
    if content.isascii():
        moot |= UTF8_REQUEST
        if content == content.lower():
            moot |= FOLD_FIX
    return ~moot


def open_table(bytes type_name, bytes mapname, opening) -> TexthashTable:
    source = Source(mapname, opening)
    table = TexthashTable(type_name, load(source), source)
    table.heeded = source.heeded
    return table
