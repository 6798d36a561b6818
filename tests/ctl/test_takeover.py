"""test_takeover - enable, disable and status, with a real master: who is in charge, and what if it fails

Each test has a private Postfix, and an installation of ours that master may run.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_postfix import MASTER, StockPostfix, daemon_directory, unavailable
from fix_prefix import Prefix, no_prefix
from fix_server import OWN

from proxymap import Client, NotApproved
from proxymap.config.maincf import UNUSABLE
from proxymap.ctl import takeover
from proxymap.ctl.instance import Instance, duration
from proxymap.ctl.mastercf import entry_of, read_entries

pytestmark = pytest.mark.skipif(
    (unavailable() or no_prefix()) is not None, reason=str(unavailable() or no_prefix())
)


class Host(StockPostfix):
    """A private Postfix with all queue directories, as `postfix reload` wants them, and a cdb table `v`."""

    def __init__(
        self, prefix: Prefix, master: str = MASTER, maps: str | None = "proxy:cdb:$tables/v"
    ) -> None:
        super().__init__({} if maps is None else {"proxy_read_maps": maps}, master)
        self.prefix = prefix
        self.run("postfix", "check")
        (self.tables / "v").write_text("a b\n")
        self.postmap(f"cdb:{self.tables}/v", check=True)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [program, "-c", str(self.config_dir), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def ctl(self, *arguments: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
        return self.prefix.ctl("-c", self.config_dir, *arguments, **keywords)

    def command(self, service: str = "proxymap") -> str:
        entry = entry_of(read_entries(str(self.config_dir)), service)
        assert entry is not None
        return entry.command

    def servers(self) -> dict[str, set[str]]:
        """Who answers for each service, as `status` tells."""
        done = self.ctl("status", "--json")
        assert done.returncode == 0, done.stderr
        states = [json.loads(line) for line in done.stdout.splitlines()]
        return {s["service"]: {process["server"] for process in s["processes"]} for s in states}

    def answers(self) -> bytes:
        """What Postfix's own client gets; at a reload it may have had to ask twice."""
        return self.postmap("-q", "a", f"proxy:cdb:{self.tables}/v").stdout


OURS, STOCK = {"proxymap (Python)"}, {"Postfix's proxymap"}


@pytest.fixture
def host(prefix: Prefix) -> Iterator[Host]:
    with Host(prefix) as running:  # type: ignore[attr-defined]
        yield running


@pytest.fixture
def stopped(prefix: Prefix) -> Iterator[Host]:
    made = Host(prefix)
    yield made
    made.remove()


def only_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text


# In charge, and not


def test_enable_puts_ours_in_charge_and_disable_the_stock_one_back(host: Host) -> None:
    before = (host.config_dir / "master.cf").read_text().split()
    done = host.ctl("enable")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"answers (lookup in cdb:{host.tables}/v: NOKEY)" in only_line(done.stdout)
    assert host.command() == f"../../../..{host.prefix.program}"
    assert host.servers() == {"proxymap": OURS, "proxywrite": STOCK}
    assert host.answers() == b"b\n"
    done = host.ctl("disable")
    assert (done.returncode, done.stderr) == (0, "")
    assert only_line(done.stdout).startswith("proxymap: Postfix's proxymap, pid ")
    assert host.servers() == {"proxymap": STOCK, "proxywrite": STOCK}
    assert host.answers() == b"b\n"
    assert sorted((host.config_dir / "master.cf").read_text().split()) == sorted(before)


def test_upgrade_configuration_leaves_ours_in_charge(host: Host) -> None:
    assert host.ctl("enable", "--service", "both").returncode == 0
    commands = host.command(), host.command("proxywrite")
    for _ in range(2):
        done = host.run("postfix", "upgrade-configuration")
        assert done.returncode == 0
        assert "proxymap" not in done.stdout
    assert (host.command(), host.command("proxywrite")) == commands
    assert host.run("postfix", "reload").returncode == 0
    assert host.answers() == b"b\n"
    assert host.servers() == {"proxymap": OURS, "proxywrite": OURS}
    assert host.ctl("disable", "--service", "both").returncode == 0
    assert host.run("postfix", "upgrade-configuration").returncode == 0
    assert host.servers() == {"proxymap": STOCK, "proxywrite": STOCK}


def test_postfix_check_has_nothing_new_to_say(host: Host) -> None:
    def said() -> str:
        host.log_file.write_text("")
        return "".join(host.run(*command).stderr for command in (("postfix", "check"), ("postconf", "-M")))

    before = said()
    assert host.ctl("enable", "--service", "both").returncode == 0
    assert said() == before
    assert "proxymap" not in host.log()


def test_twice_is_told(host: Host) -> None:
    done = host.ctl("disable")
    assert (done.returncode, done.stdout) == (
        0,
        "proxymap: not enabled: the command in master.cf is proxymap\n",
    )
    host.ctl("enable")
    done = host.ctl("enable")
    assert (done.returncode, done.stdout) == (
        0,
        f"proxymap: {host.prefix.program} is in charge already\n",
    )


def test_command_of_before_comes_back(host: Host) -> None:
    """One that is neither Postfix's nor ours."""
    wrapper = host.prefix.dir / "wrapper" / "proxymap"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {daemon_directory()}/proxymap "$@"\n')
    wrapper.chmod(0o755)
    command = f"../../../..{wrapper}"
    host.run("postconf", "-F", f"proxymap/unix/command={command}")
    memory = host.config_dir / takeover.MEMORY
    assert host.ctl("enable").returncode == 0
    assert f"proxymap/unix = {command}\n" in memory.read_text()
    assert host.ctl("disable").returncode == 0
    assert host.command() == command
    assert not memory.exists()
    assert "not enabled" in host.ctl("disable").stdout


def test_arguments_are_kept_and_count(prefix: Prefix) -> None:
    master = MASTER.replace(
        "proxymap  unix  -  -  n  -  -  proxymap", "proxymap unix - - n - - proxymap\n  -o max_idle=7 -v"
    )
    with Host(prefix, master) as host:  # type: ignore[attr-defined]
        assert host.ctl("enable").returncode == 0
        entry = entry_of(read_entries(str(host.config_dir)), "proxymap")
        assert entry is not None
        assert entry.arguments == ("-o", "max_idle=7", "-v")
        assert host.servers()["proxymap"] == OURS


def test_unserved_types_are_told(host: Host) -> None:
    host.set(proxy_read_maps="proxy:cdb:$tables/v proxy:nis:x")
    done = host.ctl("enable", "--dry-run")
    assert "warning: proxymap: nis:x is of no type that is served" in done.stdout


def test_main_cf_without_proxy_read_maps(prefix: Prefix) -> None:
    """The default of the installed release: start, lookups in both dialects, reload, disable, enable."""
    host = Host(prefix, maps=None)
    table, key = "unix:passwd.byname", "postfix"

    def asked() -> dict[str, set[str]]:
        done = host.postmap("-q", key, f"proxy:{table}")
        assert (done.returncode, done.stderr, done.stdout[:8]) == (0, b"", b"postfix:")
        return host.servers()

    try:
        assert host.ctl("enable", "--service", "both").returncode == 0
        host.start()
        assert asked() == {"proxymap": OURS, "proxywrite": OURS}
        for dialect in ("3.6", "3.11"):
            with Client(host.socket(), dialect=dialect, timeout=60) as client:
                assert (client.lookup(table, key) or b"").startswith(b"postfix:")
                assert client.lookup(table, "nobody-of-this-name") is None
                with pytest.raises(NotApproved):
                    client.lookup("cdb:/elsewhere", key)
        assert host.run("postfix", "reload").returncode == 0
        assert asked() == {"proxymap": OURS, "proxywrite": OURS}
        for command, servers in (("disable", STOCK), ("enable", OURS), ("disable", STOCK)):
            done = host.ctl(command, "--service", "both")
            assert (done.returncode, done.stderr) == (0, "")
            assert asked() == {"proxymap": servers, "proxywrite": servers}
        assert UNUSABLE not in host.log()
        assert not re.search(r" (error|fatal|panic): ", host.log())
    finally:
        host.remove()


# What changes nothing


def test_dry_run_prints_the_commands(host: Host) -> None:
    before = (host.config_dir / "master.cf").read_text()
    done = host.ctl("enable", "--dry-run", "--service", "both")
    command = f"/unix/command=../../../..{host.prefix.program}"
    postconf, postfix = (
        f"/usr/sbin/postconf -c {host.config_dir} -F",
        f"/usr/sbin/postfix -c {host.config_dir}",
    )
    assert done.stdout.splitlines() == [
        f"{postconf} proxymap{command}",
        f"{postconf} proxywrite{command}",
        f"{postfix} reload",
    ]
    assert (host.config_dir / "master.cf").read_text() == before
    assert host.servers()["proxymap"] == STOCK


def test_stopped_postfix_is_not_started(stopped: Host) -> None:
    done = stopped.ctl("enable")
    command = f"../../../..{stopped.prefix.program}"
    assert (done.returncode, done.stdout) == (0, f"proxymap: {command} from the next start on\n")
    assert "Postfix is not running" in stopped.ctl("status").stdout
    stopped.start()
    assert stopped.servers()["proxymap"] == OURS


def test_unsafe_installation_is_refused(stopped: Host) -> None:
    stopped.prefix.package.chmod(0o777)
    try:
        done = stopped.ctl("enable")
    finally:
        stopped.prefix.package.chmod(0o755)
    assert done.returncode == 77
    assert f"proxymapctl: refused: {stopped.prefix.package}: others may write to it (mode 777)" in done.stderr
    assert stopped.command() == "proxymap"


def test_path_that_upgrade_configuration_would_break_is_refused() -> None:
    made = Prefix("pm-proxymap")
    host = Host(made)
    try:
        done = host.ctl("enable")
        assert done.returncode == 77
        assert '"1proxymap" of "-proxymap"' in only_line(done.stderr)
    finally:
        host.remove()
        made.remove()


def test_others_than_root_may_look_only(host: Host) -> None:
    done = host.ctl("enable", user="nobody")
    assert done.returncode == 77
    assert "only root may change it; run this as root, or with --dry-run" in only_line(done.stderr)
    assert host.ctl("enable", "--dry-run", user="nobody").stdout.count("\n") == 2
    assert "run this as root to see who answers" in host.ctl("status", user="nobody").stdout


def test_double_entries_are_refused(prefix: Prefix) -> None:
    host = Host(prefix, MASTER + "proxymap unix - - n - - proxymap\n")
    done = host.ctl("enable")
    host.remove()
    assert done.returncode == 78
    assert "2 entries" in only_line(done.stderr)


def test_daemon_that_does_not_start_is_found_before_anything_changes(host: Host) -> None:
    """Else master would hold the service back for a minute, whatever is put back."""
    path = host.prefix.package / "server/daemon.py"
    text = path.read_text()
    path.write_text("raise RuntimeError('no such luck')\n")
    try:
        done = host.ctl("enable")
    finally:
        path.write_text(text)
    assert done.returncode == 77
    assert "no such luck" in only_line(done.stderr)
    assert host.command() == "proxymap"
    assert "throttling" not in host.log()


def test_bad_option_of_the_service_is_found_before_anything_changes(prefix: Prefix) -> None:
    host = Host(prefix, MASTER.replace("-  -  proxymap", "-  -  proxymap -Q"))
    done = host.ctl("enable")
    host.remove()
    assert done.returncode == 77
    assert f"{prefix.program}: does not work as proxymap: " in only_line(done.stderr)


# Put back


def test_all_is_put_back_if_ours_does_not_answer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (host.config_dir / "master.cf").read_text().split()
    monkeypatch.setattr(takeover, "own_program", lambda: str(host.prefix.program))
    monkeypatch.setattr(takeover, "OURS", "a server that is never there")
    monkeypatch.setattr(takeover, "ANSWER_LIMIT", 1.0)
    told: list[str] = []
    with pytest.raises(takeover.Failed, match=r"proxymap: no answer from .* within 1 s.*as it was before"):
        told.extend(takeover.enable(Instance(str(host.config_dir)), ["proxymap", "proxywrite"], False))
    assert not told
    assert sorted((host.config_dir / "master.cf").read_text().split()) == sorted(before)
    assert host.answers() == b"b\n"
    assert host.servers() == {"proxymap": STOCK, "proxywrite": STOCK}


def test_all_is_put_back_if_reload_fails(host: Host) -> None:
    (host.queue_dir / "active").rmdir()
    done = host.ctl("enable")
    assert done.returncode == 69
    assert "open directory active" in only_line(done.stderr)
    assert "as it was before" in done.stderr
    assert host.command() == "proxymap"


# status


def test_status_for_people(host: Host) -> None:
    lines = host.ctl("status").stdout.splitlines()
    assert lines[0].startswith(f"proxymap: master runs {daemon_directory()}/proxymap (Postfix's proxymap ")
    assert "; Postfix's proxymap, pid " in lines[0]
    assert lines[1].endswith("answers (greeting)")


def test_status_for_programs(host: Host) -> None:
    host.ctl("enable")
    state = json.loads(host.ctl("status", "--json").stdout.splitlines()[0])
    (process,) = state.pop("processes")
    assert state == {
        "service": "proxymap",
        "command": f"../../../..{host.prefix.program}",
        "program": str(host.prefix.program),
        "configured": "proxymap (Python)",
        "version": "0.1.0",
        "answer": f"lookup in cdb:{host.tables}/v: NOKEY",
        "trouble": None,
    }
    assert Path(f"/proc/{process['pid']}/cmdline").read_bytes().count(str(host.prefix.program).encode()) == 1
    assert 0 <= process["uptime"] < 60
    assert process["sandbox"].startswith("Landlock ABI" if OWN.get("sandbox") == "yes" else "none")


def test_missing_entry_is_told(prefix: Prefix) -> None:
    host = Host(prefix, MASTER.replace("proxywrite unix", "other unix"))
    lines = host.ctl("status").stdout.splitlines()
    host.remove()
    assert lines[1] == "proxywrite: no entry in master.cf"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (3e6, "35 days")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
