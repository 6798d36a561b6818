"""settings: types, units, limits and defaults, against the stock proxymap and postconf where installed"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxymap.config.maincf import MainCf
from proxymap.config.per_table import AGEING, EXACT
from proxymap.config.settings import PARAMETERS, Settings, load
from proxymap.errors import ConfigError
from proxymap.tables.types import TABLE_TYPES

PROXYMAP = "/usr/lib/postfix/sbin/proxymap"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "main.cf").write_text("")
    return tmp_path


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without Postfix."""
    monkeypatch.setattr(MainCf, "_ask_postconf", lambda self: {})


def settings(directory: Path, *overrides: str) -> Settings:
    return load(str(directory), overrides)[0]


@pytest.mark.usefixtures("alone")
def test_defaults_without_postfix(directory: Path) -> None:
    found = settings(directory)
    assert found.config_directory == str(directory)
    assert (found.queue_directory, found.mail_owner, found.syslog_name) == (
        "/var/spool/postfix",
        "postfix",
        "postfix",
    )
    assert (found.max_idle, found.max_use, found.ipc_timeout, found.daemon_timeout) == (100, 100, 3600, 18000)
    assert found.maillog_file_prefixes == ("/var", "/dev/stdout")
    assert "proxy:unix:passwd.byname" in found.proxy_read_maps.split()
    assert found.proxy_write_maps.split() == []
    assert (found.cache_size, found.request_size_limit, found.buffer_size_limit) == (
        1 << 26,
        1 << 20,
        1 << 26,
    )
    assert (found.worker_count, found.drain_time_limit, found.cache_maptypes) == (
        4,
        10,
        ("pcre", "regexp"),
    )


@pytest.mark.skipif(shutil.which("postconf") is None, reason="Postfix is not installed")
def test_defaults_are_those_of_postconf(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host and version apart, and but for the lists our table would do where postconf does not.

    What only newer releases have, this one does not know.
    """
    here = {"config_directory", "mail_version", "myhostname", "proxy_read_maps"}
    here |= {"default_database_type", "default_cache_db_type"}  # as each build has it
    names = [name for name, param in PARAMETERS.items() if param.file == "main.cf" and name not in here]
    done = subprocess.run(["postconf", "-d", *names], capture_output=True, text=True, check=True)
    stock = dict(line.split(" =", 1) for line in done.stdout.splitlines())
    names = [name for name in names if name in stock]
    assert "max_idle" in names
    assert {name: stock[name].strip() for name in names} == {
        name: PARAMETERS[name].default.strip() for name in names
    }


@pytest.mark.skipif(shutil.which("postconf") is None, reason="Postfix is not installed")
def test_default_read_maps_hold_all_of_postconf_in_its_order() -> None:
    done = subprocess.run(["postconf", "-dh", "proxy_read_maps"], capture_output=True, text=True, check=True)
    stock, ours = done.stdout.split(), PARAMETERS["proxy_read_maps"].default.split()
    assert ours[: len(stock)] == stock


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("level", "wanted"), [("0", False), ("1", True), ("3.6", True)])
def test_smtputf8_follows_compatibility_level(directory: Path, level: str, wanted: bool) -> None:
    assert settings(directory, f"compatibility_level={level}").smtputf8_enable is wanted


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("max_use=+007", 7),
        ("max_idle=10", 10),
        ("max_idle=10ss", 10),
        ("max_idle=2m", 120),
        ("max_idle=1h2m", 3600),
        ("max_idle=1d", 86400),
        ("max_idle=1w", 604800),
        ("smtputf8_enable=YES", True),
        ("smtputf8_enable=No", False),
        ("lmdb_map_size=9223372036854775807", 9223372036854775807),
        ("cache_size=0", 0),
        ("cache_size=64K", 65536),
        ("cache_size=2M", 2 << 20),
        ("cache_size=1G", 1 << 30),
        ("cache_maptypes=cdb, lmdb pcre", ("cdb", "lmdb", "pcre")),
        ("maillog_file_prefixes=/a\xa0b,\t/c", ("/a\xa0b", "/c")),
        ("drain_time_limit=0", 0),
        ("syslog_name=x/$service_name/$process_name", "x/proxymap/proxymap"),
        ("max_use=${e?1}${e:2}", 2),
        ("slow_lookup_log_limit=250ms", 0.25),
        ("slow_lookup_log_limit=2s", 2),
        ("slow_lookup_log_limit=1m", 60),
        ("slow_lookup_log_limit=0", 0),
    ],
)
def test_value(directory: Path, override: str, wanted: object) -> None:
    assert getattr(settings(directory, override), override.partition("=")[0]) == wanted


BAD = {
    "max_use": ["0", "-1", "", "5x", "0x10", "1 2", "1_0", "٣", "2147483648", "9" * 5000, "++1", "+"],
    "max_idle": ["0", "", "-5", "1.5h", "2x", "10S", "10 s", "s", "2147483648", "35791395m"],
    "smtputf8_enable": ["", "x", "true"],
    "syslog_facility": ["", "xx"],
    "queue_directory": [""],
    "lmdb_map_size": ["0", "9223372036854775808", "1M"],
}
OWN_BAD = {
    "cache_size": ["-1", "1k", "1KB", "1.5M", ""],
    "worker_count": ["0", "1001", "4K"],
    "greeting": ["", "YES", "maybe"],
    "request_size_limit": ["1023"],
    "slow_lookup_log_limit": ["", "ms", "-5ms", "1.5ms", "5 ms", "-1", "1.5", "9" * 20 + "ms"],
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OWN_BAD.items() for value in values]
)
def test_bad_value_of_ours_is_an_error_that_says_what_was_expected(
    directory: Path, name: str, value: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(directory, f"{name}={value}")
    assert f'parameter {name}: bad value "{value}", expected ' in str(caught.value)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_bad_value_of_main_cf_is_warned_of_and_counts_as_its_default(
    directory: Path, name: str, value: str
) -> None:
    """A later Postfix may understand it; it must not stop what has no need of it."""
    warnings: list[str] = []
    found = load(str(directory), [f"{name}={value}"], warn=warnings.append)[0]
    assert getattr(found, name) == getattr(settings(directory), name)
    assert len(warnings) == 1
    assert f'parameter {name}: bad value "{value}", expected ' in warnings[0]


@pytest.mark.usefixtures("alone")
def test_value_that_cannot_be_expanded_counts_as_its_default(directory: Path) -> None:
    (directory / "main.cf").write_text("compatibility_level = x\nmyhostname = ${x{y}}\nsyslog_name = ${\n")
    warnings: list[str] = []
    found = load(str(directory), warn=warnings.append)[0]
    assert (found.smtputf8_enable, found.syslog_name) == (True, "postfix")
    assert found.myhostname
    assert {warning.partition("parameter ")[2].partition(":")[0] for warning in warnings} == {
        *("myhostname", "smtputf8_enable", "syslog_name")
    }


@pytest.mark.skipif(not os.access(PROXYMAP, os.X_OK), reason="Postfix is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="the stock proxymap starts as root only")
def test_stock_proxymap_refuses_the_same(directory: Path) -> None:
    (directory / "main.cf").write_text(f"queue_directory = {directory}\ndata_directory = {directory}\n")
    os.utime(directory / "main.cf", (1e9, 1e9))
    overrides = [f"{name}={value}" for name, values in BAD.items() for value in values]
    overrides += ["max_use=+007", "max_idle=10ss", "max_idle=1h2m", "smtputf8_enable=YES"]
    command = [PROXYMAP, "-S", "-V", "-t", "unix", "-o"]
    environment = {"MAIL_CONFIG": str(directory), "LANG": "C"}
    null = subprocess.DEVNULL
    running = {  # all at once, since each sleeps for a second before it ends
        text: subprocess.Popen([*command, text], stdin=null, stdout=null, stderr=null, env=environment)
        for text in overrides
    }
    assert {text for text, stock in running.items() if stock.wait() == 0} == set(overrides[-4:])


def test_file_and_line_of_a_bad_value(directory: Path) -> None:
    (directory / "main.cf").write_text("a = b\n\nmax_idle =\n  1x\n")
    warnings: list[str] = []
    load(str(directory), warn=warnings.append)
    assert 'main.cf, line 3: parameter max_idle: bad value "1x", expected a time' in warnings[0]


def test_own_file_is_read_and_overridden(directory: Path) -> None:
    (directory / "proxymap.cf").write_text("# ours\nworker_count = 8\ncache_size = 1K\n")
    assert settings(directory).worker_count == 8
    assert settings(directory, "worker_count = 2").worker_count == 2


def test_own_parameter_in_main_cf_is_not_ours(directory: Path) -> None:
    (directory / "main.cf").write_text("worker_count = 8\n")
    assert settings(directory).worker_count == 4


def test_errors_in_own_file_name_the_line(directory: Path) -> None:
    (directory / "proxymap.cf").write_text("\nworker_count = many\n")
    with pytest.raises(ConfigError, match=r"proxymap\.cf, line 2: parameter worker_count: "):
        settings(directory)
    (directory / "proxymap.cf").write_text("\nworkers_count = 1\n")
    with pytest.raises(ConfigError, match=r"\.cf, line 2: unknown parameter workers_count; .*worker_count"):
        settings(directory)


@pytest.mark.parametrize(
    ("version", "greeting", "wanted"),
    [
        ("3.5.25", "auto", False),
        ("3.6.0", "auto", True),
        ("3.12-20260821", "auto", True),
        ("3.10-RC1", "auto", True),
        ("2.11", "auto", False),
        ("3.5.25", "yes", True),
        ("3.7.11", "no", False),
    ],
)
def test_greeting(
    directory: Path, monkeypatch: pytest.MonkeyPatch, version: str, greeting: str, wanted: bool
) -> None:
    monkeypatch.setattr(MainCf, "_ask_postconf", lambda self: {"mail_version": version})
    assert settings(directory, f"greeting={greeting}").greets is wanted


@pytest.mark.usefixtures("alone")
def test_mail_version_in_main_cf_decides_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There it is text for a banner, or left from a dump of postconf; the clients are what is installed."""
    (directory / "main.cf").write_text("mail_version = 3.3.2\n")
    assert settings(directory, "mail_version=2.0").mail_version == "3.11"
    monkeypatch.setattr(MainCf, "_ask_postconf", lambda self: {"mail_version": "3.12-20260821"})
    found, main_cf = load(str(directory))
    assert (found.version, found.greets, main_cf.get("mail_version")) == ((3, 12), True, "3.3.2")


def test_settings_do_not_change(directory: Path) -> None:
    with pytest.raises(AttributeError):
        settings(directory).max_use = 3
    with pytest.raises(TypeError, match="max_use"):
        Settings(no_such=1)


def test_configuration_loads_no_heavy_module() -> None:
    """What start-up waits for: each of these takes 5 to 13 ms."""
    code = "import sys; old = set(sys.modules); import proxymap.config.approval; print(*{*sys.modules} - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"re", "typing", "dataclasses", "subprocess", "inspect"} & set(done.stdout.split())


# Parameters of one type or one table

CF = b"mysql:/etc/postfix/a.cf"


def for_table(directory: Path, text: str, type_name: bytes = CF) -> dict[str, object]:
    (directory / "proxymap.cf").write_text(text)
    return settings(directory).tables.of(type_name)


@pytest.mark.parametrize(
    ("text", "ttl"),
    [
        ("", 5),  # the default of that type
        ("cache_ttl = 10s\n", 10),
        ("cache_ttl = 10s\nmysql_cache_ttl = 1m\n", 60),
        ("mysql_cache_ttl = 1m\ntable_options = { mysql:/etc/postfix/a.cf, cache_ttl=2m }\n", 120),
        ("table_options = { proxy:mysql:/etc/postfix/a.cf, cache_ttl = 2m, server_idle_limit=5 }\n", 120),
        ("table_options = { mysql:/etc/postfix/b.cf, cache_ttl=2m } { mysql:/etc/postfix/a.cf }\n", 5),
        ("pgsql_cache_ttl = 1m\n", 5),
    ],
)
def test_most_particular_parameter_counts(directory: Path, text: str, ttl: int) -> None:
    assert for_table(directory, text)["cache_ttl"] == ttl


def test_other_types_keep_nothing_by_default(directory: Path) -> None:
    assert for_table(directory, "", b"sqlite:/x.cf")["cache_ttl"] == 0
    assert for_table(directory, "sqlite_cache_ttl = 7s\n", b"sqlite:/x.cf")["cache_ttl"] == 7


def test_parameters_are_of_types_that_are_served() -> None:
    assert {*AGEING, *EXACT} <= TABLE_TYPES.keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mysql_cache_ttl = soon\n", "line 1: parameter cache_ttl: bad value"),
        ("cdb_cache_ttl = 5s\n", "unknown parameter cdb_cache_ttl"),
        ("nosuch_cache_ttl = 5s\n", "unknown parameter nosuch_cache_ttl"),
        ("table_options = mysql:/a.cf, cache_ttl=5s\n", "expected { type:name, parameter=value"),
        ("table_options = { /a.cf, cache_ttl=5s }\n", "expected a table"),
        ("table_options = { mysql:/a.cf, cache_size=5 }\n", "unknown parameter cache_size"),
        ("table_options = { mysql:/a.cf, cache_ttl=x }\n", 'bad value "x"'),
        ("table_options = { mysql:/a.cf\n", "missing '}'"),
        ("cache_maptypes = sqlite\n", "set sqlite_cache_ttl"),
        ("cache_maptypes = nonsense\n", "expected some of cdb"),
    ],
)
def test_what_cannot_be_used_is_told(directory: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        for_table(directory, text)
