"""test_mail_types - a real Postfix delivers mail by tables of types that it has never heard of"""

from __future__ import annotations

from pathlib import Path

import pytest
from fix_postfix import unavailable

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


def write(mail: Mail, port: int) -> None:
    tables = Path(mail.tables)
    url = f"http://127.0.0.1:{port}/alias?address=%s"
    (tables / "api.cf").write_text(f"url = {url}\nresult = /goto\n")
    (tables / "lists.py").write_text(PLUGIN)
    (tables / "lists.py").chmod(0o600)  # loaded before privileges are dropped
    (tables / "lists.cf").write_text(f"module = {tables}/lists.py\n")
