"""test_switch - enable and disable where something is in their way: worse answers, a throttle, odd files"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_postfix import unavailable
from fix_prefix import Prefix, no_prefix, prefix  # noqa: F401
from fix_server import wait_until
from test_takeover import OURS, STOCK, Host, only_line

from proxymap.ctl import answers, takeover
from proxymap.ctl.instance import Instance, processes_of
from proxymap.ctl.mastercf import only_entry, read_entries, set_command
from proxymap.errors import ConfigError

with_postfix = pytest.mark.skipif(
    (unavailable() or no_prefix()) is not None, reason=str(unavailable() or no_prefix())
)


@pytest.fixture
def host(prefix: Prefix) -> Iterator[Host]:  # noqa: F811
    with Host(prefix) as running:  # type: ignore[attr-defined]
        yield running


@pytest.fixture
def stopped(prefix: Prefix) -> Iterator[Host]:  # noqa: F811
    made = Host(prefix)
    yield made
    made.remove()


@pytest.fixture
def own_prefix() -> Iterator[Prefix]:
    """One that a test may break."""
    if reason := no_prefix():
        pytest.skip(reason)
    made = Prefix()
    yield made
    made.remove()


def enabled(made: Host, *arguments: str) -> None:
    done = made.ctl("enable", *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def break_ours(made: Host) -> None:
    """What master runs from now on ends at once, and what it runs now is gone."""
    made.prefix.program.write_text(f"#!{made.prefix.python}\nraise SystemExit(1)  # proxymap\n")
    for process in processes_of(Instance(str(made.config_dir)), "proxymap"):
        os.kill(process.pid, signal.SIGKILL)


def disable(made: Host) -> list[str]:
    return list(takeover.disable(Instance(str(made.config_dir), strict=False), [], False))


# Worse answers


@with_postfix
def test_table_that_would_get_worse_has_all_put_back_and_is_named(host: Host) -> None:
    """hash: where berkeleydb is not installed, as in the installation of these tests."""
    if host.postmap(f"hash:{host.tables}/v").returncode:
        pytest.skip("this Postfix has no hash tables")
    host.set(proxy_read_maps="proxy:cdb:$tables/v, proxy:hash:$tables/v")
    assert host.run("postfix", "reload").returncode == 0
    before = (host.config_dir / "master.cf").read_bytes()
    done = host.ctl("enable")
    assert done.returncode == 69
    what = only_line(done.stderr)
    assert f"hash:{host.tables}/v was answered NOKEY, and is answered RETRY by ours" in what
    assert "pip install 'berkeleydb>=" in what
    assert "master.cf is as it was before" in what
    assert (host.config_dir / "master.cf").read_bytes() == before
    assert host.servers()["proxymap"] == STOCK
    assert host.ctl("enable", "--force").returncode == 0
    assert host.servers()["proxymap"] == OURS


@with_postfix
def test_table_that_stock_does_not_answer_either_is_no_obstacle(host: Host) -> None:
    host.set(proxy_read_maps="proxy:cdb:$tables/v, proxy:cdb:$tables/missing")
    assert host.run("postfix", "reload").returncode == 0
    enabled(host)


DEADLY = "proxy:cdb:$tables/bad1, proxy:cdb:$tables/bad2, proxy:cdb:$tables/bad3"  # of which stock dies


@with_postfix
def test_running_server_is_not_asked_for_tables_that_kill_it_and_all_others_are_compared(host: Host) -> None:
    """It would be throttled, without enable having changed anything yet."""
    if host.postmap(f"hash:{host.tables}/v").returncode:
        pytest.skip("this Postfix has no hash tables")
    for number in (1, 2, 3):
        (host.tables / f"bad{number}.cdb").write_bytes(b"short")
    host.set(proxy_read_maps=f"{DEADLY}, proxy:hash:$tables/v")
    assert host.run("postfix", "reload").returncode == 0
    done = host.ctl("enable")
    assert done.returncode == 69
    assert f"hash:{host.tables}/v was answered NOKEY, and is answered RETRY by ours" in only_line(done.stderr)
    assert "throttling" not in host.log()
    assert host.servers()["proxymap"] == STOCK
    host.set(proxy_read_maps=f"{DEADLY}, proxy:cdb:$tables/v")
    enabled(host)
    assert host.answers() == b"b\n"
    assert "throttling" not in host.log()


@with_postfix
def test_understudy_has_all_descriptors_that_postfix_server_wants(host: Host) -> None:
    """Where it logs to syslog, as Debian's does, no socket of its log takes the place of one."""
    host.set(maillog_file="", syslog_facility="local7")
    instance = Instance(str(host.config_dir))
    found, left = answers.of_service(instance, only_entry(instance.directory, "proxymap"))
    assert ({asked.table: status for asked, status in found.items()}, left) == (
        {f"cdb:{host.tables}/v": "NOKEY", "unix:passwd.byname": "DENY"},
        0,
    )


@with_postfix
def test_server_that_does_not_start_has_nothing_to_compare(host: Host) -> None:
    host.set(proxy_read_maps="${no_end")  # of which Postfix's own dies
    instance = Instance(str(host.config_dir))
    assert answers.of_service(instance, only_entry(instance.directory, "proxymap"))[0] == {}


@with_postfix
def test_tables_that_there_is_no_time_for_are_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "own_program", lambda: str(host.prefix.program))
    monkeypatch.setattr(answers, "ALL_LIMIT", 0.0)  # local_recipient_maps has one by default
    host.set(proxy_read_maps="proxy:cdb:$tables/v, proxy:cdb:$tables/w")
    told = list(takeover.enable(Instance(str(host.config_dir)), ["proxymap"], False))
    assert told[0] == "warning: proxymap: 3 tables are not compared: no answer, or not in time"


@with_postfix
def test_status_asks_postfix_server_nothing_that_kills_it(host: Host) -> None:
    (host.tables / "bad1.cdb").write_bytes(b"short")
    host.set(proxy_read_maps="proxy:cdb:$tables/bad1")
    assert host.run("postfix", "reload").returncode == 0
    assert "answers (greeting)" in host.ctl("status").stdout.splitlines()[0]
    assert "fatal" not in host.log()


# Ours fails, but only under master


def dies_under_master(made: Prefix) -> None:
    """Have the program pass the rehearsal, whose GENERATION is 0, and end at once under a master."""
    text = made.program.read_text()
    dies = "import os, sys\nif os.environ['GENERATION'] != '0':\n    sys.exit(1)\n"
    made.program.write_text(text.replace("import sys\n", dies, 1))


@pytest.fixture
def doomed(own_prefix: Prefix) -> Iterator[Host]:
    """A running Postfix that has had a reload, and a program that dies there."""
    dies_under_master(own_prefix)
    with Host(own_prefix) as host:  # type: ignore[attr-defined]
        host.set(service_throttle_time="5s")
        assert host.run("postfix", "reload").returncode == 0
        assert host.answers() == b"b\n"
        yield host


@with_postfix
def test_enable_does_not_wait_for_a_throttle_that_ours_has_caused(
    doomed: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trying ours again would prolong it: clients wait for Postfix's server, which is back after it."""
    monkeypatch.setattr(takeover, "own_program", lambda: str(doomed.prefix.program))
    monkeypatch.setattr(takeover, "ANSWER_LIMIT", 2.0)
    told: list[str] = []
    what = r"no answer from .* within 2 s.*as it was before; .* within 5 s \(service_throttle_time\)"
    with pytest.raises(takeover.Failed, match=what):
        told.extend(takeover.enable(Instance(str(doomed.config_dir)), ["proxymap"], False))
    assert not told
    assert doomed.log().count("throttling") == 1
    assert doomed.command() == "proxymap"
    assert doomed.answers() == b"b\n"
    assert doomed.servers()["proxymap"] == STOCK
    assert "not enabled" in doomed.ctl("disable").stdout


@with_postfix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_enable_that_is_interrupted_puts_all_back(doomed: Host, number: signal.Signals) -> None:
    """As by a connection that is lost."""
    before = (doomed.config_dir / "master.cf").read_bytes()
    command = [str(doomed.prefix.dir / "bin" / "proxymapctl"), "-c", str(doomed.config_dir), "enable"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        wait_until(lambda: "throttling" in doomed.log(), "a throttle")
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
    assert (running.returncode, said) == (69, "proxymapctl: interrupted; master.cf is as it was before\n")
    assert (doomed.config_dir / "master.cf").read_bytes() == before
    assert not (doomed.config_dir / takeover.MEMORY).exists()


# disable, whatever is wrong


@with_postfix
def test_disable_knows_ours_by_its_place_when_the_file_is_spoilt(own_prefix: Prefix) -> None:
    """As by an installation that was cut short."""
    host = Host(own_prefix)
    try:
        enabled(host)
        own_prefix.program.write_text("")
        done = host.ctl("disable")
        assert (done.returncode, done.stderr, host.command()) == (0, "", "proxymap")
    finally:
        host.remove()


@with_postfix
def test_disable_takes_postfix_own_where_what_was_before_is_gone(stopped: Host) -> None:
    wrapper = stopped.dir / "wrapper" / "proxymap"
    wrapper.parent.mkdir()
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    stopped.run("postconf", "-F", f"proxymap/unix/command=../../../..{wrapper}")
    enabled(stopped)
    wrapper.unlink()
    done = stopped.ctl("disable")
    assert (done.returncode, done.stderr, stopped.command()) == (0, "", "proxymap")
    assert "wrapper/proxymap, which was there before, cannot be run" in done.stdout


@with_postfix
def test_command_of_before_is_remembered_before_it_is_replaced(
    stopped: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a kill amid enable loses nothing."""
    command = "../../../bin/true"
    stopped.run("postconf", "-F", f"proxymap/unix/command={command}")
    remembered = []

    def look(entry: object, command: str, in_place: bool = False) -> None:
        remembered.append((stopped.config_dir / takeover.MEMORY).read_text().splitlines()[-1])

    monkeypatch.setattr(takeover, "own_program", lambda: str(stopped.prefix.program))
    monkeypatch.setattr(takeover, "set_command", look)
    list(takeover.enable(Instance(str(stopped.config_dir)), ["proxymap"], False))
    assert remembered == [f"proxymap/unix = {command}"]


@with_postfix
def test_disable_waits_out_a_throttle_and_says_so(
    own_prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Host(own_prefix) as host:  # type: ignore[attr-defined]
        host.set(service_throttle_time="10s")
        enabled(host)
        break_ours(host)
        ask = ["postmap", "-c", str(host.config_dir), "-q", "a", f"proxy:cdb:{host.tables}/v"]
        with subprocess.Popen(ask, stdout=subprocess.PIPE) as client:
            wait_until(lambda: "throttling" in host.log(), "a throttle")
            monkeypatch.setattr(takeover, "ANSWER_LIMIT", 1.0)
            monkeypatch.setattr(takeover, "AFTER_THROTTLE", 30.0)
            told = disable(host)
            assert "proxymap: no server yet" in told[0]
            assert "10 s (service_throttle_time)" in told[0]
            assert told[1].startswith("proxymap: Postfix's proxymap, pid ")
            assert host.command() == "proxymap"
            assert client.communicate(timeout=60)[0] == b"b\n"


@with_postfix
def test_disable_that_sees_no_answer_leaves_the_stock_command(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled(host)
    monkeypatch.setattr(takeover, "ANSWER_LIMIT", 0.5)
    monkeypatch.setattr(takeover, "AFTER_THROTTLE", 0.5)
    monkeypatch.setattr(Instance, "throttle", 0)
    monkeypatch.setattr(takeover, "STOCKS", "a server that is never there")
    with pytest.raises(takeover.Failed, match=r'as it was before "enable", but proxymap: no answer'):
        disable(host)
    assert host.command() == "proxymap"


@with_postfix
def test_disable_without_service_undoes_both(host: Host) -> None:
    enabled(host, "--service", "both")
    done = host.ctl("disable")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 2)
    assert (host.command(), host.command("proxywrite")) == ("proxymap", "proxymap")
    assert host.servers() == {"proxymap": STOCK, "proxywrite": STOCK}


@with_postfix
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("proxymap.cf", "no such line\n"),
        ("proxymap.cf", "cache_size = nonsense\n"),
        ("main.cf", "multi_instance_name = ${later{form}}\n"),
        ("main.cf", "smtputf8_enable = perhaps\n"),
        ("main.cf", "what is this\n"),
        ("master.cf", "too short\n"),
        ("master.cf", "x unix - -\xa0 n - - y\n"),
    ],
)
def test_disable_works_whatever_is_wrong(stopped: Host, file: str, text: str) -> None:
    enabled(stopped, "--service", "both")
    with (stopped.config_dir / file).open("a") as opened:
        opened.write(text)
    done = stopped.ctl("disable")
    found = read_entries(str(stopped.config_dir), strict=False)
    commands = [entry.command for entry in found if entry.service in ("proxymap", "proxywrite")]
    assert commands == ["proxymap", "proxymap"]
    assert done.returncode == 0 or "master.cf is as it was before" in done.stderr


@with_postfix
def test_disable_works_without_our_extensions_and_with_double_entries(own_prefix: Prefix) -> None:
    """As after an upgrade of Python."""
    host = Host(own_prefix)
    try:
        enabled(host)
        path = host.config_dir / "master.cf"
        path.write_text(path.read_text() + path.read_text())
        for module in own_prefix.package.rglob("*.so"):
            module.write_bytes(b"of another Python")
        done = host.ctl("disable")
        assert (done.returncode, done.stderr) == (0, "")
        commands = [e.command for e in read_entries(str(host.config_dir)) if e.service.startswith("proxy")]
        assert commands == ["proxymap"] * 4
    finally:
        host.remove()


@with_postfix
def test_disable_asks_postfix_server_nothing_that_kills_it(host: Host) -> None:
    """A damaged lmdb table ends the process, and a process that ends at once is throttled."""
    enabled(host)
    (host.tables / "l.lmdb").write_bytes(b"\xff" * 8192)
    host.set(proxy_read_maps="proxy:lmdb:$tables/l")
    done = host.ctl("disable")
    assert (done.returncode, done.stderr) == (0, "")
    assert "answers (greeting)" in done.stdout
    assert "throttling" not in host.log()


# Odd files


LINES = """\
# proxymap unix - - n - - proxymap
proxymap unix\t-  -
# in between
\t n - -   proxymap -v \r
  -o { a = b  c }
smtp inet n - n - - smtpd
"""


def test_command_is_changed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "master.cf"
    path.write_bytes(LINES.encode())
    path.chmod(0o640)
    set_command(only_entry(str(tmp_path), "proxymap"), "../x/proxymap")
    assert path.read_bytes() == LINES.replace("-   proxymap -v", "-   ../x/proxymap -v").encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["master.cf"]
    old = only_entry(str(tmp_path), "proxymap")
    path.write_text("# another line\n" + LINES)
    with pytest.raises(ConfigError, match="changed meanwhile"):
        set_command(old, "y")


@with_postfix
def test_enable_waits_for_no_other_and_changes_nothing_meanwhile(stopped: Host) -> None:
    """What it puts back where it fails is what it found: that may have been replaced by then."""
    path = stopped.config_dir / "master.cf"
    before = path.read_bytes()
    directory = os.open(stopped.config_dir, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        done = stopped.ctl("enable")
        assert done.returncode == 77
        assert 'another "proxymapctl enable" is at work' in done.stderr
        assert path.read_bytes() == before
    finally:
        os.close(directory)
    enabled(stopped)


@with_postfix
def test_symbolic_link_stays_one(stopped: Host) -> None:
    real = stopped.config_dir / "real" / "master.cf"
    real.parent.mkdir()
    link = stopped.config_dir / "master.cf"
    shutil.move(link, real)
    link.symlink_to("real/master.cf")
    before = real.read_bytes()
    enabled(stopped)
    assert os.readlink(link) == "real/master.cf"
    assert str(stopped.prefix.program) in real.read_text()
    assert stopped.ctl("disable").returncode == 0
    assert os.readlink(link) == "real/master.cf"
    assert real.read_bytes() == before


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that may mount what only it sees; skips where that is not allowed."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces are allowed here")
    command = ["unshare", "-m", "--propagation", "private", "sh", "-ec", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@with_postfix
def test_bind_mount_is_told_with_the_way_that_works_there(stopped: Host) -> None:
    path, other = stopped.config_dir / "master.cf", stopped.config_dir / "mounted"
    shutil.copy(path, other)
    before = path.read_bytes()
    ctl = f"{stopped.prefix.dir}/bin/proxymapctl -c {stopped.config_dir}"
    done = in_namespace(f"mount --bind {other} {path}; {ctl} enable")
    assert done.returncode == 69
    assert f"{path}: Device or resource busy" in only_line(done.stderr)
    assert "set proxymap_service_name = NAME" in done.stderr
    assert "master.cf is as it was before" in done.stderr
    assert path.read_bytes() == other.read_bytes() == before
    enabled(stopped)
    shutil.copy(path, other)
    done = in_namespace(f"mount --bind {other} {path}; {ctl} disable")
    assert (done.returncode, done.stderr) == (0, "")
    assert other.read_bytes() == before


@with_postfix
def test_first_error_is_the_one_that_is_shown(stopped: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if nothing can be put back either."""
    calls: list[str] = []

    def fail(entry: object, command: str, in_place: bool = False) -> None:
        calls.append(command)
        if len(calls) > 1:
            raise ConfigError(f"error {len(calls) - 1}")
        set_command(entry, command)  # type: ignore[arg-type]

    monkeypatch.setattr(takeover, "own_program", lambda: str(stopped.prefix.program))
    monkeypatch.setattr(takeover, "set_command", fail)
    with pytest.raises(takeover.Failed, match=r"^error 1; and master.cf could not be put back: error 2"):
        list(takeover.enable(Instance(str(stopped.config_dir)), ["proxymap", "proxywrite"], False))
