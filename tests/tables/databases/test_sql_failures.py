"""test_sql_failures - what can go wrong with a server or a question: RETRY, and stock's words in the log

Each row of databases.md 3.3, asked of stock's proxymap and of ours. Stock logs at
each attempt; we log a server's trouble once per state, and a question's as stock
does. A table has a name of its own in each test, so that none is out of service
for what an earlier one did.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
from collections.abc import Callable

import pytest
from fix_database import PASSWORD, free_port
from fix_pair import Pair
from fix_postfix import unavailable
from fix_relay import Relay
from fix_rows import KNOWN, RETRY, Rows, mysql, pgsql, readable
from fix_server import Peer, lookup, wait_until
from oracle import Attributes

__all__ = ["mysql", "pgsql"]

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

# Connecting to MariaDB


def test_mysql_refused(mysql: Rows) -> None:
    mysql.fails("Can't connect to server on '127.0.0.1' (", hosts=f"127.0.0.1:{free_port()}")


def test_mysql_no_socket(mysql: Rows) -> None:
    mysql.fails(
        "Can't connect to local server through socket '/tmp/nosuch.sock' (2)", hosts="unix:/tmp/nosuch.sock"
    )


def test_mysql_unknown_host(mysql: Rows) -> None:
    mysql.fails("Unknown server host 'nosuch.invalid' (", hosts="nosuch.invalid")


def test_mysql_accepts_and_closes(mysql: Rows) -> None:
    with Relay(("127.0.0.1", mysql.database.port)) as relay:
        relay.closing = True
        mysql.fails("Lost connection to server at 'handshake: ", hosts=f"127.0.0.1:{relay.port}")


@pytest.mark.parametrize(("parameter", "value"), [("user", "nobody"), ("password", "wrong")])
def test_mysql_access_denied(mysql: Rows, parameter: str, value: str) -> None:
    user = value if parameter == "user" else "pm"
    mysql.fails(f"Access denied for user '{user}'@'", **{parameter: value})


@pytest.mark.parametrize("name", ["nosuch", "closed"])
def test_mysql_unknown_or_forbidden_database(mysql: Rows, name: str) -> None:
    mysql.fails(f"to database '{name}'", dbname=name)


def test_mysql_too_many_connections(mysql: Rows) -> None:
    limit = 10  # the least that MariaDB takes
    before = mysql.database.execute("SELECT @@max_connections")[0][0]
    mysql.database.execute(f"SET GLOBAL max_connections = {limit}")
    try:
        with contextlib.ExitStack() as stack:

            def is_greeted() -> bool:
                """One more is held; not while a connection of before is still ending."""
                held = stack.enter_context(socket.create_connection(("127.0.0.1", mysql.database.port)))
                return held.recv(5, socket.MSG_WAITALL)[4:] == b"\n"  # its version; 255: an error

            for _ in range(limit + 1):
                wait_until(is_greeted, "a greeting")
            mysql.fails("Too many connections", user="other", hosts=mysql.tcp)
    finally:
        wait_until(mysql.database.answers, "an end of these connections")
        mysql.database.execute(f"SET GLOBAL max_connections = {before}")


def test_mysql_too_many_connections_of_a_user(mysql: Rows) -> None:
    database = mysql.database
    database.execute(
        f"CREATE OR REPLACE USER few@'%' IDENTIFIED BY '{PASSWORD}' WITH MAX_USER_CONNECTIONS 1;"
        "GRANT ALL ON mail.* TO few@'%'"
    )
    client = ["mariadb", "--no-defaults", "-S", database.socket, "-u", "few", f"-p{PASSWORD}", "mail"]
    with subprocess.Popen(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        holder.stdin.write(b"SELECT 1;\n")
        holder.stdin.flush()
        count = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'few'"
        wait_until(lambda: database.execute(count) == [["1"]], "the connection that is allowed")
        mysql.fails("User 'few' has exceeded the 'max_user_connections' resource", user="few")
        holder.stdin.close()


def test_mysql_certificate_of_another_authority(mysql: Rows) -> None:
    mysql.pair.renew()  # OpenSSL may tell of an earlier error of the same process
    mysql.fails("self-signed certificate", hosts=mysql.tcp, tls_CAfile=readable(mysql, "other_ca"))


def test_mysql_no_cipher(mysql: Rows) -> None:
    mysql.pair.renew()
    mysql.fails("TLS/SSL error: no cipher match", hosts=mysql.tcp, tls_ciphers="nonsense")


def test_mysql_unreadable_tls_file(mysql: Rows) -> None:
    mysql.pair.renew()
    mysql.fails("TLS/SSL error: No such file or directory", hosts=mysql.tcp, tls_CAfile="/nosuch/ca.pem")


# Questions to MariaDB


def test_mysql_sql_error(mysql: Rows) -> None:
    name = mysql.fails("query failed: Unknown column 'nosuch' in '", query="SELECT nosuch")
    assert f"warning: {name.decode()}: query failed: " in mysql.pair.stock.log()


def test_mysql_error_while_rows_are_read(mysql: Rows) -> None:
    query = "SELECT IF(seq < 5000, seq, (SELECT goto FROM alias)) FROM seq_1_to_6000"
    mysql.fails(
        "(mysql_store_result): Subquery returns more than 1 row", query=query, ours="Subquery returns"
    )


def test_mysql_error_after_the_first_result(mysql: Rows) -> None:
    mysql.fails("(mysql_next_result): later", query="CALL later('%s')", ours="later")


def test_mysql_two_results(mysql: Rows) -> None:
    mysql.fails(
        "multiple result sets returning data are not supported", query="CALL two('%s')", ours="result sets"
    )


def test_mysql_no_result_set(mysql: Rows) -> None:
    mysql.fails("query returned no result set", query="SET @a = '%s'")


def test_mysql_connection_lost_while_the_query_runs(mysql: Rows) -> None:
    name = mysql.table(query="SELECT SLEEP(30), '%s'")
    sleeping = "SELECT id FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP(30)%'"

    def end_all() -> None:
        for (number,) in mysql.database.execute(sleeping):
            with contextlib.suppress(RuntimeError):  # it may be gone by now
                mysql.database.execute(f"KILL CONNECTION {number}")

    assert ended_meanwhile(mysql.pair, name, end_all) == [RETRY, RETRY]


@pytest.mark.parametrize("maptype", ["mysql", "pgsql"])
def test_expansion_limit_concerns_that_key_alone(maptype: str, request: pytest.FixtureRequest) -> None:
    rows: Rows = request.getfixturevalue(maptype)
    words = "Expansion limit exceeded for key"
    name = rows.fails(words, key=b"a@b.c", expansion_limit="1")
    rows.answers(name)


# Connecting to PostgreSQL


def test_pgsql_refused(pgsql: Rows) -> None:
    pgsql.fails("failed: Connection refused", hosts=f"127.0.0.1:{free_port()}")


def test_pgsql_no_socket(pgsql: Rows) -> None:
    pgsql.fails(
        'connection to server on socket "/nosuch/.s.PGSQL.5432" failed: No such file', hosts="/nosuch"
    )


def test_pgsql_unknown_host(pgsql: Rows) -> None:
    pgsql.fails('could not translate host name "nosuch.invalid" to address', hosts="nosuch.invalid")


def test_pgsql_accepts_and_closes(pgsql: Rows) -> None:
    with Relay(("127.0.0.1", pgsql.database.port)) as relay:
        relay.closing = True
        pgsql.fails("server closed the connection unexpectedly", hosts=f"127.0.0.1:{relay.port}")


@pytest.mark.parametrize(("parameter", "value"), [("user", "nobody"), ("password", "wrong")])
def test_pgsql_access_denied(pgsql: Rows, parameter: str, value: str) -> None:
    user = value if parameter == "user" else "pm"
    words = f'FATAL:  password authentication failed for user "{user}"'
    pgsql.fails(words, hosts=pgsql.tcp, **{parameter: value})


def test_pgsql_unknown_database(pgsql: Rows) -> None:
    pgsql.fails('FATAL:  database "nosuch" does not exist', dbname="nosuch")


def test_pgsql_too_many_connections(pgsql: Rows) -> None:
    with contextlib.suppress(RuntimeError):
        pgsql.database.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 0")
    pgsql.fails('FATAL:  too many connections for role "few"', user="few")


def test_pgsql_certificate_of_another_authority(pgsql: Rows) -> None:
    uri = f"postgresql://pm:{PASSWORD.replace(' ', '%20')}@{pgsql.tcp}/mail?sslmode=verify-ca"
    other = readable(pgsql, "other_ca")
    pgsql.fails("SSL error: certificate verify failed", hosts=f"{uri}&sslrootcert={other}")


def test_pgsql_bad_port(pgsql: Rows) -> None:
    pgsql.fails('"nosuch"', ours=':nosuch"', hosts="127.0.0.1:nosuch")


# Questions to PostgreSQL


def test_pgsql_sql_error(pgsql: Rows) -> None:
    pgsql.fails('ERROR:  column "nosuch" does not exist', query="SELECT nosuch")
    assert "warning: pgsql query failed: fatal error from host unix:" in pgsql.pair.stock.log()


def test_pgsql_error_while_rows_are_read(pgsql: Rows) -> None:
    pgsql.fails("ERROR:  division by zero", query="SELECT 1 / (5000 - n) FROM generate_series(1, 6000) n")


def test_pgsql_no_rights(pgsql: Rows) -> None:
    pgsql.fails("ERROR:  permission denied for table closed", query="SELECT k FROM closed")


def test_pgsql_copy(pgsql: Rows) -> None:
    pgsql.fails("unknown code 0x3", query="COPY alias TO STDOUT", ours="")


def test_pgsql_empty_query(pgsql: Rows) -> None:
    pgsql.fails("unknown code 0x0", query="-- %s", ours="")


def test_pgsql_connection_lost_while_the_query_runs(pgsql: Rows) -> None:
    name = pgsql.table(query="SELECT pg_sleep(30), '%s'")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30)%'"
    assert ended_meanwhile(pgsql.pair, name, lambda: pgsql.database.execute(end)) == [RETRY, RETRY]


def test_statement_that_is_cancelled_by_the_server(pgsql: Rows) -> None:
    options = "options=-c%20statement_timeout%3D200"
    uri = f"postgresql://pm:{PASSWORD.replace(' ', '%20')}@{pgsql.tcp}/mail?{options}"
    pgsql.fails("canceling statement due to statement timeout", hosts=uri, query="SELECT pg_sleep(30), '%s'")


def ended_meanwhile(pair: Pair, name: bytes, end: Callable[[], object]) -> list[Attributes]:
    """Ask stock, then ours, and end the query until the reply is there: a server may ask once more."""
    replies = []
    for peer in pair.peers:
        peer.send(lookup(name, KNOWN))

        def replied(peer: Peer = peer) -> bool:
            end()
            return bool(select.select([peer.socket], [], [], 0.05)[0])

        wait_until(replied, "a reply", pause=0.2)
        replies.append(peer.reply())
    return replies
