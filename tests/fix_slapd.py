"""fix_slapd - a private OpenLDAP server for the tests; see fix_database

    with Slapd() as server:
        server.add(entry("joe", mailacceptinggeneralid="joe@example.com", maildrop="box1"))
        path = server.write_cf(folder / "t.cf", query_filter="(cn=%s)")

Everything lies below BASE; entries below PEOPLE, which anybody may read. The entry `pm` has the
password PASSWORD and may log in by its name (BIND_DN) or, with SASL, as `pm`; `small` gets two entries
at most. Attributes that take any text: mailacceptinggeneralid, maildrop, other, leafmail, term, inner.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import pytest
from fix_database import PASSWORD, PrivateDatabase, free_port, removed

PROGRAMS = ("slapd", "slapadd", "ldapadd", "ldapmodify", "ldapsearch", "openssl")
SEARCHED = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/local/libexec:/usr/lib/openldap"
MODULES = ("/usr/lib/ldap", "/usr/lib64/openldap", "/usr/lib/openldap")
SCHEMAS = ("/etc/ldap/schema", "/etc/openldap/schema")
BASE = "dc=example,dc=com"
PEOPLE = f"ou=people,{BASE}"
ADMIN = f"cn=admin,{BASE}"
BIND_DN = f"uid=pm,ou=logins,{BASE}"
ATTRIBUTES = ("mailacceptinggeneralid", "maildrop", "other", "leafmail", "term", "inner")
TEXT = "EQUALITY {0}Match SUBSTR {0}SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15"

Entry = tuple[str, dict[str, list[str | bytes]]]  # DN, attributes


def unavailable() -> str | None:
    """Why there can be no slapd here, or None."""
    for program in PROGRAMS:
        if shutil.which(program, path=SEARCHED) is None:
            return f"OpenLDAP's server is not installed: no {program}"
    return None


def entry(cn: str, below: str = PEOPLE, **attributes: str | bytes | Sequence[str | bytes]) -> Entry:
    """An entry with these values, for `add`."""
    values = {
        name: [value] if isinstance(value, str | bytes) else list(value) for name, value in attributes.items()
    }
    return f"cn={escaped(cn)},{below}", {"objectClass": ["pmEntry"], "cn": [cn], **values}


def escaped(text: str) -> str:
    """Text within a DN."""
    return "".join(rf"\{ord(c):02x}" if c in '\\,+"<>;#= ' else c for c in text)


def ldif(entries: Sequence[Entry]) -> bytes:
    lines = []
    for dn, attributes in entries:
        lines.append(_line("dn", dn))
        lines += [_line(name, value) for name, values in attributes.items() for value in values]
        lines.append(b"\n")
    return b"".join(lines)


def _line(name: str, value: str | bytes) -> bytes:
    raw = value.encode(errors="surrogateescape") if isinstance(value, str) else value
    return b"%b:: %b\n" % (name.replace("__", ";").replace("_", "-").encode(), base64.b64encode(raw))


class Slapd(PrivateDatabase):
    """server_host = ldapi://FOLDER/socket, or ldap://127.0.0.1:PORT, or ldaps://127.0.0.1:TLS_PORT."""

    maptype = "ldap"
    owner = "openldap"

    @property
    def socket(self) -> str:
        return self.socket_file

    @property
    def socket_file(self) -> str:
        return str(self.dir / "ldapi")

    @property
    def local_url(self) -> str:
        return f"ldapi://{quote(self.socket_file, safe='')}"

    def address(self) -> str:
        return f"ldap://127.0.0.1:{self.port}"

    def tls_address(self) -> str:
        return f"ldaps://127.0.0.1:{self.tls_port}"

    def _initialise(self) -> None:
        self.tls_port = free_port()
        self.data.mkdir()
        (self.dir / "slapd.conf").write_text(self._configuration())
        first = self.dir / "first.ldif"
        first.write_bytes(ldif(self._first_entries()))
        self._give_away()
        self._run(_path("slapadd"), "-q", "-f", str(self.dir / "slapd.conf"), "-l", str(first))

    def _configuration(self) -> str:
        schema = next(folder for folder in SCHEMAS if os.path.isdir(folder))
        modules = [
            f"modulepath {folder}\n" + "".join(f"moduleload {name}\n" for name in ("back_mdb", "back_monitor")
                                             if os.path.exists(f"{folder}/{name}.la"))
            for folder in MODULES if os.path.isdir(folder)
        ]  # fmt: skip
        types = "".join(
            f"attributetype ( 1.1.2.1.{n} NAME '{name}' {TEXT.format('caseExact' if n else 'caseIgnore')} )\n"
            for n, name in enumerate(ATTRIBUTES)
        )
        tls = self.certificates
        return f"""\
include {schema}/core.schema
include {schema}/cosine.schema
include {schema}/inetorgperson.schema
{types}
objectclass ( 1.1.2.2.1 NAME 'pmEntry' SUP top STRUCTURAL MUST cn
  MAY ( {" $ ".join(ATTRIBUTES)} $ mail $ uid $ userPassword $ jpegPhoto $ description ) )
objectclass ( 1.1.2.2.2 NAME 'pmLogin' SUP top STRUCTURAL MUST uid MAY ( cn $ userPassword ) )
{modules[0]}
pidfile {self.dir}/pid
argsfile {self.dir}/args
allow bind_v2
sizelimit unlimited
threads 4
conn_max_pending 10000
conn_max_pending_auth 10000
password-hash {{CLEARTEXT}}
sasl-host localhost
sasl-secprops noanonymous
authz-policy to
authz-regexp uid=([^,]*),cn=[^,]*,cn=auth uid=$1,ou=logins,{BASE}
authz-regexp cn=pm uid=pm,ou=logins,{BASE}
TLSCACertificateFile {tls.pem("ca")}
TLSCertificateFile {tls.pem("server")}
TLSCertificateKeyFile {tls.key("server")}
TLSVerifyClient try
{chr(10).join(self.options)}
database monitor
database mdb
maxsize 1073741824
dbnosync
suffix "{BASE}"
rootdn "{ADMIN}"
rootpw "{PASSWORD}"
directory {self.data}
index mailacceptinggeneralid,cn,uid eq
index objectClass eq
limits dn.exact="uid=small,ou=logins,{BASE}" size=2
access to dn.subtree="ou=closed,{BASE}" by users read by * auth
access to attrs=userPassword by * auth
access to * by * read
"""

    def _first_entries(self) -> list[Entry]:
        people: list[Entry] = [
            (BASE, {"objectClass": ["dcObject", "organization"], "o": ["example"], "dc": ["example"]})
        ]
        for name in ("people", "logins", "closed"):
            people.append((f"ou={name},{BASE}", {"objectClass": ["organizationalUnit"], "ou": [name]}))
        for name in ("pm", "small"):
            attributes: dict[str, list[str | bytes]] = {
                "objectClass": ["pmLogin"], "uid": [name], "userPassword": [PASSWORD],
            }  # fmt: skip
            people.append((f"uid={name},ou=logins,{BASE}", attributes))
        return people

    def _command(self) -> list[str]:
        urls = f"ldap://127.0.0.1:{self.port}/ ldaps://127.0.0.1:{self.tls_port}/ {self.local_url}/"
        return [_path("slapd"), "-d", "0", "-f", str(self.dir / "slapd.conf"), "-h", urls]

    def _first_sql(self) -> Sequence[str]:
        return ()

    def answers(self) -> bool:
        ours = ["-x", "-H", f"{self.local_url}/"]
        done = subprocess.run(
            [_path("ldapsearch"), *ours, "-LLL", "-s", "base", "-b", BASE, "1.1"],
            capture_output=True, env={"LDAPNOINIT": "1"},
        )  # fmt: skip
        return done.returncode == 0

    def _pids(self) -> list[int]:
        assert self.process is not None
        return [self.process.pid]

    def administer(self, program: str, *arguments: str, text: bytes = b"") -> bytes:
        """Run an LDAP client as the administrator; what it says."""
        login = ["-x", "-H", f"{self.local_url}/", "-D", ADMIN, "-w", PASSWORD]
        done = subprocess.run(
            [_path(program), *login, *arguments], input=text, capture_output=True, env={"LDAPNOINIT": "1"}
        )
        if done.returncode:
            raise RuntimeError(f"{program} {arguments}\n{done.stdout.decode()}{done.stderr.decode()}")
        return done.stdout

    def add(self, *entries: Entry) -> None:
        self.administer("ldapadd", "-c", text=ldif(entries))

    def remove_entries(self, below: str = PEOPLE) -> None:
        """All below this one, which stays."""
        found = self.administer(
            "ldapsearch", "-LLL", "-o", "ldif-wrap=no", "-s", "children", "-b", below, "1.1"
        )
        names = [line for line in found.splitlines() if line.startswith(b"dn:")]
        text = b"".join(b"%b\nchangetype: delete\n\n" % name for name in reversed(names))
        if names:
            self.administer("ldapmodify", text=text)

    def fill_many(self, records: int) -> None:
        """Entries of user1@example.com and so on, with box1 and so on."""
        below = f"ou=many,{BASE}"
        found = self.administer("ldapsearch", "-LLL", "-b", BASE, f"(cn=many{records})", "1.1")
        if b"dn:" in found:
            return
        entries: list[Entry] = [(below, {"objectClass": ["organizationalUnit"], "ou": ["many"]})]
        entries += [
            entry(f"many{n}", below, mailacceptinggeneralid=f"user{n}@example.com", maildrop=f"box{n}")
            for n in range(1, records + 1)
        ]
        running = self.process is not None
        if running:
            self.stop()
        path = self.dir / "many.ldif"
        path.write_bytes(ldif(entries))
        self._run(_path("slapadd"), "-q", "-f", str(self.dir / "slapd.conf"), "-l", str(path))
        if running:
            self.start()

    def parameters(self, **others: str) -> dict[str, str]:
        if "hosts" in others:
            others["server_host"] = others.pop("hosts")
        return {
            "server_host": self.address(), "search_base": BASE, "bind_dn": BIND_DN, "bind_pw": PASSWORD,
            "query_filter": "(mailacceptinggeneralid=%s)", "result_attribute": "maildrop",
        } | others  # fmt: skip

    def connections(self, user: str = "") -> int:
        """All but that of the question itself."""
        return self.figure("cn=Current,cn=Connections") - 1

    def end_connections(self) -> None:
        self.restart()

    def figure(self, name: str, attribute: str = "monitorCounter") -> int:
        """Of slapd's own counters."""
        found = self.administer("ldapsearch", "-LLL", "-s", "base", "-b", f"{name},cn=Monitor", attribute)
        return next(
            int(line.split()[1]) for line in found.splitlines() if line.startswith(attribute.encode())
        )


def _path(program: str) -> str:
    found = shutil.which(program, path=SEARCHED)
    assert found is not None, program
    return found


@pytest.fixture(scope="session")
def slapd() -> Iterator[Slapd]:
    """A running server for the whole session; a test that stops it starts it again."""
    if reason := unavailable():
        pytest.skip(reason)
    with removed(Slapd()) as server:
        assert isinstance(server, Slapd)
        yield server
