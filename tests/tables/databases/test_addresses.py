"""test_addresses - the parameter `hosts`, form by form; and no password in what is shown"""

from __future__ import annotations

from pathlib import Path

import pytest

from proxymap.errors import ConfigError
from proxymap.tables.base import Host
from proxymap.tables.databases.addresses import Address, read_hosts
from proxymap.tables.tablecf import TableCf

URIS = ("postgresql", "postgres")


def addresses(place: Path, hosts: str | None, *uris: str) -> tuple[Address, ...]:
    path = place / "t.cf"
    path.write_text("" if hosts is None else f"hosts = {hosts}\n")
    return read_hosts(TableCf(str(path).encode(), Host()), 3306, uris)


@pytest.mark.parametrize(
    ("item", "kind", "host", "port"),
    [
        ("db1", "inet", "db1", 3306),
        ("db1:33", "inet", "db1", 33),
        ("inet:db1", "inet", "db1", 3306),
        ("inet:db1:smtp", "inet", "db1", 25),
        ("127.0.0.1:1", "inet", "127.0.0.1", 1),
        ("[::1]:33", "inet", "::1", 33),
        ("inet:[::1]", "inet", "::1", 3306),
        ("[127.0.0.1]:33", "inet", "127.0.0.1", 33),
        ("inet:::1:33", "inet", "::1", 33),
        ("2001:db8::5:33", "inet", "2001:db8::5", 33),
        ("2001:db8::5", "inet", "2001:db8::5", 3306),
        ("fe80::", "inet", "fe80::", 3306),
        ("unix:/run/a:b", "unix", "/run/a:b", 0),
        ("/run/x", "unix", "/run/x", 0),
        ("postgresql://u:p@h:1/d", "uri", "postgresql://u:p@h:1/d", 0),
        ("postgres:///d?host=/run", "uri", "postgres:///d?host=/run", 0),
    ],
)
def test_each_form_of_a_host(tmp_path: Path, item: str, kind: str, host: str, port: int) -> None:
    (found,) = addresses(tmp_path, item, *URIS)
    assert found[:3] == (kind, host, port)


def test_items_stand_between_commas_and_blanks_and_count_once(tmp_path: Path) -> None:
    found = addresses(tmp_path, "a, b\tc:1,, unix:/s a:3306")
    assert [address.shown for address in found] == ["inet:a:3306", "inet:b:3306", "inet:c:1", "unix:/s"]


def test_more_hosts_than_a_server_may_have_are_refused(tmp_path: Path) -> None:
    assert len(addresses(tmp_path, " ".join(f"h{n}" for n in range(64)))) == 64
    with pytest.raises(ConfigError, match="has 65 hosts; expected 64 at most"):
        addresses(tmp_path, " ".join(f"h{n}" for n in range(65)))


def test_without_any_it_is_localhost(tmp_path: Path) -> None:
    for hosts in (None, "", ","):
        assert [address.host for address in addresses(tmp_path, hosts)] == ["localhost"]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("db1:nosuchservice", "a port from 1 to 65535"),
        ("db1:0", "a port"),
        ("db1:65536", "a port"),
        (":1", "a host name"),
        ("inet:", "a host name"),
        ("[::1", "an address between brackets"),
        ("[db1]:1", "an address between brackets"),
        ("[::1]1", "an address between brackets"),
        ("unix:x", "a path after unix:"),
        ("foo://h/d", "postgresql:// or postgres://"),
        ("POSTGRESQL://h/d", "postgresql:// or postgres://"),
    ],
)
def test_what_is_no_host_is_named(tmp_path: Path, item: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        addresses(tmp_path, f"a {item}", *URIS)
    assert str(caught.value).startswith(
        f'{tmp_path}/t.cf, line 1: parameter hosts has "{item}"; expected {expected}'
    )


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://u:secret@h/d",
        "postgresql://u:a/secret?@h/d",
        "postgresql://u:a@secret@h/d?x=1",
        "postgresql://h/d?user=u&password=secret",
        "postgresql://h/d?sslpassword=secret",
        "foo://u:secret@h/d",
    ],
)
def test_no_password_is_ever_shown(tmp_path: Path, uri: str) -> None:
    try:
        (found,) = addresses(tmp_path, uri, *URIS)
        shown = f"{found.shown} {found!r} {(found,)}"
    except ConfigError as error:
        shown = str(error)
    assert "secret" not in shown
    assert "***" in shown
