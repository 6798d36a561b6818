"""fix_bdb - damaged files of Berkeley DB"""

from __future__ import annotations

from pathlib import Path


def write_endless(file: Path) -> None:
    """A btree with which libdb's verify comes to no end: one of its pages is a copy of another."""
    from berkeleydb import db

    records = db.DB()
    records.set_pagesize(512)
    records.open(str(file), dbtype=db.DB_BTREE, flags=db.DB_CREATE)
    for i in range(300):
        records.put(b"key%04d\0" % i, b"v" * 20)
    records.close()
    content = bytearray(file.read_bytes())
    content[1024:1536] = content[512:1024]
    file.write_bytes(content)
