"""test_live - tables that change while they are served: the next request gets the new content

Nobody is dropped. Every file here is changed beside a running server, and every answer that is
given meanwhile is checked. A value tells which generation it belongs to.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
from fix_server import (
    FIXED,
    FOLD_FIX,
    LOCK,
    PATTERN,
    ServerProcess,
    found,
    lookup,
    peers,
    request,
    wait_until,
    write_cdb,
    write_lmdb,
)
from oracle import Attributes, reply

UTF8 = 1 << 19
RETRY = 2
CLIENTS = 16
ROUNDS = 200
KEYS = [b"k%d" % i for i in range(50)]


NO_INOTIFY = "int inotify_init1(int flags) { return flags < 0 ? flags : -1; }"


@pytest.fixture(scope="session")
def no_inotify(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that takes inotify away from who preloads it."""
    folder = tmp_path_factory.mktemp("preload")
    (folder / "none.c").write_text(NO_INOTIFY)
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "none.so"), str(folder / "none.c")]
    subprocess.run(command, check=True)
    return str(folder / "none.so")


@pytest.fixture(params=["inotify", "polled"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """Where inotify is not to be had, files are looked at when they are asked for."""
    with ServerProcess() as server:
        if request.param == "polled":
            server.env["LD_PRELOAD"] = request.getfixturevalue("no_inotify")
        yield server


def content(generation: int) -> dict[bytes, bytes]:
    return dict.fromkeys(KEYS, b"%d" % generation)


class Readers:
    """Clients that ask without pause, each on its connection; `wrong` has every answer that must not be."""

    def __init__(
        self, server: ServerProcess, table: bytes, allowed: Callable[[int, Attributes], bool]
    ) -> None:
        """allowed: may a request sent when `oldest` was complete be answered so?"""
        self.server, self.table, self.allowed = server, table, allowed
        self.oldest = 0  # the generation that was complete before a request was sent
        self.asked = 0
        self.wrong: list[object] = []
        self.ending = False
        self.threads = [threading.Thread(target=self.read, args=(i,)) for i in range(CLIENTS)]

    def read(self, start: int) -> None:
        step = start
        try:
            with self.server.connect() as peer:
                while not self.ending:
                    oldest = self.oldest
                    answer = peer.ask(lookup(self.table, KEYS[step % len(KEYS)]))
                    if not self.allowed(oldest, answer):
                        self.wrong.append((oldest, answer))
                    self.asked += 1
                    step += 1
        except BaseException as error:  # a lost connection is a wrong answer, too
            self.wrong.append(error)

    def __enter__(self) -> Readers:
        for thread in self.threads:
            thread.start()
        wait_until(lambda: self.asked > CLIENTS or self.wrong, "the first answers")
        return self

    def __exit__(self, *details: object) -> None:
        self.ending = True
        for thread in self.threads:
            thread.join()


def at_least(oldest: int, answer: Attributes) -> bool:
    """Found, and not older than what was complete before the request."""
    return answer[0] == (b"status", b"0") and int(answer[1][1]) >= oldest


def test_replaced_cdb_is_served_by_the_next_request_on_every_connection(server: ServerProcess) -> None:
    table = server.cdb("t", content(0))
    server.start()
    with Readers(server, table, at_least) as readers:
        for generation in range(1, ROUNDS + 1):
            write_cdb(server.dir / "t.cdb", content(generation))
            readers.oldest = generation
    assert readers.wrong == []
    assert readers.asked > ROUNDS


def test_change_comes_first_however_many_are_ready(server: ServerProcess) -> None:
    """More connections than a turn takes were ready before the change, and their requests whole after it."""
    table = server.cdb("t", content(1))
    server.start()
    question = lookup(table, KEYS[0])
    with peers(server, 600) as clients:
        assert clients[0].ask(question) == found(b"1")
        for client in clients:
            assert client.ask(question) == found(b"1")
        os.kill(server.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{server.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the stop")
        for client in clients:
            client.send(question[:-1])
        write_cdb(server.dir / "t.cdb", content(2))
        for client in clients:
            client.send(question[-1:])
        os.kill(server.pid, signal.SIGCONT)
        assert [client.reply() for client in clients] == [found(b"2")] * len(clients)


def ask(server: ServerProcess, table: bytes, key: bytes = KEYS[0]) -> Attributes:
    with server.connect() as peer:
        return peer.ask(lookup(table, key))


def test_symbolic_link_that_is_switched_is_followed(server: ServerProcess) -> None:
    for generation in (1, 2):
        (server.dir / f"v{generation}").mkdir()
        write_cdb(server.dir / f"v{generation}" / "t.cdb", content(generation))
    (server.dir / "now").symlink_to("v1")
    table = f"cdb:{server.dir}/now/t".encode()
    server.approve(table)
    server.start()
    with server.connect() as peer:
        for step in range(20):
            assert peer.ask(lookup(table, KEYS[0])) == found(b"%d" % (1 + step % 2))
            (server.dir / "new").symlink_to(f"v{2 - step % 2}")
            (server.dir / "new").rename(server.dir / "now")


def test_folder_that_is_renamed_is_followed(server: ServerProcess) -> None:
    for generation in (1, 2):
        (server.dir / f"v{generation}").mkdir()
        write_cdb(server.dir / f"v{generation}" / "t.cdb", content(generation))
    (server.dir / "v1").rename(server.dir / "now")
    table = f"cdb:{server.dir}/now/t".encode()
    server.approve(table)
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(table, KEYS[0])) == found(b"1")
        (server.dir / "now").rename(server.dir / "old")
        (server.dir / "v2").rename(server.dir / "now")
        assert peer.ask(lookup(table, KEYS[0])) == found(b"2")
        write_cdb(server.dir / "now" / "t.cdb", content(3))  # the new folder is watched as well
        assert peer.ask(lookup(table, KEYS[0])) == found(b"3")


def test_touched_file_changes_nothing(server: ServerProcess) -> None:
    table = server.cdb("t", content(1))
    server.start()
    with server.connect() as peer:
        for _ in range(10):
            assert peer.ask(lookup(table, KEYS[0])) == found(b"1")
            (server.dir / "t.cdb").touch()
    assert "RETRY" not in server.log()


def test_removed_file_is_served_on_and_its_successor_at_once(server: ServerProcess) -> None:
    table = server.cdb("t", content(1))
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(table, KEYS[0])) == found(b"1")
        (server.dir / "t.cdb").unlink()
        for _ in range(3):
            assert peer.ask(lookup(table, KEYS[0])) == found(b"1")
        server.wait_log("No such file or directory; going on with the previous content")
        write_cdb(server.dir / "t.cdb", content(2))
        assert peer.ask(lookup(table, KEYS[0])) == found(b"2")


def test_broken_successor_is_refused_and_said_once(server: ServerProcess) -> None:
    table = server.cdb("t", content(1))
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(table, KEYS[0])) == found(b"1")
        for _step in range(3):
            (server.dir / "new").write_bytes(b"no cdb" * 1000)
            (server.dir / "new").rename(server.dir / "t.cdb")
            for _ in range(5):
                assert peer.ask(lookup(table, KEYS[0])) == found(b"1")
                (server.dir / "t.new").touch()  # something else happens in the folder
        write_cdb(server.dir / "t.cdb", content(2))
        assert peer.ask(lookup(table, KEYS[0])) == found(b"2")
    assert 1 <= server.log().count("going on with the previous content") <= 3


def test_missing_file_that_appears_makes_its_table_work(server: ServerProcess) -> None:
    table = f"cdb:{server.dir}/later/t".encode()
    server.approve(table)
    server.start()
    with server.connect() as peer:
        assert peer.ask(lookup(table, KEYS[0])) == reply("lookup", "3.6", RETRY)
        (server.dir / "later").mkdir()
        write_cdb(server.dir / "later" / "t.cdb", content(1))
        wait_until(lambda: peer.ask(lookup(table, KEYS[0])) == found(b"1"), "the table", limit=5)


@pytest.mark.parametrize("maptype", ["cdb", "lmdb", "texthash", "sqlite"])
def test_file_that_appears_or_is_mended_is_served_by_the_next_request(
    server: ServerProcess, maptype: str
) -> None:
    """And not by the first after a pause."""
    file = server.dir / ("t." + maptype if maptype in ("cdb", "lmdb") else "t")
    texts = {"texthash": "k0 1\n", "sqlite": "dbpath = /dev/null\nquery = select 1 where '%s' = 'k0'\n"}

    def make(path: Path) -> None:
        if maptype in texts:
            path.write_text(texts[maptype])
        else:
            (write_cdb if maptype == "cdb" else write_lmdb)(path, content(1))

    table = f"{maptype}:{server.dir}/t".encode()
    server.approve(table)
    server.start()
    with server.connect() as peer:
        for mend in (os.rename, shutil.copyfile):
            assert peer.ask(lookup(table, KEYS[0])) == reply("lookup", "3.6", RETRY)
            make(server.dir / "new")
            mend(server.dir / "new", file)
            assert peer.ask(lookup(table, KEYS[0])) == found(b"1")
            file.unlink()
            server.stop()
            file.write_text("a 1\na 2\n")  # a key that is there twice, or no table at all
            server.start()
            peer.close()
            peer = server.connect()


def test_client_of_3_6_is_told_what_a_table_is_that_cannot_be_opened_yet(server: ServerProcess) -> None:
    """It hears it once, and folds keys and asks for parts of addresses by it."""
    looked_up = "btree cdb hash http ldap lmdb memcache mysql pgsql redis sqlite texthash"
    kinds = dict.fromkeys(looked_up.split(), FIXED) | dict.fromkeys(
        ("cidr", "nosuch", "pcre", "regexp"), PATTERN
    )
    server.approve(*(f"{maptype}:{server.dir}/missing" for maptype in kinds))
    server.start()
    with server.connect() as peer:
        told = {
            maptype: dict(peer.ask(request("open", f"{maptype}:{server.dir}/missing".encode(), flags=LOCK)))
            for maptype in kinds
        }
    assert {maptype: int(fields[b"flags"]) & (FIXED | PATTERN) for maptype, fields in told.items()} == kinds


@pytest.mark.parametrize("name", ["unionmap:{{{},inline:{{z=1}}}}", "pipemap:{{pipemap:{{{}}}}}", "debug:{}"])
def test_client_of_3_6_is_told_what_a_table_is_whose_first_member_cannot_be_opened_yet(
    server: ServerProcess, name: str
) -> None:
    """And so is one that comes when it can; of a first member of patterns both hear that."""
    fixed = name.format(f"texthash:{server.dir}/t").encode()
    pattern = name.format(f"cidr:{server.dir}/c").encode()
    server.approve(fixed, pattern)
    server.start()

    def told(table: bytes) -> int:
        with server.connect() as peer:
            flags = int(dict(peer.ask(request("open", table, flags=LOCK)))[b"flags"])
            return flags & (FIXED | PATTERN)

    assert (told(fixed), told(pattern)) == (FIXED, PATTERN)
    (server.dir / "t").write_text("a 1\n")
    (server.dir / "c").write_text("10.0.0.0/8 1\n")
    with server.connect() as peer:
        assert dict(peer.ask(lookup(fixed, b"a", flags=LOCK)))[b"status"] == b"0"
        assert dict(peer.ask(lookup(pattern, b"10.1.1.1", flags=LOCK)))[b"status"] == b"0"
    assert (told(fixed), told(pattern)) == (FIXED, PATTERN)


@pytest.mark.parametrize("maptype", ["cdb", "lmdb", "texthash"])
def test_client_of_3_11_that_opened_a_table_before_it_was_there_finds_its_keys(
    server: ServerProcess, maptype: str
) -> None:
    """It goes on with the flags of what cannot be opened: no try bits, and a pattern does not fold."""
    table, given = f"{maptype}:{server.dir}/t".encode(), LOCK | FOLD_FIX | UTF8
    server.approve(table)
    server.start()
    with server.connect() as peer:

        def ask(key: bytes, flags: int) -> tuple[bytes, int]:
            answer = dict(peer.ask(lookup(table, key, "3.11", instance_flags=given, flags=flags)))
            return answer[b"status"], int(answer[b"flags"])

        def opened() -> int:
            return int(dict(peer.ask(request("open", table, "3.11", instance_flags=given)))[b"flags"])

        before = opened()
        assert ask(b"K0", before) == (b"2", before)
        if maptype == "texthash":
            (server.dir / "t").write_text("k0 1\n")
        else:
            (write_cdb if maptype == "cdb" else write_lmdb)(server.dir / f"t.{maptype}", content(1))
        absent, after = ask(b"absent", before)
        assert (absent, after) == (b"1", opened())
        assert (before & (PATTERN | FIXED), after & (PATTERN | FIXED)) == (PATTERN, FIXED)
        for flags in (before, after):
            assert ask(b"K0", flags)[0] == b"0"


def right_or_retry(oldest: int, answer: Attributes) -> bool:
    return answer[0] == (b"status", b"2") or at_least(0, answer)


def dd_zeros(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))


def truncate(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("build", [write_cdb, write_lmdb])
@pytest.mark.parametrize("damage", [dd_zeros, truncate, remove])
def test_file_that_is_spoiled_and_copied_over_is_right_again(
    server: ServerProcess, damage: Callable[[Path], None], build: Callable[[Path, dict[bytes, bytes]], None]
) -> None:
    """cp keeps the inode: what is mapped changes under the server's feet."""
    table = (server.cdb if build is write_cdb else server.lmdb)("t", content(1))
    file = server.dir / ("t.cdb" if build is write_cdb else "t.lmdb")
    server.start()
    with server.connect() as peer:
        for generation in range(1, 6):
            assert peer.ask(lookup(table, KEYS[0])) == found(b"%d" % generation)
            damage(file)
            for _ in range(3):
                answer = peer.ask(lookup(table, KEYS[1]))
                assert answer in (found(b"%d" % generation), reply("lookup", "3.6", RETRY))
            next_file = server.dir / f"next{generation}"
            build(next_file, content(generation + 1))
            shutil.copyfile(next_file, file)
            assert peer.ask(lookup(table, KEYS[2])) == found(b"%d" % (generation + 1))
    assert server.alive()


def test_file_cut_to_every_length_never_gives_a_wrong_answer(server: ServerProcess) -> None:
    table = server.cdb("t", content(1))
    file = server.dir / "t.cdb"
    whole = file.read_bytes()
    server.start()
    with Readers(server, table, right_or_retry) as readers:
        for length in range(0, len(whole), 97):
            os.truncate(file, length)
            asked = readers.asked
            wait_until(lambda: readers.asked > asked + CLIENTS, "answers")  # noqa: B023
            file.write_bytes(whole)
        wait_until(lambda: ask(server, table) == found(b"1"), "the whole file", limit=5)
    assert readers.wrong == []
    assert server.alive()


def test_changed_configuration_is_said(server: ServerProcess) -> None:
    table = server.cdb("t", content(1))
    server.start()
    assert ask(server, table) == found(b"1")
    with (server.dir / "main.cf").open("a") as main_cf:
        main_cf.write("mail_owner = nobody\n")
    said = "main.cf has changed; reload to have it obeyed"
    wait_until(lambda: ask(server, table) == found(b"1") and said in server.log(), "the warning")


def test_replaced_lmdb_is_served_by_the_next_request(server: ServerProcess) -> None:
    table = server.lmdb("t", content(0))
    server.start()
    with Readers(server, table, at_least) as readers:
        for generation in range(1, ROUNDS // 4):
            with (
                lmdb.open(str(server.dir / "new"), subdir=False, lock=False, map_size=1 << 24) as env,
                env.begin(write=True) as txn,
            ):
                for key, value in content(generation).items():
                    txn.put(key, value)
            (server.dir / "new").rename(server.dir / "t.lmdb")
            readers.oldest = generation
    assert readers.wrong == []


TEXTS: dict[str, tuple[Callable[[int], str], str]] = {  # a generation, and a faulty text
    "texthash": (lambda n: "".join(f"{key.decode()} {n}\n" for key in KEYS), "k0 99\nalone\n"),
    "regexp": (lambda n: f"/^k/ {n}\n", "/^k/ 99\n/(/ x\n"),
    "pcre": (lambda n: f"/^k/ {n}\n", "/^k/ 99\n/(/ x\n"),
    "cidr": (lambda n: f"10.0.0.0/8 {n}\n", "10.0.0.0/8 99\n10.0.0.0/99 x\n"),
}


class Text:
    """A text table and what contains it: each name's answer."""

    def __init__(self, server: ServerProcess, maptype: str) -> None:
        self.server, self.file = server, server.dir / maptype
        self.make, self.broken = TEXTS[maptype]
        self.key = b"10.1.1.1" if maptype == "cidr" else KEYS[0]
        name = f"{maptype}:{self.file}"
        self.names = [name.encode(), f"pipemap:{{{name}}}".encode(), f"unionmap:{{{name}}}".encode()]
        self.file.write_text(self.make(0))
        server.approve(*self.names)
        server.start()
        self.peer = server.connect()

    def answers(self) -> list[Attributes]:
        return [self.peer.ask(lookup(name, self.key)) for name in self.names]

    def served(self, generation: int) -> bool:
        return self.answers() == [found(b"%d" % generation)] * len(self.names)

    def rename(self, text: str) -> None:
        (self.server.dir / "new").write_text(text)
        (self.server.dir / "new").rename(self.file)


@pytest.mark.parametrize("maptype", TEXTS)
def test_text_table_follows_its_file_and_refuses_a_faulty_one(server: ServerProcess, maptype: str) -> None:
    text = Text(server, maptype)
    assert text.served(0)
    text.file.write_text(text.broken)
    wait_until(lambda: text.served(0) and "faulty lines" in server.log(), "the refusal")
    assert "line 2: " in server.log()
    for generation in range(1, 7, 2):
        text.rename(text.make(generation))
        wait_until(lambda: text.served(generation), "the new file")  # noqa: B023
        text.file.write_text(text.make(generation + 1))
        wait_until(lambda: text.served(generation + 1), "the file that was rewritten")  # noqa: B023


def test_texts_that_change_at_the_same_time_are_all_followed(server: ServerProcess) -> None:
    """The loop looks at files while the openers' answers come in."""
    files = [server.dir / f"t{i}" for i in range(4)]
    names = [f"cidr:{file}".encode() for file in files]
    for file in files:
        file.write_text("10.0.0.0/8 0\n")
    server.approve(*names)
    server.start()
    with server.connect() as peer:
        for generation in range(1, 151):
            expected = [found(b"%d" % generation)] * len(names)
            for file in files:
                new = file.with_suffix(".new")
                new.write_text(f"10.0.0.0/8 {generation}\n")
                new.rename(file)
                time.sleep(0.0005 * (generation % 7 if generation % 3 == 0 else 0))
            wait_until(
                lambda: [peer.ask(lookup(name, b"10.1.1.1")) for name in names] == expected,  # noqa: B023
                "all new files",
                pause=0.002,
            )


@pytest.mark.parametrize("maptype", TEXTS)
@pytest.mark.parametrize("new", [False, True])
def test_text_file_that_is_being_written_is_not_served(maptype: str, new: bool) -> None:
    """However long it takes, and whatever else happens in the folder."""
    with ServerProcess() as server:
        text = Text(server, maptype)
        assert text.served(0)
        if new:
            text.file.unlink()
            server.wait_log("going on with the previous content")
        content = text.make(1)
        with text.file.open("w") as file:
            for piece in (content[: len(content) // 2], content[len(content) // 2 :]):
                file.write(piece)
                file.flush()
                for step in range(20):
                    (server.dir / "main.cf").touch()
                    (server.dir / f"other{step}").touch()
                    assert text.served(0)
                    time.sleep(0.01)
        wait_until(lambda: text.served(1), "the whole file")


def test_files_named_in_a_domain_list_are_followed(server: ServerProcess) -> None:
    listed, domains, cf = (server.dir / name for name in ("listed", "domains", "t.cf"))
    listed.write_text("b.x here\n")
    domains.write_text(f"a.x texthash:{listed}\n")
    cf.write_text(f"dbpath = /dev/null\nquery = select 1\ndomain = {domains}\n")
    table = f"sqlite:{cf}".encode()
    server.approve(table)
    server.start()
    nothing = reply("lookup", "3.6", 1)
    with server.connect() as peer:

        def answers() -> list[Attributes]:
            return [peer.ask(lookup(table, b"user@%b.x" % name)) for name in (b"a", b"b", b"c")]

        assert answers() == [found(b"1"), found(b"1"), nothing]
        domains.write_text(f"c.x texthash:{listed}\n")
        wait_until(lambda: answers() == [nothing, found(b"1"), found(b"1")], "the list")
        listed.write_text("a.x here\n")
        wait_until(lambda: answers() == [found(b"1"), nothing, found(b"1")], "the table in the list")
        domains.unlink()
        said = "domains: No such file or directory; going on with the previous content"
        wait_until(lambda: answers() and said in server.log(), "the refusal")
        assert answers() == [found(b"1"), nothing, found(b"1")]
        domains.write_text("b.x\n")
        wait_until(lambda: answers() == [nothing, found(b"1"), nothing], "the new list")


def test_tables_whose_domain_lists_name_each_other_answer_retry_with_the_reason(
    server: ServerProcess,
) -> None:
    files = [server.dir / name for name in ("a.cf", "b.cf")]
    tables = [f"sqlite:{file}".encode() for file in files]
    text = "dbpath = /dev/null\nquery = select 1\n"
    for file, other in zip(files, reversed(tables), strict=True):
        file.write_text(f"{text}domain = {other.decode()}\n")
    server.approve(*tables)
    server.start()
    with server.connect() as peer:
        for table in tables * 2:
            assert peer.ask(lookup(table, b"user@a.x")) == reply("lookup", "3.6", RETRY)
        server.wait_log("a.cf refers to itself through ")
        assert "RecursionError" not in server.log()
        files[1].write_text(text)
        for table in tables:
            wait_until(lambda: peer.ask(lookup(table, b"user@a.x")) == found(b"1"), "both")  # noqa: B023
        files[1].write_text(f"{text}domain = {tables[0].decode()}\n")
        said = f"b.cf refers to itself through sqlite:{files[0]}; going on with the previous content"
        wait_until(lambda: ask(server, tables[1], b"user@a.x") and said in server.log(), "the refusal")
        for table in tables:
            assert peer.ask(lookup(table, b"user@a.x")) == found(b"1")


def test_walk_goes_on_or_ends_when_its_table_is_replaced(server: ServerProcess) -> None:
    tables = [server.cdb("t", content(0)), server.lmdb("m", content(0)), f"texthash:{server.dir}/h".encode()]
    server.approve(tables[2])
    (server.dir / "h").write_text(TEXTS["texthash"][0](0))
    server.start()
    with server.connect() as peer:
        for table in tables:
            function = 0
            for step in range(200):
                answer = peer.ask(request("sequence", table, function=function))
                assert answer[0][1] in (b"0", b"1")
                function = 1
                if step == 5:
                    write_cdb(server.dir / "t.cdb", content(1))
                    write_lmdb(server.dir / "m.lmdb", content(1))
                    (server.dir / "h").write_text(TEXTS["texthash"][0](1))
    assert server.alive()


def test_lmdb_that_is_asked_much_is_cut_and_written_over(server: ServerProcess) -> None:
    """Its index has copies of the records: none of a file that is no longer there."""
    contents = [{b"k%d" % i: text for i in range(2000)} for text in (b"old " * 9, b"other")]
    tables = [server.lmdb(name, content) for name, content in zip(("t", "u"), contents, strict=True)]
    files = [Path(os.fsdecode(table.partition(b":")[2] + b".lmdb")) for table in tables]
    wholes = [file.read_bytes() for file in files]
    asked = list(contents[0])[::50]
    no_answer = [(b"status", b"%d" % RETRY), (b"value", b"")]
    server.start()
    with server.connect() as peer:
        for turn in range(10):
            now, then = contents[turn % 2], contents[1 - turn % 2]
            for key in list(now)[::7]:
                assert peer.ask(lookup(tables[0], key)) == found(now[key])
            os.truncate(files[0], len(wholes[0]) * turn // 10)
            for key in asked:
                assert peer.ask(lookup(tables[0], key)) in (found(now[key]), no_answer)
            files[0].write_bytes(wholes[1 - turn % 2])
            wait_until(
                lambda then=then: all(peer.ask(lookup(tables[0], key)) == found(then[key]) for key in asked),
                "the other content",
            )
