"""test_mail_types - a real Postfix delivers mail by tables of types that it has never heard of"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from fix_postfix import unavailable
from fix_redis import RedisServer, write_cf
from fix_redis import unavailable as no_redis

pytest.importorskip("urllib3", reason="urllib3 is not installed")

from fix_http import Web
from test_mail import JAILED, PLAIN, Mail, codes, letter, rcpt, talk

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

PLUGIN = """\
from proxymap.tables import SlowTable


class Table(SlowTable):
    def lookup(self, key):
        name, at, domain = key.partition(b"@")
        if name == b"broken":
            raise SystemExit(3)
        return b"carol@local.test" if name.startswith(b"list-") else None
"""


@pytest.mark.parametrize("service", [PLAIN, JAILED])
def test_mail_goes_where_http_and_python_tables_say(command: str, service: str) -> None:
    records = {b"sales@local.test": b'{"goto": ["alice@local.test", "bob@local.test"]}'}
    tables = "proxy:http:$tables/api.cf proxy:python:$tables/lists.cf"
    with Web(records) as web, Mail(command, virtual_alias_maps=tables) as mail:
        write(mail, web.port)
        lines = letter("sales@local.test", "list-x@local.test", "alice@local.test")
        replies, (delivered,) = talk(mail, service, lines)
        assert codes(replies[2:]) == "250 250 250 250 354 250 221"
        assert sorted(line.partition(", relay")[0] for line in delivered) == [
            "to=<alice@local.test>",
            "to=<alice@local.test>, orig_to=<sales@local.test>",
            "to=<bob@local.test>, orig_to=<sales@local.test>",
            "to=<carol@local.test>, orig_to=<list-x@local.test>",
        ] or sorted({line.partition(",")[0] for line in delivered}) == [
            "to=<alice@local.test>", "to=<bob@local.test>", "to=<carol@local.test>",
        ]  # fmt: skip
        assert mail.troubles() == []


def test_mail_is_deferred_not_bounced_while_they_are_away(command: str) -> None:
    tables = "proxy:http:$tables/api.cf proxy:python:$tables/lists.cf"
    with Web({}) as web, Mail(command, virtual_alias_maps=tables) as mail:
        write(mail, web.port)
        assert (
            codes(talk(mail, PLAIN, rcpt("broken@local.test", "nobody@local.test"))[0][2:])
            == "250 451 550 221"
        )
        web.leave()
        assert codes(talk(mail, PLAIN, rcpt("nobody@local.test"))[0][2:]) == "250 451 221"
        web.listen()
        assert codes(talk(mail, PLAIN, rcpt("nobody@local.test"))[0][2:]) == "250 550 221"


MASTER = "virtual unix - n n - - virtual\n"
ALIASES = {"redis": "sales@alias.test", "http": "team@alias.test", "python": "list-a@alias.test"}


class Boxes(Mail):
    """virtual(8) delivers what is for box.test: a folder for each address."""

    def __init__(self, command: str, redis: RedisServer) -> None:
        names = " ".join(f"proxy:{name}:$tables/{name}.cf" for name in ALIASES)
        super().__init__(command, virtual_alias_maps=names, virtual_transport="virtual",
                         virtual_mailbox_maps="lmdb:$tables/boxes")  # fmt: skip
        path = self.config_dir / "master.cf"
        path.write_text(path.read_text() + MASTER)
        self.boxes = self.dir / "boxes"
        self.boxes.mkdir()
        owner = pwd.getpwnam("nobody")
        os.chown(self.boxes, owner.pw_uid, owner.pw_gid)
        self.set(
            virtual_mailbox_base=str(self.boxes), virtual_minimum_uid="1",
            virtual_uid_maps=f"static:{owner.pw_uid}", virtual_gid_maps=f"static:{owner.pw_gid}",
        )  # fmt: skip
        write_cf(self.tables / "redis.cf", uri=redis.uri, key_format="alias:%s")

    def mails(self, number: int) -> list[str]:
        return [path.read_text() for path in (self.boxes / f"box{number}" / "new").glob("*")]


@pytest.mark.skipif(no_redis() is not None, reason=str(no_redis()))
def test_mail_lies_in_the_mailboxes_that_aliases_of_each_type_name(command: str, tmp_path: Path) -> None:
    records = {ALIASES["http"].encode(): b'{"goto": ["box2@box.test", "box4@box.test"]}'}
    with RedisServer(tmp_path) as redis, Web(records) as web, Boxes(command, redis) as mail:
        redis.put({f"alias:{ALIASES['redis']}": "box1@box.test"})
        write(mail, web.port, "http.cf", "python.cf", "box3@box.test")
        for number, address in enumerate(ALIASES.values(), 1):
            replies, (delivered,) = talk(mail, PLAIN, letter(address))
            assert codes(replies[2:]) == "250 250 354 250 221"
            assert all("status=sent (delivered to maildir)" in line for line in delivered), mail.log()
            (text,) = mail.mails(number)
            assert f"X-Original-To: {address}\n" in text
            assert f"Delivered-To: box{number}@box.test\n" in text
            assert text.endswith("\n\nHello.\n")
        assert len(mail.mails(4)) == 1  # the other one of http's two
        assert sorted(path.name for path in mail.boxes.iterdir()) == ["box1", "box2", "box3", "box4"]
        replies, _ = talk(mail, PLAIN, rcpt("nobody@alias.test"))
        assert codes(replies[2:]) == "250 550 221"
        assert mail.troubles() == []


def write(
    mail: Mail, port: int, api: str = "api.cf", lists: str = "lists.cf", to: str = "carol@local.test"
) -> None:
    tables = Path(mail.tables)
    url = f"http://127.0.0.1:{port}/alias?address=%s"
    (tables / api).write_text(f"url = {url}\nresult = /goto\n")
    (tables / "lists.py").write_text(PLUGIN.replace("carol@local.test", to))
    (tables / "lists.py").chmod(0o600)  # loaded before privileges are dropped
    (tables / lists).write_text(f"module = {tables}/lists.py\n")
