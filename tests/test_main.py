"""test_main - the daemon's options are getopt(3)'s, and its start loads no more than it needs"""

from __future__ import annotations

import getopt
import subprocess
import sys
from pathlib import Path

import pytest
from fix_postfix import daemon_directory, release
from hypothesis import given
from hypothesis import strategies as st

from proxymap import main
from proxymap.errors import ConfigError

ROOT = Path(main.__file__).parents[1]
WORDS = [
    *("-", "--", "-v", "-vV", "-o", "-ox=y", "-vo", "-vox=y", "-:", "-x", "-n", "proxywrite", "", "=", "-="),
    *("--listen", "--listen=", "--listen=unix:/x", "--version", "--version=1", "--no-such", "--user", "é"),
]
# Parts of the standard library that take longer to import than all of ours, and are used later or never.
LATER = ["getopt", "gettext", "re", "socket", "selectors", "traceback", "linecache", "json", "queue"]


def is_no_abbreviation(word: str) -> bool:
    """getopt takes --v for --version."""
    return not word.startswith("--") or len(word) == 2


@given(
    st.lists(
        st.one_of(st.sampled_from(WORDS), st.text(alphabet="-=:vo n", max_size=4).filter(is_no_abbreviation)),
        max_size=5,
    )
)
def test_options_are_those_of_getopt(arguments: list[str]) -> None:
    wanted: object
    try:
        wanted, rest = getopt.getopt(arguments, main.SHORT, main.LONG)
        if rest:
            wanted = f"unexpected command-line argument: {rest[0]}"
    except getopt.GetoptError as error:
        wanted = str(error)
    try:
        found: object = list(main.taken_apart(arguments))
    except ConfigError as error:
        found = str(error).removesuffix("; see proxymap --help")
    assert found == wanted


def loaded_by(module: str) -> list[str]:
    """What is imported with the module by an interpreter that has loaded nothing else."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("module", ["proxymap.main", "proxymap.server.master"])
def test_start_loads_nothing_that_is_used_later(module: str) -> None:
    own = set(loaded_by("sys"))  # Python 3.14 itself loads linecache for -c
    assert set(LATER) & set(loaded_by(module)) - own == set()


EXPORTED = """
proxy_read_maps = unionmap:{cdb:/q, proxy:cdb:/r} static:x proxy:pipemap:{a:b, proxy:c:d} {proxy:cdb:/in} no
    :baz proxy:proxy:hash:/b !cdb:/not debug:proxy:cdb:/d {check_x cdb:/later} proxy:cdb:/r
proxy_write_maps = proxy:lmdb:/w, lmdb:/v
"""
APPROVED = ["cdb:/in", "cdb:/r", "hash:/b", "pipemap:{a:b, proxy:c:d}"]
EXPORTS = {  # as proxymap of Postfix 3.11.7 prints them
    "export-proxy-proxymap": APPROVED,
    "export-all-proxymap": sorted([*APPROVED, "cdb:/q", "debug:proxy:cdb:/d", "static:x"]),
    "export-proxy-proxywrite": ["lmdb:/w"],
    "export-all-proxywrite": ["lmdb:/v", "lmdb:/w"],
}


@pytest.mark.parametrize("service", EXPORTS)
@pytest.mark.parametrize("transport", [[], ["-t", "unix"]], ids=["by hand", "as stock"])
def test_export_prints_the_tables_of_the_list(tmp_path: Path, service: str, transport: list[str]) -> None:
    (tmp_path / "main.cf").write_text(f"mail_owner = nobody\n{EXPORTED}")
    command = [
        sys.executable,
        "-m",
        "proxymap",
        "--config-directory",
        str(tmp_path),
        "-n",
        service,
        *transport,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == EXPORTS[service]
    assert done.stderr == ""


@pytest.mark.skipif(release() < (3, 11), reason="from Postfix 3.11 on")
@pytest.mark.parametrize("service", EXPORTS)
def test_stock_exports_the_same(tmp_path: Path, service: str) -> None:
    (tmp_path / "main.cf").write_text(f"compatibility_level = 3.6\n{EXPORTED}")
    command = [f"{daemon_directory()}/proxymap", "-n", service, "-t", "unix"]
    environment = {"MAIL_CONFIG": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stdout.splitlines() == EXPORTS[service]
