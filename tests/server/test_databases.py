"""test_databases - what our server does better than stock's with mysql and pgsql tables

Each row of databases.md 1, and what else a client or an administrator can see:
connections, deadlines, hosts, the log. Outages under load are in test_database_outages.
"""

from __future__ import annotations

import os
import resource
import signal
import statistics
import time
from collections.abc import Iterator

import pytest
from fix_database import PASSWORD, PrivateDatabase, free_port
from fix_relay import Relay
from fix_server import NOT_FOUND, ask_at_once, found, lookup, peers, wait_until
from fix_sql import CLIENTS, MANY, RETRY, Clients, Service, database, key_of, served, sleeping
from oracle import Attributes

__all__ = ["database"]

TIME_LIMIT = 3.0  # lookup_time_limit
CONNECT_LIMIT = 1.0  # server_connect_time_limit
SLACK = 10.0  # seconds; a thread that waits for a CPU of a busy machine
KNOWN, ITS_VALUE = key_of(1), found(b"box1")


@pytest.fixture
def service(database: PrivateDatabase) -> Iterator[Service]:
    limits = {"lookup_time_limit": "3s", "server_connect_time_limit": "1s", "cache_ttl": "0s"}
    with served(database, limits) as made:
        yield made


def relayed(relay: Relay) -> str:
    return f"127.0.0.1:{relay.port}"


def only(maptype: str, service: Service) -> None:
    if service.database.maptype != maptype:
        pytest.skip(f"of {maptype}")


# One bad question

BAD_FOR_SOME = "SELECT CASE WHEN '%s' LIKE 'bad%%' THEN (SELECT v FROM many) ELSE '%s' END"


def test_failing_question_hurts_no_other(service: Service) -> None:
    table = service.table(query=BAD_FOR_SOME)
    service.start()
    with service.connect() as peer:
        for _ in range(20):
            assert peer.ask(lookup(table, b"bad")) == RETRY
            assert peer.ask(lookup(table, b"good")) == found(b"good")


def test_failing_questions_amid_load(service: Service) -> None:
    """One client asks what fails, 32 others go on; their connections stay."""
    bad, table = service.table(query=BAD_FOR_SOME), service.table()
    service.start()
    with Clients(service, table) as clients, service.connect() as peer:
        clients.until("right", 100)
        for _ in range(50):
            assert peer.ask(lookup(bad, b"bad")) == RETRY
        clients.until("right", 100)
    assert clients.wrong == []
    assert clients.counts["retry"] == 0
    assert "is down" not in service.log()


def test_table_that_may_not_be_read_hurts_no_other(service: Service) -> None:
    closed, table = service.table(query="SELECT k FROM nosuch"), service.table()
    service.start()
    for _ in range(5):
        assert service.ask(closed, KNOWN) == RETRY
        assert service.ask(table, KNOWN) == ITS_VALUE


def test_key_that_a_column_cannot_hold_is_retry_for_that_key(service: Service) -> None:
    only("mysql", service)
    service.database.execute(
        "CREATE OR REPLACE TABLE narrow (k VARCHAR(9) CHARACTER SET latin1, v VARCHAR(9));"
        "INSERT INTO narrow VALUES ('a', 'b')"
    )
    table = service.table(query="SELECT v FROM narrow WHERE k = '%s'")
    service.start()
    assert service.ask(table, "\u4e2d".encode()) == RETRY
    assert service.ask(table, b"a") == found(b"b")


def test_key_outside_the_encoding_is_nokey_and_hurts_no_other(service: Service) -> None:
    table = service.table()
    service.start()
    for key in (b"caf\xe9@example.com", b"\xff", b"\xbf'", b"\xed\xa0\x80"):
        assert service.ask(table, key) == NOT_FOUND
        assert service.ask(table, KNOWN) == ITS_VALUE


def test_key_in_utf8_is_found(service: Service) -> None:
    name = "umlauts"
    service.database.execute(
        f"DROP TABLE IF EXISTS {name}; CREATE TABLE {name} (k VARCHAR(20), v VARCHAR(20));"
        f"INSERT INTO {name} VALUES ('caf\u00e9@b.c', '\u4e2d')"
    )
    if service.database.maptype == "pgsql":
        service.database.execute(f"ALTER TABLE {name} OWNER TO pm")
    table = service.table(query=f"SELECT v FROM {name} WHERE k = '%s'")
    service.start()
    assert service.ask(table, "caf\u00e9@b.c".encode()) == found("\u4e2d".encode())


# Slow and silent servers


def test_slow_question_delays_no_other(service: Service) -> None:
    """Of the same table, and of another one."""
    table, other = service.table(query=sleeping(service.database, 2)), service.table()
    service.start()
    service.until_right(other)
    with service.connect() as slow:
        slow.send(lookup(table, b"slow"))
        for n in range(20):
            assert service.ask(table, b"fast%d" % n) == found(b"fast%d" % n)
            assert service.ask(other, KNOWN) == ITS_VALUE
            if n == 0:
                assert not slow.answered(), "the others waited for it"
        assert slow.reply() == found(b"slow")


def test_question_is_over_at_the_time_limit_and_is_cancelled(service: Service) -> None:
    table = service.table(query=sleeping(service.database, 60))
    service.start()
    start = time.monotonic()
    assert service.ask(table, b"slow") == RETRY
    assert TIME_LIMIT / 2 < time.monotonic() - start < TIME_LIMIT + SLACK
    assert service.ask(table, b"fast") == found(b"fast")
    wait_until(lambda: running(service.database) == 0, "the question's end in the server")


def running(database: PrivateDatabase) -> int:
    """How many of USER's questions sleep in the server."""
    if database.maptype == "mysql":
        sql = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE '%SLEEP(60)%'"
        sql += " AND user = 'pm'"
    else:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%'"
        sql += " AND state = 'active' AND usename = 'pm'"
    return int(database.execute(sql)[0][0])


def test_host_that_hangs_is_left_for_the_next(service: Service) -> None:
    """And the next lookup does not try it again."""
    with Relay(service.database.socket_file) as relay:
        relay.stalled = True
        table = service.table(hosts=f"{relayed(relay)} 127.0.0.1:{service.database.port}")
        service.start()
        start = time.monotonic()
        assert service.ask(table, KNOWN) == ITS_VALUE
        assert time.monotonic() - start < TIME_LIMIT
        took = []
        for n in range(2, 12):
            start = time.monotonic()
            assert service.ask(table, key_of(n)) == found(b"box%d" % n)
            took.append(time.monotonic() - start)
        assert statistics.median(took) < CONNECT_LIMIT


def test_host_that_goes_silent_is_left_for_the_next(service: Service) -> None:
    with Relay(service.database.socket_file) as relay:
        table = service.table(hosts=f"{relayed(relay)} {service.database.address()}")
        service.start()
        service.until_right(table)
        relay.stalled = True
        took = service.until_right(table, 2)
        assert took < 2 * TIME_LIMIT + SLACK


def test_next_host_is_used_at_once(service: Service) -> None:
    dead = " ".join(f"127.0.0.1:{free_port()}" for _ in range(3))
    table = service.table(hosts=f"{dead} 127.0.0.1:{service.database.port}")
    service.start()
    for n in range(1, 20):
        assert service.ask(table, key_of(n)) == found(b"box%d" % n)


def test_unix_socket_comes_before_any_address(service: Service) -> None:
    with Relay(service.database.socket_file) as relay:
        table = service.table(hosts=f"{relayed(relay)} unix:{service.database.socket}")
        service.start()
        for n in range(1, 6):
            assert service.ask(table, key_of(n)) == found(b"box%d" % n)
        assert relay.accepted == 0


def test_dead_host_is_remembered_for_all_tables(service: Service) -> None:
    with Relay(service.database.socket_file) as relay:
        relay.closing = True
        hosts = f"{relayed(relay)} 127.0.0.1:{service.database.port}"
        tables = [service.table(hosts=hosts) for _ in range(5)]
        service.start()
        for n, table in enumerate(tables * 4):
            assert service.ask(table, key_of(n + 1)) == found(b"box%d" % (n + 1))
        assert relay.accepted <= 8  # stock: once a table


def test_hosts_with_and_without_prefix(service: Service) -> None:
    port = service.database.port
    forms = [f"127.0.0.1:{port}", f"inet:127.0.0.1:{port}", f"nosuch.invalid, 127.0.0.1:{port}"]
    tables = [service.table(hosts=form) for form in forms]
    service.start()
    assert [service.ask(table, KNOWN) for table in tables] == [ITS_VALUE] * len(forms)


# Connections


def test_tables_share_connections(service: Service) -> None:
    tables = [service.table(result_format=f"{n} %s") for n in range(6)]
    service.start()
    with service.connect() as peer:
        for _ in range(10):
            for n, table in enumerate(tables):
                assert peer.ask(lookup(table, KNOWN)) == found(b"%d box1" % n)
    assert service.database.connections() <= 2


@pytest.mark.parametrize("limit", [1, 4])
def test_connections_stay_within_their_limit(database: PrivateDatabase, limit: int) -> None:
    with served(database, {"server_connection_limit": str(limit)}) as service:
        table = service.table(query=sleeping(database, 0.01, when="1 = 1"))
        service.start()
        most = 0
        with peers(service, CLIENTS) as clients:
            for _ in range(4):
                for n, peer in enumerate(clients):
                    peer.send(lookup(table, b"k%d" % n))
                most = max(most, database.connections())
                for n, peer in enumerate(clients):
                    assert peer.reply() == found(b"k%d" % n)
        assert 1 <= most <= limit


def test_more_connections_come_when_lookups_wait(database: PrivateDatabase) -> None:
    with served(database, {"server_connection_limit": "16"}) as service:
        table = service.table(query=sleeping(database, 0.05, when="1 = 1"))
        service.start()
        assert service.ask(table, b"k") == found(b"k")
        assert database.connections() == 1
        with peers(service, CLIENTS) as clients:
            for _ in range(6):
                ask_at_once(clients, lookup(table, b"k"), found(b"k"))
            assert 8 <= database.connections() <= 16


def test_limit_by_type_and_by_table(database: PrivateDatabase) -> None:
    with served(database, {f"{database.maptype}_server_connection_limit": "2"}) as service:
        table = service.table(query=sleeping(database, 0.02, when="1 = 1"))
        other = service.table(query=sleeping(database, 0.02, when="1 = 1"), hosts=database.address())
        service.own["table_options"] = f"{{ {other.decode()}, server_connection_limit=3 }}"
        service.start()
        for name, limit in ((table, 2), (other, 3)):
            with peers(service, 8) as clients:
                for _ in range(5):
                    ask_at_once(clients, lookup(name, b"k"), found(b"k"))
            assert database.connections() == (limit if name is table else limit + 2)


def test_idle_connections_are_closed(database: PrivateDatabase) -> None:
    with served(database, {"server_idle_limit": "1s"}) as service:
        table = service.table()
        service.start()
        service.until_right(table)
        assert database.connections() == 1
        wait_until(lambda: database.connections() == 0, "the connection's end")
        assert service.ask(table, key_of(2)) == found(b"box2")


def test_idle_interval_of_the_table_counts(service: Service) -> None:
    table = service.table(idle_interval="1")
    service.start()
    service.until_right(table)
    wait_until(lambda: service.database.connections() == 0, "the connection's end", limit=20)


def test_old_connections_are_replaced(database: PrivateDatabase) -> None:
    own = {"server_age_limit": "1s"}
    pid = "SELECT CONNECTION_ID(), '%s'" if database.maptype == "mysql" else "SELECT pg_backend_pid(), '%s'"
    with served(database, own) as service:
        table = service.table(query=pid, result_format="%s")
        service.start()
        first = service.ask(table, b"k")
        wait_until(lambda: service.ask(table, b"k") != first, "another connection", pause=0.1)


def test_too_many_connections_are_no_trouble_for_clients(database: PrivateDatabase) -> None:
    """The server allows fewer than we would like: we make do with these."""
    if database.maptype == "mysql":
        database.execute("ALTER USER pm@'%' WITH MAX_USER_CONNECTIONS 2")
    else:
        database.execute("ALTER ROLE pm CONNECTION LIMIT 2")
    try:
        with served(database) as service:
            table = service.table(query=sleeping(database, 0.01, when="1 = 1"))
            service.start()
            with peers(service, CLIENTS) as clients:
                for _ in range(10):
                    ask_at_once(clients, lookup(table, b"k"), found(b"k"))
    finally:
        if database.maptype == "mysql":
            database.execute("ALTER USER pm@'%' WITH MAX_USER_CONNECTIONS 0")
        else:
            database.execute("ALTER ROLE pm CONNECTION LIMIT -1")


def test_thousands_of_clients_on_one_table(database: PrivateDatabase) -> None:
    """Connections within the limit, memory bounded, replies in order."""
    count, limit = 5000, 8
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * count:
        pytest.skip(f"only {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        own = {"server_connection_limit": str(limit), "lookup_time_limit": "60s", "waiting_limit": str(count)}
        with served(database, own) as service:
            table = service.table()
            service.start()
            service.until_right(table)
            with peers(service, count) as clients:
                before = service.resident()
                for n, peer in enumerate(clients):  # two each: the second waits for the first
                    peer.send(lookup(table, key_of(n + 1)) + lookup(table, key_of(2 * n + 1)))
                assert database.connections() <= limit
                for n, peer in enumerate(clients):
                    assert peer.reply() == found(b"box%d" % (n + 1))
                    assert peer.reply() == found(b"box%d" % (2 * n + 1))
                assert service.resident() - before < 60 << 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_reload_changes_the_limits_of_open_tables(database: PrivateDatabase) -> None:
    """And no more connections stay than the new limit allows."""
    with served(database, {"server_connection_limit": "2"}) as service:
        table = service.table(query=sleeping(database, 0.02, when="1 = 1"))
        service.start()
        for loads, limit in enumerate((2, 6, 3)):
            service.own["server_connection_limit"] = str(limit)
            service.write_config()
            os.kill(service.pid, signal.SIGHUP)
            wait_until(lambda n=loads: service.log().count("read anew") > n, "the reload")
            with peers(service, 16) as clients:
                for _ in range(12):
                    ask_at_once(clients, lookup(table, b"k"), found(b"k"))
                wait_until(lambda limit=limit: database.connections() == limit, f"{limit} connections")


# What is not asked


def test_refused_keys_are_nokey_though_the_server_is_down(service: Service) -> None:
    table = service.table(query="SELECT v FROM many WHERE k = '%u@%d'", domain="example.com")
    service.start()
    service.database.kill()
    for key in (b"nodomain", b"@example.com", b"", b"a@other.example"):
        assert service.ask(table, key) == NOT_FOUND
    assert service.ask(table, KNOWN) == RETRY


def test_no_connection_before_the_first_question(service: Service) -> None:
    table = service.table(domain="example.com")
    service.start()
    assert service.ask(table, b"a@other.example") == NOT_FOUND
    assert service.database.connections() == 0


# Faulty tables

FAULTS = {
    "no value": {"query": ""},
    "bad number": {"expansion_limit": "x"},
    "bad template": {"query": "SELECT '%x'"},
    "percent at the end": {"query": "SELECT '%"},
    "empty result format": {"result_format": ""},
    "empty database": {"dbname": ""},
}


def test_faulty_tables_are_unavailable_and_hurt_no_other(service: Service) -> None:
    faulty = [service.table(**parameters) for parameters in FAULTS.values()]
    table = service.table()
    service.start()
    for name in faulty:
        status = dict(service.ask(name, KNOWN))[b"status"]
        assert status in (b"2", b"5"), name
        assert service.ask(table, KNOWN) == ITS_VALUE
    assert service.alive()


def test_password_is_in_no_log_line(service: Service) -> None:
    secret = PASSWORD.replace(" ", "%20")
    tables = [
        service.table(hosts=f"127.0.0.1:{free_port()}"),
        service.table(password=PASSWORD + "x", hosts=service.database.address()),
        service.table(hosts="nosuch.invalid"),
        service.table(query="SELECT nosuch"),
        service.table(dbname="nosuch"),
    ]
    if service.database.maptype == "pgsql":
        for rest in (f"127.0.0.1:{free_port()}/mail", "nosuch.invalid/mail", "127.0.0.1:x/mail", "/mail?x=y"):
            tables.append(service.table(hosts=f"postgresql://pm:{secret}@{rest}"))
    service.start()
    for table in tables:
        with service.connect() as peer:
            assert dict(peer.ask(lookup(table, KNOWN)))[b"status"] in (b"2", b"5")
    service.stop()
    assert "warning" in service.log()
    assert "kept secret" not in service.log()
    assert "kept%20secret" not in service.log()


def test_log_names_server_reason_and_tables(service: Service) -> None:
    port = free_port()
    tables = [service.table(hosts=f"127.0.0.1:{port}") for _ in range(3)]
    service.start()
    for table in tables * 3:
        assert service.ask(table, KNOWN) == RETRY
    maptype = service.database.maptype
    wait_until(lambda: "is down: " in service.log(), "the line")
    lines = [line for line in service.log_lines() if "is down: " in line]
    assert len(lines) == 1
    assert f"{maptype} server inet:127.0.0.1:{port} is down: " in lines[0]
    assert "used by 3 tables" in lines[0] or "used by 1 table" in lines[0]


def test_surrogate_of_a_missing_library_names_the_package(service: Service) -> None:
    """The library cannot be found where the loader does not look."""
    pytest.importorskip("proxymap.tables.databases")
    table = service.table()
    blind = service.dir / "blind"
    blind.mkdir()
    soname = {"mysql": "libmariadb.so.3", "pgsql": "libpq.so.5"}[service.database.maptype]
    (blind / soname).write_bytes(b"not a library")
    service.env["LD_LIBRARY_PATH"] = str(blind)
    service.start()
    assert service.ask(table, KNOWN) == RETRY
    wait_until(lambda: soname in service.log(), "the library's name in the log")
    package = {"mysql": "libmariadb3", "pgsql": "libpq5"}[service.database.maptype]
    assert package in service.log()


# Reload and change


def test_changed_table_is_asked_anew(service: Service) -> None:
    table = service.table()
    service.start()
    assert service.ask(table, KNOWN) == ITS_VALUE
    path = service.dir / "1.cf"
    service.database.write_cf(path.with_suffix(".new"), query=MANY, result_format="new %s")
    path.with_suffix(".new").rename(path)
    wait_until(lambda: service.ask(table, KNOWN) == found(b"new box1"), "the new table")
    path.write_text("query = SELECT '%x'\n")
    time.sleep(0.5)
    assert service.ask(table, KNOWN) == found(b"new box1")


def test_answers_keep_their_order(service: Service) -> None:
    """A client that sends many requests at once gets the replies in that order, whatever each takes."""
    slow, fast = service.table(query=sleeping(service.database, 0.05)), service.table()
    service.start()
    expected: list[Attributes] = []
    data = b""
    for n in range(30):
        table, key = (slow, b"slow%d" % n) if n % 3 == 0 else (fast, key_of(n + 1))
        expected.append(found(key if n % 3 == 0 else b"box%d" % (n + 1)))
        data += lookup(table, key)
    with service.connect() as peer:
        peer.send(data)
        assert [peer.reply() for _ in expected] == expected


def test_stops_while_questions_are_under_way(service: Service) -> None:
    table = service.table(query=sleeping(service.database, 60))
    service.start()
    with service.connect() as peer:
        peer.send(lookup(table, b"slow"))
        wait_until(lambda: running(service.database) == 1, "the question")
        assert service.stop() == 0
