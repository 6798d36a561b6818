"""test_python - plug-ins: what they may do, what becomes of those that misbehave, and who may write them"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_server import NOT_FOUND, ROOT, USER, ServerProcess, found, lookup, wait_until

from proxymap.errors import TableRetry
from proxymap.tables.opening import open_table

RETRY = [(b"status", b"2"), (b"value", b"")]
HEAD = "from proxymap.tables import SlowTable\nclass Table(SlowTable):\n"
root_only = pytest.mark.skipif(USER is None, reason="needs root")


class Place(ServerProcess):
    """Our server, with plug-ins in a folder that belongs to who runs the tests."""

    def __init__(self, **own: str) -> None:
        super().__init__(own={"lookup_time_limit": "1s", **own})
        self.plugins = Path(tempfile.mkdtemp(prefix="pm-plug-", dir="/tmp"))
        self.plugins.chmod(0o755)

    def plugin(self, name: str, body: str, **parameters: str) -> bytes:
        """A plug-in and its .cf file; the name of its table."""
        (self.plugins / f"{name}.py").write_text(body if "SlowTable" in body else HEAD + body)
        return self.table(name, module=f"{self.plugins}/{name}.py", **parameters)

    def table(self, name: str, **parameters: str) -> bytes:
        path = self.plugins / f"{name}.cf"
        path.write_text("".join(f"{name} = {value}\n" for name, value in parameters.items()))
        self.approve(f"python:{path}")
        return f"python:{path}".encode()

    def ask(self, table: bytes, key: bytes) -> list[tuple[bytes, bytes]]:
        with self.connect() as peer:
            return peer.ask(lookup(table, key))

    def remove(self) -> None:
        super().remove()
        shutil.rmtree(self.plugins, ignore_errors=True)


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as made:
        yield made


ECHO = "    def lookup(self, key):\n        return None if key == b'none' else b'<' + key + b'>'\n"


# What the documentation says


def test_plugin_of_readme_works_as_it_stands(place: Place) -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Write a table in Python") :]
    section = section[: section.index("\n## ", 5)]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    cf = re.findall(r"```ini\n(.*?)```", section, re.DOTALL)[0]
    assert len(code.splitlines()) <= 15
    (path,) = re.findall(r"module = (\S+)", cf)
    (place.plugins / os.path.basename(path)).write_text(code)
    (place.plugins / "logins.cf").write_text(cf.replace(os.path.dirname(path), str(place.plugins)))
    table = f"python:{place.plugins}/logins.cf".encode()
    place.approve(table)
    place.start()
    assert place.ask(table, b"alice@example.com") == found(b"alice")
    assert place.ask(table, b"alice@elsewhere.test") == NOT_FOUND
    assert place.ask(table, b"alice") == NOT_FOUND


def test_sender_logins_are_those_of_the_aliases(place: Place) -> None:
    aliases = place.cdb(
        "aliases",
        {
            b"sales": b"alice, bob",
            b"all": b"sales, carol, all",
            b"pipe": b'"|prog", dave',
            b"out": b"x@elsewhere.test",
        },
    )
    table = place.plugin("logins", (ROOT / "contrib/plugins/sender_logins.py").read_text(),
                         aliases=aliases.decode(), domain="example.com, example.org")  # fmt: skip
    place.start()
    expected = {
        b"sales@example.com": b"alice,bob",
        b"ALL@example.org": b"alice,bob,carol",
        b"pipe@example.com": b"dave",
        b"alice@example.com": b"alice",
    }
    assert {key: place.ask(table, key) for key in expected} == {k: found(v) for k, v in expected.items()}
    for key in (b"sales@other.test", b"@example.com", b"sales", b"out@example.com"):
        assert place.ask(table, key) == NOT_FOUND
    place.cdb("aliases", {b"sales": b"erin"})
    wait_until(lambda: place.ask(table, b"sales@example.com") == found(b"erin"), "the new alias")


def test_rewriting_rule(place: Place) -> None:
    table = place.plugin("rewrite", (ROOT / "contrib/plugins/rewriting.py").read_text(),
                         **{"from": "old.example", "to": "new.example", "dots": "no"})  # fmt: skip
    place.start()
    assert place.ask(table, b"first.last+a.b@OLD.example") == found(b"firstlast+a.b@new.example")
    assert place.ask(table, b"x@new.example") == NOT_FOUND
    assert open_table(table).explain(b"x@old.example")[1:] == [
        "addresses of old.example become addresses of new.example"
    ]


def test_contract_is_public_and_costs_nothing_at_start() -> None:
    script = (
        "import sys, proxymap.tables as t; before = 'proxymap.tables.base' in sys.modules\n"
        "from proxymap.tables import SlowTable, CONTRACT, TableRetry, TableConfig\n"
        "print(before, SlowTable.__name__, CONTRACT, TableRetry.status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "False SlowTable 1 2\n"


# Plug-ins that misbehave

FAULTY = {
    "raises": ("raise ValueError('no such thing')", "ValueError: no such thing ({path}, line 4)"),
    "divides": ("1 / 0", "ZeroDivisionError: division by zero ({path}, line 4)"),
    "exits": ("__import__('sys').exit(3)", "SystemExit: 3 ({path}, line 4)"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt ({path}, line 4)"),
    "recurses": ("return self.lookup(key)", "RecursionError: "),
    "text": ("return 'text'", "TypeError: the answer is str; expected bytes or None"),
    "number": ("return 7", "TypeError: the answer is int; expected bytes or None"),
    "nul": ("return b'a\\0b'", "ValueError: the answer has a NUL byte"),
    "stops": ("raise StopIteration", "StopIteration ({path}, line 4)"),
    "generator": ("raise GeneratorExit", "GeneratorExit ({path}, line 4)"),
    "retries": ("raise __import__('proxymap').TableRetry('my own words')", "lookup error: my own words"),
    "secret": ("raise OSError('password = s3cretword')", "password =*** ({path}, line 4)"),
}


def test_plugin_that_raises_hurts_only_its_own_lookups(place: Place) -> None:
    tables = {
        name: place.plugin(
            name, f"    def lookup(self, key):\n        if key != b'good': {body}\n        return b'fine'\n"
        )
        for name, (body, _) in FAULTY.items()
    }
    fine = place.plugin("echo", ECHO)
    place.start()
    for name, table in tables.items():
        assert place.ask(table, b"k") == RETRY, name
        assert place.ask(table, b"good") == found(b"fine"), name
        assert place.ask(fine, b"k") == found(b"<k>")
        place.wait_log(FAULTY[name][1].format(path=place.plugins / f"{name}.py"))
    assert "s3cretword" not in place.log()
    assert "Traceback" not in place.log()
    assert place.alive()


def test_plugin_that_hangs_hurts_only_its_own_lookups(place: Place) -> None:
    """In a loop of Python, and in a call; more often than there are threads for it."""
    spins = place.plugin(
        "spins", "    def lookup(self, key):\n        while key == b'spin': pass\n        return key\n"
    )
    sleeps = place.plugin(
        "sleeps",
        "    def lookup(self, key):\n"
        "        __import__('time').sleep(2 if key == b's' else 0)\n        return key\n",
    )
    fine, quick = place.plugin("echo", ECHO), place.cdb("t", {b"k": b"v"})
    place.start()
    assert place.ask(spins, b"k") == found(b"k")
    peers = [place.connect() for _ in range(6)]
    for peer, table, key in zip(peers, [sleeps] * 5 + [spins], [b"s"] * 5 + [b"spin"], strict=True):
        peer.send(lookup(table, key))
    for _ in range(20):
        assert place.ask(quick, b"k") == found(b"v")
        assert place.ask(fine, b"k") == found(b"<k>")
    assert [peer.reply() for peer in peers] == [RETRY] * 6
    assert place.ask(spins, b"k") == found(b"k")  # another thread of its crew
    wait_until(lambda: place.ask(sleeps, b"k") == found(b"k"), "threads that have slept enough")
    place.wait_log("no answer within 1 s")
    assert place.stop() == 0


LEAKS = """\
from proxymap.tables import SlowTable

kept = []


class Table(SlowTable):
    def lookup(self, key):
        kept.append(bytearray(32 << 20) if key == b"m" else open("/dev/null"))
        return b"%d" % len(kept)
"""


def test_plugin_that_leaks_threads_hurts_nobody_else(place: Place) -> None:
    """They sleep for ever; the server's other threads come and go, and its end does not wait for them."""
    leaks, fine, quick = (
        place.plugin(
            "threads",
            "    def lookup(self, key):\n"
            "        import threading\n"
            "        threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
            "        return b'%d' % threading.active_count()\n",
        ),
        place.plugin("echo", ECHO),
        place.cdb("t", {b"k": b"v"}),
    )
    place.start()
    with place.connect() as peer, place.connect() as other:
        for _ in range(200):
            assert peer.ask(lookup(leaks, b"k")) != RETRY
            assert other.ask(lookup(quick, b"k")) == found(b"v")
        assert other.ask(lookup(fine, b"k")) == found(b"<k>")
        assert int(dict(peer.ask(lookup(leaks, b"k")))[b"value"]) > 200
    assert place.stop() == 0


@pytest.mark.parametrize("key", [b"m", b"d"])
def test_plugin_that_leaks_is_given_up_and_made_anew(place: Place, key: bytes) -> None:
    """It runs out of memory, or of descriptors; what it has kept is let go, and nobody else notices."""
    leaks, quick, fine = (
        place.plugin("leaks", LEAKS),
        place.cdb("t", {b"k": b"v"}),
        place.plugin("echo", ECHO),
    )
    place.start()
    with place.connect() as peer, place.connect() as other:
        assert peer.ask(lookup(leaks, key)) == found(b"1")
        assert other.ask(lookup(quick, b"k")) == found(b"v")
        assert other.ask(lookup(fine, b"k")) == found(b"<k>")
        if key == b"m":
            place.limit(**{"as": place._memory("VmSize") + (256 << 20)})
        else:
            place.limit(nofile=place.descriptors() + 40)
        replies = []
        while replies.count(RETRY) < 3 and len(replies) < 200:
            replies.append(peer.ask(lookup(leaks, key)))
            assert other.ask(lookup(quick, b"k")) == found(b"v")
        assert replies.count(RETRY) == 3
        assert len(replies) > 10  # in between it answered
        assert other.ask(lookup(fine, b"k")) == found(b"<k>")
    place.wait_log("the plug-in is made anew")


def test_plugin_that_was_made_anew_is_not_given_up_for_the_old_one(tmp_path: Path) -> None:
    """Two lookups run out of memory; the second to say so finds the next plug-in in place."""
    with Place() as place:
        name = place.plugin("p", (
            "    closed = False\n    def lookup(self, key):\n        if key == b'm': raise MemoryError\n"
            "        return b'closed' if self.closed else b'well'\n"
            "    def close(self): self.closed = True\n"
        ))  # fmt: skip
        table = open_table(name)
        answers = table.answers
        old = answers._plugin
        with pytest.raises(TableRetry, match="is made anew"):
            answers.lookup(b"m")
        assert answers.lookup(b"k") == b"well"
        fresh = answers._plugin
        assert (old.closed, fresh is old) == (True, False)
        answers._trouble(MemoryError(), old)
        assert answers._plugin is fresh
        assert answers.lookup(b"k") == b"well"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def broken(:\n", "SyntaxError: "),
        ("x = 1 / 0\n", "ZeroDivisionError: division by zero ("),
        ("import sys; sys.exit(1)\n", "SystemExit: 1 ("),
        ("import no_such_thing\n", "ModuleNotFoundError: "),
        ("x = 1\n", "has no class Table"),
        ("class Table:\n    def __init__(self, setup): pass\n", "is no proxymap.tables"),
        (HEAD + "    contract = 99\n", "is written for version 99 of the contract; this is 1"),
        (HEAD + "    def __init__(self, setup):\n        setup['limit']\n", "parameter limit is missing"),
        (HEAD + "    def __init__(self, setup):\n        raise SystemExit\n", "SystemExit ("),
    ],
)
def test_plugin_that_cannot_be_loaded_says_why(body: str, expected: str, tmp_path: Path) -> None:
    with Place() as place:
        name = place.plugin("p", "# SlowTable\n" + body)
        reason = (open_table(name).reason or b"").decode()
        assert expected in reason
        assert "p.cf, line 1: parameter module: " in reason


def test_plugin_that_hangs_while_it_is_loaded_keeps_no_server_from_starting(place: Place) -> None:
    hangs = place.plugin("hangs", "import time  # SlowTable\ntime.sleep(1000)\n")
    quick = place.cdb("t", {b"k": b"v"})
    place.own["open_time_limit"] = "1s"
    place.start()
    assert place.ask(quick, b"k") == found(b"v")
    assert place.ask(hangs, b"k") == RETRY
    assert place.ask(quick, b"k") == found(b"v")


# Loading


STAMPED = """\
import os
from proxymap.tables import SlowTable

loaded_as, number = os.geteuid(), open(__file__).read().count("#")


class Table(SlowTable):
    def lookup(self, key):
        return b"%d %d %d" % (loaded_as, os.geteuid(), number)
"""


@root_only
def test_is_loaded_as_root_and_run_as_another(place: Place) -> None:
    table = place.plugin("who", STAMPED)
    (place.plugins / "who.py").chmod(0o600)
    place.start()
    (_, value) = place.ask(table, b"k")[1]
    first, then, _ = value.split()
    assert first == b"0"
    assert then != b"0"


def test_change_and_reload_load_anew(place: Place) -> None:
    table = place.plugin("stamped", STAMPED)
    path = place.plugins / "stamped.py"
    place.start()
    assert place.ask(table, b"k")[1][1].endswith(b" 1")
    path.write_text(STAMPED + "# one\n")
    wait_until(lambda: place.ask(table, b"k")[1][1].endswith(b" 2"), "the changed plug-in")
    path.write_text("broken (\n")
    place.wait_log("going on with the previous content")
    assert place.ask(table, b"k")[1][1].endswith(b" 2")
    path.write_text(STAMPED.replace("class Table", "counted = []\n\n\nclass Table").replace(
        "return b", "counted.append(0); return b'%d' % len(counted) or b"
    ))  # fmt: skip
    wait_until(lambda: place.ask(table, b"k")[1][1] == b"1", "the next plug-in")
    assert place.ask(table, b"k") == found(b"2")
    assert place.process is not None
    place.process.send_signal(signal.SIGHUP)
    wait_until(lambda: place.ask(table, b"k") == found(b"1"), "the plug-in that is loaded anew", pause=0.2)


def test_installed_module_and_entry_point(place: Place) -> None:
    package = place.plugins / "site"
    (package / "acme").mkdir(parents=True)
    (package / "acme-1.dist-info").mkdir()
    (package / "acme/__init__.py").write_text("")
    (package / "acme/maps.py").write_text(
        HEAD + ECHO + "class Other(Table):\n    lookup = lambda self, key: b'other'\n"
    )
    (package / "acme-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (package / "acme-1.dist-info/entry_points.txt").write_text(
        "[proxymap.tables]\nacme-lists = acme.maps:Other\n"
    )
    by_name = place.table("name", module="acme.maps")
    by_class = place.table("class", module="acme.maps", **{"class": "Other"})
    by_entry = place.table("entry", module="acme-lists")
    absent = place.table("absent", module="acme.nothing")
    own = place.table("builtin", module="sys")
    place.env["PYTHONPATH"] = f"{ROOT}:{package}"
    place.start()
    assert place.ask(by_name, b"k") == found(b"<k>")
    assert place.ask(by_class, b"k") == place.ask(by_entry, b"k") == found(b"other")
    assert place.ask(absent, b"k") == place.ask(own, b"k") == RETRY
    place.wait_log("there is no module acme.nothing, nor an entry point acme.nothing of proxymap.tables")
    assert place.process is not None
    (package / "acme/maps.py").write_text(HEAD + ECHO.replace("<", "[").replace(">", "]"))
    wait_until(lambda: place.ask(by_name, b"k") == found(b"[k]"), "the changed module")


# Who may write it


@root_only
@pytest.mark.parametrize(
    "where", ["file", "mode", "group", "folder", "open folder", "link", "cf", "installed", "compiled"]
)
def test_code_that_others_could_change_is_not_run(place: Place, where: str) -> None:
    assert USER is not None
    name = place.plugin("p", ECHO)
    path, cf = place.plugins / "p.py", place.plugins / "p.cf"
    if where == "file":
        shutil.chown(path, USER)
    elif where == "mode":
        path.chmod(0o666)
    elif where == "group":
        path.chmod(0o664)
    elif where == "folder":
        shutil.chown(place.plugins, USER)
    elif where == "open folder":
        place.plugins.chmod(0o1777)
    elif where == "link":  # in a folder of somebody else's, to a file that is right
        (place.dir / "link.py").symlink_to(path)
        cf.write_text(f"module = {place.dir}/link.py\n")
    elif where == "cf":
        shutil.chown(cf, USER)
    else:
        (place.plugins / "evil.py").write_text(path.read_text())
        if where == "compiled":  # what is there is run in its place
            (place.plugins / "__pycache__").mkdir()
            (place.plugins / "__pycache__").chmod(0o777)
        else:
            shutil.chown(place.plugins / "evil.py", USER)
        cf.write_text("module = evil\n")
        place.env["PYTHONPATH"] = f"{ROOT}:{place.plugins}"
    marker = place.dir / "was run"
    for code in (path, place.plugins / "evil.py"):
        if code.exists():
            code.write_text(code.read_text() + f"open({str(marker)!r}, 'w')\n")
    place.start()
    assert place.ask(name, b"k") == RETRY
    wait_until(lambda: re.search("chown root|chmod go-w", place.log()), "the reason in the log")
    assert not marker.exists()


# For the administrator


def test_explain_doubts_and_sequence(place: Place) -> None:
    name = place.plugin("p", ECHO + (
        "    has_sequence = True\n    records = [(b'a', b'1'), (b'b', b'2')]\n"
        "    def sequence(self, cursor, first):\n"
        "        if first: self.left = iter(self.records)\n        return next(self.left, None)\n"
        "    def explain(self, key): return ['by hand']\n"
        "    def doubts(self, connect=False): return [('it rains', 'wait', not connect)]\n"
    ))  # fmt: skip
    table = open_table(name)
    assert table.explain(b"k") == [f"answered by class Table of {place.plugins}/p.py", "by hand"]
    assert list(table.doubts()) == [("it rains", "wait", True)]
    assert list(table.doubts(True)) == [("it rains", "wait", False)]
    assert [table.answers.sequence(0, at == 0) for at in range(3)] == [(b"a", b"1"), (b"b", b"2"), None]
    broken = open_table(place.plugin("q", ECHO + "    def doubts(self, connect=False): raise SystemExit\n"))
    ((what, _, _),) = broken.doubts()
    assert what.startswith("SystemExit (")


def test_two_tables_of_one_file_share_nothing(place: Place) -> None:
    body = (
        "    count = 0\n    def __init__(self, setup): self.say = setup['say'].encode()\n"
        "    def lookup(self, key):\n        Table.count += 1\n"
        "        return self.say + b'%d' % Table.count\n"
    )
    one = place.plugin("one", body, say="x")
    two = place.table("two", module=f"{place.plugins}/one.py", say="y")
    place.start()
    assert place.ask(one, b"k") == found(b"x1")
    assert place.ask(two, b"k") == found(b"y1")
    start = time.monotonic()
    while place.ask(one, b"k") != found(b"x9"):
        assert time.monotonic() - start < 30
