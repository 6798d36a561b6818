"""test_sql_parameters - what the parameters of mysql_table(5) and pgsql_table(5) do, beside stock's proxymap

Hosts, TLS, option files, character sets, quoting. Where ours is to differ from
stock 3.7 a test says so: test_intended_difference_*.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from fix_database import DATABASE, PASSWORD
from fix_postfix import release, unavailable
from fix_relay import Relay
from fix_rows import KNOWN, RETRY, Rows, mysql, pgsql, readable
from fix_server import NOT_FOUND, USER, found, lookup, wait_until

__all__ = ["mysql", "pgsql"]

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

CIPHER = (
    "SELECT concat('TLS ', variable_value) FROM information_schema.session_status"
    " WHERE variable_name = 'Ssl_cipher'"
)
NO_TLS = b"TLS "
QUOTABLE = [b"a'b\"c\\d", b"e\nf\rg", b"h\x1ai%_j", "\u00e9'".encode(), b"''", b"\\", b"\\'", b"x\\"]
LOCAL_FILES = 0x80  # CLIENT_LOCAL_FILES, a capability


# MariaDB: TLS


def test_mysql_without_tls_parameters_is_plain_text(mysql: Rows) -> None:
    assert mysql.value(query=CIPHER, hosts=mysql.tcp) == NO_TLS


def test_mysql_certificate_of_the_authority(mysql: Rows) -> None:
    assert mysql.value(query=CIPHER, hosts=mysql.tcp, tls_CAfile=readable(mysql, "ca")) > NO_TLS


def test_mysql_certificate_and_name_are_verified(mysql: Rows) -> None:
    ca = readable(mysql, "ca")
    assert mysql.value(query=CIPHER, hosts=mysql.tcp, tls_CAfile=ca, tls_verify_cert="yes") > NO_TLS


def test_mysql_client_certificate(mysql: Rows) -> None:
    parameters = {
        "user": "certified", "password": "", "hosts": mysql.tcp, "query": CIPHER,
        "tls_cert_file": readable(mysql, "client"), "tls_CAfile": readable(mysql, "ca"),
    }  # fmt: skip
    for ask, user in ((mysql.stock, "postfix"), (mysql.ours, USER)):
        name = mysql.table(**parameters, tls_key_file=key_file(mysql, "client", user))
        reply = ask(name)
        assert reply is not None
        assert reply[1][1] > NO_TLS
    mysql.fails("Access denied for user 'certified'", user="certified", password="", hosts=mysql.tcp)


def test_mysql_ciphers_ask_for_tls(mysql: Rows) -> None:
    ca = readable(mysql, "ca")
    cipher = "ECDHE-ECDSA-AES256-GCM-SHA384"
    assert mysql.value(query=CIPHER, hosts=mysql.tcp, tls_CAfile=ca, tls_ciphers=cipher) > NO_TLS


def test_mysql_slow_and_long_answers_over_tls_delay_no_other(mysql: Rows) -> None:
    """libmariadb 3.3 leaves its socket in blocking mode after the handshake."""
    parameters = {"hosts": mysql.tcp, "tls_CAfile": readable(mysql, "ca")}
    slow = mysql.table(query="SELECT concat('%s', left(SLEEP(2), 0))", **parameters)
    long = mysql.table(query="SELECT concat('%s', repeat('x', 3000000))", **parameters)
    fast = mysql.table(**parameters)
    assert mysql.ours(fast) == found(b"ob")
    peer = mysql.pair.ours.connect()
    peer.send(lookup(slow, b"k"))
    for n in range(5):
        assert mysql.ours(fast) == found(b"ob")
        assert mysql.ours(long, b"k") == found(b"k" + b"x" * 3_000_000)
        if n == 0:
            assert not peer.answered(), "the others waited for it"
    assert peer.reply() == found(b"k")
    peer.close()


# MariaDB: hosts and option files


def option_file(rows: Rows, *lines: str, group: str = "client") -> str:
    rows.pair.shared.mkdir(exist_ok=True)
    path: Path = rows.pair.shared / f"{time.monotonic_ns()}.cnf"
    path.write_text("".join(f"{line}\n" for line in (f"[{group}]", *lines)))
    path.chmod(0o644)
    return str(path)


def test_mysql_localhost_is_the_socket_of_the_option_file(mysql: Rows) -> None:
    file = option_file(mysql, f"socket = {mysql.database.socket}")
    for hosts in ("localhost", "localhost:9", "inet:localhost:9", ""):
        assert mysql.value(option_file=file, hosts=hosts) == b"ob"


def test_mysql_option_file_gives_the_user(mysql: Rows) -> None:
    mysql.database.execute("CREATE OR REPLACE USER open@'%'; GRANT ALL ON mail.* TO open@'%'")
    file = option_file(mysql, "user = open")
    query = "SELECT substring_index(current_user(), '@', 1)"
    assert mysql.value(option_file=file, user="", password="", query=query) == b"open"


def test_mysql_option_group(mysql: Rows) -> None:
    query = "SELECT @seen"
    file = option_file(mysql, "init-command = SET @seen = 'mine'", group="mine")
    assert mysql.value(option_file=file, option_group="mine", query=query) == b"mine"
    assert mysql.value(option_file=file, option_group="other", query=query) is None
    assert mysql.value(option_file="/nosuch/file.cnf", query="SELECT 'x'") == b"x"


def test_mysql_init_command_sets_a_time_limit(mysql: Rows) -> None:
    file = option_file(mysql, "init-command = SET max_statement_time = 1")
    words = "max_statement_time exceeded"
    name = mysql.fails(words, option_file=file, query="SELECT concat('%s', SLEEP(8))")
    assert mysql.ours(name) == RETRY


def test_intended_difference_mysql_password_of_the_option_file(mysql: Rows) -> None:
    """Stock passes an empty password, which wins."""
    file = option_file(mysql, f"user = pm\npassword = '{PASSWORD}'")
    name = mysql.pair.fresh_name()
    write(mysql, name, {"user": None, "password": None, "option_file": file, "query": "SELECT 'in'"})
    assert mysql.stock(name) == RETRY
    assert mysql.ours(name) == found(b"in")


def test_intended_difference_mysql_local_files_are_not_offered(mysql: Rows) -> None:
    with Relay(mysql.database.socket_file) as relay:
        name = mysql.table(hosts=f"127.0.0.1:{relay.port}")
        offered = []
        for ask in (mysql.stock, mysql.ours):
            before = len(relay.sent())
            assert ask(name) == found(b"ob")
            offered.append(int.from_bytes(relay.sent()[before][4:8], "little") & LOCAL_FILES)
    assert offered == [LOCAL_FILES, 0]


def test_intended_difference_mysql_unknown_service_name(mysql: Rows) -> None:
    name = mysql.table(hosts="127.0.0.1:nosuch")
    assert mysql.stock(name) is None
    assert dict(mysql.ours(name))[b"status"] in (b"2", b"5")


@pytest.mark.parametrize("maptype", ["mysql", "pgsql"])
def test_intended_difference_brackets_are_understood(maptype: str, request: pytest.FixtureRequest) -> None:
    rows: Rows = request.getfixturevalue(maptype)
    try:
        relay = Relay(rows.database.socket_file, "::1")
    except OSError as trouble:
        pytest.skip(f"IPv6: {trouble}")
    with relay:
        name = rows.table(hosts=f"[::1]:{relay.port}")
        assert rows.stock(name) == RETRY
        assert rows.ours(name) == found(b"ob")


# MariaDB: characters and quoting


@pytest.mark.parametrize("mode", ["", "NO_BACKSLASH_ESCAPES"])
def test_mysql_quoting_is_stocks_byte_for_byte(mysql: Rows, mode: str) -> None:
    """As the server sees it, and as it comes back."""
    file = option_file(mysql, f"init-command = \"SET sql_mode = '{mode}'\"")
    with Relay(mysql.database.socket_file) as relay:
        name = mysql.table(query="SELECT '%s', '%u'", hosts=f"127.0.0.1:{relay.port}", option_file=file)
        queries = []
        for ask in (mysql.stock, mysql.ours):
            before = len(relay.sent())
            for key in QUOTABLE:
                assert ask(name, key) == found(key + b"," + key)
            sent = b"".join(relay.sent()[before:])
            queries.append([text.partition(b"\x03SELECT ")[2] for text in split_queries(sent)])
    assert queries[0] == queries[1]
    assert len(queries[0]) == len(QUOTABLE)


def split_queries(sent: bytes) -> list[bytes]:
    """What follows each COM_QUERY of ours; packets have a length of three bytes and a number."""
    pieces = []
    at = 0
    while at + 4 <= len(sent):
        size = int.from_bytes(sent[at : at + 3], "little")
        packet = sent[at + 4 : at + 4 + size]
        if packet.startswith(b"\x03SELECT '"):
            pieces.append(packet)
        at += 4 + size
    return pieces


def test_mysql_character_set_is_told_to_the_server(mysql: Rows) -> None:
    query = "SELECT @@character_set_client"
    assert mysql.ours(mysql.table(query=query, charset="latin1")) == found(b"latin1")
    assert mysql.ours(mysql.table(query=query)) == found(b"utf8mb4")


def test_mysql_unknown_character_set_is_retry(mysql: Rows) -> None:
    name = mysql.table(charset="nosuch")
    assert mysql.ours(name) == RETRY
    wait_until(lambda: "nosuch" in mysql.pair.ours.log(), "its name in the log")


def test_mysql_key_in_latin1(mysql: Rows) -> None:
    name = mysql.table(charset="latin1", query="SELECT v FROM latin WHERE k = '%s'")
    assert mysql.ours(name, b"\xe9") == found(b"latin \xe9")


def test_intended_difference_mysql_key_that_is_not_utf8_is_nokey(mysql: Rows) -> None:
    """Nothing can match it, so that nothing is asked."""
    name = mysql.table(query="SELECT 'any', length('%u')")
    assert mysql.stock(name, b"\xff@x") == found(b"any,1")
    assert mysql.ours(name, b"\xff@x") == NOT_FOUND
    assert mysql.same(name, b"x@\xff") == found(b"any,1")  # the query has no use for that part


# PostgreSQL: URIs, TLS

IS_TLS = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
SECRET = PASSWORD.replace(" ", "%20")


def uri(rows: Rows, rest: str = "", scheme: str = "postgresql", user: str = f"pm:{SECRET}") -> str:
    return f"{scheme}://{user}@{rows.tcp}/{DATABASE}{rest}"


def test_pgsql_prefers_tls_over_tcp(pgsql: Rows) -> None:
    assert pgsql.value(query=IS_TLS, hosts=pgsql.tcp) == b"t"
    assert pgsql.value(query=IS_TLS) == b"f"


def test_pgsql_tls_by_uri(pgsql: Rows) -> None:
    ca = readable(pgsql, "ca")
    assert pgsql.value(query=IS_TLS, hosts=uri(pgsql, "?sslmode=disable")) == b"f"
    assert pgsql.value(query=IS_TLS, hosts=uri(pgsql, f"?sslmode=verify-full&sslrootcert={ca}")) == b"t"


def test_pgsql_client_certificate(pgsql: Rows) -> None:
    files = {"sslcert": readable(pgsql, "client"), "sslrootcert": readable(pgsql, "ca")}
    for ask, user in ((pgsql.stock, "postfix"), (pgsql.ours, USER)):
        all_files = files | {"sslkey": key_file(pgsql, "client", user)}
        rest = "?sslmode=verify-full&" + "&".join(f"{name}={path}" for name, path in all_files.items())
        assert ask(pgsql.table(query=IS_TLS, hosts=uri(pgsql, rest, user="certified"))) == found(b"t")


def test_pgsql_uri_with_the_folder_of_the_socket(pgsql: Rows) -> None:
    rest = f"host={pgsql.database.dir}&port={pgsql.database.port}"
    assert pgsql.value(hosts=f"postgresql://pm:{SECRET}@/{DATABASE}?{rest}") == b"ob"


def test_pgsql_folder_of_the_socket(pgsql: Rows) -> None:
    for hosts in (f"unix:{pgsql.database.dir}", str(pgsql.database.dir)):
        assert pgsql.value(hosts=hosts) == b"ob"


def test_pgsql_options_in_a_uri(pgsql: Rows) -> None:
    rest = "?options=-c%20application_name%3Dmail"
    assert pgsql.value(hosts=uri(pgsql, rest), query="SHOW application_name") == b"mail"


def test_intended_difference_pgsql_short_scheme(pgsql: Rows) -> None:
    """As in Postfix 3.10."""
    name = pgsql.table(hosts=uri(pgsql, scheme="postgres"))
    assert pgsql.stock(name) == (found(b"ob") if release() >= (3, 10) else RETRY)
    assert pgsql.ours(name) == found(b"ob")


@pytest.mark.parametrize("scheme", ["foo", "POSTGRESQL"])
def test_pgsql_other_schemes_are_retry(pgsql: Rows, scheme: str) -> None:
    assert pgsql.same(pgsql.table(hosts=uri(pgsql, scheme=scheme)), KNOWN) == RETRY


def test_intended_difference_pgsql_uri_needs_no_dbname(pgsql: Rows) -> None:
    """As in Postfix 3.10."""
    name = pgsql.pair.fresh_name()
    write(pgsql, name, {"hosts": uri(pgsql), "dbname": None, "user": None, "password": None})
    assert pgsql.stock(name) == (found(b"ob") if release() >= (3, 10) else None)
    assert pgsql.ours(name) == found(b"ob")


def test_intended_difference_pgsql_host_without_dbname_is_unavailable(pgsql: Rows) -> None:
    name = pgsql.pair.fresh_name()
    write(pgsql, name, {"dbname": None})
    assert pgsql.stock(name) == (RETRY if release() >= (3, 10) else None)
    assert dict(pgsql.ours(name))[b"status"] in (b"2", b"5")


# PostgreSQL: characters and quoting


def test_intended_difference_pgsql_keys_are_utf8(pgsql: Rows) -> None:
    """As in Postfix 3.8; earlier ones take the key for Latin-1."""
    key = "\u00e9@b.c".encode()
    name = pgsql.table()
    assert pgsql.stock(name, key) == (found("\u00e9\u00df".encode()) if release() >= (3, 8) else NOT_FOUND)
    assert pgsql.ours(name, key) == found("\u00e9\u00df".encode())
    assert pgsql.ours(name, b"wide@b.c") == found("\u4e2d".encode())
    assert pgsql.ours(name, b"\xe9@b.c") == NOT_FOUND


def test_pgsql_latin1(pgsql: Rows) -> None:
    assert pgsql.value(b"\xe9@b.c", encoding="LATIN1") == b"\xe9\xdf"
    assert pgsql.value("\u00e9@b.c".encode(), encoding="LATIN1") is None


def test_pgsql_value_outside_the_encoding_is_retry_for_that_key(pgsql: Rows) -> None:
    name = pgsql.fails("has no equivalent in encoding", key=b"wide@b.c", encoding="LATIN1")
    assert pgsql.ours(name) == found(b"ob")


def test_pgsql_unknown_encoding_is_retry(pgsql: Rows) -> None:
    name = pgsql.table(encoding="nosuch")
    assert pgsql.ours(name) == RETRY
    wait_until(lambda: "nosuch" in pgsql.pair.ours.log(), "its name in the log")


@pytest.mark.parametrize("conforming", ["on", "off"])
def test_pgsql_quoting_brings_keys_back(pgsql: Rows, conforming: str) -> None:
    options = f"?options=-c%20standard_conforming_strings%3D{conforming}"
    name = pgsql.table(query="SELECT '%s', '%u'", hosts=uri(pgsql, options), encoding="LATIN1")
    for key in QUOTABLE:
        assert pgsql.same(name, key) == found(key + b"," + key)


@pytest.mark.parametrize("maptype", ["mysql", "pgsql"])
def test_long_keys_and_values(maptype: str, request: pytest.FixtureRequest) -> None:
    rows: Rows = request.getfixturevalue(maptype)
    assert rows.value(b"x" * 200_000) is None
    assert rows.value(query="SELECT repeat('x', 3000000)") == b"x" * 3_000_000


# Both


def write(rows: Rows, name: bytes, changes: dict[str, str | None]) -> None:
    """A .cf file without the parameters that are None here."""
    kept = {**rows.database.parameters(query=f"{DEFAULT_QUERY}"), **changes}
    path = rows.pair.path(name)
    path.write_text("".join(f"{key} = {value}\n" for key, value in kept.items() if value is not None))
    path.chmod(0o644)
    rows.pair.cool()


DEFAULT_QUERY = "SELECT goto FROM alias WHERE address = '%s' ORDER BY extra"


def key_file(rows: Rows, name: str, user: str) -> str:
    """A private key that this user alone may read."""
    path = Path(readable(rows, name)).with_suffix(f".{user}.key")
    path.write_bytes(Path(rows.database.certificates.key(name)).read_bytes())
    path.chmod(0o600)
    shutil.chown(path, user)
    return str(path)
