"""test_deb - the Debian package: its files agree with the rest, and its scripts switch back what is on

`make test-deb` builds it, and tries it in a clean Debian; nothing is built here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_postfix import StockPostfix, daemon_directory, unavailable

import proxymap
from proxymap.base.packages import PACKAGES
from proxymap.ctl import instance

ROOT = Path(__file__).resolve().parent.parent
DEBIAN = ROOT / "packaging/debian"
ARGUMENTS = "-o max_idle=9s -o syslog_name=first -o {proxy_read_maps=proxy:cdb:/a proxy:cdb:/b}"


# Its files


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first = (DEBIAN / "changelog").read_text().partition("\n")[0]
    assert re.fullmatch(rf"proxymap \({re.escape(project['version'])}-\d+\) unstable; urgency=\w+", first)
    assert project["version"] == proxymap.__version__


def test_suggested_packages_are_those_of_the_messages() -> None:
    control = (DEBIAN / "control").read_text()
    suggested = set(re.findall(r"(python3-\w+) \(>= ([\d.]+)\)", control))
    wanted = {
        (package, requirement.partition(">=")[2]) for requirement, package in PACKAGES.values() if package
    }
    assert suggested == wanted


@pytest.mark.parametrize("name", ["docs", "examples"])
def test_what_is_installed_is_there(name: str) -> None:
    for line in (DEBIAN / name).read_text().split():
        assert (ROOT / line).exists(), line


def test_rules_find_what_they_copy() -> None:
    rules = (DEBIAN / "rules").read_text()
    for path in set(re.findall(r"\bcontrib/[\w.]+", rules)):
        assert (ROOT / path).exists(), path
    assert re.search(r"^ExecStart=\S+/proxymap ", (ROOT / "contrib/proxymap.service").read_text(), re.M)
    assert os.access(DEBIAN / "rules", os.X_OK)
    assert os.access(DEBIAN / "switched", os.X_OK)


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch is not installed")
def test_patch_for_older_setuptools_applies(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (DEBIAN / "patches/older-setuptools.patch").open() as patch:
        subprocess.run(["patch", "-p1", "--fuzz=0"], cwd=tmp_path, stdin=patch, check=True)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert project["license"] == {"text": "IPL-1.0"}
    assert "license-files" not in project


# The daemon of the tool


def test_the_daemon_lies_beside_the_tool_and_not_beside_a_link_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("lib", "sbin"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "proxymap").touch()
    (tmp_path / "lib/proxymapctl").touch()
    (tmp_path / "sbin/proxymapctl").symlink_to("../lib/proxymapctl")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "sbin/proxymapctl")])
    assert instance.own_program() == str(tmp_path / "lib/proxymap")


# Its script for Postfix's instances


class Package:
    """What the package has in /usr/lib/proxymap, in another folder, and two instances whose master runs it.

    The tool does not work, as when Python is broken.
    """

    def __init__(self, folder: Path, postfix: StockPostfix) -> None:
        self.folder = folder
        self.first, self.second = postfix.config_dir, folder / "second"
        for name in ("proxymap", "proxymapctl"):
            self.script(name, "exit 1")
        shutil.copy(DEBIAN / "switched", folder)
        shutil.copytree(self.first, self.second)
        self.script("bin/postmulti", f"echo '- - y {self.first}'; echo 'out - y {self.second}'")
        self.script("bin/postfix", f'echo "$@" >>{folder}/calls')
        self.script("bin/systemctl", f"echo ListenStream={postfix.queue_dir}/private/proxymap-fast")
        self.command = os.path.relpath(folder / "proxymap", os.path.realpath(daemon_directory()))

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, action: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        command = ["sh", str(self.folder / "switched"), action]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def set(self, folder: Path, service: str, command: str) -> None:
        self.postconf(folder, "-F", f"{service}/unix/command={command}")

    def commands(self, folder: Path) -> list[str]:
        text = self.postconf(folder, "-Fh", "*/unix/command")
        return re.sub(r"\n\s+", " ", text).splitlines()  # postconf folds what is long

    def postconf(self, folder: Path, *arguments: str) -> str:
        command = ["postconf", "-c", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Package]:
    if reason := unavailable():
        pytest.skip(reason)
    postfix = StockPostfix()
    yield Package(tmp_path.resolve(), postfix)
    postfix.stop()


def test_nothing_is_done_where_nothing_is_on(package: Package) -> None:
    package.set(package.first, "proxymap", "../../../../opt/proxymap/bin/proxymap")  # another installation
    (package.first / "proxymap.previous").write_text("# its\n")
    before = (package.first / "master.cf").read_text()
    assert package.run("list").stdout == ""
    for action in ("reload", "back"):
        assert package.run(action).returncode == 0
    assert (package.first / "master.cf").read_text() == before
    assert (package.first / "proxymap.previous").exists()
    assert package.calls() == []


def test_all_instances_get_back_what_they_ran_without_the_tool(package: Package) -> None:
    package.set(package.first, "proxymap", f"{package.command} -v {ARGUMENTS}")
    package.set(package.second, "proxymap", package.command)
    package.set(package.second, "proxywrite", package.command)
    (package.second / "proxymap.previous").write_text("# ours\nproxywrite/unix = postlogd\n")
    listed = package.run("list").stdout.split("\n")
    assert listed == [
        f"{package.first} proxymap", f"{package.second} proxymap", f"{package.second} proxywrite", "",
    ]  # fmt: skip
    done = package.run("back")
    assert done.returncode == 0, done.stderr
    assert package.commands(package.first) == [f"proxymap -v {ARGUMENTS}", "proxymap"]
    assert package.commands(package.second) == ["proxymap", "postlogd"]
    assert not (package.second / "proxymap.previous").exists()
    assert package.calls() == [
        f"-c {folder} {word}" for folder in (package.first, package.second) for word in ("status", "reload")
    ]


def test_an_upgrade_to_a_server_that_does_not_start_switches_back(package: Package) -> None:
    package.set(package.first, "proxymap", package.command)
    done = package.run("reload")
    assert "the new server does not start" in done.stderr
    assert package.commands(package.first) == ["proxymap", "proxymap"]


@pytest.mark.parametrize(
    ("status", "said"), [(0, "fine"), (77, "refused: /usr/local: others may write to it")]
)
def test_an_upgrade_reloads_what_is_on(package: Package, status: int, said: str) -> None:
    package.script("proxymapctl", f"echo '{said}'; exit {status}")
    package.set(package.second, "proxywrite", package.command)
    assert package.run("reload").returncode == 0
    assert package.commands(package.second) == ["proxymap", package.command]
    assert package.calls() == [f"-c {package.second} status", f"-c {package.second} reload"]


def test_the_socket_of_the_unit_is_not_asked_for_any_more(package: Package) -> None:
    package.postconf(package.first, "-e", "proxymap_service_name=proxymap-fast")
    package.postconf(package.second, "-e", "proxymap_service_name=somebody-elses")
    assert package.run("back").returncode == 0
    assert package.postconf(package.first, "-h", "proxymap_service_name") == "proxymap\n"
    assert package.postconf(package.second, "-h", "proxymap_service_name") == "somebody-elses\n"


def test_a_removal_fails_where_master_cf_cannot_be_changed(package: Package) -> None:
    package.set(package.first, "proxymap", package.command)
    package.script(
        "bin/postconf", f'case " $* " in *" -F "*=*) exit 1 ;; esac; exec {shutil.which("postconf")} "$@"'
    )
    done = package.run("back")
    assert done.returncode == 1
    assert f"{package.first}/master.cf still runs {package.folder}/proxymap" in done.stderr


def test_words_of_a_server_that_does_not_start_are_those_of_proxymapctl() -> None:
    """By them, not by the status, an upgrade tells a dead server from a folder that is open to others."""
    words = re.findall(r'\*"([a-z ]+)"\*', (DEBIAN / "switched").read_text())
    said = "".join((ROOT / "proxymap/ctl" / name).read_text() for name in ("rehearsal.py", "safety.py"))
    assert len(words) == 2
    assert all(word in said for word in words)
