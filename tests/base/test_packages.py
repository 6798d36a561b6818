"""test_packages - the advice on a missing package: this environment's own pip, and pyproject.toml's names"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from proxymap.base import packages
from proxymap.base.packages import PACKAGES, how_to_install

ROOT = Path(__file__).resolve().parents[2]


def test_packages_are_those_of_the_extras() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {name: needs for name, needs in extras.items() if name not in ("test", "lint", "bench")}
    assert {name: [requirement] for name, (requirement, _) in PACKAGES.items()} == wanted


@pytest.mark.parametrize("extra", PACKAGES)
def test_pip_is_that_of_this_environment(extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", f"{tmp_path}/python3")
    monkeypatch.setattr(sys, "prefix", f"{tmp_path}")
    assert how_to_install(extra) == f"{tmp_path}/python3 -m pip install '{PACKAGES[extra][0]}'"
    (tmp_path / "pip").touch()
    assert how_to_install(extra) == f"{tmp_path}/pip install '{PACKAGES[extra][0]}'"


@pytest.mark.parametrize("extra", PACKAGES)
def test_pip_is_not_to_change_the_distributions_python(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_is_managed", lambda: True)
    monkeypatch.setattr(packages.os.path, "exists", lambda path: True)
    requirement, package = PACKAGES[extra]
    advice = how_to_install(extra)
    assert requirement in advice
    assert advice.startswith(f"apt-get install {package} (" if package else "install proxymap into a virtual")


def test_no_message_names_another_pip() -> None:
    """Whoever follows it would ask the wrong pip, or PyPI for a name that is not ours there."""
    for path in (ROOT / "proxymap").rglob("*.py*"):
        if path.suffix in (".py", ".pyx") and path.name != "packages.py":
            assert not re.search(r"pip3? install|proxymap\[", path.read_text()), path
