"""source - Postfix's source text: files, logical lines, the records of a table's source, lists with braces

One reader for main.cf, proxymap.cf, postmap sources, texthash and the .cf files
of tables. All of it is bytes; who wants text decodes it.

Text in warnings keeps bytes that are not UTF-8 as surrogates; the log shows them as `?`.

Source: postconf(5) and postmap(1), "TABLE FORMAT"; the warnings as postmap 3.7 words them.
"""

import os
from collections.abc import Callable, Iterable, Iterator

from proxymap.base.files import read_file

BLANKS = b" \t\n\v\f\r"  # isspace() in the C locale
SEPARATORS = b", \t\r\n"  # of a list
WORD_BLANKS = " \t\r\n"  # between words, as Postfix splits text; a no-break space is none


class RecordError(ValueError):
    """A line that is no record; the text says why, in postmap's words, without file and line."""


def logical_lines(
    lines: Iterable[bytes], name: str, warn: Callable[[str], None], number: int = 1
) -> Iterator[tuple[int, bytes]]:
    """logical_lines - join continuation lines, drop comments and empty lines

    Gives (number of its first line, logical line). Joining removes the newline
    alone, so a continuation keeps its leading blanks. Comments and empty lines do
    not end a logical line. As for Postfix, what follows a NUL is not there.

    `lines` is a file opened in binary mode, or any lines, of which the first has `number`;
    `name` is for the warning.
    """
    first = 0
    parts: list[bytes] = []
    for at, line in enumerate(lines, number):
        text = line.removesuffix(b"\n")
        bare = text.lstrip(BLANKS)
        if not bare or bare.startswith(b"#"):
            continue
        if len(bare) == len(text) and parts:
            yield from _finish(first, parts, name, warn)
            parts = []
        if not parts:
            first = at
        parts.append(text)
    if parts:
        yield from _finish(first, parts, name, warn)


def _finish(
    first: int, parts: list[bytes], name: str, warn: Callable[[str], None]
) -> Iterator[tuple[int, bytes]]:
    """A whole logical line; one that begins with a blank continues nothing and is dropped."""
    text = b"".join(parts).partition(b"\0")[0]
    if text[:1] and text[0] in BLANKS:
        shown = text[:30].decode("utf-8", "surrogateescape") + ("..." if len(text) > 30 else "")
        warn(f'{name}: logical line must not start with whitespace: "{shown}"')
    else:
        yield first, text


def split_record(line: bytes) -> tuple[bytes, bytes]:
    """split_record - logical line -> (key, value)

    The key ends at the first blank that is neither in double quotes nor behind a
    backslash; quotes and backslashes stay in it. The value is trimmed, not empty.
    Raises RecordError. Folding, UTF-8 and duplicates are the caller's.
    """
    if b'"' in line or b"\\" in line:
        end = key_end(line, BLANKS)
        if end < 0:
            raise RecordError(f"unbalanced '\"' in '{line.decode('utf-8', 'surrogateescape')}'")
        parts = [line[:end], line[end:].strip(BLANKS)]
    else:
        parts = line.rstrip(BLANKS).split(None, 1)
    if len(parts) < 2 or not parts[0] or not parts[1]:
        raise RecordError("expected format: key whitespace value")
    return parts[0], parts[1]


def key_end(line: bytes, ends: bytes) -> int:
    """key_end - where one of `ends` stands neither in quotes nor behind a backslash; -1: in open quotes"""
    quoted = escaped = False
    for at, byte in enumerate(line):
        if escaped:
            escaped = False
        elif byte == 0x5C:  # backslash
            escaped = True
        elif byte == 0x22:  # double quote
            quoted = not quoted
        elif not quoted and byte in ends:
            return at
    return -1 if quoted else len(line)


def without_proxy(type_name: bytes) -> bytes:
    """without_proxy - what stands behind "proxy:", however often that is said"""
    while type_name.startswith(b"proxy:"):
        type_name = type_name[6:]
    return type_name


def split_list(text: bytes) -> Iterator[bytes]:
    """split_list - items between commas and blanks, of which those in braces do not count"""
    start = level = 0
    for at, byte in enumerate(text + b","):
        if byte == 0x7B:  # {
            level += 1
        elif byte == 0x7D and level:  # }
            level -= 1
        elif byte in SEPARATORS and (not level or at == len(text)):
            if at > start:
                yield text[start:at]
            start = at + 1


def split_words(text: str) -> list[str]:
    """split_words - items between commas and blanks; braces do not count"""
    for separator in "," + WORD_BLANKS[1:]:
        text = text.replace(separator, " ")
    return [word for word in text.split(" ") if word]


def unbraced(text: bytes) -> bytes:
    """unbraced - what the one pair of braces around text holds, with its blanks

    Raises ValueError in Postfix's words.
    """
    shown = text.decode("utf-8", "surrogateescape")
    if not text.startswith(b"{"):
        raise ValueError(f"no '{{' at start of text in \"{shown}\"")
    level = 0
    for at, byte in enumerate(text, 1):
        level += (byte == 0x7B) - (byte == 0x7D)
        if not level:
            if at < len(text):
                raise ValueError(f"syntax error after '}}' in \"{shown}\"")
            return text[1:-1]
    raise ValueError(f"missing '}}' in \"{shown}\"")


def split_braced(text: bytes) -> list[bytes]:
    """split_braced - the items of a list in braces; raises ValueError as unbraced does"""
    return list(split_list(unbraced(text)))


def base64_of_files(value: bytes) -> bytes:
    """base64_of_files - contents of the files that a list names, joined by newline: what src_rhs_is_file asks

    A file that only the server's user may read, such as its private state, is left alone: clients
    are not that user. Raises ValueError in Postfix's words.
    """
    import binascii

    contents = []
    for name in map(os.fsencode, split_words(os.fsdecode(value))):
        try:
            contents.append(read_file(name, public=True)[0])
        except OSError as error:
            raise ValueError(f"open {os.fsdecode(name)}: {error.strerror}") from None
    if not contents:
        raise ValueError(f"empty pathname list: >>{os.fsdecode(value)}<<'")
    return binascii.b2a_base64(b"\n".join(contents), newline=False)
