"""login - what a connection to a directory needs besides an address, from the parameters of an ldap table

Source: ldap_table(5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from proxymap.tables.databases.addresses import Address
from proxymap.tables.tablecf import TableCf

BINDS = {"yes": "simple", "simple": "simple", "no": "no", "none": "no", "sasl": "sasl"}
NEWEST = 3  # version of the protocol


class LdapLogin(NamedTuple):
    """What a connection needs besides an address; texts that are empty are not given. bind: of BINDS."""

    version: int
    bind: str
    bind_dn: str
    bind_pw: str
    sasl_mechs: str
    sasl_realm: str
    sasl_authz_id: str
    sasl_minssf: int
    dereference: int
    start_tls: bool
    tls_require_cert: bool
    tls_ca_cert_file: str
    tls_ca_cert_dir: str
    tls_cert: str
    tls_key: str
    tls_random_file: str
    tls_cipher_suite: str

    def __repr__(self) -> str:
        return f"{self.bind_dn}"


def read_login(cf: TableCf, addresses: tuple[Address, ...], warn: Callable[[str], None]) -> LdapLogin:
    """read_login - from the parameters of a table; raises ConfigError"""
    bind = cf.text("bind", "yes").lower()
    if bind not in BINDS:
        raise cf.wrong("bind", " or ".join(f'"{name}"' for name in BINDS))
    version = cf.integer("version", NEWEST, low=2)
    if version > NEWEST:
        warn(f"{cf.where('version')} is {version}: {NEWEST} is used")
    start_tls = cf.boolean("start_tls", False)
    if start_tls or any(address.host.startswith("ldaps:") for address in addresses):
        version = NEWEST
    dereference = cf.integer("dereference", 0)
    if not 0 <= dereference <= 3:
        warn(f"{cf.where('dereference')}: Unrecognized value {dereference}: 0 is used")
        dereference = 0
    return LdapLogin(
        version=min(version, NEWEST), bind=BINDS[bind],
        bind_dn=cf.text("bind_dn"), bind_pw=cf.text("bind_pw"),
        sasl_mechs=cf.text("sasl_mechs"), sasl_realm=cf.text("sasl_realm"),
        sasl_authz_id=cf.text("sasl_authz_id"), sasl_minssf=cf.integer("sasl_minssf", 0, low=0),
        dereference=dereference, start_tls=start_tls,
        tls_require_cert=cf.boolean("tls_require_cert", False),
        tls_ca_cert_file=cf.text("tls_ca_cert_file"), tls_ca_cert_dir=cf.text("tls_ca_cert_dir"),
        tls_cert=cf.text("tls_cert"), tls_key=cf.text("tls_key"),
        tls_random_file=cf.text("tls_random_file"), tls_cipher_suite=cf.text("tls_cipher_suite"),
    )  # fmt: skip
