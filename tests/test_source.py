"""test_source - keeps the house: who imports whom, no GIL under the loop, modules that import alone"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "proxymap"

# The floors of the house, from the roof down. A module may use what stands on a
# lower floor, and nothing of its own or a higher one.
TABLES = [
    *("bdb", "cdb", "cidr", "environ", "fail", "inline", "internal"),
    *("lmdb", "pcre", "pipemap", "randmap", "regexp", "sqlite", "static", "texthash", "unionmap", "unix"),
]
FLOORS = [
    ["main", "ctl"],
    ["check", "master", "standalone", "takeover"],
    ["server", "serving"],
    ["_loop", "approval", "build", "changes", "client", "control", "direct", "rehearsal", "workers"],
    ["_client", "log", "mastercf", "settings", "tables"],
    ["_service", "safety", *(f"tables.{name}" for name in TABLES)],
    ["_pattern", "patterns"],
    ["_plain"],
    ["_records", "rules", "template"],
    ["domains", "tablecf"],
    ["_catalog", "_lent", "_lmdb_index", "_lmdb_survey", "_members", "journal", "lmdb_writer", "maincf"],
    ["tables.base"],
    ["_cache", "_codec", "_jobs", "_lmdb", "_places", "source"],
    ["_lockfile", "_table"],
    ["_fold", "_map", "_watch"],
    ["_hash", "_stamp", "_status", "errors"],
    ["_background"],
    ["_clock"],
    ["_buf"],
    ["_words"],
]
FLOOR = {name: floor for floor, names in enumerate(reversed(FLOORS)) for name in names}

# What the loop calls while it serves: none of it may touch Python.
UNDER_THE_LOOP = [
    *("_buf", "_cache", "_catalog", "_client", "_clock", "_codec"),
    *("_hash", "_members", "_pattern", "_service", "_stamp", "_status", "_watch", "_words"),
]


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


SOURCES = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".pyx", ".pxd"))
MODULES = sorted({module_of(p) for p in SOURCES} - {"__init__", "__main__"})


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a source file names, wherever it imports them."""
    text = path.read_text()
    found = set(re.findall(r"^\s*from\s+proxymap\.([\w.]+)\s+c?import", text, re.M))
    for names in re.findall(r"^\s*from\s+proxymap\s+c?import\s+([\w, ]+)", text, re.M):
        found.update(name.strip() for name in names.split(","))
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                found.update([node.module] if node.module else [name.name for name in node.names])
    return found & set(MODULES)


def test_every_module_has_its_floor() -> None:
    assert sorted(FLOOR) == MODULES


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_go_down_only(path: Path) -> None:
    here = module_of(path)
    if here in ("__init__", "__main__"):
        pytest.skip("hands names on")
    above = {name for name in imports_of(path) if name != here and FLOOR[name] >= FLOOR[here]}
    assert not above, f"{here} may not import {above}"


def test_no_underscored_module_reads_the_settings_or_the_configuration() -> None:
    for path in SOURCES:
        if path.name.startswith("_") and path.name != "__init__.py":
            assert not imports_of(path) & {"settings", "maincf", "approval", "server"}, path


def test_no_table_knows_the_protocol_the_cache_or_another_table() -> None:
    for path in (PACKAGE / "tables").iterdir():
        if path.suffix in (".py", ".pyx", ".pxd") and path.name != "__init__.py":
            known = imports_of(path)
            assert not known & {"_codec", "_cache", "_service", "_catalog", "_client", "_loop"}, path
            assert not {name for name in known if name.startswith("tables.") and name != "tables.base"}, path


@pytest.mark.parametrize("name", UNDER_THE_LOOP)
def test_what_the_loop_calls_never_takes_the_gil(name: str) -> None:
    for path in SOURCES:
        if module_of(path) == name:
            assert "with gil" not in path.read_text(), path


def test_the_loop_lets_the_gil_go_once_to_serve() -> None:
    text = (PACKAGE / "_loop.pyx").read_text()
    assert "with gil" not in text
    assert text.count("with nogil:") == 2  # to serve, and to drain


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix in (".pyx", ".pxd")], ids=lambda p: p.name)
def test_no_nogil_function_without_noexcept(path: Path) -> None:
    """A C function that may raise makes its caller look for an exception, under the GIL."""
    text = re.sub(r"\(\s*\n\s*([^()]*?)\n\s*\)", r"(\1)", path.read_text())
    for line in text.splitlines():
        if re.match(r"cdef (inline )?[\w ]+\*?\w+\(.*\) .*nogil", line):
            assert "noexcept nogil" in line, line


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".pyx"], ids=lambda p: p.name)
def test_cython_has_no_performance_hint(path: Path, tmp_path: Path) -> None:
    """Such as: a call that takes the GIL to look for an exception."""
    command = [sys.executable, "-m", "cython", "-3", str(path), "-o", str(tmp_path / "out.c")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "performance hint" not in done.stderr + done.stdout


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_alone(name: str) -> None:
    if not any(module_of(p) == name and p.suffix != ".pxd" for p in SOURCES):
        pytest.skip("only declarations")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", f"import proxymap.{name}"], check=True, timeout=60, env=environment)


def test_extensions_need_nothing_but_libc() -> None:
    """A wheel has to install on any mail host: no library besides libc's own is linked."""
    opened = {"pcre": {"libpcre2-8.so.0"}}  # by dlopen, and missed with grace
    allowed = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    built = sorted(PACKAGE.rglob("*.so"))
    assert built
    for path in built:
        data = path.read_bytes()
        named = set(re.findall(rb"\x00((?:lib|ld-)[\w.+-]*\.so[\w.]*)\x00", data))
        expected = allowed | opened.get(path.name.partition(".")[0], set())
        assert {name.decode() for name in named} <= expected, path


def test_generated_c_is_not_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    generated = [
        name
        for name in listed.stdout.split()
        if name.startswith("proxymap/") and name.endswith((".c", ".so"))
    ]
    assert not generated
