"""test_differential_sql - the same questions to stock's mysql and pgsql tables and to ours, over real servers

As test_differential, with private database servers behind both. A question that
fails puts stock's table out of service for a minute (we answer the next key):
after it the table gets a fresh name. PostgreSQL is asked in LATIN1, which is
what stock forces before 3.8.

What differs on purpose has a test of its own: test_intended_difference_*.
"""

from __future__ import annotations

from collections.abc import Iterator

import fix_mariadb
import fix_pgsql
import pytest
from differential import Case, make_shared
from fix_database import PrivateDatabase, removed
from fix_pair import Pair
from fix_postfix import unavailable
from fix_server import lookup, request
from oracle import Attributes
from sql_cases import fill, sql
from test_differential import put, run

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SERVERS = {"mysql": fix_mariadb, "pgsql": fix_pgsql}
FRESH_NAMES = 40  # for one life of the servers
FAILURES = 2  # of one case, after which its other keys are not asked

OK, NOKEY, RETRY = 0, 1, 2


@pytest.fixture(scope="module", params=SERVERS)
def database(request: pytest.FixtureRequest) -> Iterator[PrivateDatabase]:
    """Each server in turn, with the tables of sql_cases."""
    module = SERVERS[request.param]
    if reason := module.unavailable():
        pytest.skip(reason)
    made = fix_mariadb.MariaDB() if request.param == "mysql" else fix_pgsql.PostgreSQL()
    with removed(made) as server:
        fill(server)
        yield server


@pytest.fixture
def pair(database: PrivateDatabase) -> Iterator[Pair]:
    with Pair(database.maptype, in_a_life=FRESH_NAMES) as made:
        make_shared(made.shared)
        yield made


def status(reply: Attributes) -> int:
    return int(dict(reply)[b"status"])


def is_utf8(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_same_answers(pair: Pair, database: PrivateDatabase) -> None:
    counts = {OK: 0, NOKEY: 0, RETRY: 0}

    def ask(case: Case) -> None:
        failures = 0
        name = put(pair, case)
        for flags in case.flags:
            for key in case.keys:
                question = lookup(name, key, flags=flags)
                stock, ours = pair.ask(question)
                assert stock is not None, f"stock died of {key!r}; its log ends\n{pair.stock.log()[-500:]}"
                counts[status(stock)] += 1
                not_asked = database.maptype == "mysql" and not is_utf8(key) and status(ours) == NOKEY
                if not not_asked:  # test_intended_difference_mysql_key_that_is_not_utf8_is_nokey
                    assert ours == stock, f"stock says {stock}, ours {ours}, to {key!r}"
                if status(stock) == RETRY:
                    failures += 1
                    name = put(pair, case)
                if failures == FAILURES:
                    return

    run(pair, sql(database), ask)
    print(f"found {counts[OK]}, absent {counts[NOKEY]}, failed {counts[RETRY]}")


def test_open_is_the_same(pair: Pair, database: PrivateDatabase) -> None:
    name = pair.fresh_name()
    database.write_cf(pair.path(name), query="SELECT 1")
    for flags in (0, 64, 1 << 14, 1 << 19):
        stock, ours = pair.ask(request("open", name, flags=flags))
        assert ours == stock
