"""test_sizes - what `make figures` measures is measured right"""

import ast
from pathlib import Path

import pytest
import sizes

PYTHON = [path for path in sizes.sources(sizes.ROOT / "proxymap") if path.suffix == ".py"]

CYTHON = '''\
cdef extern from "x.h" nogil:
    int seek(int a)

cdef struct pair:
    int (*call)(int) noexcept nogil

cdef int first(
    int a,
) noexcept nogil:
    """Text
at the margin."""
    return a

    # belongs to nothing


cdef class Table:
    cdef int held(self)

    def close(self): pass

    cdef inline int held(self) except -1:
        with nogil:
            pass
'''


def test_functions_of_cython_are_found_with_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    path = tmp_path / "a.pyx"
    path.write_text(CYTHON)
    assert [tuple(f) for f in sizes.functions(path)] == [(6, "a.pyx:7 first"), (3, "a.pyx:22 held")]


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(sizes.ROOT)))
def test_functions_of_python_are_as_long_as_the_parser_says(path: Path) -> None:
    found = {
        (node.name, node.lineno): (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno != node.lineno
    }
    measured = {}
    for count, what in sizes.functions(path):
        place, name = what.split()
        measured[name, int(place.rpartition(":")[2])] = count
    assert measured == found


def test_a_pyx_with_its_declarations_is_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    for name in ("a.pyx", "a.pxd", "a.pyi", "b.py"):
        (tmp_path / name).write_text("")
    assert sizes.folders(sizes.sources(tmp_path)) == [(2, ".")]


def test_what_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    for number in range(sizes.MODULES + 1):
        (tmp_path / f"m{number}.py").write_text("")
    (tmp_path / "m0.py").write_text("\n" * (sizes.LINES + 1))
    (tmp_path / "m1.py").write_text("def f():\n" + "    pass\n" * sizes.BODY)
    assert sizes.too_large(tmp_path) == [
        ".: 25 modules, 24 at most",
        "m0.py: 501 lines, 500 at most",
        "m1.py:1 f: 42 lines, 41 at most",
    ]
