"""journal - changes to pages of a file that are made all or not at all, whenever the process or the host ends

commit() writes the old and the new content of the pages to FILE.journal, which
is synced; then the new content to FILE, which is synced; then the journal is
marked as done. recover() finishes what was begun. Who calls has FILE locked
against all other writers.

Others, who know no journal, may write to FILE between an end and the recovery.
So it looks at each sector of those pages first. All old: nothing was begun, and
nothing is done. Some old, some new: the rest is written. Neither: somebody else
wrote there, and what the journal has does not fit any more. That is also why
the mark need not be synced.

    header: magic, bytes of a page, number of pages, CRC-32 of all that follows
    the size of FILE afterwards
    for each page: its offset in FILE, old content, new content
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import NamedTuple

from proxymap.base.files import sync_folder

HEADER = struct.Struct("<8sIII")
OFFSET = struct.Struct("<Q")  # the size too
MAGIC = b"proxymap"
DONE = bytes(HEADER.size)
SECTOR = 512  # bytes; what a disk writes as a whole, or more


class Page(NamedTuple):
    """A page at `offset`; where the file did not reach so far, the old content is zeros."""

    offset: int
    old: bytes
    new: bytes


def commit(path: str, file: int, pages: list[Page], size: int) -> None:
    """Write the pages to `file`, which is open and called `path`, and give it that size.

    Without pages nothing is done. OSError: it may be done or not.
    """
    if not pages:
        return
    journal = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        images = (OFFSET.pack(page.offset) + page.old + page.new for page in pages)
        body = OFFSET.pack(size) + b"".join(images)
        header = HEADER.pack(MAGIC, len(pages[0].new), len(pages), zlib.crc32(body))
        _write(journal, header + body, 0)
        os.fdatasync(journal)
        _finish(file, pages, size, journal)
    finally:
        os.close(journal)


def recover(path: str, file: int) -> str | None:
    """Finish a commit that was broken off; returns a line for the log about it, if any."""
    try:
        journal = _open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        pages, size = _read(journal)
        begun = False
        for page in pages:
            now = os.pread(file, len(page.new), page.offset).ljust(len(page.new), b"\0")
            for at in range(0, len(now), SECTOR):
                is_now, old, new = (content[at : at + SECTOR] for content in (now, page.old, page.new))
                if is_now not in (old, new):
                    _write(journal, DONE, 0)
                    return "an update was broken off, and the file was written to by others since"
                begun = begun or is_now != old
        if begun:
            _finish(file, pages, size, journal)
        elif pages:
            _write(journal, DONE, 0)
        return None
    finally:
        os.close(journal)


def _finish(file: int, pages: list[Page], size: int, journal: int) -> None:
    for page in pages:
        _write(file, page.new, page.offset)
    os.ftruncate(file, size)
    os.fdatasync(file)
    _write(journal, DONE, 0)


def _open(path: str, how: int) -> int:
    """Open the journal; a new one stays, whatever happens. The link that somebody put there is refused."""
    name = f"{path}.journal"
    is_new = how & os.O_CREAT and not os.path.lexists(name)
    journal = os.open(name, how | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if is_new:
        sync_folder(name)
    return journal


def _read(journal: int) -> tuple[list[Page], int]:
    """The pages of a commit that is not done, and the size; no pages if the journal itself was broken off."""
    header = os.pread(journal, HEADER.size, 0)
    if len(header) < HEADER.size:
        return [], 0
    magic, page_size, count, checksum = HEADER.unpack(header)
    each = OFFSET.size + 2 * page_size
    length = OFFSET.size + count * each
    if magic != MAGIC or os.fstat(journal).st_size < HEADER.size + length:
        return [], 0
    body = os.pread(journal, length, HEADER.size)
    if zlib.crc32(body) != checksum:
        return [], 0
    pages = []
    for at in range(OFFSET.size, length, each):
        (offset,) = OFFSET.unpack_from(body, at)
        old, new = at + OFFSET.size, at + OFFSET.size + page_size
        pages.append(Page(offset, body[old:new], body[new : at + each]))
    return pages, OFFSET.unpack_from(body)[0]


def _write(fd: int, data: bytes, offset: int) -> None:
    """All of it: a full disk may take a part, and says so at the next attempt."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
