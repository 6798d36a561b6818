"""test_unix - users and groups, as postmap tells them"""

from __future__ import annotations

import grp
import pwd
import shutil
import subprocess

import pytest

from proxymap.errors import TableRetry
from proxymap.tables.opening import open_table


def answer(table: str, key: str) -> bytes | None:
    found: bytes | None = open_table(f"unix:{table}".encode()).answers.lookup(key.encode())
    return found


def postmap(table: str, key: str) -> bytes | None:
    done = subprocess.run(
        ["postmap", "-q", key, f"unix:{table}"], capture_output=True, timeout=60, check=False
    )
    return done.stdout.rstrip(b"\n") if done.returncode == 0 else None


@pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")
def test_every_user_and_group_is_as_postmap_tells_it() -> None:
    for user in pwd.getpwall():
        assert answer("passwd.byname", user.pw_name) == postmap("passwd.byname", user.pw_name)
    for group in grp.getgrall():
        assert answer("group.byname", group.gr_name) == postmap("group.byname", group.gr_name)
    assert answer("passwd.byname", "nobody-here") is postmap("passwd.byname", "nobody-here") is None


@pytest.mark.parametrize("table", ["passwd.byname", "group.byname"])
@pytest.mark.parametrize("key", ["", "no such name", "ÄÖÜ", "x" * 5000, "root:x", "-1"])
def test_absent(table: str, key: str) -> None:
    assert answer(table, key) is None


@pytest.mark.parametrize("name", ["passwd", "passwd.byuid", "shadow.byname"])
def test_unknown_name_is_a_surrogate(name: str) -> None:
    assert open_table(f"unix:{name}".encode()).reason == f"unknown table: unix:{name}".encode()


def test_directory_out_of_reach_is_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: object) -> object:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwnam", nobody)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(grp, "getgrnam", nobody)
    monkeypatch.setattr(grp, "getgrgid", nobody)
    for table in ("passwd.byname", "group.byname"):
        with pytest.raises(TableRetry):
            answer(table, "root")
