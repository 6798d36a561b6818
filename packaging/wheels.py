"""wheels - wheels for hosts of other kinds than this one, compiled by Zig, and what they link

    wheels.py [--python PYTHON ...] [--target TAG ...] [--out FOLDER]

A wheel for each Python and each of TARGETS, from a new sdist. Cython runs once. The
compiler is Zig's clang, from PyPI: it brings the headers of every glibc and of musl. The
headers of Python are this machine's; pyconfig_check.c does not compile for a target that
they do not fit. A wheel is kept if auditwheel agrees with its tag, and its modules link
nothing but libc's own family.

On a build host cibuildwheel makes them instead (pyproject.toml, .github/workflows/wheels.yml),
each on a machine of its own kind, and tries them there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/wheels"
NEEDED = ["setuptools>=77", "Cython>=3.1,<4", "build"]  # the first two as pyproject.toml has them
TOOLS = [*NEEDED, "ziglang>=0.13", "auditwheel>=6"]

# The tag of a wheel: what Zig calls its target, and what Python calls it in names of modules.
TARGETS = {
    "manylinux_2_28_x86_64": ("x86_64-linux-gnu.2.28", "x86_64-linux-gnu"),
    "manylinux_2_28_aarch64": ("aarch64-linux-gnu.2.28", "aarch64-linux-gnu"),
    "musllinux_1_2_x86_64": ("x86_64-linux-musl", "x86_64-linux-musl"),
    "musllinux_1_2_aarch64": ("aarch64-linux-musl", "aarch64-linux-musl"),
}
LIBC = re.compile(
    r"(libc|libm|libpthread|libdl|librt)\.so(\.\d+)?|ld-linux-[\w-]+\.so\.\d|libc\.musl-\w+\.so\.1"
)

HOST = """import json, sys, sysconfig; print(json.dumps({
    "tag": "cp%d%d" % sys.version_info[:2],
    "cache_tag": sys.implementation.cache_tag,
    "include": sysconfig.get_path("include"),
}))"""


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """Run it, and return what it prints; ends the program with all of that if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=os.environ | environment, text=True, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def environment_of(python: str, name: str, packages: list[str]) -> Path:
    """The interpreter of a virtual environment with these packages, made the first time."""
    folder = WORK / name
    if not (folder / "ready").exists():
        run(python, "-m", "venv", "--clear", folder)
        run(folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *packages)
        (folder / "ready").touch()
    return folder / "bin/python"


def unpacked_sdist(tools: Path) -> Path:
    """The sources, from a new sdist, with the C that Cython made of them meanwhile."""
    source = WORK / "source"
    shutil.rmtree(source, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        run(tools, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT)
        archive = next(Path(folder).glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        shutil.move(Path(folder, archive.name.removesuffix(".tar.gz")), source)
    shutil.copytree(ROOT / "build/cython", source / "build/cython")  # as old as it is: newer than the sources
    return source


def machines_headers(include: Path) -> Path:
    """Where Debian's pyconfig.h of the machine is to be found, by itself: libc's headers lie beside it."""
    folder = WORK / "include"
    shutil.rmtree(folder, ignore_errors=True)
    for path in include.parent.glob(f"*-linux-*/{include.name}"):
        (folder / path.parent.name).mkdir(parents=True)
        (folder / path.parent.name / path.name).symlink_to(path)
    return folder


def build(source: Path, python: str, tag: str, tools: Path, out: Path) -> Path:
    """One wheel for this Python and target; its path."""
    target, platform = TARGETS[tag]
    host = json.loads(run(python, "-c", HOST))
    headers = machines_headers(Path(host["include"]))
    compiler = f"{tools} -m ziglang cc -target {target} -g0 -fno-sanitize=undefined -I {headers}"
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(WORK / "zig"), "ZIG_LOCAL_CACHE_DIR": str(WORK / "zig")}
    check = ["-c", "-o", WORK / "check.o", "-I", host["include"], ROOT / "packaging/pyconfig_check.c"]
    run(*compiler.split(), *check, **cache)
    for old in ("lib.*", "temp.*", "bdist.*"):
        for folder in (source / "build").glob(old):
            shutil.rmtree(folder)
    run(
        environment_of(python, host["tag"], NEEDED),
        *["-m", "build", "--wheel", "--no-isolation", "--outdir", out],
        f"--config-setting=--build-option=--plat-name={tag}",
        cwd=source,
        CC=compiler,
        # Of musl nothing is named: each program has it all, under a name that differs by machine.
        LDSHARED=f"{compiler} -shared -s {'-nostdlib' if tag.startswith('musl') else ''}",
        SETUPTOOLS_EXT_SUFFIX=f".{host['cache_tag']}-{platform}.so",
        **cache,
    )
    return next(out.glob(f"*-{host['tag']}-{host['tag']}-{tag}.whl"))


# What a wheel links


def linked(wheel: Path) -> Iterator[tuple[str, list[str]]]:
    """Each module of a wheel with the libraries that it needs (readelf's NEEDED)."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".so"):
                said = run("readelf", "--dynamic", archive.extract(name, folder), LC_ALL="C")
                yield name, re.findall(r"\(NEEDED\).*\[(.*)\]", said)


def faults_of(wheel: Path, tag: str, tools: Path) -> Iterator[str]:
    """What speaks against this wheel, a line each."""
    modules = dict(linked(wheel))
    if not modules:
        yield "no module in it"
    for name, libraries in modules.items():
        yield from (f"{name} links {library}" for library in libraries if not LIBC.fullmatch(library))
        if not name.endswith(f"-{TARGETS[tag][1]}.so"):
            yield f"{name} is named for another platform"
    said = " ".join(run(tools, "-m", "auditwheel", "show", wheel).split())
    if f'"{tag}"' not in said:
        yield f"auditwheel: {said}"


def main() -> int:
    """Build and check what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", action="append", metavar="PYTHON", help="default: the one that runs this")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "dist/wheels")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    tools = environment_of(sys.executable, "tools", TOOLS)
    source, out, bad = unpacked_sdist(tools), options.out.resolve(), 0
    for python in options.python or [sys.executable]:
        for tag in options.target or TARGETS:
            wheel = build(source, python, tag, tools, out)
            faults = list(faults_of(wheel, tag, tools))
            print(f"{wheel.name}: {wheel.stat().st_size >> 10} KiB, {'; '.join(faults) or 'ok'}", flush=True)
            if faults:
                wheel.unlink()
                bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
