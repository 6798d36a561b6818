"""test_wheels - what `make wheels` and cibuildwheel build, and what a wheel may link"""

from __future__ import annotations

import importlib.util
import shutil
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from proxymap import _codec

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheels() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "packaging/wheels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wheels_are_built_with_what_the_project_asks_for(wheels: ModuleType) -> None:
    assert set(PROJECT["build-system"]["requires"]) <= set(wheels.NEEDED)


def test_build_host_builds_every_python_for_both_libcs() -> None:
    settings = PROJECT["tool"]["cibuildwheel"]
    wanted = {f"cp3{minor}-{libc}_*" for minor in range(11, 16) for libc in ("manylinux", "musllinux")}
    assert set(settings["build"]) == wanted
    for machine in ("x86_64", "aarch64"):
        assert settings[f"manylinux-{machine}-image"] == "manylinux_2_28"
        assert settings[f"musllinux-{machine}-image"] == "musllinux_1_2"


@pytest.mark.parametrize("name", ["libc.so.6", "libm.so.6", "ld-linux-aarch64.so.1", "libc.so", "libdl.so.2"])
def test_libc_and_its_family_may_be_linked(wheels: ModuleType, name: str) -> None:
    assert wheels.LIBC.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["libcrypt.so.1", "libpcre2-8.so.0", "libgcc_s.so.1", "libpython3.11.so.1.0"]
)
def test_others_may_not(wheels: ModuleType, name: str) -> None:
    assert not wheels.LIBC.fullmatch(name)


def test_what_a_module_links_is_found(wheels: ModuleType, tmp_path: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.write(_codec.__file__, "proxymap/_codec.so")
    ((name, libraries),) = wheels.linked(tmp_path / "x.whl")
    assert name == "proxymap/_codec.so"
    assert libraries
    assert all(wheels.LIBC.fullmatch(library) for library in libraries)
