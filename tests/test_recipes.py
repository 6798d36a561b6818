"""test_recipes - the recipes of docs/tables/ give the answers that they promise

Example files are written as they stand in their pages, and the pages' own commands are run; only folders and
the address of a server are others. Where the installed Postfix has the type, `postmap -q` is asked the same.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import subprocess
import time
from pathlib import Path

import fix_memcached
import fix_redis
import pytest
from fix_ctl import run
from fix_database import PrivateDatabase
from fix_http import Web
from fix_memcached import Memcached
from fix_postfix import copy_dynamicmaps, type_missing
from fix_redis import RedisServer
from fix_server import write_lmdb
from fix_slapd import BASE, PEOPLE, Slapd
from fix_tls import Certificates

ROOT = Path(__file__).resolve().parent.parent
PARAGRAPH_AND_BLOCK = re.compile(r"((?:^\S.*\n)+)\n((?:^(?: {4}.*)?\n)*^ {4}.*\n)", re.MULTILINE)
SECRETS = "with the secret in a file of its own"  # of http, where the block before names the file


class Recipe:
    """A page of docs/tables/. `dir` stands in for /etc/postfix, and for the other folders that are named."""

    def __init__(self, page: str, folder: Path) -> None:
        self.text = (ROOT / f"docs/tables/{page}.md").read_text()
        self.dir = folder
        (folder / "main.cf").write_text("compatibility_level = 3.6\n")
        copy_dynamicmaps(folder)

    def placed(self, text: str) -> str:
        text = re.sub("/etc/postfix(?:/plugins)?", str(self.dir), text)
        return text.replace("/etc/aliases", f"{self.dir}/aliases").replace("/var/lib/postfix", str(self.dir))

    def write(self, name: str, **replaced: str) -> None:
        """The example file /etc/postfix/NAME, the first of that name. replaced: values of parameters."""
        for paragraph, block in PARAGRAPH_AND_BLOCK.findall(self.text):
            secret = name.endswith(".headers") and SECRETS in paragraph
            if secret or f"`/etc/postfix/{name}`" in paragraph:
                text = self.placed(re.sub("^ {4}", "", block, flags=re.MULTILINE))
                for parameter, value in replaced.items():
                    text, changed = re.subn(
                        rf"^{parameter} = .*", f"{parameter} = {value}", text, flags=re.MULTILINE
                    )
                    assert changed, f"{name} has no {parameter}"
                (self.dir / name).write_text(text)
                return
        raise AssertionError(f"no example of {name}")

    def commands(self, *words: str) -> list[list[str]]:
        """The arguments of proxymapctl in the page that begin so."""
        found = [
            shlex.split(line, comments=True)[1:]
            for line in re.findall("^ {4}(proxymapctl .*)", self.text, re.M)
        ]
        return [list(map(self.placed, line)) for line in found if line[: len(words)] == list(words)]

    def check(self, expected: str) -> None:
        """The page's own question about its table has this answer, and it is explained."""
        (command,) = self.commands("query", "--direct", "--explain")
        done = run(*command, "-c", self.dir)
        assert (done.stdout.decode(), done.returncode) == (expected + "\n", 0), done.stderr
        assert done.stderr

    def answers(self, table: str, expected: dict[str, str]) -> None:
        """These keys have these values, others have none; by our reader and Postfix's, without a warning."""
        keys = "".join(f"{key}\n" for key in [*expected, "nobody-knows-this"]).encode()
        wanted = [f"{key}\t{value}" for key, value in expected.items()]
        done = run("query", "--direct", table, "-", "-c", self.dir, stdin=keys)
        assert (done.stdout.decode().splitlines(), done.stderr, done.returncode) == (wanted, b"", 1)
        for path in self.dir.iterdir():  # Postfix waits until a file is older than a second or two
            os.utime(path, (time.time() - 60,) * 2)
        if type_missing(table.partition(":")[0]) is None:
            command = ["postmap", "-c", self.dir, "-q", "-", table]
            stock = subprocess.run(command, input=keys, capture_output=True)
            assert (stock.stdout.decode().splitlines(), stock.stderr) == (wanted, b"")


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    return Recipe(request.param, tmp_path)


def of(page: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("recipe", [page], indirect=True)


# Files


@of("cdb")
def test_cdb(recipe: Recipe) -> None:
    recipe.write("virtual")
    (build,) = recipe.commands("build")
    assert run(*build).returncode == 0
    expected = {
        "sales@example.com": "joe@example.com, ann@example.com",
        "info@example.com": "joe@example.com",
    }
    recipe.answers(f"cdb:{recipe.dir}/virtual", expected)


@of("lmdb")
def test_lmdb(recipe: Recipe) -> None:
    (recipe.dir / "access").write_text("192.0.2.1 REJECT\n")
    (build,) = recipe.commands("build")
    assert run(*build).returncode == 0
    recipe.answers(f"lmdb:{recipe.dir}/access", {"192.0.2.1": "REJECT"})


@of("texthash")
def test_texthash(recipe: Recipe) -> None:
    recipe.write("relay_domains")
    recipe.answers(f"texthash:{recipe.dir}/relay_domains", {"example.com": "OK", "example.org": "OK"})


@of("cidr")
def test_cidr(recipe: Recipe) -> None:
    recipe.write("clients.cidr")
    recipe.check("REJECT")
    inside = {"192.0.2.66": "REJECT", "192.0.2.67": "OK", "2001:db8::1": "OK"}
    outside = {"198.51.100.1": "OK", "198.51.100.129": "DUNNO", "203.0.113.1": "DUNNO"}
    recipe.answers(f"cidr:{recipe.dir}/clients.cidr", inside | outside)


@of("pcre")
def test_pcre(recipe: Recipe) -> None:
    recipe.write("sender.pcre")
    recipe.check("joe@example.com")
    others = {"postmaster@example.org": "ops@example.com", "bob@example.org": "catchall@example.com"}
    recipe.answers(f"pcre:{recipe.dir}/sender.pcre", {"joe+list@example.com": "joe@example.com", **others})


@of("sqlite")
def test_sqlite(recipe: Recipe) -> None:
    (sql,) = re.findall(r'sqlite3 \S+ \\\n\s*"(.*?)"', recipe.text, re.DOTALL)
    with sqlite3.connect(recipe.dir / "mail.sqlite") as database:
        database.executescript(sql)
    database.close()
    recipe.write("alias-sqlite.cf")
    recipe.check("joe@example.com")
    recipe.answers(f"sqlite:{recipe.dir}/alias-sqlite.cf", {"sales@example.com": "joe@example.com"})


# Names and programs


@of("inline")
def test_inline_and_the_like(recipe: Recipe) -> None:
    recipe.check("x")
    answers = [run(*command).stdout.decode().strip() for command in recipe.commands("query", "--direct")[1:]]
    assert answers[0] == "some text"
    assert answers[1] in ("a", "b", "c")


@of("unionmap")
def test_unionmap_says_what_the_page_shows(recipe: Recipe) -> None:
    (command,) = recipe.commands("query", "--direct", "--explain")
    done = run(*command)
    shown = recipe.text.partition(" k\n\n")[2].partition("\n\n")[0]
    assert (done.stdout + done.stderr).decode() == re.sub("^ {4}", "", shown, flags=re.MULTILINE) + "\n"


@of("unix")
def test_unix(recipe: Recipe) -> None:
    (command,) = recipe.commands("query", "--direct", "--explain")
    assert run(*command).stdout.startswith(b"root:")


@of("python")
def test_python(recipe: Recipe) -> None:
    source = (ROOT / "contrib/plugins/sender_logins.py").read_text()
    (recipe.dir / "sender_logins.py").write_text(source)
    write_lmdb(recipe.dir / "aliases.lmdb", {b"sales\0": b"joe, ann\0"})
    recipe.write("logins.cf")
    recipe.check("ann,joe")


# Servers


def logins(server: PrivateDatabase, who: str) -> None:
    """The recipe's database, user and table."""
    server.execute("CREATE DATABASE recipe")
    for sql in (
        f"CREATE USER {who} {'IDENTIFIED BY' if server.maptype == 'mysql' else 'PASSWORD'} 'secret'",
        "CREATE TABLE alias (address VARCHAR(99) PRIMARY KEY, goto VARCHAR(99), active INT)",
        f"GRANT SELECT ON alias TO {who}",
        "INSERT INTO alias VALUES ('sales@example.com', 'joe@example.com', 1), ('old@example.com', 'x', 0)",
    ):
        server.execute(sql, database="recipe")


@of("mysql")
def test_mysql(recipe: Recipe, mariadb: PrivateDatabase) -> None:
    logins(mariadb, "postfix@'%'")
    recipe.write("alias.cf", hosts=f"unix:{mariadb.socket}", dbname="recipe")
    try:
        recipe.check("joe@example.com")
        recipe.answers(f"mysql:{recipe.dir}/alias.cf", {"sales@example.com": "joe@example.com"})
    finally:
        mariadb.execute("DROP DATABASE recipe; DROP USER postfix@'%'")


@of("pgsql")
def test_pgsql(recipe: Recipe, postgresql: PrivateDatabase) -> None:
    logins(postgresql, "postfix")
    authority = postgresql.certificates.pem("ca")
    url = f"postgresql://postfix:secret@localhost:{postgresql.port}/recipe?sslmode=verify-full&sslrootcert={authority}"
    recipe.write("alias-pg.cf", hosts=url)
    try:
        recipe.check("joe@example.com")
        expected = {"sales@example.com": "joe@example.com", "old@example.com": "x"}
        recipe.answers(f"pgsql:{recipe.dir}/alias-pg.cf", expected)
    finally:
        postgresql.execute("DROP DATABASE recipe WITH (FORCE)")
        postgresql.execute("DROP ROLE postfix")


@of("ldap")
def test_ldap(recipe: Recipe, slapd: Slapd) -> None:
    services = f"ou=services,{BASE}"
    slapd.add(
        (services, {"objectClass": ["organizationalUnit"], "ou": ["services"]}),
        (
            f"cn=postfix,{services}",
            {"objectClass": ["person"], "cn": ["postfix"], "sn": ["x"], "userPassword": ["secret"]},
        ),
        (
            f"cn=joe,{PEOPLE}",
            {"objectClass": ["pmEntry"], "cn": ["joe"], "mail": ["joe@example.com"], "uid": ["joe1"]},
        ),
    )
    recipe.write("users-ldap.cf", server_host=slapd.address())
    try:
        recipe.check("joe1")
        recipe.answers(f"ldap:{recipe.dir}/users-ldap.cf", {"joe@example.com": "joe1"})
    finally:
        slapd.remove_entries(services)
        slapd.remove_entries()


@pytest.mark.skipif(fix_memcached.unavailable() is not None, reason="memcached is not installed")
@of("memcache")
def test_memcache(recipe: Recipe) -> None:
    write_lmdb(recipe.dir / "verify.lmdb", {b"ann@example.com\0": b"of the backup\0"})
    with Memcached() as server:
        recipe.write("verify-memcache.cf", memcache=f"inet:127.0.0.1:{server.port}")
        server.put(b"verify:joe@example.com", b"of memcached")
        recipe.check("of memcached")
        expected = {"joe@example.com": "of memcached", "ann@example.com": "of the backup"}
        recipe.answers(f"memcache:{recipe.dir}/verify-memcache.cf", expected)


@pytest.mark.skipif(fix_redis.unavailable() is not None, reason="no Redis")
@of("redis")
def test_redis(recipe: Recipe) -> None:
    """Each example of an alias, with the command of Redis that the page has for it."""
    fills = re.findall(r", for `([A-Z]+ [^`]+)`:\n\n((?: {4}.*\n)+)", recipe.text)
    values = [
        {"joe@example.com", "ann@example.com"},
        {"joe@example.com", "ann@example.com"},
        {"joe@example.com"},
    ]
    (command,) = recipe.commands("query", "--direct", "--explain")
    with RedisServer(recipe.dir) as server:
        for (fill, block), expected in zip(fills, values, strict=True):
            server.ask(*shlex.split(fill))
            text = re.sub("^ {4}", "", block, flags=re.MULTILINE).replace("redis://10.0.0.5", server.uri)
            (recipe.dir / "redis-alias.cf").write_text(text)
            said = run(*command).stdout.decode()
            assert {value.strip() for value in said.split(",")} == expected, fill


@of("http")
def test_http(recipe: Recipe) -> None:
    tls = Certificates(recipe.dir / "tls")
    with Web(
        {b"sales@example.com": b'{"goto": ["joe@example.com", "ann@example.com"]}'},
        (tls.pem("server"), tls.key("server")),
    ) as server:
        recipe.write("aliases-api.headers")
        recipe.write("aliases-api.cf", url=f"https://localhost:{server.port}/api/alias?address=%s")
        with (recipe.dir / "aliases-api.cf").open("a") as file:
            file.write(f"tls_CAfile = {tls.pem('ca')}\n")
        recipe.check("joe@example.com,ann@example.com")
        assert server.requests[0].headers["Authorization"] == "Bearer 0123456789abcdef"


@of("mongodb")
def test_mongodb(recipe: Recipe) -> None:
    """Of a pretended server, which has neither logins nor replicas."""
    fix_mongo = pytest.importorskip("fix_mongo", exc_type=ImportError)
    documents = [
        {"address": "sales@example.com", "active": active, "goto": goto}
        for active, goto in [(True, "joe@example.com"), (False, "x")]
    ]
    with fix_mongo.FakeMongo(documents) as server:
        recipe.write("alias-mongo.cf", uri=f"mongodb://127.0.0.1:{server.port}/")
        recipe.check("joe@example.com")
