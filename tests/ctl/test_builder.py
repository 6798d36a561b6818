"""test_builder - our cdb and lmdb files against those that postmap makes of the same text"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_postfix import NUL_WARNING
from hypothesis import given, settings
from hypothesis import strategies as st

from proxymap.ctl import builder
from proxymap.ctl.builder import BuildError, Options, build

cdbx = pytest.importorskip("cdbx")
lmdb = pytest.importorskip("lmdb")

needs_postmap = pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
each_type = pytest.mark.parametrize("maptype", ["cdb", "lmdb"])

Records = list[tuple[bytes, bytes]]


def records(path: str) -> Records:
    """All records of a file, in its order."""
    if path.endswith(".cdb"):
        table = cdbx.CDB(path)
        found = list(table.items(all=True))
        table.close()
    else:
        with lmdb.open(path, subdir=False, lock=False, readonly=True) as env, env.begin() as txn:
            found = list(txn.cursor())
    return found


def by_us(maptype: str, file: str, **options: Any) -> tuple[Records, list[str]]:
    """Build, and return records and warnings."""
    warnings: list[str] = []
    count = build(maptype, file, options=Options(warn=warnings.append, **options))
    found = records(f"{file}.{maptype}")
    assert count == len(found)
    return found, warnings


def by_postmap(maptype: str, file: str, letters: str = "") -> tuple[Records, list[str]]:
    done = subprocess.run(["postmap", f"-{letters}o", f"{maptype}:{file}"], capture_output=True, check=True)
    prefix = "postmap: warning: "
    lines = done.stderr.decode(errors="surrogateescape").split("\n")[:-1]
    assert all(line.startswith(prefix) for line in lines)
    said = [line.removeprefix(prefix) for line in lines if not line.endswith(NUL_WARNING)]
    return records(f"{file}.{maptype}"), said


def options_of(letters: str) -> dict[str, Any]:
    """postmap's letters as Options."""
    named: dict[str, dict[str, Any]] = {
        "f": {"fold": False},
        "u": {"utf8": False},
        "r": {"duplicates": "replace"},
        "w": {"duplicates": "ignore"},
        "n": {"trailing_nul": False},
        "N": {"trailing_nul": True},
    }
    return {name: value for letter in letters for name, value in named[letter].items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "v"
    path.write_text("a 1\nB 2\nb 3\n")
    return path


# The same as postmap

WORDS = [b"a", b"A", b"b", b"key", b"Key:", b"\xc3\x9f", b"\xc3\x89", b"\xc3\xa9", b"x\\ y", b'"q q"']
WORDS += [b"\xff", b"\x00", b"\x01", b"#", b"1", b'"', b"\\"]
BLANKS = [b" ", b"\t", b"  ", b"\v", b"\r", b"\f"]
LINE_ENDS = [b"\n", b"\n", b"\n\n", b" v\n", b" v\n"]
TEXT = st.lists(st.sampled_from([*WORDS, *BLANKS, *LINE_ENDS]), max_size=40).map(b"".join)
# postmap looks for UTF-8 behind a NUL, too, though it takes nothing else from there.
TEXT = TEXT.map(lambda text: text.replace(b"\0", b"") if b"\xff" in text else text)
LETTERS = st.tuples(
    st.sampled_from(["", "f"]),
    st.sampled_from(["", "", "u"]),
    st.sampled_from(["", "r", "w"]),
    st.sampled_from(["", "", "n", "N"]),
).map("".join)


@needs_postmap
@settings(max_examples=100, deadline=None)
@given(TEXT, LETTERS)
def test_any_text_gives_postmaps_records_and_warnings(text: bytes, letters: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = f"{directory}/v"
        Path(file).write_bytes(text)
        for maptype in ("cdb", "lmdb"):
            wanted = by_postmap(maptype, file, letters)
            os.unlink(f"{file}.{maptype}")
            assert by_us(maptype, file, **options_of(letters)) == wanted


@needs_postmap
@each_type
@pytest.mark.parametrize("letters", ["", "f", "u"])
def test_letters_of_all_scripts_are_folded_as_by_postmap(tmp_path: Path, maptype: str, letters: str) -> None:
    """Characters of Unicode 3.2: the folding of those has not changed since."""
    old = unicodedata.ucd_3_2_0
    signs = [chr(code) for code in range(0x80, 0x110000) if old.category(chr(code)) not in ("Cn", "Cs", "Co")]
    letters_of = [sign for sign in signs if sign != sign.casefold() or sign != sign.lower()]
    file = f"{tmp_path}/v"
    Path(file).write_text("".join(f"{ord(sign):x}{sign} {sign}\n" for sign in letters_of + signs[::97]))
    wanted = by_postmap(maptype, file, letters)
    assert len(wanted[0]) > 1000
    assert by_us(maptype, file, **options_of(letters)) == wanted


@needs_postmap
@each_type
def test_postmap_finds_what_we_built(source: Path, maptype: str) -> None:
    by_us(maptype, str(source))
    done = subprocess.run(
        ["postmap", "-q", "-", f"{maptype}:{source}"], input=b"A\nb\nc\n", capture_output=True, check=True
    )
    assert done.stdout == b"A\t1\nb\t2\n"


@needs_postmap
@needs_root
@each_type
@pytest.mark.parametrize("mode", [0o400, 0o444, 0o600, 0o604, 0o640, 0o666])
@pytest.mark.parametrize("letters", ["", "o", "p"])
def test_mode_and_owner_are_as_by_postmap(tmp_path: Path, maptype: str, mode: int, letters: str) -> None:
    nobody = pwd.getpwnam("nobody")
    file = f"{tmp_path}/v"
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path.stat().st_mode & 0o777 == 0o700:  # pytest's
            path.chmod(0o755)
    os.chown(tmp_path, nobody.pw_uid, -1)
    Path(file).write_text("a 1\n")
    os.chown(file, nobody.pw_uid, 1)
    os.chmod(file, mode)
    subprocess.run(["postmap", *([f"-{letters}"] if letters else []), f"{maptype}:{file}"], check=True)
    wanted = os.stat(f"{file}.{maptype}")
    os.unlink(f"{file}.{maptype}")
    before = os.umask(0o077)
    try:
        build(maptype, file, options=Options(keep_root="o" in letters, inherit_mode="p" not in letters))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    got = os.stat(f"{file}.{maptype}")
    assert (got.st_uid, got.st_gid, oct(got.st_mode)) == (wanted.st_uid, wanted.st_gid, oct(wanted.st_mode))
    assert (os.geteuid(), os.getegid()) == (0, 0)


@needs_root
@each_type
def test_root_has_no_more_rights_than_the_owner_of_the_source(tmp_path: Path, maptype: str) -> None:
    file = tmp_path / "v"
    file.write_text("a 1\n")
    os.chown(file, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises((PermissionError, BuildError)):
        build(maptype, str(file))
    assert os.listdir(tmp_path) == ["v"]


# What postmap leaves open


@each_type
def test_old_content_goes(source: Path, maptype: str) -> None:
    by_us(maptype, str(source))
    source.write_text("c 4\n")
    end = b"\0" if maptype == "lmdb" else b""
    assert by_us(maptype, str(source)) == ([(b"c" + end, b"4" + end)], [])
    assert sorted(os.listdir(source.parent)) == ["v", f"v.{maptype}"]


@each_type
def test_source_may_have_another_name(source: Path, maptype: str) -> None:
    file = f"{source.parent}/other"
    warnings: list[str] = []
    assert build(maptype, file, str(source), Options(warn=warnings.append)) == 2
    assert os.path.exists(f"{file}.{maptype}")
    assert len(warnings) == 1


@each_type
def test_error_leaves_the_old_file_alone(source: Path, maptype: str) -> None:
    wanted = by_us(maptype, str(source))[0]
    source.write_text("c 4\n")

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(maptype, str(source), options=Options(progress=fail))
    assert records(f"{source}.{maptype}") == wanted
    assert sorted(os.listdir(source.parent)) == ["v", f"v.{maptype}"]


@each_type
def test_progress_goes_up_to_the_size_of_the_source(source: Path, maptype: str) -> None:
    source.write_text("".join(f"key{i} value\n" for i in range(2 * builder.PROGRESS_EVERY + 1)))
    steps: list[tuple[int, int]] = []
    build(maptype, str(source), options=Options(progress=lambda *step: steps.append(step)))
    size = source.stat().st_size
    assert len(steps) == 3
    assert steps == sorted(steps)
    assert 0 < steps[0][0] < size
    assert steps[-1] == (size, size)


@pytest.mark.parametrize(("maptype", "module"), [("cdb", "cdbx"), ("lmdb", "lmdb")])
def test_missing_module_is_named_with_this_environments_pip(
    source: Path, monkeypatch: pytest.MonkeyPatch, maptype: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BuildError, match=rf"{re.escape(sys.prefix)}/bin/pip install '{module}>="):
        build(maptype, str(source))


def test_other_types_are_refused(source: Path) -> None:
    with pytest.raises(BuildError, match="use cdb or lmdb"):
        build("hash", str(source))


@each_type
def test_no_source_is_file_not_found(tmp_path: Path, maptype: str) -> None:
    with pytest.raises(FileNotFoundError):
        build(maptype, str(tmp_path / "none"))
    assert os.listdir(tmp_path) == []


# cdb: the file beside


def test_cdb_is_another_file_each_time(source: Path) -> None:
    """A process with the old one open keeps it whole."""
    by_us("cdb", str(source))
    old = cdbx.CDB(f"{source}.cdb")
    source.write_text("c 4\n")
    by_us("cdb", str(source))
    assert old[b"a"] == b"1"


def test_cdb_waits_for_the_lock_and_begins_again(source: Path) -> None:
    """The lock's holder renames the file away, as postmap does at its end."""
    with open(f"{source}.cdb.tmp", "w") as held:
        held.write("what an interrupted postmap left")
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=build, args=("cdb", str(source)))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        os.rename(f"{source}.cdb.tmp", f"{source}.cdb")
    thread.join(20)
    assert records(f"{source}.cdb") == [(b"a", b"1"), (b"b", b"2")]


def test_cdb_left_over_file_is_used_again(source: Path) -> None:
    Path(f"{source}.cdb.tmp").write_text("x" * 10000)
    assert by_us("cdb", str(source))[0] == [(b"a", b"1"), (b"b", b"2")]


def test_cdb_does_not_follow_a_link(source: Path) -> None:
    victim = source.parent / "victim"
    victim.write_text("precious")
    os.symlink(victim, f"{source}.cdb.tmp")
    with pytest.raises(OSError):
        build("cdb", str(source))
    assert victim.read_text() == "precious"


@each_type
def test_file_in_the_way_is_not_emptied(source: Path, maptype: str) -> None:
    """A user with the right to write to the folder put it there, for root to empty it."""
    victim = source.parent / "victim"
    victim.write_text("precious")
    os.link(victim, f"{source}.{maptype}.tmp")
    with pytest.raises(BuildError, match="remove it"):
        build(maptype, str(source))
    assert victim.read_text() == "precious"


# lmdb: locks, map and format

PROBE = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
            print("free", end=" ")
        except OSError:
            print("held", end=" ")
"""
HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_SH)
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_lmdb_lock_lets_readers_in_and_keeps_writers_out(source: Path) -> None:
    """Asked from within, where all descriptors are open; closing any one would lose the lock."""
    by_us("lmdb", str(source))
    seen: list[str] = []

    def probe(done: int, total: int) -> None:
        command = [sys.executable, "-S", "-c", PROBE, f"{source}.lmdb"]
        seen.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    build("lmdb", str(source), options=Options(progress=probe))
    assert seen == ["free held "]


def test_lmdb_waits_for_readers_before_it_begins(source: Path) -> None:
    by_us("lmdb", str(source))
    command = [sys.executable, "-S", "-c", HOLD, f"{source}.lmdb"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdin is not None
        reader.stdout.readline()
        thread = threading.Thread(target=build, args=("lmdb", str(source)))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        reader.stdin.close()
        thread.join(20)
        assert not thread.is_alive()


def test_lmdb_map_grows_and_warnings_come_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "MAP_PER_SOURCE", 0)
    source.write_text("bad\n" + "".join(f"{i % 3000} {'v' * 100}\n" for i in range(3100)))
    found, warnings = by_us("lmdb", str(source), map_size=65536)
    assert len(found) == 3000
    assert len(warnings) == 101


def test_lmdb_key_that_is_too_long_is_named(source: Path) -> None:
    wanted = by_us("lmdb", str(source))[0]
    source.write_text(f"{'k' * 510} v\n")
    assert by_us("lmdb", str(source))[0][0][0] == b"k" * 510 + b"\0"
    source.write_text("a 1\nb 2\n")
    by_us("lmdb", str(source))
    source.write_text(f"{'k' * 511} v\n")
    with pytest.raises(BuildError, match="longer than 511 bytes"):
        build("lmdb", str(source))
    assert records(f"{source}.lmdb") == wanted


def test_lmdb_refuses_what_is_no_lmdb_file(source: Path) -> None:
    Path(f"{source}.lmdb").write_bytes(b"x" * 8192)
    with pytest.raises(BuildError, match="not an LMDB file"):
        build("lmdb", str(source))


def lmdb_format(path: str) -> int:
    """1: LMDB 0.9; 3: LMDB 1.0. The magic number stands at byte 16 or 24, the version behind it."""
    head = Path(path).read_bytes()[:64]
    at = head.index(b"\xde\xc0\xef\xbe")
    return int.from_bytes(head[at + 4 : at + 8], "little")


@pytest.mark.skipif(sys.byteorder != "little", reason="the magic number is in host order")
def test_lmdb_new_file_has_the_format_of_09_whatever_the_environment_says(source: Path) -> None:
    code = f"from proxymap.ctl.builder import build; build('lmdb', {str(source)!r})"
    environment = {**os.environ, "LMDB_DEFAULT_LIB_VERSION": "1"}
    home = Path(builder.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=home, check=True)
    assert lmdb_format(f"{source}.lmdb") == 1


@pytest.mark.skipif(sys.byteorder != "little", reason="the magic number is in host order")
def test_lmdb_old_file_keeps_its_format(source: Path) -> None:
    try:
        lmdb.open(f"{source}.lmdb", subdir=False, lock=False, lib_version=1).close()
    except lmdb.Error:
        pytest.skip("this py-lmdb has no LMDB 1.0")
    by_us("lmdb", str(source))
    assert lmdb_format(f"{source}.lmdb") == 3


# A full disk

ON_A_FULL_DISK = """
set -e
mount -t tmpfs -o size=160k none "$1"
cp "$1.old" "$1/v"
if [ -n "$3" ]; then "$4" -m proxymap.ctl build -o "$2:$1/v"; fi
if [ "$3" = empty ]; then : > "$1/v.$2"; fi
cp "$1.new" "$1/v"
cat /dev/zero > "$1/fill" 2>/dev/null || true
if [ -z "$3" ]; then truncate -s -"$5" "$1/fill"; fi
"$4" -m proxymap.ctl build -o "$2:$1/v" || echo "status $?"
rm "$1/fill"
echo $(ls "$1")
[ ! -s "$1/v.$2" ] || "$4" -m proxymap.ctl dump --direct "$2:$1/v" | wc -l
"""


@needs_root
@each_type
@pytest.mark.parametrize(("there", "room"), [("", 4096), ("", 12288), ("table", 0), ("empty", 0)])
def test_full_disk_leaves_what_was_there(tmp_path: Path, maptype: str, there: str, room: int) -> None:
    """The server answers RETRY for a table that is not there; for an empty one NOKEY, and mail bounces."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "disk.old").write_text("a 1\nb 2\n")
    (tmp_path / "disk.new").write_text("".join(f"key{i} {'v' * 300}\n" for i in range(100)))
    command = ["unshare", "-m", "sh", "-c", ON_A_FULL_DISK, "sh", str(disk), maptype, there, sys.executable]
    home = Path(builder.__file__).parents[2]
    done = subprocess.run([*command, str(room)], cwd=home, capture_output=True, text=True, check=True)
    assert done.stderr == f"proxymapctl: {disk}/v.{maptype}: No space left on device\n"
    left = [f"v v.{maptype}"] if there else ["v"]
    assert done.stdout.splitlines() == ["status 73", *left, *(["2"] if there == "table" else [])]


# Beside a running postmap


@needs_postmap
@each_type
def test_postmap_and_we_at_the_same_time(source: Path, maptype: str) -> None:
    """The file is whole whichever comes last, and we never fail.

    A postmap that waits for the lock on FILE.cdb.tmp gives up when the holder has renamed it,
    be that we or another postmap.
    """
    source.write_text("".join(f"key{i} {'v' * 20}\n" for i in range(3000)))
    wanted = sorted(by_us(maptype, str(source))[0])
    command = ["postmap", f"{maptype}:{source}"]
    others = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    for _ in range(4):
        build(maptype, str(source))
    said = {other.communicate()[1] for other in others}
    allowed = {b""}
    if maptype == "cdb":
        allowed.add(b"postmap: fatal: stat(%b.cdb.tmp): No such file or directory\n" % os.fsencode(source))
    assert said <= allowed
    assert sorted(records(f"{source}.{maptype}")) == wanted
    assert not os.path.exists(f"{source}.cdb.tmp")


@pytest.fixture(autouse=True)
def _no_descriptor_is_left_open() -> Iterator[None]:
    def count() -> int:
        return sum(stat.S_ISREG(os.stat(f"/proc/self/fd/{fd}").st_mode) for fd in open_fds())

    def open_fds() -> list[str]:
        return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]

    before = count()
    yield
    assert count() <= before
