"""test_packaging - sdist and wheel install in a clean virtual environment, and serve from there"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVES = """
import os, shutil, subprocess, sys, tempfile, time, pathlib, proxymap
folder = pathlib.Path(tempfile.mkdtemp(prefix="pm-"))
(folder / "main.cf").write_text(f"queue_directory = {folder}\\nproxy_read_maps = proxy:cdb:{folder}/none\\n")
command = [sys.argv[1], "--listen", f"unix:{folder}/s", "--config-directory", folder]
if os.geteuid() == 0:
    shutil.chown(folder, "nobody")
    command += ["--user", "nobody"]
server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
while not (folder / "s").exists():
    assert server.poll() is None
    time.sleep(0.01)
with proxymap.Client(f"{folder}/s") as client:
    print(client.open(f"cdb:{folder}/none"), "site-packages" in proxymap.__file__)
server.terminate()
print(server.wait(60))
shutil.rmtree(folder)
"""


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, ROOT)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, not from the checkout; not optimized, which would take minutes."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", out]
    run(*command, sdist, PROXYMAP_CFLAGS="-O0")
    return next(out.glob("*.whl"))


def test_sdist_has_sources_and_nothing_generated(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "LICENSE",
        "README.md",
        "Makefile",
        "proxymap/_codec.pyx",
        "proxymap/_codec.pxd",
        "proxymap/tables/indexed/lmdb.pyx",
    }
    assert wanted <= names
    others = {"tests/server/test_wire.py", "benchmarks/load.c", "contrib/demo.py", "docs/postfix/wire.md"}
    assert others <= names
    assert not {name for name in names if name.startswith("proxymap/") and name.endswith((".c", ".so"))}


def test_wheel_has_the_compiled_modules_and_the_type_marker(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(name.endswith(".so") for name in names) == len(list((ROOT / "proxymap").rglob("*.pyx")))
    assert "proxymap/py.typed" in names
    assert not {name for name in names if name.endswith(".c") or name.startswith(("tests/", "benchmarks/"))}


def test_wheel_has_the_manual(wheel: Path) -> None:
    names = {name.partition(".data/data/")[2] for name in zipfile.ZipFile(wheel).namelist()}
    assert {f"share/man/man{page.suffix[1:]}/{page.name}" for page in (ROOT / "man").iterdir()} <= names


def test_wheel_serves_from_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv/bin"
    run(scripts / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel)
    assert run(scripts / "proxymap", "--version").startswith("proxymap ")
    assert "query" in run(scripts / "proxymapctl", "--help")
    said = run(scripts / "python", "-c", SERVES, scripts / "proxymap", cwd=tmp_path)
    assert said == "16 True\n0\n"  # flags of a table that is not there, and exit status 0
