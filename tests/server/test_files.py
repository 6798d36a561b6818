"""test_files - files that hide a change: other names, bind mounts, image layers, times that were set

Where mounts are needed the server has a mount namespace of its own.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_server import ServerProcess, environment, found, lookup, wait_until, write_cdb, write_lmdb
from test_live import no_inotify  # noqa: F401

from proxymap.server import control


@pytest.fixture(params=["inotify", "polled"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        if request.param == "polled":
            server.env["LD_PRELOAD"] = request.getfixturevalue("no_inotify")
        yield server


def text_table(server: ServerProcess, maptype: str) -> tuple[bytes, Path]:
    """A table and its file, in which the key has the value 1."""
    path = server.dir / "rules"
    path.write_text(line_of(maptype, "1"))
    name = f"{maptype}:{path}"
    server.approve(name)
    return name.encode(), path


def line_of(maptype: str, value: str) -> str:
    return {"cidr": f"192.0.2.1 {value}\n", "texthash": f"192.0.2.1 {value}\n"}.get(
        maptype, f"/192/ {value}\n"
    )


KEY = b"192.0.2.1"
TEXTS = ("texthash", "cidr", "regexp")


@pytest.mark.parametrize("maptype", TEXTS)
def test_content_of_the_same_size_and_time_is_another_one(server: ServerProcess, maptype: str) -> None:
    """As archives and images that are built to be the same leave it, and cp -p."""
    table, path = text_table(server, maptype)
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(table, KEY)) == found(b"1")
        before = path.stat()
        with path.open("r+") as file:
            file.write(line_of(maptype, "2"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = path.stat()
        assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
            *(before.st_ino, before.st_size, before.st_mtime_ns),
        )
        wait_until(lambda: peer.ask(lookup(table, KEY)) == found(b"2"), "the new content")


@pytest.mark.parametrize("maptype", TEXTS)
def test_file_that_is_changed_by_another_name_is_followed(server: ServerProcess, maptype: str) -> None:
    table, path = text_table(server, maptype)
    other = server.dir / "elsewhere" / "name"
    other.parent.mkdir()
    os.link(path, other)
    server.start()
    with server.connect() as peer:
        for value in (b"1", b"22", b"333"):
            other.write_text(line_of(maptype, value.decode()))
            wait_until(lambda v=value: peer.ask(lookup(table, KEY)) == found(v), "the new content")  # type: ignore[misc]


def test_links_and_modes_change_no_answer(server: ServerProcess) -> None:
    """They change a file's stamp."""
    tables = [server.cdb("c", {KEY: b"1"}), server.lmdb("l", {KEY: b"1"}), text_table(server, "cidr")[0]]
    server.start()
    with server.connect() as peer:
        for turn in range(20):
            for name in ("c.cdb", "l.lmdb", "rules"):
                os.link(server.dir / name, server.dir / f"{name}.{turn}")
                os.chmod(server.dir / name, 0o644 - turn % 2 * 0o44)
            for table in tables:
                assert peer.ask(lookup(table, KEY)) == found(b"1")


# Mounts


class Namespace(ServerProcess):
    """A server with mounts of its own: `mounts` is a shell script that makes them before it starts."""

    mounts = "true"

    def command(self, *arguments: str) -> list[str]:
        script = f"set -e; {self.mounts}; exec {shlex.join(super().command(*arguments))}"
        return ["unshare", "-m", "--propagation", "private", "sh", "-c", script]

    def inside(self, script: str) -> None:
        command = ["nsenter", "-t", str(self.pid), "-m", "-r", "sh", "-ec", script]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


def trouble_with(mounts: str) -> str:
    """What is said when they are made in a namespace of its own; "": nothing."""
    command = ["unshare", "-m", "--propagation", "private", "sh", "-ec", mounts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr or f"status {done.returncode}") if done.returncode else ""


@pytest.fixture
def apart() -> Iterator[Namespace]:
    if reason := trouble_with("mount -t tmpfs none /mnt"):
        pytest.skip(f"mounts in a namespace of one's own are not allowed here: {reason}")
    with Namespace() as server:
        yield server


@pytest.mark.parametrize("maptype", TEXTS)
def test_single_file_that_is_bind_mounted_is_followed(apart: Namespace, maptype: str) -> None:
    """As containers get their configuration."""
    table, path = text_table(apart, maptype)
    source = apart.dir / "source" / "file"
    source.parent.mkdir()
    source.write_text(line_of(maptype, "1"))
    apart.mounts = f"mount --bind {source} {path}"
    apart.start()
    with apart.connect() as peer:
        assert peer.ask(lookup(table, KEY)) == found(b"1")
        source.write_text(line_of(maptype, "22"))
        wait_until(lambda: peer.ask(lookup(table, KEY)) == found(b"22"), "the new content")


def lmdb_put(path: Path, value: str) -> str:
    """A command that stores the value under KEY."""
    program = (
        "import lmdb\n"
        f"with lmdb.open({str(path)!r}, subdir=False, lock=False, map_size=1 << 20) as e:\n"
        f"    with e.begin(write=True) as t: t.put({KEY!r}, {value.encode()!r})"
    )
    return shlex.join([sys.executable, "-c", program])


def test_lmdb_from_an_image_layer_is_followed(apart: Namespace) -> None:
    """The first commit copies the file up; a mapping of the lower one stays what it was."""
    lower, merged = apart.dir / "lower", apart.dir / "merged"
    lower.mkdir()
    merged.mkdir()
    write_lmdb(lower / "t.lmdb", {KEY: b"1"})
    apart.approve(table := f"lmdb:{merged}/t")
    top = apart.dir / "top"
    top.mkdir()
    layers = f"lowerdir={lower},upperdir={top}/upper,workdir={top}/work"
    overlay = f"mount -t overlay none -o {layers} {merged}"
    apart.mounts = f"mount -t tmpfs none {top}; mkdir {top}/upper {top}/work; {overlay}"
    if reason := trouble_with(apart.mounts):
        pytest.skip(f"no overlay file system is to be had here: {reason}")
    apart.start()
    with apart.connect() as peer:
        question = lookup(table.encode(), KEY)
        assert peer.ask(question) == found(b"1")
        for value in ("2", "3", "4"):
            apart.inside(lmdb_put(merged / "t.lmdb", value))
            assert peer.ask(question) == found(value.encode())


@pytest.mark.parametrize("how", ["flush", "flush of the table", "SIGHUP"])
@pytest.mark.parametrize("maptype", ["cdb", "lmdb", "texthash"])
def test_administrators_last_resort_opens_everything_by_name(
    apart: Namespace, how: str, maptype: str
) -> None:
    """Where nothing tells of a change: a mount that appears over the file causes no event."""
    old, new = apart.dir / "t", apart.dir / "new"
    suffix = {"texthash": ""}.get(maptype, f".{maptype}")
    for path, value in ((old, b"1"), (new, b"2")):
        write = {"cdb": write_cdb, "lmdb": write_lmdb}.get(maptype)
        if write:
            write(Path(f"{path}{suffix}"), {KEY: value})
        else:
            path.write_bytes(KEY + b" " + value + b"\n")
    apart.approve(name := f"{maptype}:{old}")
    apart.start()
    with apart.connect() as peer:
        question = lookup(name.encode(), KEY)
        assert peer.ask(question) == found(b"1")
        apart.inside(f"mount --bind {new}{suffix} {old}{suffix}")
        if how == "SIGHUP":
            os.kill(apart.pid, signal.SIGHUP)
        else:
            assert list(
                control.ask_all(apart.path, do="flush", **({"table": name} if "table" in how else {}))
            )
        wait_until(lambda: peer.ask(question) == found(b"2"), "the new content")


def test_explain_says_that_the_server_sees_another_file(apart: Namespace) -> None:
    old, new = apart.dir / "t.cdb", apart.dir / "new.cdb"
    write_cdb(old, {KEY: b"1"})
    write_cdb(new, {KEY: b"2"})
    apart.approve(name := f"cdb:{apart.dir}/t")
    apart.start()
    command = [
        sys.executable,
        "-m",
        "proxymap.ctl",
        "--socket",
        apart.path,
        "query",
        "--explain",
        name,
        "192.0.2.1",
    ]

    def said() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True, env=environment()
        )

    if os.readlink(f"/proc/{apart.pid}/root") != "/":
        pytest.skip("seen from a chroot, a process with mounts of its own looks like one in another chroot")
    assert "sees" not in said().stderr
    apart.inside(f"mount --bind {new} {old}")
    line = next(line for line in said().stderr.splitlines() if "sees" in line)
    assert f"process {apart.pid} sees file {new.stat().st_ino} on device" in line
    assert f"as {old}, not file {old.stat().st_ino} on device" in line
    assert f"it has mounts of its own, there {old} (" in line


def test_error_that_is_over_is_logged_as_over_once() -> None:
    with ServerProcess() as server:
        table, path = text_table(server, "cidr")
        missing = f"cdb:{server.dir}/missing"
        server.approve(missing)
        server.start()
        with server.connect() as peer:
            assert peer.ask(lookup(table, KEY)) == found(b"1")
            peer.ask(lookup(missing.encode(), KEY))
            path.write_text("192.0.2.1/8 faulty\n")
            server.wait_log("going on with the previous content")
            for value in ("2", "3"):
                path.write_text(line_of("cidr", value))
                wait_until(
                    lambda v=value: peer.ask(lookup(table, KEY)) == found(v.encode()), "the new content"
                )  # type: ignore[misc]
            write_cdb(server.dir / "missing.cdb", {KEY: b"1"})
            wait_until(lambda: peer.ask(lookup(missing.encode(), KEY)) == found(b"1"), "the table")
        server.wait_log(f"{missing} is well again")
        assert server.log().count(f"{table.decode()} is well again") == 1
