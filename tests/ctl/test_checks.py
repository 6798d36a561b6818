"""test_checks - proxymapctl check: each fault is found, named with its place, and has a remedy"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_prefix import Prefix
from fix_server import write_lmdb

from proxymap.ctl import checks
from proxymap.ctl import main as ctl
from proxymap.ctl.safety import Fault, as_user

pytest.importorskip("cdbx")
pytest.importorskip("lmdb")

HOME = Path(ctl.__file__).parents[2]
OWNER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes mail_owner")

MASTER = """\
proxymap  unix  -  -  n  -  -  proxymap
proxywrite unix -  -  n  -  1  proxymap
smtp inet n - n - - smtpd
"""


class Host:
    """A configuration without a fault, to add faults to; open to mail_owner, as pytest's folders are not."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="pm-", dir="/tmp"))
        self.dir.chmod(0o755)
        self.parameters: dict[str, str] = {}
        for name in ("q/private", "bin"):
            (self.dir / name).mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(self.dir / "q" / "private", OWNER)
        (self.dir / "q" / "private").chmod(0o700)
        (self.dir / "bin" / "proxymap").write_text("stock\n")
        (self.dir / "bin" / "proxymap").chmod(0o755)
        self.master(MASTER)
        self.set(
            compatibility_level="3.6",
            queue_directory=f"{self.dir}/q",
            daemon_directory=f"{self.dir}/bin",
            mail_owner=OWNER,
            mail_version="3.7.11",
            local_recipient_maps="",
        )

    def set(self, **parameters: str) -> None:
        """Parameters of main.cf, each on a line of its own."""
        self.parameters.update(parameters)
        lines = [f"{name} = {value}\n" for name, value in self.parameters.items()]
        (self.dir / "main.cf").write_text("".join(lines))

    def line(self, parameter: str) -> str:
        """Where check says that a parameter stands."""
        return f"{self.dir}/main.cf, line {list(self.parameters).index(parameter) + 1}"

    def master(self, text: str) -> None:
        (self.dir / "master.cf").write_text(text)

    def table(self, name: str, maptype: str = "cdb") -> str:
        """Build a table; its name with the type."""
        file = self.dir / name
        file.write_text("a b\n")
        ctl.main(["build", "-o", f"{maptype}:{file}"])
        return f"{maptype}:{file}"

    def check(self) -> list[Fault]:
        """All but the warning that we are not root."""
        return [fault for fault in checks.check(str(self.dir)) if fault.where != "proxymapctl"]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    shutil.rmtree(made.dir)


def only(faults: list[Fault], *, warning: bool = False) -> str:
    """The one line that there is."""
    assert len(faults) == 1, faults
    assert faults[0].warning == warning
    assert "\n" not in faults[0].line()
    return faults[0].line()


def run(host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxymap.ctl", "-c", str(host.dir), "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=HOME, timeout=60, check=False)


# The command


@root_only
def test_nothing_wrong_is_status_0_and_silent(host: Host) -> None:
    host.set(virtual_alias_maps=f"proxy:{host.table('v')}")
    done = run(host)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_fault_is_status_78_and_one_line(host: Host) -> None:
    host.set(virtual_alias_maps="proxy:nosuch:/x")
    done = run(host)
    assert (done.returncode, done.stderr) == (78, "")
    assert (
        f"{host.line('virtual_alias_maps')}, virtual_alias_maps: nosuch:/x: unknown table type" in done.stdout
    )


def test_warning_is_status_0(host: Host) -> None:
    host.set(alias_maps=f"proxy:{host.table('v')}")
    done = run(host)
    assert done.returncode == 0
    assert f"warning: {host.line('alias_maps')}: alias_maps: local(8) ignores the proxy:" in done.stdout


def test_json(host: Host) -> None:
    host.set(virtual_alias_maps="proxy:nosuch:/x")
    (found,) = [json.loads(line) for line in run(host, "--json").stdout.splitlines() if "nosuch" in line]
    assert found["level"] == "fault"
    assert found["where"] == f"{host.line('virtual_alias_maps')}, virtual_alias_maps"
    assert found["what"] == "nosuch:/x: unknown table type nosuch"
    assert found["remedy"] == "use one of " + " ".join(sorted(checks.TABLE_TYPES))


def test_missing_configuration_is_one_fault(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxymap.ctl", "check", "-c", str(tmp_path)],
        capture_output=True, text=True, cwd=HOME, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert done.stdout.count("\n") == 1
    assert f"open {tmp_path}/main.cf: No such file" in done.stdout


# Tables


@pytest.mark.parametrize("maptype", ["cdb", "lmdb"])
def test_tables_that_open(host: Host, maptype: str) -> None:
    host.set(virtual_alias_maps=f"proxy:{host.table('v', maptype)}", relay_domains="x.example")
    assert host.check() == []


@pytest.mark.parametrize(
    ("maptype", "suffix"), [("cdb", "cdb"), ("lmdb", "lmdb"), ("hash", "db"), ("btree", "db")]
)
def test_table_that_was_not_built(host: Host, maptype: str, suffix: str) -> None:
    (host.dir / "v").write_text("a b\n")
    host.set(virtual_alias_maps=f"proxy:{maptype}:{host.dir}/v")
    assert only(host.check()) == (
        f"{host.line('virtual_alias_maps')}, virtual_alias_maps: {maptype}:{host.dir}/v: "
        f"{host.dir}/v.{suffix} was never built from {host.dir}/v; postmap {maptype}:{host.dir}/v"
    )


def test_table_whose_package_is_missing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "berkeleydb", None)
    monkeypatch.delitem(sys.modules, "proxymap.tables.indexed.bdb", raising=False)
    (host.dir / "v.db").write_bytes(b"")
    host.set(virtual_alias_maps=f"proxy:hash:{host.dir}/v")
    assert "pip install 'berkeleydb>=" in only(host.check())


def test_table_without_source(host: Host) -> None:
    host.set(virtual_alias_maps="proxy:cdb:/none/v")
    assert "there is no /none/v.cdb, nor /none/v to build it from; correct the name" in only(host.check())


def test_table_older_than_its_source_is_a_warning(host: Host) -> None:
    table = host.table("v")
    host.set(virtual_alias_maps=f"proxy:{table}")
    later = time.time() + 60
    os.utime(host.dir / "v", (later, later))
    line = only(host.check(), warning=True)
    assert f"{host.dir}/v.cdb is older than {host.dir}/v; postmap {table}" in line


@root_only
def test_table_that_mail_owner_cannot_read(host: Host) -> None:
    host.set(virtual_alias_maps=f"proxy:{host.table('v')}")
    (host.dir / "v.cdb").chmod(0o600)
    assert f"nobody may not read {host.dir}/v.cdb; chmod o+r {host.dir}/v.cdb" in only(host.check())


@root_only
def test_table_in_a_folder_that_is_closed(host: Host) -> None:
    (host.dir / "f").mkdir()
    host.set(virtual_alias_maps=f"proxy:{host.table('f/v')}")
    (host.dir / "f").chmod(0o700)
    assert f"nobody may not enter {host.dir}/f; chmod o+x {host.dir}/f" in only(host.check())


@pytest.mark.parametrize("maptype", ["cdb", "lmdb"])
def test_damaged_table(host: Host, maptype: str) -> None:
    host.set(virtual_alias_maps=f"proxy:{host.table('v', maptype)}")
    (host.dir / f"v.{maptype}").write_bytes(b"x" * 5000)
    assert f"{maptype}:{host.dir}/v: " in only(host.check())


def test_damaged_lmdb_has_to_go_before_it_is_built(host: Host) -> None:
    """postmap opens what is there, and fails."""
    host.set(virtual_alias_maps=f"proxy:{host.table('v', 'lmdb')}")
    (host.dir / "v.lmdb").write_bytes(b"x" * 5000)
    (host.dir / "v").unlink(missing_ok=True)
    assert only(host.check()).endswith(f"rm {host.dir}/v.lmdb, and have it made anew")
    (host.dir / "v").write_text("a b\n")
    os.utime(host.dir / "v", (1, 1))
    assert only(host.check()).endswith(f"rm {host.dir}/v.lmdb && postmap lmdb:{host.dir}/v")


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def spoil_pages(content: bytes) -> bytes:
    """All behind the two that say where the records are."""
    return content[:8192] + b"\xff" * (len(content) - 8192)


@pytest.mark.parametrize("spoil", [cut_in_half, spoil_pages])
def test_lmdb_that_opens_although_it_is_damaged(host: Host, spoil: Callable[[bytes], bytes]) -> None:
    """Postfix's own server dies of a lookup in it; postmap would fail of it."""
    host.set(virtual_alias_maps=f"proxy:{host.table('v', 'lmdb')}")
    write_lmdb(host.dir / "v.lmdb", {b"%d" % number: b"x" * 100 for number in range(1000)})
    assert not host.check()
    (host.dir / "v.lmdb").write_bytes(spoil((host.dir / "v.lmdb").read_bytes()))
    what = only(host.check())
    assert "or damaged; " in what
    assert what.endswith(f"rm {host.dir}/v.lmdb && postmap lmdb:{host.dir}/v")


@pytest.mark.parametrize(
    ("maptype", "text", "wanted"),
    [
        ("cidr", "192.0.2.1 a\n192.0.2.1/8 b\n", "line 2"),
        ("pcre", "/a/ b\n/(/ c\n", "line 2"),
        ("regexp", "/a/ b\n/[/ c\n", "line 2"),
        ("texthash", "a b\nc\n", "line 2"),
    ],
)
def test_faulty_lines_are_named(host: Host, maptype: str, text: str, wanted: str) -> None:
    (host.dir / "rules").write_text(text)
    host.set(virtual_alias_maps=f"proxy:{maptype}:{host.dir}/rules")
    line = only(host.check())
    assert f"{maptype}:{host.dir}/rules: faulty lines: " in line
    assert wanted in line


def test_missing_brace_is_named_as_such(host: Host) -> None:
    host.set(virtual_alias_maps="proxy:inline:{a=b")
    assert "virtual_alias_maps: missing '}' in proxy:inline:{a=b; close it" in only(host.check())
    host.set(virtual_alias_maps="", proxy_read_maps="proxy:inline:{a=b, proxy:ldap:/x")
    assert "proxy_read_maps: missing '}'; close it" in only(host.check())


def test_virtual_mailbox_maps_that_virtual_can_open_are_no_matter(host: Host) -> None:
    host.set(virtual_mailbox_maps=f"proxy:{host.table('v')}")
    assert host.check() == []
    host.set(virtual_mailbox_maps=f"proxy:cdb:{host.dir}/missing")
    assert any("virtual(8) ignores the proxy:" in fault.line() for fault in host.check() if fault.warning)


def test_relative_name_counts_from_the_queue_directory(host: Host) -> None:
    host.table("q/v")
    host.set(virtual_alias_maps="proxy:cdb:v")
    assert host.check() == []


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("dbm:/x", "Postfix has no type dbm any more; use lmdb or cdb"),
        ("nosuch:/x", "unknown table type nosuch"),
    ],
)
def test_types(host: Host, table: str, text: str) -> None:
    host.set(virtual_alias_maps=f"proxy:{table}")
    assert text in only(host.check())


def test_parameter_without_effect_is_a_warning(host: Host) -> None:
    host.set(daemon_table_open_error_is_fatal="yes")
    assert "daemon_table_open_error_is_fatal has no effect here" in only(host.check(), warning=True)
    host.set(daemon_table_open_error_is_fatal="no")
    assert host.check() == []


def test_members_of_a_composite_are_checked_each(host: Host) -> None:
    good, nis = host.table("v"), "nis:x"
    host.set(virtual_alias_maps=f"proxy:unionmap:{{{good}, pipemap:{{proxy:cdb:/none/w, {nis}}}}}")
    lines = [fault.line() for fault in host.check()]
    assert len(lines) == 2
    assert all(line.startswith(f"{host.line('virtual_alias_maps')}, virtual_alias_maps: ") for line in lines)
    assert any("there is no /none/w.cdb" in line for line in lines)
    assert any(f"{nis}: Postfix has no type nis any more" in line for line in lines)


def test_composite_that_is_none(host: Host) -> None:
    host.set(virtual_alias_maps="proxy:unionmap:{cdb:/v, nocolon}")
    assert 'bad syntax: "unionmap:{cdb:/v, nocolon}"; need "unionmap:{type:name...}"; correct it' in only(
        host.check()
    )


def test_default_of_local_recipient_maps_is_served(host: Host) -> None:
    """proxy:unix:passwd.byname."""
    del host.parameters["local_recipient_maps"]
    host.set()
    assert host.check() == []


def test_cdb_cannot_be_updated(host: Host) -> None:
    host.set(address_verify_map=f"proxy:{host.table('v')}")
    assert "type cdb cannot be updated; use lmdb in proxy_write_maps" in only(host.check())


def test_table_for_updates_outside_data_directory_is_a_warning(host: Host) -> None:
    (host.dir / "data").mkdir()
    for folder in ("data", ""):
        name = f"btree:{host.dir / folder / 'cache'}"
        host.set(data_directory=f"{host.dir}/data", proxy_write_maps=f"proxy:{name}")
        told = [fault for fault in host.check() if "not in data_directory" in fault.what]
        assert [fault.warning for fault in told] == ([] if folder else [True])


def test_table_for_updates_in_a_foreign_folder_is_a_fault(host: Host) -> None:
    open_to_all = host.dir / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for maptype in ("lmdb", "btree", "hash"):
        host.set(data_directory=str(open_to_all), proxy_write_maps=f"proxy:{maptype}:{open_to_all}/w")
        told = only(host.check())
        assert "updates are refused" in told


# Approval


def test_table_that_is_not_approved(host: Host) -> None:
    table = host.table("v")
    host.set(proxy_read_maps="$relay_domains", virtual_alias_maps=f"hash:/x, proxy:{table}")
    assert only(host.check()) == (
        f"{host.line('virtual_alias_maps')}: virtual_alias_maps has proxy:{table}, which proxy_read_maps "
        f"does not approve; add proxy:{table} to proxy_read_maps in main.cf"
    )


def test_table_of_a_service_in_master_cf(host: Host) -> None:
    table = host.table("v")
    host.set(proxy_read_maps="$virtual_alias_maps")
    host.master(MASTER + f"  -o smtpd_recipient_restrictions=check_recipient_access,proxy:{table}\n")
    line = only(host.check())
    assert line.startswith(f"{host.dir}/master.cf, line 3, -o smtpd_recipient_restrictions: ")
    assert f"has proxy:{table}, which proxy_read_maps does not approve" in line


def test_option_of_the_service_approves(host: Host) -> None:
    table = host.table("v")
    host.set(proxy_read_maps="", virtual_alias_maps=f"proxy:{table}")
    host.master(MASTER.replace("-  -  proxymap", f"-  -  proxymap -o proxy_read_maps=proxy:{table}"))
    assert host.check() == []


def test_part_of_a_name_is_no_table(host: Host) -> None:
    """`sql` by itself would be a table that nobody has approved."""
    host.table("v")
    host.set(folder=f"proxy:cdb:{host.dir}", virtual_alias_maps="${folder}/v")
    assert host.check() == []


def test_tables_that_are_written_need_the_other_list(host: Host) -> None:
    host.set(proxy_write_maps="", address_verify_map=f"proxy:{host.table('v', 'lmdb')}")
    assert "which proxy_write_maps does not approve" in only(host.check())


@pytest.mark.parametrize(
    ("name", "daemon"), [("virtual_uid_maps", "virtual(8)"), ("mailbox_command_maps", "local(8)")]
)
def test_tables_that_must_not_be_proxied(host: Host, name: str, daemon: str) -> None:
    host.set(**{name: f"proxy:{host.table('v')}"})
    line = only(host.check())
    assert f"{name}: {daemon} ignores the proxy:" in line
    assert line.endswith('must not be proxied; take "proxy:" away')


# master.cf


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("n  -  1  proxymap", "n  -  -  proxymap", "process limit -: several writers"),
        ("-  -  proxymap", "-  -  /x/proxymap", 'master looks for "/x/proxymap" below daemon_directory'),
        ("-  -  proxymap", "-  -  ./daemon", "adds a stock entry"),
        ("-  -  proxymap", "-  -  a-proxymap/proxymap", '"1proxymap" of "-proxymap"'),
        ("-  -  proxymap", "-  -  none/proxymap", "bin/none/proxymap is not there, or not executable"),
        ("proxywrite unix", "other unix", "no entry proxywrite/unix"),
        ("smtp inet n - n - - smtpd", "proxymap unix - - n - - proxymap", "second entry for proxymap/unix"),
    ],
)
def test_master_cf(host: Host, old: str, new: str, text: str) -> None:
    assert old in MASTER
    host.master(MASTER.replace(old, new))
    for name in ("daemon", "a-proxymap/proxymap"):
        (host.dir / "bin" / name).parent.mkdir(exist_ok=True)
        (host.dir / "bin" / name).write_text("stock\n")
        (host.dir / "bin" / name).chmod(0o755)
    assert text in only(host.check())


def test_chroot_is_a_warning(host: Host) -> None:
    host.master(MASTER.replace("-  -  n  -  -", "-  -  y  -  -"))
    assert "proxymap is chrooted" in only(host.check(), warning=True)


def test_missing_master_cf(host: Host) -> None:
    (host.dir / "master.cf").unlink()
    assert f"open {host.dir}/master.cf: No such file" in only(host.check())


def test_short_line_of_master_cf(host: Host) -> None:
    host.master(MASTER + "x unix\n")
    assert "line 4: 2 columns, expected at least 8" in only(host.check())


def test_our_program_is_inspected(host: Host, prefix: Prefix) -> None:
    host.set(daemon_directory=str(prefix.dir))
    host.master(MASTER.replace("  proxymap\n", "  bin/proxymap\n"))
    assert host.check() == []
    prefix.package.chmod(0o777)
    try:
        assert f"{prefix.package}: others may write to it" in only(host.check())
    finally:
        prefix.package.chmod(0o755)


# main.cf, proxymap.cf, folders


@pytest.mark.parametrize(
    ("file", "text", "wanted"),
    [
        ("main.cf", "smtputf8_enable = perhaps\n", 'bad value "perhaps", expected yes or no'),
        ("main.cf", "what is this\n", "missing '=' after attribute name"),
        ("main.cf", "mail_owner = nobody-at-all\n", "there is no user nobody-at-all"),
        ("main.cf", "virtual_alias_maps = $virtual_alias_maps\n", "leads back to itself, a loop"),
        (
            "proxymap.cf",
            "cache_sise = 1M\n",
            "unknown parameter cache_sise; the nearest known name is cache_size",
        ),
        ("proxymap.cf", "cache_size = much\n", 'bad value "much"'),
    ],
)
def test_bad_configuration(host: Host, file: str, text: str, wanted: str) -> None:
    with open(host.dir / file, "a") as out:
        out.write(text)
    assert any(wanted in fault.line() for fault in host.check() if not fault.warning)


def test_blank_that_is_none_for_postfix(host: Host) -> None:
    host.master(MASTER.replace("-  -  n", "-  -\xa0 n", 1))
    (fault,) = [fault for fault in host.check() if not fault.warning]
    assert (fault.where, fault.what) == (
        f"{host.dir}/master.cf, line 1",
        r"column 4, unprivileged: bad value '-\xa0', of which master would die",
    )
    host.master(MASTER.replace("\n", "\r\n"))
    assert [fault for fault in host.check() if not fault.warning] == []


def test_double_parameter_is_a_warning(host: Host) -> None:
    with open(host.dir / "main.cf", "a") as file:
        file.write("mail_version = 3.7.12\n")
    assert "overriding earlier entry: mail_version=3.7.11" in only(host.check(), warning=True)


def test_missing_folders(host: Host) -> None:
    shutil.rmtree(host.dir / "q" / "private")
    assert f"{host.dir}/q/private: no such folder" in only(host.check())
    shutil.rmtree(host.dir / "q")
    assert f"no folder {host.dir}/q" in only(host.check())


@root_only
def test_private_folder_of_somebody_else(host: Host) -> None:
    shutil.chown(host.dir / "q" / "private", "root")
    assert f"{host.dir}/q/private: nobody may not enter it" in only(host.check())


@root_only
def test_without_root_it_says_what_it_could_not_try(host: Host) -> None:
    host.set(virtual_alias_maps=f"proxy:{host.table('v')}")
    told = as_user(OWNER, lambda: [fault.line() for fault in checks.check(str(host.dir))])
    assert told == [
        "warning: proxymapctl: tables and folders were tried as this user, not as nobody; run this as root"
    ]


@pytest.mark.skipif(shutil.which("postconf") is None, reason="Postfix is not installed")
def test_stock_configuration_has_no_fault(tmp_path: Path) -> None:
    stock = Path("/usr/share/postfix/master.cf.dist")
    if not stock.exists():
        pytest.skip("no stock master.cf")
    shutil.copy(stock, tmp_path / "master.cf")
    (tmp_path / "main.cf").write_text("compatibility_level = 3.6\n")
    assert [fault for fault in checks.check(str(tmp_path)) if not fault.warning] == []
