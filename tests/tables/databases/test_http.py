"""test_http - http tables over Python's http.server, nginx, and a server that lies"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("urllib3", reason="urllib3 is not installed")

from fix_http import MANNERS, Liar, Web, nginx, nginx_missing
from fix_server import LIMIT, NOT_FOUND, ServerProcess, give, lookup, wait_until
from fix_tls import Certificates

from proxymap.errors import QuestionRefused, TableRetry
from proxymap.tables.base import Host, Opening
from proxymap.tables.databases.web import site
from proxymap.tables.databases.web.http import Http, Result, leaves_its_folder
from proxymap.tables.opening import open_table
from proxymap.tables.tablecf import TableCf

RETRY = [(b"status", b"2"), (b"value", b"")]
RECORDS = {b"a@b.c": b"x@y.z", b"lines": b"one\r\ntwo\n\n", b"empty": b"", b"gone": b"", b"nul": b"a\0b"}


class Place(ServerProcess):
    """Our server with http tables."""

    def __init__(self, **own: str) -> None:
        super().__init__(own={"lookup_time_limit": "2s", "server_error_limit": "1000000", **own})
        self.serial = 0

    def table(self, url: str, **others: str) -> bytes:
        self.serial += 1
        path = self.dir / f"{self.serial}.cf"
        parameters = {"url": url} | others
        path.write_text("".join(f"{name} = {value}\n" for name, value in parameters.items()))
        self.approve(f"http:{path}")
        return f"http:{path}".encode()

    def value(self, table: bytes, key: bytes) -> bytes | None:
        """What is found; None: no such key; otherwise it fails."""
        with self.connect() as peer:
            reply = peer.ask(lookup(table, key))
        assert reply != RETRY, self.log()[-2000:]
        return None if reply == NOT_FOUND else dict(reply)[b"value"]

    def retries(self, table: bytes, key: bytes = b"a@b.c") -> None:
        with self.connect() as peer:
            assert peer.ask(lookup(table, key)) == RETRY


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(dict(RECORDS)) as made:
        yield made


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as made:
        yield made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls") / "c")


def url_of(server: Web | Liar, rest: str = "/alias?address=%s", scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.port}{rest}"


# Asking


def test_200_is_found_404_and_204_are_not_and_all_else_is_retry(place: Place, web: Web) -> None:
    table = place.table(url_of(web))
    web.statuses = {b"%d" % status: status for status in (201, 204, 206, 301, 302, 307, 400, 401, 403, 410,
                                                          429, 500, 502, 503, 599)}  # fmt: skip
    place.start()
    assert place.value(table, b"a@b.c") == b"x@y.z"
    assert place.value(table, b"unknown") is None
    for status in web.statuses:
        if status == b"204":
            assert place.value(table, status) is None
        else:
            place.retries(table, status)
    for key in (b"empty", b"nul"):  # found, it says, and does not say what
        place.retries(table, key)
    place.wait_log("status 302 Found, which is not followed")
    assert not [request for request in web.requests if "elsewhere" in request.path]


def test_ten_thousand_keys_are_quoted_rightly(web: Web, tmp_path: Path) -> None:
    """Random bytes, and what has a meaning in URLs and in HTTP; as a parameter, and as a step of the path."""
    rules = random.Random(23)
    special = [
        b"\r\nHost: evil",
        b"&address=x",
        b"#f",
        b"?q",
        b"%41",
        b"%",
        b"+",
        b" ",
        b"/",
        b"//h",
        b"\\",
        b"'",
        b"''",
        b"\xff",
        "ü".encode(),
        b";",
        b"=",
        b"@",
        b"\n",
        b"\t",
        b"\x7f",
        b":",
        b'"',
        b"<",
        b"{}",
        b"..",
        b".",
    ]
    (tmp_path / "q.cf").write_text(f"url = {url_of(web)}\n")
    (tmp_path / "p.cf").write_text(f"url = {url_of(web, '/in/%s')}\n")
    by_query, by_path = (open_table(f"http:{tmp_path}/{name}.cf".encode()) for name in "qp")
    assert by_query.reason is None
    web.default = b"found"
    for number in range(10_000):
        text = bytes(rules.randrange(1, 256) for _ in range(rules.randrange(1, 12)))
        key = rules.choice(special) + text + rules.choice(special) if number % 2 else text
        table = by_path if number % 4 == 0 and not leaves_its_folder(b"/" + key) else by_query
        web.records = {key: b"mine"}
        assert table.ask(key, 0)[::2] == (0, b"mine"), (key, web.requests[-1])
    assert len(web.requests) == 10_000
    assert web.connections <= 4
    assert {(request.method, request.headers["Host"]) for request in web.requests} == {
        ("GET", f"127.0.0.1:{web.port}")
    }


@pytest.mark.parametrize("key", [b"..", b".", b"../secret", b"a/../../b", b"..\\x", b"x/."])
def test_key_that_leads_out_of_the_folder_is_not_asked_for(place: Place, web: Web, key: bytes) -> None:
    table, query = place.table(url_of(web, "/in/%s")), place.table(url_of(web))
    place.start()
    assert place.value(table, key) is None
    assert web.requests == []
    web.default = b"yes"
    assert place.value(query, key) == b"yes"


def test_parts_of_the_key_domain_and_format(place: Place, web: Web) -> None:
    web.default = b"u@v"
    parts = place.table(url_of(web, "/%d/%u/%2?k=%%25%s"), result_format="<%s> %U", domain="b.c")
    place.start()
    assert place.value(parts, b"it's@b.c") == b"<u@v> it's"
    assert web.requests[-1].path == "/b.c/it%27s/b?k=%25it%27s%40b.c"
    assert place.value(parts, b"a@other") is None
    assert place.value(parts, b"a") is None
    assert len(web.requests) == 1


def test_headers_method_and_secrets(place: Place, web: Web) -> None:
    secret = place.dir / "headers"
    secret.write_text("# of the API\nAuthorization: Bearer s3cretword\nX-Number: 7\n")
    secret.chmod(0o600)
    give(secret)
    table = place.table(url_of(web), method="POST", headers="{ Accept: text/plain } {X-From: me}",
                        headers_file=str(secret))  # fmt: skip
    place.start()
    assert place.value(table, b"a@b.c") == b"x@y.z"
    request = web.requests[-1]
    assert request.method == "POST"
    assert request.headers["Authorization"] == "Bearer s3cretword"
    assert [request.headers[name] for name in ("X-Number", "Accept", "X-From")] == ["7", "text/plain", "me"]
    assert request.headers["User-Agent"].startswith("proxymap/")
    secret.write_text("Authorization: Bearer another\n")
    web.statuses[b"a@b.c"] = 503
    deadline = time.monotonic() + 30
    while web.requests[-1].headers["Authorization"] != "Bearer another":
        place.retries(table)
        assert time.monotonic() < deadline
    assert "s3cretword" not in place.log()


@pytest.mark.parametrize(
    "content",
    [
        "X: a\rInjected: b\n",
        "X: a\r\n",
        "X: a\n Folded: b\n",
        "no header\n",
        ": empty\n",
        "Sp ace: x\n",
        "X: \x01\n",
        "Host: other\n",
        "content-length: 3\n",
        "Transfer-Encoding: chunked\n",
        "X: a\nx: b\n",
        "X: a\0b\n",
        "X: a\x0bb\n",
        "\tX: y\n",
    ],
)
def test_header_that_could_be_more_than_one_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(content.encode("latin-1"))
    (tmp_path / "t.cf").write_text(f"url = http://127.0.0.1:9/%s\nheaders_file = {tmp_path}/h\n")
    reason = open_table(f"http:{tmp_path}/t.cf".encode()).reason
    assert reason is not None
    assert f"{tmp_path}/h, line ".encode() in reason
    assert b"Injected" not in reason


@pytest.mark.parametrize(
    "faulty",
    [
        "",
        "url = ftp://h/%s",
        "url = http://h",
        "url = http://%d/x",
        "url = http://u:p@h/%s",
        "url = http://h/a#%s",
        "url = http://h/a b%s",
        "url = http://h/../%s",
        "url = http://h/%x",
        "url = http://h/%%zz%s",
        "url = http://h/%s\nmethod = DELETE",
        "url = http://h/%s\nresult = all",
        "url = http://h/%s\nresult = /a~2",
        "url = http://h/%s\nresult = line 0",
        "url = http://h/%s\nheaders = A: b",
        "url = http://h/%s\nsize_limit = 0",
        "url = http://h/%s\nheaders = { A: b }{ C: d }",
        "url = https://h/%s\ntls_CAfile = /no/such",
        "url = http://h/%s\nheaders_file = /no/such",
        "url = http://h/%s\ntimeout = 0",
        "url = http://h:99999999/%s",
        "url = http://h/%%%s",
    ],
)
def test_faulty_table_does_not_open(faulty: str, tmp_path: Path) -> None:
    (tmp_path / "t.cf").write_text(f"{faulty}\n")
    reason = open_table(f"http:{tmp_path}/t.cf".encode()).reason
    assert reason is not None
    assert b"t.cf" in reason


# Results


def values(result: str, body: bytes, tmp_path: Path) -> list[bytes]:
    (tmp_path / "t.cf").write_text(f"result = {result}\n")
    return Result(TableCf(f"{tmp_path}/t.cf".encode(), Host())).values(body)


@pytest.mark.parametrize(
    ("result", "body", "expected"),
    [
        ("body", b"a\nb\n", [b"a\nb"]), ("body", b"v\r\n", [b"v"]), ("line", b"one\r\ntwo\n", [b"one"]),
        ("line 2", b"one\ntwo", [b"two"]),
        ("/goto", {"goto": "x"}, [b"x"]), ("/goto", {"goto": ["x", "y", 7]}, [b"x", b"y", b"7"]),
        ("/goto", {"goto": None}, []), ("/goto", {"goto": []}, []), ("/a/1/b", {"a": [0, {"b": 5}]}, [b"5"]),
        ("/a~1b~0c", {"a/b~c": "x"}, [b"x"]), ("/~01", {"~1": "x"}, [b"x"]), ("/", {"": "x"}, [b"x"]),
        ("/goto", {"goto": "ü"}, ["ü".encode()]),
    ],
)  # fmt: skip
def test_what_of_an_answer_is_the_value(
    result: str, body: object, expected: list[bytes], tmp_path: Path
) -> None:
    assert (
        values(result, body if isinstance(body, bytes) else json.dumps(body).encode(), tmp_path) == expected
    )


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ("body", b""),
        ("body", b"\n"),
        ("body", b"a\0"),
        ("line 3", b"a\nb\n"),
        ("line", b"\nb"),
        ("/a", b"no json"),
        ("/a", b"{}"),
        ("/a", b'{"a": ""}'),
        ("/a", b'{"a": {}}'),
        ("/a", b'{"a": 1.5}'),
        ("/a", b'{"a": true}'),
        ("/a", b'{"a": ["x", null]}'),
        ("/a", b'{"a": "\\ud800"}'),
        ("/a", b'{"a": "\\u0000"}'),
        ("/a", b"\xff"),
        ("/a/01", b'{"a": [1, 2]}'),
        ("/a/-", b'{"a": [1]}'),
        ("/a/5", b'{"a": [1]}'),
        ("/a", b"[" * 100_000),
        ("/a", b'{"a": ' + b"9" * 5000 + b"}"),
        ("/a", b'"text"'),
    ],
)
def test_answer_200_without_a_value_is_refused(result: str, body: bytes, tmp_path: Path) -> None:
    with pytest.raises(QuestionRefused):
        values(result, body, tmp_path)


def test_values_of_a_list_are_joined_up_to_the_limit(place: Place, web: Web) -> None:
    web.records = {b"two": b'{"goto": ["a", "b"]}', b"none": b'{"goto": null}'}
    table = place.table(url_of(web), result="/goto")
    limited = place.table(url_of(web), result="/goto", expansion_limit="1")
    place.start()
    assert place.value(table, b"two") == b"a,b"
    assert place.value(table, b"none") is None
    place.retries(limited, b"two")


# Servers that are away, slow or lie


@pytest.mark.parametrize(
    ("manner", "tls"),
    [
        *((manner, False) for manner in MANNERS if manner != "fine"),
        *((manner, True) for manner in ("nothing", "short", "huge", "early", "slow")),
    ],
)
def test_liar_gets_nothing_but_retry(
    manner: str, tls: bool, certificates: Certificates, tmp_path: Path
) -> None:
    """Nobody waits longer than the limit, no memory is filled, and the next question gets its own answer."""
    files = (certificates.pem("server"), certificates.key("server")) if tls else None
    with Liar(files) as liar:
        (tmp_path / "t.cf").write_text(
            f"url = http{'s' * tls}://127.0.0.1:{liar.port}/%s\ntimeout = 1\nsize_limit = 100000\n"
            f"tls_CAfile = {certificates.pem('ca')}\n"
        )
        host = Host()
        host.server_limits = lambda name: {"connection_limit": 1}  # which has to come back each time
        table = open_table(f"http:{tmp_path}/t.cf".encode(), host=host)
        assert table.reason is None
        liar.stays = True
        assert table.ask(b"k", 0)[::2] == (0, b"value")
        liar.manner = manner
        liar.stays = manner in (
            "no content, with content",
            "early",
            "switch",
            "bad length",
            "negative length",
            "underscored length",
            "two lengths",
            "length and chunks",
            "two codings",
            "chunk garbage",
            "unknown coding",
            "encoded",
            "empty",
        )
        start = time.monotonic()
        if manner == "no content, with content":
            assert table.ask(b"k", 0)[0] == 1
        else:
            with pytest.raises(Exception, match=r"127\.0\.0\.1|answer 200"):
                table.ask(b"k", 0)
        assert time.monotonic() - start < 15
        liar.manner = "fine"
        liar.stays = False
        assert table.ask(b"k", 0)[::2] == (0, b"value")


def test_server_that_dies_between_two_questions_is_asked_once_more(place: Place, web: Web) -> None:
    table = place.table(url_of(web))
    place.start()
    for _ in range(3):
        assert place.value(table, b"a@b.c") == b"x@y.z"
        web.cut()
    web.leave()
    place.retries(table)
    place.retries(table, b"unknown")
    web.listen()
    assert place.value(table, b"a@b.c") == b"x@y.z"
    place.wait_log("Connection refused")


def test_server_that_is_down_is_not_asked_and_used_again(web: Web) -> None:
    with Place(server_error_limit="2") as place:
        table = place.table(url_of(web))
        place.start()
        assert place.value(table, b"a@b.c") == b"x@y.z"
        web.leave()
        for _ in range(3):
            place.retries(table)
        place.wait_log(f"http server 127.0.0.1:{web.port} is down: Connection refused; used by 1 table")
        start = time.monotonic()
        for _ in range(50):
            place.retries(table)
        assert time.monotonic() - start < 20
        web.listen()
        place.wait_log(f"http server 127.0.0.1:{web.port} is up again")
        told = re.search(r"is up again after \d+s; 0 lookups from memory, (\d+) deferred", place.log())
        assert told is not None
        assert int(told[1]) >= 50
        assert place.value(table, b"a@b.c") == b"x@y.z"


def test_one_table_that_hangs_holds_up_no_other(place: Place, web: Web) -> None:
    with Liar() as liar:
        liar.manner = "silent"
        slow, fast = place.table(url_of(liar, "/%s")), place.table(url_of(web))
        place.start()
        with place.connect() as waits:
            waits.send(lookup(slow, b"k"))
            assert place.value(fast, b"a@b.c") == b"x@y.z"
            assert not waits.answered()
            assert waits.reply() == RETRY


def test_tables_of_a_server_have_its_connections_together(tmp_path: Path) -> None:
    """server_connection_limit is for all of them; a question that waits for one is not held against it."""
    host = Host()
    host.server_limits = lambda name: {"connection_limit": 2, "error_limit": 1}
    with Liar() as liar:
        liar.stays, liar.manner = True, "fine"
        tables = []
        for name in ("one", "two"):
            path = tmp_path / f"{name}.cf"
            path.write_text(
                f"url = {url_of(liar, f'/{name}/%s')}\ntimeout = {'10' if name == 'one' else '1'}\n"
            )
            tables.append(open_table(f"http:{path}".encode(), host=host))
        one, two = tables
        liar.manner = "silent"
        with ThreadPoolExecutor() as pool:
            busy = [pool.submit(one.ask, b"k", 0) for _ in range(2)]
            wait_until(lambda: len(liar.requests) == 2, "two questions")
            with pytest.raises(TableRetry, match="all 2 connections are busy"):
                two.ask(b"k", 0)
            told = one.server.describe()
            assert (told["state"], told["busy"], told["limit"], told["shed"]) == ("unknown", 2, 2, 1)
            assert len(liar.requests) == 2
            liar.leave()
            assert [type(one.exception(LIMIT)) for one in busy] == [TableRetry, TableRetry]


# TLS


def test_certificate_and_name_are_verified(place: Place, certificates: Certificates, web: Web) -> None:
    ca, other_ca = f"{place.dir}/ca.pem", f"{place.dir}/other_ca.pem"
    for name in ("ca", "other_ca"):  # pytest's folders are closed to the server
        shutil.copyfile(certificates.pem(name), place.dir / f"{name}.pem")
    with (
        Web(RECORDS, (certificates.pem("server"), certificates.key("server"))) as right,
        Web(RECORDS, (certificates.pem("other_name"), certificates.key("other_name"))) as other,
    ):
        good = place.table(url_of(right, scheme="https"), tls_CAfile=ca)
        named = place.table(f"https://localhost:{right.port}/alias?address=%s", tls_CAfile=ca)
        refused = [
            place.table(url_of(right, scheme="https")),  # the host's own authorities do not know ours
            place.table(url_of(right, scheme="https"), tls_CAfile=other_ca),
            place.table(url_of(other, scheme="https"), tls_CAfile=ca),
            place.table(url_of(web, scheme="https"), tls_CAfile=ca),  # speaks no TLS
        ]
        place.start()
        assert place.value(good, b"a@b.c") == b"x@y.z"
        assert place.value(named, b"a@b.c") == b"x@y.z"
        for table in refused:
            place.retries(table)
        place.wait_log("its certificate is refused")
        assert web.requests == []
        assert other.requests == []


@pytest.mark.skipif(nginx_missing() is not None, reason=str(nginx_missing()))
def test_nginx(place: Place, certificates: Certificates) -> None:
    files = {"a@b.c": b"x@y.z\n", "json": b'{"goto": ["a", "b"]}', "long": b"x" * 100_000, "plus+ %41": b"p"}
    with nginx(files, certificates.pem("server"), certificates.key("server")) as port:
        shutil.copyfile(certificates.pem("ca"), place.dir / "ca.pem")
        url = f"https://127.0.0.1:{port}/%s"
        table = place.table(url, tls_CAfile=f"{place.dir}/ca.pem")
        pointed = place.table(url, tls_CAfile=f"{place.dir}/ca.pem", result="/goto")
        place.start()
        assert place.value(table, b"a@b.c") == b"x@y.z"
        assert place.value(table, b"plus+ %41") == b"p"
        assert place.value(pointed, b"json") == b"a,b"
        assert place.value(table, b"long") == b"x" * 100_000
        for key in (b"unknown", b"none", b"../a@b.c", b"x/../a@b.c"):
            assert place.value(table, key) is None
        for key in (b"moved", b"broken", b"slow"):
            place.retries(table, key)
        assert place.value(table, b"a@b.c") == b"x@y.z"


# For the administrator


def test_check_tells_of_parameters_that_mean_nothing(web: Web, tmp_path: Path) -> None:
    (tmp_path / "t.cf").write_text(f"url = {url_of(web)}\nresults = /goto\ntimeout = 3\n")
    table = open_table(f"http:{tmp_path}/t.cf".encode())
    assert [what for what, _, _ in table.doubts()] == [
        f"{tmp_path}/t.cf, line 2: parameter results is not used"
    ]


def test_server_is_asked_where_there_is_no_memory_for_a_probe(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(site, "start_thread", fail)
    (tmp_path / "t.cf").write_text(f"url = {url_of(web)}\n")
    table = open_table(f"http:{tmp_path}/t.cf".encode())
    web.leave()
    for _ in range(10):
        with pytest.raises(TableRetry):
            table.ask(b"a@b.c", 0)
    web.listen()
    assert table.ask(b"a@b.c", 0)[2] == b"x@y.z"


def test_servers_explain_and_check_tell_of_it(web: Web, tmp_path: Path) -> None:
    secret = tmp_path / "h"
    secret.write_text("X: y\n")
    secret.chmod(0o644)
    (tmp_path / "t.cf").write_text(f"url = {url_of(web)}\nheaders_file = {secret}\n")
    table = open_table(f"http:{tmp_path}/t.cf".encode())
    assert table.explain(b"a@b.c") == ["/alias?address=a%40b.c", "rows: 1"]
    told = table.server.describe()
    assert (told["server"], told["state"], told["answers"], told["open"]) == (
        f"http 127.0.0.1:{web.port}", "up", 1, 1,
    )  # fmt: skip
    assert told["tables"] == [f"http:{tmp_path}/t.cf"]
    doubts = list(table.doubts())
    assert [what for what, _, _ in doubts] == [f"headers_file: every user may read {secret}"]
    secret.chmod(0o640)
    assert list(table.doubts(True)) == []
    web.statuses[b"1"] = 401
    (what, _, only_a_warning) = next(iter(table.doubts(True)))
    assert "status 401 Unauthorized" in what
    assert not only_a_warning


def test_headers_are_not_sent_as_plain_text_without_a_word(tmp_path: Path) -> None:
    secret = tmp_path / "h"
    secret.write_text("X: y\n")
    secret.chmod(0o640)
    for host, count in (("api.invalid", 1), ("localhost", 0), ("127.0.0.1", 0)):
        (tmp_path / "t.cf").write_text(f"url = http://{host}/%s\nheaders_file = {secret}\n")
        cf = TableCf(f"{tmp_path}/t.cf".encode(), Host())
        opening = Opening(0, False, Host(), open_table)
        assert len(list(Http(b"http:x", cf, opening).doubts())) == count
