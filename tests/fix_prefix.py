"""fix_prefix - proxymap installed as master(8) needs it: root's alone, and open to mail_owner

    def test(prefix):               # conftest has it for every test
        prefix.ctl("enable", "-c", ...)

A virtual environment by hand, with a copy of the package as it is compiled in
place: quick, and needs no network. It lies in /opt, for /tmp belongs to everyone.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import proxymap

PARENT = Path("/opt")
PACKAGE = Path(proxymap.__file__).parent
SCRIPT = """\
#!{python}
import sys
from proxymap.{module} import main
sys.exit(main())
"""


def interpreter() -> str | None:
    """A Python that mail_owner can reach and that loads our extensions; None if there is none."""
    tag = sysconfig.get_config_var("SOABI")
    ask = "import sysconfig; print(sysconfig.get_config_var('SOABI'))"
    for path in (os.path.realpath(sys.executable), f"/usr/bin/python3.{sys.version_info[1]}"):
        if path.startswith("/usr/") and os.access(path, os.X_OK):
            done = subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False)
            if done.stdout.strip() == tag:
                return path
    return None


def no_prefix() -> str | None:
    """Why there can be no such installation here, or None."""
    if os.geteuid() != 0 or not PARENT.is_dir():
        return f"an installation in {PARENT} needs root"
    return None if interpreter() else "no system Python that loads our extensions"


class Prefix:
    """One installation; remove() it."""

    def __init__(self, name: str = "pm-") -> None:
        self.dir = Path(tempfile.mkdtemp(prefix=name, dir=PARENT))
        self.dir.chmod(0o755)
        self.python = self.dir / "bin" / "python3"
        self.program = self.dir / "bin" / "proxymap"
        self.site = self.dir / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
        self.package = self.site / "proxymap"
        self._make()

    def _make(self) -> None:
        source = interpreter()
        assert source is not None
        (self.dir / "bin").mkdir()
        self.python.symlink_to(source)
        (self.dir / "pyvenv.cfg").write_text(f"home = {os.path.dirname(source)}\n")
        unneeded = shutil.ignore_patterns("__pycache__", "*.pyx", "*.pxd", "*.c")
        shutil.copytree(PACKAGE, self.package, ignore=unneeded)
        compileall.compile_dir(self.package, quiet=1)
        for name, module in (("proxymap", "main"), ("proxymapctl", "ctl.main")):
            path = self.dir / "bin" / name
            path.write_text(SCRIPT.format(python=self.python, module=module))
            path.chmod(0o755)

    def ctl(self, *arguments: Any, **keywords: Any) -> subprocess.CompletedProcess[str]:
        """Run proxymapctl of this installation."""
        command = [str(self.dir / "bin" / "proxymapctl"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **keywords)

    def remove(self) -> None:
        shutil.rmtree(self.dir)


@pytest.fixture(scope="module")
def prefix() -> Iterator[Prefix]:
    """An installation for a module."""
    if reason := no_prefix():
        pytest.skip(reason)
    made = Prefix()
    yield made
    made.remove()
