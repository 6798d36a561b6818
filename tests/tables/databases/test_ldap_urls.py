"""test_ldap_urls - where directories are: server_host, and what a referral says"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxymap.errors import ConfigError
from proxymap.tables.base import Host
from proxymap.tables.databases.openldap.urls import read_servers, referral
from proxymap.tables.tablecf import TableCf


def servers(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [address.shown for address in read_servers(TableCf(os.fsencode(path), Host()))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["ldap://localhost:389"]),
        ("server_host = h", ["ldap://h:389"]),
        ("server_host = h\nserver_port = 3", ["ldap://h:3"]),
        ("server_host = a:1, b", ["ldap://a:1", "ldap://b:389"]),
        ("server_host = ldaps://a ldap://b:7/ LDAP://c", ["ldaps://a:636", "ldap://b:7", "ldap://c:389"]),
        ("server_host = [::1]:4 ldap://[::2]/", ["ldap://[::1]:4", "ldap://[::2]:389"]),
        ("server_host = ldapi://%2Fx%2Fy/", ["ldapi://%2Fx%2Fy"]),
    ],
)
def test_servers(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert servers(tmp_path / "t.cf", text) == expected


@pytest.mark.parametrize("text", ["server_host = http://h", "server_host = h:nosuch", "server_host = ,"])
def test_what_is_no_server_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="server_host"):
        servers(tmp_path / "t.cf", text)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ldap://h", ("ldap://h:389", None, None)),
        ("ldap://h:7/", ("ldap://h:7", None, None)),
        ("ldap://h/ou=a%20b,dc=c", ("ldap://h:389", b"ou=a b,dc=c", None)),
        ("ldaps://h/dc=c??base", ("ldaps://h:636", b"dc=c", 0)),
        ("ldap://h/dc=c?cn?ONE?(x=y)", ("ldap://h:389", b"dc=c", 1)),
        ("ldap://h/dc=c??sub?", ("ldap://h:389", b"dc=c", 2)),
        ("ldap://[::1]:4/%E4%B8%AD", ("ldap://[::1]:4", "\u4e2d".encode(), None)),
        ("ldapi://%2Fx/dc=c", ("ldapi://%2Fx", b"dc=c", None)),
    ],
)
def test_referrals(url: str, expected: tuple[str, bytes | None, int | None]) -> None:
    address, base, scope = referral(url)
    assert (address.shown, base, scope) == expected


@pytest.mark.parametrize("url", ["", "ldap:///dc=c", "http://h/", "h:389", "ldap://h:nosuch/"])
def test_referral_that_names_no_server(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        referral(url)
