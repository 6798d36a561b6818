"""test_unix - users and groups, as postmap tells them"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxymap.base import nsswitch
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


HOME = Path(__file__).resolve().parents[3]
ASK = ["-m", "proxymap.ctl", "query", "--direct"]
TEMPFAIL = 75


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
@pytest.mark.parametrize("database", ["passwd", "group"])
@pytest.mark.parametrize("sources", ["files systemd", "files [NOTFOUND=continue] nosuch", "files"])
@pytest.mark.parametrize(("call", "error"), [("openat", "EIO"), ("openat", "EACCES"), ("read", "EIO")])
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_source_that_fails_is_retry(
    tmp_path: Path, database: str, sources: str, call: str, error: str
) -> None:
    """Also if the next source says that there is no such name, and has root."""
    (tmp_path / "nsswitch").write_text(f"{database}: {sources}\n")
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", f"/etc/{database}"]
    command = [*strace, "-e", f"inject={call}:error={error}", sys.executable, *ASK]
    script = f"mount --bind {tmp_path}/nsswitch /etc/nsswitch.conf; exec {shlex.join(command)} $0 $1"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, f"unix:{database}.byname", "somebody"],
        cwd=HOME, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (TEMPFAIL, ""), done.stderr


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("passwd: files systemd\n", ["files", "systemd"]),
        ("# passwd: nis\n passwd:\tsss [NOTFOUND=return] files # and no more\n", ["sss", "files"]),
        ("group: sss\n", ["files"]),
        (None, ["files"]),
    ],
)
def test_sources_of_nsswitch_conf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, sources: list[str]
) -> None:
    if text is not None:
        (tmp_path / "n").write_text(text)
    monkeypatch.setattr(nsswitch, "NSSWITCH", str(tmp_path / "n"))
    assert nsswitch.sources_of("passwd") == sources


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
