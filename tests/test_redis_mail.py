"""test_redis_mail - a whole Postfix delivers by tables in Redis, and two share what their probes found"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import fix_redis
import pytest
from fix_postfix import unavailable
from fix_redis import RedisServer, write_cf
from test_mail import PLAIN, Mail, codes, letter, rcpt, talk, wait_until

WHY = unavailable() or fix_redis.unavailable()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

MASTER = "verify unix - - n - 1 verify\n"
CHECKED = "known@relay.test"
PROBED = ", status=deliverable"


class RedisMail(Mail):
    """virtual_alias_maps and the cache of verify(8) are in Redis."""

    def __init__(self, command: str, redis: RedisServer) -> None:
        super().__init__(command)
        path = self.config_dir / "master.cf"
        path.write_text(path.read_text() + MASTER)
        aliases = write_cf(self.tables / "aliases.cf", uri=redis.uri, key_format="alias:%s")
        groups = write_cf(
            self.tables / "groups.cf", uri=f"unix://{redis.socket}", key_format="group:%s", command="smembers"
        )
        cache = write_cf(self.tables / "cache.cf", uri=redis.uri, key_format="verify:%s", ttl=3600)
        self.set(
            virtual_alias_maps=f"proxy:{aliases.decode()} proxy:{groups.decode()}",
            address_verify_map=f"proxy:{cache.decode()}",
            address_verify_poll_delay="1s",
            proxy_write_maps="$address_verify_map",
            smtpd_recipient_restrictions=(
                f"check_recipient_access inline:{{{CHECKED}=reject_unverified_recipient}}"
            ),
        )


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="pm-") as folder, RedisServer(Path(folder)) as server:
        Path(folder).chmod(0o755)  # the daemon is another user
        server.put({"alias:sales@alias.test": "alice@local.test, bob@local.test"})
        server.ask("SADD", "group:team@alias.test", "bob@local.test", "carol@local.test")
        yield server


@pytest.fixture(scope="module")
def mails(command: str, redis: RedisServer) -> Iterator[tuple[RedisMail, RedisMail]]:
    made = RedisMail(command, redis), RedisMail(command, redis)
    try:
        for mail in made:
            mail.start()
        yield made
    finally:
        for mail in made:
            mail.remove()


def test_mail_is_delivered_by_aliases_and_groups(mails: tuple[RedisMail, RedisMail]) -> None:
    replies, deliveries = talk(mails[0], PLAIN, letter("Sales@Alias.test", "team@alias.test"))
    assert codes(replies[2:]) == "250 250 250 354 250 221"
    to = [line.partition(">")[0].removeprefix("to=<") for line in deliveries[0]]
    assert sorted(set(to)) == ["alice@local.test", "bob@local.test", "carol@local.test"]
    replies, _ = talk(mails[0], PLAIN, rcpt("nobody@alias.test"))
    assert codes(replies[2:]) == "250 550 221"


def test_without_redis_mail_is_deferred_and_not_refused(
    mails: tuple[RedisMail, RedisMail], redis: RedisServer
) -> None:
    redis.kill()
    replies, _ = talk(mails[0], PLAIN, rcpt("sales@alias.test", "nobody@alias.test"))
    assert codes(replies[2:]) == "250 451 451 221"
    redis.start()

    def accepted() -> bool:
        return codes(talk(mails[0], PLAIN, rcpt("sales@alias.test"))[0][2:]) == "250 250 221"

    wait_until(accepted, "an answer from Redis")


def test_probed_once_and_known_to_both(mails: tuple[RedisMail, RedisMail]) -> None:
    asked = rcpt(CHECKED)
    wait_until(lambda: codes(talk(mails[0], PLAIN, asked)[0][2:]) == "250 250 221", "a probe")
    assert codes(talk(mails[1], PLAIN, asked)[0][2:]) == "250 250 221"
    probes = [mail.log().count(f"to=<{CHECKED}>") for mail in mails]
    assert PROBED in mails[0].log()
    assert probes == [1, 0], mails[1].log()
