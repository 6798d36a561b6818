"""sizes - how large folders, files and functions are, and which are too large

    make figures                # or: python tests/sizes.py [FOLDER ...]

Ends with 1 if one in proxymap/ is past its limit; tests/ and benchmarks/ are measured only.
A module is a source file; a .pyx is one with its .pxd and .pyi, an __init__.py is the folder's
own. A function's lines are those from its `def` to the last of its body, with docstring, comments
and blank lines between.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = (".py", ".pyx", ".pxd", ".pyi")
MODULES, LINES, BODY = 24, 500, 41  # limits: modules a folder, lines a file, lines a function
SHOWN = 5  # of the largest

QUOTES = '"' * 3  # not written out: this file is measured, too
START = re.compile(r"( *)(?:async def|def|cpdef|cdef)\b[^=]*?(\w+)\(")
STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
COLON = re.compile(r":\s*(#.*)?$")
NOT_CODE = re.compile(r"cdef\s+(extern|class|struct|packed|enum|union|cppclass)\b")


class Figure(NamedTuple):
    """So many modules or lines, of what."""

    count: int
    what: str


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)


def folders(paths: list[Path]) -> list[Figure]:
    """Modules of each folder."""
    modules = {path.with_suffix("") for path in paths if path.name != "__init__.py"}
    parents = sorted({module.parent for module in modules})
    return [Figure(sum(m.parent == p for m in modules), str(p.relative_to(ROOT))) for p in parents]


def files(paths: list[Path]) -> list[Figure]:
    return [Figure(len(path.read_text().splitlines()), str(path.relative_to(ROOT))) for path in paths]


def functions(path: Path) -> Iterator[Figure]:
    """Every function with a body, nested ones and methods too; by indentation, which Cython shares."""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        match = START.match(line)
        if match is None or NOT_CODE.match(line.strip()):
            continue
        head = number + signature(lines[number:])
        if head > number and COLON.search(lines[head - 1]):
            length = head - number + body(lines[head:], len(match[1]))
            yield Figure(length, f"{path.relative_to(ROOT)}:{number + 1} {match[2]}")


def signature(lines: list[str]) -> int:
    """How many lines it takes until all its brackets are closed; 0 if they never are."""
    depth = 0
    for number, line in enumerate(lines, 1):
        code = STRING.sub("", line).partition("#")[0]
        depth += sum(code.count(c) for c in "([{") - sum(code.count(c) for c in ")]}")
        if depth <= 0:
            return number
    return 0


def body(lines: list[str], indent: int) -> int:
    """How many lines are indented by more than that, but for blank ones and comments at the end."""
    length, text = 0, False
    for number, line in enumerate(lines, 1):
        inside = text
        text ^= line.count(QUOTES) % 2 == 1
        if line.strip() and not inside and len(line) - len(line.lstrip()) <= indent:
            break
        if line.strip() and not line.lstrip().startswith("#"):
            length = number
    return length


def too_large(root: Path = ROOT / "proxymap") -> list[str]:
    """What is past its limit, in words."""
    paths = sources(root)
    every = [figure for path in paths for figure in functions(path)]
    limits = ((folders(paths), MODULES, "modules"), (files(paths), LINES, "lines"), (every, BODY, "lines"))
    return [
        f"{figure.what}: {figure.count} {unit}, {limit} at most"
        for figures, limit, unit in limits
        for figure in figures
        if figure.count > limit
    ]


def show(title: str, figures: list[Figure]) -> None:
    print(f"\n{title}: {len(figures)}, median {statistics.median(f.count for f in figures):g}; the largest:")
    for figure in sorted(figures, reverse=True)[:SHOWN]:
        print(f"{figure.count:6} {figure.what}")


def main() -> int:
    for name in sys.argv[1:] or ("proxymap", "tests", "benchmarks"):
        paths = sources(ROOT / name)
        print(f"\n{name}/")
        for figure in folders(paths):
            print(f"{figure.count:6} modules in {figure.what}")
        show("lines of files", files(paths))
        show("lines of functions", [figure for path in paths for figure in functions(path)])
    found = too_large()
    print("", *found, f"{len(found)} in proxymap/ past the limits", sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
