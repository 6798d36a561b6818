"""test_source - keeps the house: who imports whom, no GIL under the loop, modules that import alone"""

import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import sizes

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "proxymap"

# The rooms of the house, and which others each may know.
FAMILIES = sorted(p.parent.name for p in PACKAGE.glob("tables/*/__init__.py"))
MAY_KNOW = {
    "base": set[str](),
    "protocol": {"base"},
    "config": {"protocol", "base"},
    "metrics": {"protocol", "base"},
    "tables": {"metrics", "config", "protocol", "base"},
    **{f"tables.{name}": {"tables", "metrics", "config", "protocol", "base"} for name in FAMILIES},
    "server": {"tables", "metrics", "config", "protocol", "base"},
    "ctl": {"tables", "metrics", "config", "protocol", "base", "server.control"},
    "main": {"server", "config", "protocol", "base", "tables._jobs"},
}
PROTOCOL = ["_words", "_codec", "errors", "client"]  # these lie in the package itself


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


SOURCES = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".pyx", ".pxd"))
MODULES = sorted({module_of(p) for p in SOURCES} - {"__init__", "__main__"})


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a source file names, wherever it imports them."""
    text = path.read_text()
    found = set(re.findall(r"^\s*c?import\s+proxymap\.([\w.]+)", text, re.M))
    pattern = r"^\s*from\s+proxymap(?:\.([\w.]+))?\s+c?import\s+(\([^)]*\)|[^\n]+)"
    for module, names in re.findall(pattern, text, re.M):
        within = [f"{module}.{name}".lstrip(".") for name in re.findall(r"\w+", names)]
        found.update(within if set(within) & set(MODULES) else [module])
    return found & set(MODULES)


def room_of(module: str) -> str:
    """The folder that a module lies in; for those in the package itself, what they are."""
    parts = module.split(".")
    if parts[0] == "tables" and len(parts) > 1 and parts[1] in FAMILIES:
        return ".".join(parts[:2])
    if len(parts) > 1 or (parts[0] in MAY_KNOW and parts[0] != "main"):
        return parts[0]
    return "protocol" if parts[0] in PROTOCOL else "main"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_knows_only_those_below_it(path: Path) -> None:
    here = module_of(path)
    if here in ("__init__", "__main__"):
        pytest.skip("hands names on")
    room = room_of(here)
    strangers = {
        name
        for name in imports_of(path)
        if room_of(name) != room and not MAY_KNOW[room] & {name, room_of(name)}
    }
    assert not strangers, f"{here} may not import {strangers}"


def test_no_module_leads_back_to_itself() -> None:
    known: dict[str, set[str]] = {name: set() for name in MODULES}
    for path in SOURCES:
        if module_of(path) in known:
            known[module_of(path)] |= imports_of(path) - {module_of(path)}
    tuple(TopologicalSorter(known).static_order())  # or a CycleError that names them


def test_no_underscored_module_reads_the_settings_or_the_configuration() -> None:
    for path in SOURCES:
        if path.name.startswith("_") and path.name != "__init__.py":
            known = imports_of(path)
            assert not known & {"config.settings", "config.maincf", "config.approval", "server.daemon"}, path


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix in (".pyx", ".pxd")], ids=lambda p: p.name)
def test_no_function_in_c_takes_the_gil(path: Path) -> None:
    """The loop may call it; what needs Python is a job for a worker."""
    assert "with gil" not in path.read_text()


def test_the_loop_lets_the_gil_go_once_to_serve() -> None:
    text = (PACKAGE / "server/_loop.pyx").read_text()
    assert text.count("with nogil:") == 2  # to serve, and to drain


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix in (".pyx", ".pxd")], ids=lambda p: p.name)
def test_no_nogil_function_without_noexcept(path: Path) -> None:
    """A C function that may raise makes its caller look for an exception, under the GIL."""
    text = re.sub(r"\(\s*\n\s*([^()]*?)\n\s*\)", r"(\1)", path.read_text())
    for line in text.splitlines():
        if re.match(r"cdef (inline )?[\w ]+\*?\w+\(.*\) .*nogil", line):
            assert "noexcept nogil" in line, line


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_alone(name: str) -> None:
    if not any(module_of(p) == name and p.suffix != ".pxd" for p in SOURCES):
        pytest.skip("only declarations")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", f"import proxymap.{name}"], check=True, timeout=60, env=environment)


def test_extensions_need_nothing_but_libc() -> None:
    """A wheel has to install on any mail host: no library besides libc's own is linked."""
    allowed = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    built = sorted(PACKAGE.rglob("*.so"))
    assert built
    for path in built:
        told = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
        assert set(re.findall(r"\(NEEDED\).*\[(.*)\]", told)) <= allowed, path


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


def test_files_that_contributing_names_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:proxymap|tests|man|docs|benchmarks)/[\w./]+)`", text)
    assert len(named) > 10
    for name in named:
        if not re.search(r"FAMILY|NAME|TYPE", name):
            assert (ROOT / name).exists(), name


def test_no_folder_file_or_function_is_too_large() -> None:
    """What the limits are, and how it is counted: sizes.py."""
    assert not sizes.too_large()
