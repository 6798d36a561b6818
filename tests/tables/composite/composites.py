"""composites - what unionmap and pipemap have to hold, against a real Postfix where there is one

    class TestUnionmap(CompositeContract):
        maptype = "unionmap"

Composites are made at random. What differs from Postfix 3.7 on purpose, and is
kept out of the comparison:

- a member tries keys with and without NUL at each lookup; in 3.7 its first hit
  decides for all that follow, so the members here are stored one way only;
- a member is opened for each composite with the flags of that one; in 3.7 the
  first composite that names it decides, so each way of opening has files of its own.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import NOKEY, OK, RETRY, in_child
from fix_postfix import StockPostfix, dialect, unavailable
from fix_server import (
    NOT_FOUND,
    Peer,
    ServerProcess,
    found,
    lookup,
    request,
    wait_until,
    write_cdb,
    write_lmdb,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Attributes

from proxymap.base import _fold
from proxymap.errors import ProxymapError, TableConfig, TableRetry
from proxymap.tables._table import SLOW_LOOKUP, Table
from proxymap.tables.base import Host
from proxymap.tables.opening import open_table

LATER = 100  # the loop leaves it to a worker
FIXED, PATTERN = 1 << 4, 1 << 5
CHANGED_SPOILED = 2
FOLD_FIX, UTF8_REQUEST = 1 << 14, 1 << 19
POSTMAP = 1 << 6 | FOLD_FIX | UTF8_REQUEST  # what a table is opened and asked with by postmap -q
KEYS = [b"a", b"b", b"c", b"A", b"\xc3\xa9", b"\xc3\x89", b"empty", b"raw", b"loop", b"none", b"B,C", b"\xff"]

# Keys of one are values of another, in other cases too.
FILES = {
    "one": {b"a": b"b", b"b": b"C", b"\xc3\xa9": b"\xc3\x89", b"empty": b"", b"loop": b"LOOP", b"": b"a"},
    "two": {b"b": b"a", b"c": b"none", b"a": b"A", b"b,c": b"both", b"raw": b"\xff\xfe", b"": b"of empty"},
    "three": {
        b"A": b"upper",
        b"loop": b"loop",
        b"\xc3\x89": b"E",
        b"C": b"c",
        b"a": b"b,c",
        b"\xff": b"raw",
        b"": b"b",
    },
}  # each lmdb has the empty key: Postfix dies of asking one that has not
LITERALS = [  # members without a file
    *("static:a", "static:{}", "static:{B, C}", "fail:x", "inline:{a=b, c=A, A=x}", "inline:{ {b = d e} }"),
    *("cidr:{ {0.0.0.0/0 x} }", "regexp:{ {/^(.)$/ <$1>} }", "pcre:{ {/^(.)$/ ($1)} }", "nosuch:x"),
]


def make_files(place: Path) -> list[str]:
    """Write the files, and return all members: type:name."""
    place.mkdir(exist_ok=True)
    for name, records in FILES.items():
        write_cdb(place / f"{name}.cdb", records)
        write_lmdb(place / f"{name}.lmdb", {key + b"\0": value + b"\0" for key, value in records.items()})
    for path in place.iterdir():
        path.chmod(0o644)
    files = [f"{maptype}:{place}/{name}" for name in FILES for maptype in ("cdb", "lmdb")]
    return [*files, *LITERALS, f"cdb:{place}/missing"]


def composites(members: list[str], maptype: str, count: int, seed: int) -> Iterator[str]:
    """So many of type maptype, one in four with another composite in it."""
    dice = random.Random(seed)

    def one(maptype: str, depth: int) -> str:
        parts = []
        for _ in range(dice.choice((1, 2, 2, 2, 3, 4))):
            inner = depth < 2 and dice.random() < 0.12
            parts.append(
                one(dice.choice(("unionmap", "pipemap")), depth + 1) if inner else dice.choice(members)
            )
        between = dice.choice((",", ", ", " ", ",,", " , "))
        return (
            f"{maptype}:{{{dice.choice(('', ' ', ','))}{between.join(parts)}{dice.choice(('', ' ', ','))}}}"
        )

    for _ in range(count):
        yield one(maptype, 0)


# How a table comes to be opened, and is asked then: (flags of OPEN or None, flags of lookups).
WAYS = {"open": (0, POSTMAP), "fold": (None, FOLD_FIX), "utf8": (None, POSTMAP), "plain": (None, 1 << 6)}


def answers(peer: Peer, tables: list[str], way: str) -> list[tuple[str, bytes | None, Attributes]]:
    """All replies that a server gives: to open (key None), if the way has it, and for each key."""
    opened, flags = WAYS[way]
    replies: list[tuple[str, bytes | None, Attributes]] = []
    for table in tables:
        name = table.encode()
        if opened is not None:
            replies.append((table, None, peer.ask(request("open", name, flags=opened))))
        replies += [(table, key, peer.ask(lookup(name, key, flags=flags))) for key in KEYS]
    return replies


def of_what_it_is(table: str, key: bytes | None, reply: Attributes) -> tuple[str, bytes | None, Attributes]:
    """Where we differ on purpose: what begins with a missing cdb is no pattern for a client of 3.6."""
    begins_so = re.match(r"(?:(?:union|pipe)map:\{[ ,]*)+cdb:[^ ,}]*/missing", table)
    if key is None and begins_so and dialect() == "3.6":
        flags = int(dict(reply)[b"flags"])
        reply = [reply[0], (b"flags", b"%d" % (flags & ~PATTERN | FIXED))]
    return table, key, reply


def try_each(table: Table) -> Iterator[tuple[bytes, tuple[int, bytes], tuple[int, bytes]]]:
    """Each key, with the loop's answer and a worker's."""
    for key in KEYS:
        status, _, value = table.lookup(key, 0)
        try:
            by_worker = table.ask(key, 0)[::2]
        except ProxymapError as error:
            by_worker = error.status, b""
        yield key, (status, value), by_worker


class CompositeContract:
    maptype: str

    def open(self, *members: str, flags: int = 0, **host: bool) -> Table:
        return open_table(f"{self.maptype}:{{{', '.join(members)}}}".encode(), flags, host=Host(**host))

    @pytest.mark.parametrize("way", WAYS)
    def test_answers_as_stock(self, way: str) -> None:
        if reason := unavailable():
            pytest.skip(reason)
        with ServerProcess() as server:
            server.dir.chmod(0o755)
            members = make_files(server.dir / "tables")
            tables = list(composites(members, self.maptype, 80, seed=len(way)))
            server.approve(*(table.replace("$", "$$") for table in tables))
            server.start()
            with (
                StockPostfix(
                    {"proxy_read_maps": ", ".join("proxy:" + name for name in server.approved)}
                ) as stock,
                stock.connect() as theirs,
                server.connect(dialect()) as ours,
            ):
                stocks = [of_what_it_is(*one) for one in answers(theirs, tables, way)]
                assert answers(ours, tables, way) == stocks

    @pytest.mark.parametrize(
        "name",
        [
            "x",
            "{}",
            "{ }",
            "{,}",
            "{nocolon}",
            "{cdb:x, nocolon}",
            "{cdb:x",
            "{cdb:x}}",
            "{cdb:x} ",
            "cdb:x",
        ],
    )
    def test_what_is_no_list_of_tables_is_a_surrogate(self, name: str) -> None:
        table = open_table(f"{self.maptype}:{name}".encode())
        wanted = f'bad syntax: "{self.maptype}:{name}"; need "{self.maptype}:{{type:name...}}"'
        assert table.reason == wanted.encode()

    def test_loop_and_worker_answer_alike(self, tmp_path: Path) -> None:
        members = make_files(tmp_path)
        statuses = set()
        for name in composites(members, self.maptype, 200, seed=5):
            table = open_table(name.encode(), FOLD_FIX)
            try:
                table.lookup(b"a")
            except TypeError:  # a worker alone is asked
                continue
            for key, by_loop, by_worker in try_each(table):
                statuses.add(by_worker[0])
                may_take_long = by_worker[0] == RETRY or "regexp:" in name or "pcre:" in name
                assert by_loop == by_worker or (may_take_long and by_loop[0] == LATER), (name, key)
        assert statuses == {OK, NOKEY, RETRY}

    def test_threads_ask_side_by_side(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        table = self.open(f"lmdb:{tmp_path}/one", f"lmdb:{tmp_path}/two", flags=FOLD_FIX)
        wanted = {key: table.ask(key, 0) for key in KEYS}
        wrong: list[bytes] = []

        def ask() -> None:
            for i in range(5000):
                key = KEYS[i % len(KEYS)]
                if table.ask(key, 0) != wanted[key] or table.lookup(key, 0) != wanted[key]:
                    wrong.append(key)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_first_member_says_fixed_or_pattern(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        assert self.open(f"lmdb:{tmp_path}/one", "nosuch:x").flags == FIXED
        assert self.open("nosuch:x", f"lmdb:{tmp_path}/one").flags == PATTERN

    def test_proxy_before_a_member_is_dropped(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        assert self.open(f"proxy:proxy:cdb:{tmp_path}/one").ask(b"a", 0) == (OK, 0, b"b")

    def test_members_fold_as_the_whole_was_opened(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        member = f"cdb:{tmp_path}/one"
        assert self.open(member).ask(b"A", FOLD_FIX) == (NOKEY, FOLD_FIX, b"")
        assert self.open(member, flags=FOLD_FIX).ask(b"A", 0) == (OK, 0, b"b")
        _fold.load()
        asked = "É".encode()
        assert self.open(member, flags=POSTMAP).ask(asked, 0)[::2] == (OK, asked)
        assert self.open(member, flags=POSTMAP, utf8=False).ask(asked, 0)[0] == NOKEY

    def test_value_that_is_not_utf8_is_config_with_the_layer(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        member = f"cdb:{tmp_path}/two"
        assert self.open(member).ask(b"raw", 0)[2] == b"\xff\xfe"
        table = self.open(member, flags=POSTMAP)
        assert table.lookup(b"raw", 0)[0] == LATER
        with pytest.raises(TableConfig, match=f"^{member}: non-UTF-8 value"):
            table.ask(b"raw", 0)

    def test_trouble_names_the_member(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        table = self.open(f"cdb:{tmp_path}/one", f"cdb:{tmp_path}/missing")
        reason = f"cdb:{tmp_path}/missing: open database {tmp_path}/missing.cdb: No such file or directory"
        with pytest.raises(TableRetry) as trouble:
            table.ask(b"a", 0)
        assert str(trouble.value) == reason
        assert table.explain(b"a") == [f"cdb:{tmp_path}/one: b", reason]

    def test_slow_member_makes_it_slow(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        table = self.open("unix:passwd.byname", f"cdb:{tmp_path}/one")
        assert table.slow == SLOW_LOOKUP
        with pytest.raises(TypeError):
            table.lookup(b"root")
        assert table.ask(b"no such user", 0) == (NOKEY, 0, b"")

    def test_member_with_workers_of_its_own_gives_them_to_the_whole(self) -> None:
        """A worker stuck with a pattern serves no other table. What the loop can do is still done there."""
        table = self.open("inline:{a=b}", "regexp:{{/(b)*/ $1}}")
        assert table.slow == SLOW_LOOKUP
        assert table.lookup(b"none", 0)[0] in (OK, NOKEY)
        assert self.open("inline:{a=b}").slow == 0

    def test_member_that_comes_or_goes_is_noticed(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        table = self.open(f"cdb:{tmp_path}/one", f"cdb:{tmp_path}/two")
        assert not table.changed
        assert self.open(f"cdb:{tmp_path}/one", f"cdb:{tmp_path}/two") is table
        write_cdb(tmp_path / "two.cdb", {b"b": b"new"})
        assert table.changed
        assert (
            b"new"
            in self.open(f"cdb:{tmp_path}/one", f"cdb:{tmp_path}/two").ask(
                b"b" if self.maptype == "unionmap" else b"a", 0
            )[2]
        )
        waits = self.open(f"cdb:{tmp_path}/missing")
        assert waits.incomplete
        write_cdb(tmp_path / "missing.cdb", {b"a": b"there"})
        assert self.open(f"cdb:{tmp_path}/missing").ask(b"a", 0)[2] == b"there"

    @pytest.mark.parametrize("which", [0, 1])
    def test_member_that_is_cut_is_retry(self, tmp_path: Path, which: int) -> None:
        """The first or the last: an answer that a file cut meanwhile had a part in is none."""
        make_files(tmp_path)

        def experiment() -> None:
            names = [f"{tmp_path}/one", f"{tmp_path}/two"]
            table = self.open(*("cdb:" + name for name in names))
            os.truncate(f"{names[which]}.cdb", 0)
            assert table.lookup(b"a", 0)[0] == LATER
            with pytest.raises(TableRetry, match=f"^cdb:{names[which]}: "):
                table.ask(b"a", 0)
            assert table.changed == CHANGED_SPOILED

        assert in_child(experiment) == 0

    def test_generation_grows_with_each_commit_to_a_member(self, tmp_path: Path) -> None:
        make_files(tmp_path)
        table = self.open(f"lmdb:{tmp_path}/one", f"lmdb:{tmp_path}/two", f"cdb:{tmp_path}/one")
        seen = [table.generation]
        for name in ("one", "two", "one"):
            write_lmdb(tmp_path / f"{name}.lmdb", {b"more\0": b"1\0"})
            seen.append(table.generation)
        assert sorted(set(seen)) == seen

    def test_server_waits_for_a_member_that_is_missing(self) -> None:
        """RETRY and a reason in the log until the file is there, without a new connection."""
        with ServerProcess() as server:
            table = f"{self.maptype}:{{cdb:{server.dir}/late}}"
            server.approve(table)
            server.start()
            with server.connect() as peer:
                assert dict(peer.ask(request("open", table.encode())))[b"status"] == b"0"
                assert dict(peer.ask(lookup(table.encode(), b"a")))[b"status"] == b"2"
                server.wait_log(f"{table} lookup error: cdb:{server.dir}/late: open database")
                write_cdb(server.dir / "late.cdb", {b"a": b"there"})
                wait_until(
                    lambda: dict(peer.ask(lookup(table.encode(), b"a")))[b"status"] == b"0", "the member"
                )
            assert server.stop() == 0

    def test_slow_composite_is_served(self) -> None:
        """By the crew that it has as any slow table; replies keep their order."""
        with ServerProcess() as server:
            users, fast = (server.cdb(name, {b"user": b"root"}).decode() for name in ("users", "fast"))
            table = f"{self.maptype}:{{{users}, unix:passwd.byname}}".encode()
            server.approve(table)
            server.start()
            value = b":".join(str(field).encode() for field in pwd.getpwnam("root"))
            asked = lookup(table, b"user") + lookup(fast.encode(), b"user") + lookup(table, b"none")
            with server.connect() as peer:
                peer.send(asked)
                assert peer.reply() == found(value if self.maptype == "pipemap" else b"root")
                assert peer.reply() == found(b"root")
                assert peer.reply() == NOT_FOUND
            assert server.stop() == 0

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(st.data())
    def test_answers_as_postmap(self, postmap_tables: list[str], data: st.DataObject) -> None:
        member = st.sampled_from(postmap_tables)
        nested = st.recursive(
            member,
            lambda inner: st.builds(
                lambda kind, parts: f"{kind}:{{{', '.join(parts)}}}",
                st.sampled_from(["unionmap", "pipemap"]),
                st.lists(inner, min_size=1, max_size=4),
            ),
            max_leaves=8,
        )
        parts = data.draw(st.lists(nested, min_size=1, max_size=4))
        name = f"{self.maptype}:{{{', '.join(parts)}}}"
        keys = data.draw(st.lists(st.sampled_from([key for key in KEYS if b"\xff" not in key]), min_size=1))
        done = subprocess.run(
            ["postmap", "-q", "-", name], input=b"\n".join(keys) + b"\n", capture_output=True, timeout=60,
            env={**os.environ, "LD_PRELOAD": ""},  # the sanitizer would turn its death into an exit
        )  # fmt: skip
        if done.returncode == -signal.SIGSEGV:
            return  # of stock's cdb, when the first value that it finds is an empty one
        lines, failed = [], False
        table = open_table(name.encode(), POSTMAP)
        flags = table.opened_flags(POSTMAP, True)
        for key in keys:
            try:
                value = table.answer(key, flags)
            except ProxymapError:
                failed = True
                break
            if value is not None:
                lines.append(b"%b\t%b\n" % (key, value))
        assert failed == (b"fatal" in done.stderr), done.stderr
        assert (
            failed or b"".join(lines) == done.stdout
        )  # what it printed before is lost with a postmap that dies


@pytest.fixture(scope="module")
def postmap_tables(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Members that postmap opens; of a surrogate it dies at once."""
    if reason := unavailable():
        pytest.skip(reason)
    _fold.load()
    place = tmp_path_factory.mktemp("composites")
    return [name for name in make_files(place) if not name.startswith("nosuch:") and "missing" not in name]
