"""approval: lists to approved tables, against what the stock proxymap logs where it is installed"""

import os
import subprocess
from pathlib import Path

import pytest
from fix_postfix import release
from hypothesis import given, settings
from hypothesis import strategies as st

from proxymap.config.approval import approve, approved_tables
from proxymap.config.maincf import MainCf
from proxymap.config.settings import load

PROXYMAP = "/usr/lib/postfix/sbin/proxymap"
NAME = "proxy_read_maps"


def approved(value: str, extended: bool = False) -> tuple[set[str], list[str]]:
    warnings: list[str] = []
    found = approved_tables(value, NAME, extended, warnings.append)
    return {name.decode() for name in found}, warnings


# List -> what it approves, all without a warning.
LISTS = {
    "proxy:a:b,proxy:c:d\tproxy:e:f\r\n proxy:g:h": "a:b c:d e:f g:h",
    'proxy:proxy:a:b proxy:: proxy:a proxy: a:b PROXY:a:b !proxy:a:b "proxy:a:b"': "a:b :",
    "{proxy:a:b x=y} { proxy:c:d } {} { } {,proxy:e:f}": "a:b c:d e:f",
    "{{proxy:a:b}} { {proxy:a:b} c} randmap:{proxy:a:b} inline:{a=proxy:b:c} [::1]": "",
    "unionmap:{proxy:a:b, {proxy:c:d x}} pipemap:{proxy:e:f} unionmap:{} unionmap:proxy:x:y": "a:b c:d e:f",
    "pipemap:{unionmap:{proxy:a:b},pipemap:{proxy:c:d}} {unionmap:{proxy:e:f} x}": "a:b c:d e:f",
    "proxy:unionmap:{proxy:a:b,proxy:c:d}": "unionmap:{proxy:a:b,proxy:c:d}",
    "proxy:a:b} proxy:c:d;proxy:e:f": "a:b} c:d;proxy:e:f",
}
MALFORMED = {
    "proxy:a:b {proxy:c:d e": ("a:b", """missing '}' in "{proxy:c:d e\""""),
    "{proxy:a:b}x proxy:e:f": ("e:f", """syntax error after '}' in "{proxy:a:b}x\""""),
    "unionmap:{proxy:a:b}} proxy:e:f": ("e:f", """syntax error after '}' in "{proxy:a:b}}\""""),
    "pipemap:{proxy:a:b": ("", """missing '}' in "{proxy:a:b\""""),
}


@pytest.mark.parametrize("value", LISTS)
def test_list(value: str) -> None:
    assert approved(value) == (set(LISTS[value].split(" ")) - {""}, [])


def test_blanks_inside_braces_are_kept() -> None:
    assert approved("proxy:unionmap:{a:b, c:d} {proxy:inline:{a = b} x}")[0] == {
        "unionmap:{a:b, c:d}",
        "inline:{a = b}",
    }


@pytest.mark.parametrize("value", MALFORMED)
def test_malformed_item_is_ignored_with_a_warning(value: str) -> None:
    names, complaint = MALFORMED[value]
    assert approved(value) == (set(names.split()), [f"bad {NAME} parameter value: {complaint}"])


def test_bytes_that_are_not_utf8_are_approved_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_bytes(b"proxy_read_maps = proxy:cdb:\xff\n")
    found, main_cf = load(str(tmp_path))
    assert approve(found, main_cf, False, print) == {b"cdb:\xff"}


def test_each_service_has_its_list(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text(
        "transport_maps = proxy:cdb:t\nproxy_read_maps = $transport_maps proxy:cdb:r\n"
        "proxy_write_maps = ${transport_maps?proxy:lmdb:w}\n"
    )
    found, main_cf = load(str(tmp_path))
    assert approve(found, main_cf, False, print) == {b"cdb:t", b"cdb:r"}
    assert approve(found, main_cf, True, print) == {b"lmdb:w"}


@pytest.mark.parametrize(("version", "wanted"), [("3.10.2", {b"a:b"}), ("3.11.0", {b"a:b", b"c:d", b"e:f"})])
def test_restriction_classes_are_read_since_3_11(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, wanted: set[bytes]
) -> None:
    monkeypatch.setattr(MainCf, "_ask_postconf", lambda self: {"mail_version": version})
    (tmp_path / "main.cf").write_text(
        "smtpd_restriction_classes = one, two\none = check_client_access proxy:c:d\n"
        "two = {check_x proxy:z:z} proxy:e:f\nproxy_read_maps = proxy:a:b\n"
        "proxy_write_maps = proxy:w:w\n"
    )
    found, main_cf = load(str(tmp_path))
    assert approve(found, main_cf, False, print) == wanted
    assert approve(found, main_cf, True, print) == {b"w:w"}


def test_files_are_read_since_3_11(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    outer.write_text(f"# comment\nproxy:a:b\n  proxy:c:d # proxy:e:f\n{inner} {outer}\n")
    inner.write_text("proxy:g:h\n\n{proxy:x:y\n")
    assert approved(str(outer)) == (set(), [])
    assert approved(f"unionmap:{{{outer}}}", True) == (
        {"a:b", "c:d", "e:f", "g:h"},
        [f"bad syntax in {inner}, line 3, content: missing '}}' in \"{{proxy:x:y\""],
    )


def test_missing_file_is_a_warning(tmp_path: Path) -> None:
    assert approved(f"{tmp_path}/none proxy:a:b", True) == (
        {"a:b"},
        [f"open {tmp_path}/none: No such file or directory"],
    )


def test_file_that_is_a_pipe_is_a_warning_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert approved(f"{tmp_path}/pipe proxy:a:b", True) == (
        {"a:b"},
        [f"open {tmp_path}/pipe: not a regular file"],
    )


@pytest.fixture(scope="module")
def stock_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration for the stock proxymap; old, for Postfix waits while main.cf is younger than a second."""
    directory = tmp_path_factory.mktemp("stock")
    (directory / "main.cf").write_text(f"queue_directory = {directory}\ndata_directory = {directory}\n")
    os.utime(directory / "main.cf", (1e9, 1e9))
    return directory


def stock(directory: Path, value: str) -> tuple[set[str], list[str]]:
    """What the verbose stock proxymap says it approves, and what it warns about."""
    command = [PROXYMAP, "-S", "-V", "-v", "-t", "unix", "-o", f"{NAME}={value}"]
    environment = {"MAIL_CONFIG": str(directory), "LANG": "C"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=True)
    names, warnings = set(), []
    for line in done.stderr.decode().splitlines():
        said = line.partition(": ")[2]
        if said.startswith("warning: "):
            said = said.replace(f"syntax in {NAME} content:", f"{NAME} parameter value:")  # from 3.11 on
            warnings.append(said.removeprefix("warning: "))
        elif said.startswith("allowlisting "):
            names.add(said.removeprefix("allowlisting ").removesuffix(f" from {NAME}"))
    return {name for name in names if ":" in name}, warnings  # 3.11 lists others too, and answers them BAD


pieces = st.sampled_from(
    [
        *"{}}, :x",
        "proxy:",
        "proxy:",
        "a:b",
        "c:d",
        "unionmap:",
        "pipemap:{",
        "unionmap:{",
        "}",
        " ",
        "{proxy:a:b}",
    ]
)


@pytest.mark.skipif(not os.access(PROXYMAP, os.X_OK), reason="Postfix is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="the stock proxymap starts as root only")
@settings(max_examples=200, deadline=None)
@given(value=st.lists(pieces, max_size=20).map("".join) | st.sampled_from([*LISTS, *MALFORMED]))
def test_stock_proxymap_approves_and_warns_the_same(stock_directory: Path, value: str) -> None:
    assert approved(value.strip(), release() >= (3, 11)) == stock(stock_directory, value)


def test_default_of_postfix_3_11_needs_its_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """proxy_read_maps names smtp_requiretls_policy, in whose default mydomain is translated."""
    name = "${domain_to_ascii{$mydomain}}"
    policy = f"inline:{{{{{name}=opportunistic}}, {{.{name}=opportunistic}}}}, enforce"
    defaults = {
        "smtp_requiretls_policy": policy,
        "proxy_read_maps": "$virtual_alias_maps $smtp_requiretls_policy",
    }
    monkeypatch.setattr(MainCf, "_ask_postconf", lambda self: {"mail_version": "3.11.7", **defaults})
    (tmp_path / "main.cf").write_text(
        "myhostname = mail.test.example\nvirtual_alias_maps = proxy:cdb:/etc/postfix/tables/$mydomain\n"
    )
    warnings: list[str] = []
    found, main_cf = load(str(tmp_path), warn=warnings.append)
    assert approve(found, main_cf, False, warnings.append) == {b"cdb:/etc/postfix/tables/test.example"}
    assert warnings == []
    monkeypatch.setattr(
        MainCf,
        "_ask_postconf",
        lambda self: {"x": "${later{y}}", "proxy_read_maps": "$virtual_alias_maps $x"},
    )
    found, main_cf = load(str(tmp_path), warn=warnings.append)
    assert approve(found, main_cf, False, warnings.append) == {b"cdb:/etc/postfix/tables/test.example"}
    assert len(warnings) == 1
