"""test_postfix - Postfix's own client, postmap, gets its answers from us

The socket is where postmap looks for it: private/proxymap below the queue
directory of a main.cf. The oracle is the same postmap without `proxy:`.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from fix_postfix import StockPostfix, dialect, unavailable
from fix_server import TRY0, TRY1, ServerProcess, give

import proxymap

pytestmark = pytest.mark.skipif(shutil.which("postmap") is None, reason="Postfix is not installed")

ENTRIES = 1_000_000
KEYS = 100_000
TYPES = ("cdb", "lmdb")


class Postmap:
    """A server of ours at the socket that postmap uses, and that postmap."""

    def __init__(self) -> None:
        # compatibility_level: smtputf8_enable is then yes, as on any host of these years.
        self.server = ServerProcess(own={"src_rhs_is_file": "yes"})
        self.dir = self.server.dir
        (self.dir / "private").mkdir()
        give(self.dir / "private")
        self.server.path = str(self.dir / "private" / "proxymap")

    def run(self, *arguments: str, keys: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = ["postmap", "-c", str(self.dir), *arguments]
        return subprocess.run(command, input=keys, capture_output=True, timeout=300, check=False)

    def build(self, name: str, source: bytes) -> None:
        """Build the table as cdb and as lmdb with the stock postmap, and approve both."""
        (self.dir / name).write_bytes(source)
        self.server.write_config()
        for maptype in TYPES:
            done = self.run(f"{maptype}:{self.dir}/{name}")
            assert done.returncode == 0, done.stderr
            self.server.approve(f"{maptype}:{self.dir}/{name}")


@pytest.fixture(scope="module")
def postmap() -> Iterator[Postmap]:
    made = Postmap()
    with made.server:
        made.build(
            "big",
            b"".join(
                b"user%d@example.com box%d@store%d.example.net\n" % (i, i, i % 97) for i in range(ENTRIES)
            ),
        )
        made.build("odd", ODD)
        made.server.start()
        yield made


# Mixed case, UTF-8, quotes, a long value, continuation lines.
ODD = (
    "MiXed@Example.COM value one\n"
    "üser@example.com  héctor@exämple.net\n"
    "ÄÖÜ@example.com folded\n"
    '"quoted local"@example.com quoted\n'
    "several one,\n  two,\n  three\n"
    "123 numeric\n"
    "long@example.com " + "x" * 20_000 + "\n"
).encode()  # fmt: skip


SOME_KEYS = [
    *("mixed@example.com", "MIXED@EXAMPLE.COM", "üser@example.com", "ÜSER@example.com", "äöü@example.com"),
    *("several", '"quoted local"@example.com', "quoted local@example.com", "123", "long@example.com"),
    *("absent", "x" * 3000),
]


@pytest.mark.parametrize("maptype", TYPES)
def test_hundred_thousand_random_keys_of_a_million_entries(postmap: Postmap, maptype: str) -> None:
    table = f"{maptype}:{postmap.dir}/big"
    keys = b"".join(b"user%d@example.com\n" % i for i in random.Random(1).sample(range(2 * ENTRIES), KEYS))
    ours = postmap.run("-q", "-", f"proxy:{table}", keys=keys)
    stock = postmap.run("-q", "-", table, keys=keys)
    assert ours.stderr == stock.stderr == b""
    assert ours.returncode == stock.returncode == 0
    assert ours.stdout == stock.stdout
    assert KEYS * 0.4 < ours.stdout.count(b"\n") < KEYS * 0.6


@pytest.mark.parametrize("maptype", TYPES)
@pytest.mark.parametrize("key", SOME_KEYS)
def test_one_key(postmap: Postmap, maptype: str, key: str) -> None:
    table = f"{maptype}:{postmap.dir}/odd"
    ours, stock = postmap.run("-q", key, f"proxy:{table}"), postmap.run("-q", key, table)
    assert (ours.returncode, ours.stdout, ours.stderr) == (stock.returncode, stock.stdout, stock.stderr)


def test_table_that_is_not_approved_is_fatal_as_with_the_stock_server(postmap: Postmap) -> None:
    done = postmap.run("-q", "x", "proxy:cdb:/nowhere")
    assert done.returncode == 1
    assert b'proxymap service is not configured for table "cdb:/nowhere"' in done.stderr


def test_missing_table_defers_mail() -> None:
    missing = Postmap()
    with missing.server as server:
        table = f"cdb:{server.dir}/missing"
        server.approve(table)
        server.start()
        done = missing.run("-q", "x", f"proxy:{table}")
        server.wait_log(f"error: open database {server.dir}/missing.cdb: No such file or directory")
        server.wait_log(f"warning: {table} is unavailable. open database")
    assert done.returncode == 1
    assert b"query error" in done.stderr


# A table alone, and first in others.
EARLY = [(maptype, "{}") for maptype in TYPES]
EARLY += [
    ("cdb", "unionmap:{{{},inline:{{z=1}}}}"),
    ("cdb", "pipemap:{{pipemap:{{proxy:{}}}}}"),
    ("cdb", "debug:{}"),
]


@pytest.mark.parametrize(("maptype", "name"), EARLY)
def test_client_that_opened_a_table_before_it_was_there_folds_its_keys(maptype: str, name: str) -> None:
    """It decides by what it was told at open, or is told with each reply, whether keys are folded."""
    early = Postmap()
    with early.server as server:
        early.build("later", b"user@example.com box\n")
        file = server.dir / f"later.{maptype}"
        file.rename(server.dir / "built")
        table = name.format(f"{maptype}:{server.dir}/later")
        server.approve(table)
        server.start()
        both = f"pipemap:{{inline:{{key=User@Example.COM}},proxy:{table}}}"
        command = ["postmap", "-c", str(server.dir), "-q", "-", both]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin is not None
            client.stdin.write(b"absent\n")  # it opens both tables, and asks the first alone
            client.stdin.flush()
            server.wait_log(f"open database {file}: No such file or directory")
            (server.dir / "built").rename(file)
            assert client.communicate(b"key\n") == (b"key\tbox\n", None)


def replies(path: str, table: str) -> list[object]:
    """OPEN, lookups that decide the try bits, OPEN again, with flags of every class."""
    seen: list[object] = []
    with proxymap.Client(path, dialect=dialect()) as client:
        for flags in (0, 64, 16384 + 64, 524288, 4, 8, 65536, 1 << 21):
            if dialect() == "3.11" and not flags & (TRY0 | TRY1):
                flags |= TRY0 | TRY1  # from 3.11 on a server has no state, and ends where a client drops both
            seen.append(client.open(table, flags))
            for key in ("absent", "123", "MIXED@example.com"):
                seen += [client.lookup(table, key, flags), client.open(table, flags)]
    return seen


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.parametrize("maptype", TYPES)
def test_stock_and_ours_reply_the_same_flags(maptype: str) -> None:
    ours = Postmap()
    with ours.server as server:
        ours.build("odd", ODD)
        server.start()
        server.dir.chmod(0o755)
        table = f"{maptype}:{server.dir}/odd"
        with StockPostfix({"proxy_read_maps": f"proxy:{table}"}) as stock:
            assert replies(server.path, table) == replies(stock.socket(), table)
