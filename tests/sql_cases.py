"""sql_cases - tables of mysql and pgsql, and keys to ask them for, drawn by hypothesis

`fill` puts SCHEMA into a private server; CASES has a strategy for each type.
What kills the stock server is not drawn. Rows come in a stated order.
"""

from __future__ import annotations

from pathlib import Path

from differential import DOMAIN, FORMAT, LETTERS, Case, flag_words, text, write_text
from fix_database import PrivateDatabase
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy as Strategy

# What both servers have: address, goto, extra.
ALIASES: list[tuple[str, str | None, int]] = [
    ("a@b.c", "x@y.z", 1), ("a@b.c", "second", 2), ("a", "short", 3), ("A", "SHORT", 4),
    ("o'brien@b.c", "ob", 5), ("empty@b.c", "", 6), ("null@b.c", None, 7), ("two@b.c", None, 10),
    ("two@b.c", "u@v", 11), ("two@b.c", "@v", 12), ("b.c", "domain", 13), ("c", "label", 14),
    ("\u00e9@b.c", "\u00e9\u00df", 17), ("u", "a@", 18), ("\u4e2d@b.c", "middle", 19),
    ("comma@b.c", " a, b ", 21), ("back\\slash@b.c", "bs", 22), ("%@b.c", "percent", 23),
    ("line\nfeed@b.c", "lf\nlf", 24), ('quote"@b.c', '"', 25),
]  # fmt: skip
WIDE = ("wide@b.c", "\u4e2d", 20)  # a value that Latin-1 does not have


def literal(value: str | int | None) -> str:
    """SQL for a value, if a backslash is doubled or not: these have no other signs."""
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def insert(rows: list[tuple[str, str | None, int]], escape: bool) -> str:
    """escape: a backslash is doubled in literals, as MariaDB has it."""
    lines = [f"({', '.join(map(literal, row))})" for row in rows]
    sql = f"INSERT INTO alias VALUES {', '.join(lines)};\n"
    return sql.replace("\\", "\\\\") if escape else sql


MARIADB = r"""
CREATE TABLE alias (address VARCHAR(200) COLLATE utf8mb4_bin, goto VARCHAR(200), extra INT, KEY (address));
CREATE TABLE latin (k VARCHAR(100) CHARACTER SET latin1, v VARCHAR(100) CHARACTER SET latin1);
INSERT INTO latin VALUES ('a', 'latin a'), ('é', 'latin é');
CREATE TABLE types (i BIGINT, d DECIMAL(5,3), f DOUBLE, b BOOLEAN, bits BIT(8), raw BLOB, day DATE);
INSERT INTO types VALUES (-9223372036854775808, 3.14, 1.5e300, TRUE, b'01000001', 'ab\0cd', '2026-11-27');
CREATE TABLE sink (k TEXT);
DELIMITER //
CREATE PROCEDURE one(k TEXT) BEGIN SELECT goto FROM alias WHERE address = k ORDER BY extra; END //
CREATE PROCEDURE two(k TEXT) BEGIN SELECT 1; SELECT k; END //
CREATE PROCEDURE none(k TEXT) BEGIN SET @seen = k; END //
CREATE PROCEDURE signalling(k TEXT) BEGIN
  IF k LIKE 'a%' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no a'; END IF; SELECT k; END //
CREATE PROCEDURE later(k TEXT) BEGIN SELECT k; SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'later'; END //
CREATE PROCEDURE warned(k TEXT) BEGIN SELECT CAST('1x' AS INT), k; END //
DELIMITER ;
"""
POSTGRESQL = r"""
CREATE TABLE alias (address text, goto text, extra int);
CREATE TABLE types (i bigint, d numeric(5,3), f double precision, b boolean, raw bytea, list text[],
  day date);
INSERT INTO types VALUES (-9223372036854775808, 3.14, 1.5e300, true, '\x00ff41', '{a,"b c",NULL}',
  '2026-11-27');
CREATE TABLE sink (k text);
CREATE FUNCTION one(k text) RETURNS SETOF text LANGUAGE sql AS
  'SELECT goto FROM alias WHERE address = k ORDER BY extra';
CREATE FUNCTION pair(k text) RETURNS record LANGUAGE sql AS 'SELECT 1, k';
CREATE FUNCTION nothing(k text) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION raising(k text) RETURNS text LANGUAGE plpgsql AS
  $$BEGIN IF k LIKE 'a%' THEN RAISE 'no a'; END IF; RETURN k; END$$;
CREATE FUNCTION noticing(k text) RETURNS text LANGUAGE plpgsql AS
  $$BEGIN RAISE WARNING 'look at %', k; RETURN k; END$$;
CREATE PROCEDURE echo(INOUT k text) LANGUAGE plpgsql AS 'BEGIN k := k || k; END';
CREATE PROCEDURE silent(k text) LANGUAGE plpgsql AS 'BEGIN END';
GRANT ALL ON ALL TABLES IN SCHEMA public TO pm;
"""


def fill(server: PrivateDatabase) -> None:
    """Make the tables of these cases, and a table that USER may not read."""
    mysql = server.maptype == "mysql"
    sql = (MARIADB if mysql else POSTGRESQL) + insert([*ALIASES, WIDE], escape=mysql)
    server.execute(sql)
    if mysql:
        server.execute("CREATE DATABASE closed; CREATE TABLE closed.t (k INT)")
    else:
        server.execute("CREATE TABLE closed (k int)")


# Queries

ALIAS = "SELECT goto FROM alias WHERE address = '%s' ORDER BY extra"
SOME_FAIL = "SELECT CASE WHEN '%s' LIKE 'a%%' THEN (SELECT goto FROM alias) ELSE 'fine' END"
COMMON = [
    *[ALIAS] * 6,
    "SELECT goto FROM alias WHERE address = '%u@%d' ORDER BY extra",
    "SELECT goto FROM alias WHERE address = '%d'", "SELECT goto FROM alias WHERE address = '%u'",
    "SELECT goto, extra FROM alias WHERE address = '%s' ORDER BY extra DESC",
    "SELECT '%S|%U|%D'", "SELECT '%1'", "SELECT '%2.%1'", "SELECT '%3'", "SELECT '%%'", "SELECT '%s'",
    "SELECT goto, extra FROM alias ORDER BY extra", "SELECT extra FROM alias ORDER BY extra",
    "SELECT goto FROM alias WHERE 1 = 0", "SELECT ''", "SELECT NULL", "SELECT NULL, 'x', ''",
    "SELECT a.goto FROM alias a JOIN alias b ON a.address = b.address WHERE b.address = '%s'"
    " ORDER BY a.extra, b.extra",
    "SELECT goto FROM alias WHERE address = lower('%s') ORDER BY extra",
    "SELECT concat('%u', '+', '%d')", "SELECT goto FROM alias WHERE address LIKE '%s' ORDER BY extra",
    "SELECT goto FROM alias WHERE address = '%s' UNION ALL SELECT '%u'", ALIAS + ";",
    "SELECT 'a' /* %s */", "SELECT i, d, f, b, day FROM types",
    "SELECT nosuch", "SELEC '%s'", "SELECT goto FROM nosuch WHERE a = '%s'", SOME_FAIL,
    "SELECT goto FROM alias WHERE extra = %s", "INSERT INTO sink VALUES ('%s')", "-- %s",
]  # fmt: skip
QUERIES = {
    "mysql": [
        *COMMON,
        'SELECT goto FROM alias WHERE address = "%s" ORDER BY extra', "SELECT v FROM latin WHERE k = '%s'",
        "SELECT bits, raw FROM types", "CALL one('%s')", "CALL one('%u@%d')", "CALL two('%s')",
        "CALL none('%s')", "CALL signalling('%s')", "CALL later('%s')", "CALL warned('%s')",
        "CALL nosuch('%s')", "SELECT 1; SELECT '%s'", "SELECT k FROM closed.t", "SET @a = '%s'",
        "SELECT '%s' INTO @a", "SELECT extra FROM alias WHERE extra = '%s'",
    ],
    "pgsql": [
        *COMMON,
        "SELECT raw, list FROM types", "SELECT * FROM one('%s')", "SELECT one('%s')", "SELECT pair('%s')",
        "SELECT nothing('%s')", "SELECT raising('%s')", "SELECT noticing('%s')", "CALL echo('%s')",
        "CALL silent('%s')", "SELECT 1; SELECT '%s'", "SELECT '%s'; SET application_name = 'x'",
        "SELECT k FROM closed", "SET application_name = '%s'", "SELECT '%s'::int",
        "SELECT goto FROM alias WHERE extra = '%s'", "COPY alias TO STDOUT", "SELECT E'%s'",
        "SELECT $$%s$$", "SELECT '%s' AS a, '%u'::text AS b", "SELECT length('%s')", "LISTEN x",
        "SELECT goto FROM alias WHERE address IN ('%s', '%d') ORDER BY extra", "SELECT pg_typeof('%s')",
        "SELECT goto FROM alias WHERE address = ANY ('{x,%s}') ORDER BY extra",
        "SELECT goto FROM alias ORDER BY '%s' = address, extra", "SELECT interval '%s'",
        "SELECT concat('%s', address) FROM alias WHERE extra = 1", "SELECT U&'%s'",
    ],
}  # fmt: skip

# Keys

KNOWN = [row[0].encode() for row in [*ALIASES, WIDE]]
PIECES = [
    *LETTERS, b"@", b"@", b".", b"b.c", b"'", b"''", b"\\", b"\\'", b'"', b"%", b"%s", b"_", b";", b"--",
    b"/*", b"\n", b"\r", b"\x1a", b"\x01", b" ", b"$1", b"$$", b"\xff", b"\xbf'", b"\xc3", b"\xed\xa0\x80",
    "\u00e9".encode(), "\u4e2d".encode(), b" OR 1=1", b"\x7f", b"5", b"{", b"}",
]  # fmt: skip
ODD = [b"@b.c", b"a@", b"@", b"A@B.C", b"a@b@b.c", b"a@x.y", b"a@b..c", b"a@.b.c.", b"", b"1", b"' OR ''='"]
ANY_BYTES = st.binary(min_size=1, max_size=6).filter(lambda key: b"\0" not in key)
KEY = st.one_of(
    st.sampled_from(KNOWN), st.sampled_from(KNOWN + ODD), text(PIECES), ANY_BYTES,
    st.builds(lambda key: key + b"@b.c", ANY_BYTES),
)  # fmt: skip
LISTS = st.one_of(DOMAIN, st.sampled_from(["fail:x", "b.c, fail:x", "!b.c, fail:x", "c", "inline:{c=1}"]))
LEGACY = {
    "mysql": ["table = alias", "select_field = goto", "where_field = address"],
    "pgsql": ["table = alias", "select_field = goto", "where_field = address"],
}
CONDITIONS = ["additional_conditions = AND extra > 1 ORDER BY extra"]


@st.composite
def sql(draw: st.DrawFn, server: PrivateDatabase) -> Case:
    """A .cf file. encoding: what stock forces in PostgreSQL before 3.8, where it does not know the name."""
    maptype = server.maptype
    hosts = draw(st.sampled_from([f"unix:{server.socket}", f"inet:127.0.0.1:{server.port}"]))
    lines = [f"{name} = {value}" for name, value in server.parameters(hosts=hosts).items()]
    if maptype == "pgsql":
        lines.append("encoding = LATIN1")
    if draw(st.integers(0, 7)):
        lines.append("query = " + draw(st.sampled_from(QUERIES[maptype])))
    elif maptype == "pgsql" and draw(st.booleans()):
        lines.append("select_function = one")
    else:
        lines += LEGACY[maptype] + draw(st.sampled_from([CONDITIONS, CONDITIONS, []]))
    lines += draw(options(maptype))
    source = "\n".join([*lines, ""]).encode()
    return Case(
        keys=draw(st.lists(KEY, min_size=1, max_size=10, unique=True)),
        flags=draw(st.lists(flag_words(), min_size=1, max_size=2)),
        source=source,
        make=make_cf(source),
    )


@st.composite
def options(draw: st.DrawFn, maptype: str) -> list[str]:
    """Parameters that are mostly left out."""
    choices: dict[str, Strategy[str]] = {
        "result_format": FORMAT,
        "domain": LISTS,
        "expansion_limit": st.sampled_from(["0", "1", "2", "3", "-1", "19"]),
    }
    if maptype == "mysql":
        choices["require_result_set"] = st.sampled_from(["yes", "no", "YES"])
    return [f"{name} = {draw(values)}" for name, values in choices.items() if not draw(st.integers(0, 2))]


def make_cf(source: bytes) -> object:
    write = write_text(source)

    def make(path: Path) -> None:
        write(path)
        path.chmod(0o644)

    return make
