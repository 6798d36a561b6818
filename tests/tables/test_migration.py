"""test_migration - hash: and btree: lead to other types where main.cf of Postfix 3.11 says so"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from contract import BOTH
from fix_postfix import release, unavailable
from fix_server import ServerProcess, found, lookup, write_cdb, write_lmdb

from proxymap.config.maincf import MainCf
from proxymap.config.settings import load
from proxymap.errors import TableRetry
from proxymap.tables.base import Host
from proxymap.tables.migration import redirection
from proxymap.tables.opening import open_table

REDIRECT = {"non_bdb_migration_level": "enable-redirect"}
TYPES = {"default_database_type": "cdb", "default_cache_db_type": "lmdb"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where t.cdb and t.lmdb are."""
    write_cdb(tmp_path / "t.cdb", {b"k": b"of cdb"})
    write_lmdb(tmp_path / "t.lmdb", {b"k": b"of lmdb"})
    return tmp_path


def host_of(place: Path, monkeypatch: pytest.MonkeyPatch, version: str = "3.11.7", **main_cf: str) -> Any:
    """As a server beside such a Postfix has it; host.said: what it logs."""
    host: Any = Host()
    host.said = []
    host.inform = host.said.append
    values = {**TYPES, **main_cf}
    (place / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
    monkeypatch.setattr(MainCf, "_ask_postconf", lambda self: {"mail_version": version})
    host.redirect = redirection(load(str(place))[0], host)
    return host


def value_of(name: str, host: Host) -> bytes | None:
    return open_table(name.encode(), host=host).answer(b"k", BOTH)


@pytest.mark.parametrize("level", ["enable-redirect", "enable-reindex"])
def test_hash_and_btree_lead_to_the_default_types(
    place: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    host = host_of(place, monkeypatch, non_bdb_migration_level=level)
    assert value_of(f"hash:{place}/t", host) == b"of cdb"
    assert value_of(f"proxy:btree:{place}/t", host) == b"of lmdb"
    assert value_of(f"unionmap:{{hash:{place}/t, btree:{place}/t}}", host) == b"of cdb,of lmdb"
    assert value_of(f"debug:hash:{place}/t", host) == b"of cdb"
    assert host.said[:2] == [
        f"redirecting hash:{place}/t to cdb:{place}/t",
        f"redirecting btree:{place}/t to lmdb:{place}/t",
    ]


def test_other_releases_and_levels_do_not_redirect(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, level in [("3.10.5", "enable-redirect"), ("3.11.7", "disable"), ("3.11.7", "nonsense")]:
        host = host_of(place, monkeypatch, version, non_bdb_migration_level=level)
        assert host.redirect(b"hash:/x") == b"hash:/x"


@pytest.mark.parametrize("mapping", ["static:lmdb", "inline:{hash=lmdb}"])
def test_custom_mapping_comes_first(place: Path, monkeypatch: pytest.MonkeyPatch, mapping: str) -> None:
    host = host_of(place, monkeypatch, non_bdb_custom_mapping=mapping, **REDIRECT)
    assert value_of(f"hash:{place}/t", host) == b"of lmdb"


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ("static:btree", "mapping from 'hash' to legacy type 'btree'"),
        ("static:nonsense", "mapping to unsupported database type: 'nonsense'"),
        ("hash:/x", "non_bdb_custom_mapping must not use legacy type: 'hash'"),
        ("texthash:/nonexistent", "open database /nonexistent: No such file or directory"),
    ],
)
def test_mapping_that_leads_nowhere_is_retry(
    place: Path, monkeypatch: pytest.MonkeyPatch, mapping: str, reason: str
) -> None:
    """Where Postfix's own server dies."""
    host = host_of(place, monkeypatch, non_bdb_custom_mapping=mapping, **REDIRECT)
    with pytest.raises(TableRetry, match=reason):
        value_of(f"hash:{place}/t", host)


def test_server_redirects_and_a_new_file_is_seen() -> None:
    with ServerProcess(REDIRECT) as server:
        server.beside_postfix("3.11.7", **TYPES)
        name = server.cdb("t", {b"k": b"old"}).replace(b"cdb:", b"hash:")
        server.approve(name)
        with server.start().connect() as peer:
            assert peer.ask(lookup(name, b"k")) == found(b"old")
            write_cdb(server.dir / "new.cdb", {b"k": b"new"})
            os.rename(server.dir / "new.cdb", server.dir / "t.cdb")
            assert peer.ask(lookup(name, b"k")) == found(b"new")
        path = os.fsdecode(name).partition(":")[2]
        assert server.log().count(f"redirecting hash:{path} to cdb:{path}") == 1


@pytest.mark.skipif(release() < (3, 11), reason="from Postfix 3.11 on")
@pytest.mark.parametrize("mapping", ["", "static:lmdb", "inline:{btree=cdb}"])
@pytest.mark.parametrize("maptype", ["hash", "btree"])
def test_stock_redirects_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch, maptype: str, mapping: str
) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    values = {**REDIRECT, **TYPES, "non_bdb_custom_mapping": mapping, "compatibility_level": "3.6"}
    (place / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
    os.utime(place / "main.cf", (time.time() - 60,) * 2)
    command = ["postmap", "-c", str(place), "-q", "k", f"{maptype}:{place}/t"]
    stock = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.rstrip(b"\n")
    host = host_of(place, monkeypatch, non_bdb_custom_mapping=mapping, **REDIRECT)
    assert value_of(f"{maptype}:{place}/t", host) == stock
