"""test_mail - mail flows: a whole Postfix asks our proxymap, and another the stock one; both say the same

Two instances with the same tables differ in the command of the proxymap service
only. smtpd listens on UNIX-domain sockets of its own, one plain and one in a
chroot, so no network port is open; every transport is discard(8), so nothing
leaves. The SMTP replies, the deliveries and the log's warnings are compared.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from fix_postfix import StockPostfix, unavailable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

LIMIT = 30.0  # seconds; for a machine that is very busy
SMTP_SOURCE = shutil.which("smtp-source", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SESSIONS = 20
MESSAGES = 2000

# What cleanup(8) says when its clock and the kernel's are in different seconds, as happens now and then.
CLOCKS = re.compile("file system clock is|resetting file time stamps")
PLAIN, JAILED = "smtp-plain", "smtp-jailed"  # the two services; sockets in public/
MASTER = f"""\
postlog    unix-dgram n - n - 1 postlogd
{PLAIN}    unix  n  -  n  -  -  smtpd
{JAILED}   unix  n  -  y  -  -  smtpd
cleanup    unix  n  -  n  -  0  cleanup
qmgr       unix  n  -  n  300  1  qmgr
rewrite    unix  -  -  n  -  -  trivial-rewrite
bounce     unix  -  -  n  -  0  bounce
defer      unix  -  -  n  -  0  bounce
trace      unix  -  -  n  -  0  bounce
anvil      unix  -  -  n  -  1  anvil
error      unix  -  -  n  -  -  error
retry      unix  -  -  n  -  -  error
discard    unix  -  -  n  -  -  discard
proxymap   unix  -  -  n  -  -  {{command}}
proxywrite unix  -  -  n  -  1  {{command}}
"""
QUEUES = ("active", "bounce", "corrupt", "defer", "deferred", "hold", "incoming", "trace")


def counted(number: int) -> tuple[str, str]:
    """What `smtp-source -N` makes of the name `user`: up to Postfix 3.9, and later."""
    return f"{number}user", f"user{number}"


EVERYBODY = [f"box{i}@box.test" for i in range(300)]  # one long value, and many lookups in cleanup
TABLES = {
    "virtual": (
        "postmaster@local.test alice@local.test\n"
        "Sales@Local.Test alice@local.test\n"
        "team@local.test alice@local.test, bob@local.test, chain@alias.test\n"
        "chain@alias.test link@alias.test\n"
        "link@alias.test carol@local.test\n"
        "elsewhere@alias.test someone@remote.test\n"
        "@catchall.test bob@local.test\n"
        "grüße@alias.test carol@local.test\n"
        f"everybody@alias.test {','.join(EVERYBODY)}\n"
        + "".join(
            f"{name}@local.test {i}box@box.test\n" for i in range(0, MESSAGES + 1, 2) for name in counted(i)
        )
    ),
    "people": (
        "alice yes\nbob yes\ncarol@local.test yes\nMiXed yes\nlocked yes\nlater yes\nmarked yes\n"
        + "".join(f"{name}@local.test yes\n" for i in range(1, MESSAGES, 2) for name in counted(i))
    ),
    "lists": "staff yes\ndave@local.test yes\n",
    "aliases": "root: alice\nWebmaster: alice, bob\n",
    "boxes": "".join(f"box{i}@box.test box{i}/\n" for i in range(300)) + "üser@box.test u/\n",
    "relays": "known@relay.test ok\n@relay2.test ok\n",
    "access": (
        "locked@local.test REJECT this mailbox is locked\n"
        "later@local.test 450 4.7.1 come again later\n"
        "defer@local.test DEFER not now\n"
        "strict@ 521 5.7.1 strictly not\n"
        "refused.relay.test REJECT\n"
        "relay2.test DUNNO\n"
        "marked@local.test PREPEND X-Marked: yes\n"
        "unsure@local.test no_such_thing\n"
    ),
    "senders": "bad@sender.test REJECT go away\nsender.test OK\n<> 550 5.7.1 no bounces, please\n",
    "logins": "alice@local.test alice\n@owned.test bob,alice\ncarol@local.test carol\n",
}
INDEXED = {"virtual": "cdb", "people": "cdb", "lists": "lmdb", "aliases": "cdb", "boxes": "lmdb",
           "relays": "cdb", "access": "cdb", "senders": "lmdb", "logins": "cdb"}  # fmt: skip
MAIN = {
    "mydestination": "local.test",
    "myorigin": "local.test",
    "virtual_alias_domains": "alias.test catchall.test",
    "virtual_alias_maps": "proxy:cdb:$tables/virtual",
    "alias_maps": "proxy:cdb:$tables/aliases",
    "local_recipient_maps": "proxy:cdb:$tables/people proxy:lmdb:$tables/lists $alias_maps",
    "virtual_mailbox_domains": "box.test",
    "virtual_mailbox_maps": "proxy:lmdb:$tables/boxes",
    "relay_domains": "relay.test relay2.test",
    "relay_recipient_maps": "proxy:cdb:$tables/relays",
    "smtpd_relay_restrictions": "reject_unauth_destination",
    "smtpd_recipient_restrictions": (
        "check_recipient_access proxy:cdb:$tables/access,"
        " check_sender_access proxy:lmdb:$tables/senders, reject_sender_login_mismatch"
    ),
    "smtpd_sender_login_maps": "proxy:cdb:$tables/logins",
    "proxy_read_maps": (
        "$virtual_alias_maps $local_recipient_maps $virtual_mailbox_maps $relay_recipient_maps"
        " $smtpd_sender_login_maps $smtpd_recipient_restrictions"
    ),
    "smtpd_sasl_auth_enable": "yes",
    "smtpd_sasl_type": "dovecot",
    "smtpd_sasl_path": "private/auth",
    "recipient_delimiter": "+",
    "remote_header_rewrite_domain": "",
    "local_transport": "discard:local",
    "virtual_transport": "discard:virtual",
    "relay_transport": "discard:relay",
    "default_transport": "discard:remote",
    "smtpd_error_sleep_time": "0",
    "smtpd_soft_error_limit": "1000",
    "smtpd_hard_error_limit": "1000",
    "in_flow_delay": "0",
}
HELLO = "EHLO client.test"
FROM = "MAIL FROM:<someone@outside.test>"
LETTER = "Subject: test\r\n\r\nHello.\r\n."


class Mail(StockPostfix):
    """A Postfix that takes mail on two sockets and discards it."""

    def __init__(self, command: str, **main: str) -> None:
        super().__init__({**MAIN, **main}, MASTER.format(command=command))
        try:
            self._make_queue()
            self._build_tables()
            self._auth = AuthServer(self.socket("auth"))
        except BaseException:
            shutil.rmtree(self.dir)
            raise

    def _make_queue(self) -> None:
        owner = pwd.getpwnam("postfix")
        for name in QUEUES:
            (self.queue_dir / name).mkdir(mode=0o700)
            os.chown(self.queue_dir / name, owner.pw_uid, owner.pw_gid)

    def _build_tables(self) -> None:
        for name, text in TABLES.items():
            (self.tables / name).write_text(text, encoding="utf-8")
            maptype = INDEXED[name]
            if name == "aliases":
                done = subprocess.run(
                    ["postalias", "-c", self.config_dir, f"cdb:{self.tables}/{name}"], capture_output=True
                )
            else:
                done = self.postmap(f"{maptype}:{self.tables}/{name}")
            assert (done.returncode, done.stderr) == (0, b"")
            (self.tables / f"{name}.{maptype}").chmod(0o644)

    def smtp(self, service: str) -> str:
        return str(self.queue_dir / "public" / service)

    def children(self, name: str) -> list[int]:
        """The children of master that run that program."""
        assert self._master is not None
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                _, comm, rest = re.split(r"\((.*)\)", (folder / "stat").read_text(), maxsplit=1)
                if comm == name and int(rest.split()[1]) == self._master.pid:
                    found.append(int(folder.name))
        return found

    def troubles(self) -> list[str]:
        """The log's warnings and worse up to now, without what differs from run to run."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.connect(str(self.queue_dir / "public" / "postlog"))
            mark = f"mark {time.monotonic_ns()}"
            peer.send(mark.encode())  # in line behind everything that the daemons have logged
        wait_until(lambda: mark in self.log(), "the mark in the log")
        found = re.findall(r"(postfix/[^\n]*?(?:warning|error|fatal|panic): .*)", self.log())
        lines = {re.sub(r"\[\d+\]", "", line).replace(str(self.dir), "DIR") for line in found}
        return sorted(line for line in lines if not CLOCKS.search(line))

    def delivered(self) -> int:
        return self.log().count("status=sent")

    def remove(self) -> None:
        try:
            super().remove()
        finally:
            self._auth.close()


class AuthServer:
    """What smtpd takes for Dovecot's: it believes every name."""

    def __init__(self, path: str) -> None:
        owner = pwd.getpwnam("postfix")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(100)
        os.chown(path, owner.pw_uid, owner.pw_gid)
        self._thread = threading.Thread(target=self._accept)
        self._peers: list[tuple[socket.socket, threading.Thread]] = []
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(peer,))
                self._peers.append((peer, thread))
                thread.start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer.makefile("rwb", buffering=0) as lines:
            lines.write(b"VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t00\nDONE\n")
            for line in lines:
                word, *fields = line.rstrip(b"\n").split(b"\t")
                if word == b"AUTH":
                    response = next(field[5:] for field in fields if field.startswith(b"resp="))
                    user = base64.b64decode(response).split(b"\0")[1]
                    lines.write(b"OK\t%s\tuser=%s\n" % (fields[0], user))

    def close(self) -> None:
        for one in (self._listener, *(peer for peer, _ in self._peers)):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in (self._thread, *(thread for _, thread in self._peers)):
            thread.join()
        for one in (self._listener, *(peer for peer, _ in self._peers)):
            one.close()


class Pair(NamedTuple):
    stock: Mail
    ours: Mail


@contextlib.contextmanager
def pair(command: str, **main: str) -> Iterator[Pair]:
    """Both started; they differ in nothing but the program that answers for proxy: tables."""
    with contextlib.ExitStack() as stack:
        made = []
        for program in ("proxymap", command):
            made.append(Mail(program, **main))
            stack.callback(made[-1].remove)
            made[-1].start()
        yield Pair(*made)


@pytest.fixture(scope="module")
def both(command: str) -> Iterator[Pair]:
    with pair(command) as made:
        yield made


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


class Session:
    """An SMTP client that keeps every word of the server."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")
        self.greeting = self.reply()

    def reply(self) -> str:
        """A whole reply, all lines of it; what came when the server hung up."""
        lines = []
        while line := self._lines.readline().decode("utf-8"):
            lines.append(line)
            if line[3:4] != "-":
                break
        return "".join(lines)

    def say(self, line: str) -> str:
        self._socket.sendall(f"{line}\r\n".encode())
        return self.reply()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *details: object) -> None:
        self._lines.close()
        self._socket.close()


QUEUE_ID = re.compile(r"(?<=queued as )[0-9A-F]+")


def talk(mail: Mail, service: str, lines: list[str]) -> tuple[list[str], list[list[str]]]:
    """All replies, and for each message that was queued its deliveries as the log tells them."""
    with Session(mail.smtp(service)) as session:
        replies = [session.greeting, *map(session.say, lines)]
    queued = [queue_id for reply in replies for queue_id in QUEUE_ID.findall(reply)]
    return [QUEUE_ID.sub("ID", reply) for reply in replies], [deliveries(mail, one) for one in queued]


def deliveries(mail: Mail, queue_id: str) -> list[str]:
    wait_until(lambda: f"]: {queue_id}: removed" in mail.log(), f"delivery of {queue_id}")
    lines = re.findall(rf"\]: {queue_id}: (to=.*)", mail.log())
    return sorted(re.sub(r"delays?=[^,]+, ", "", line) for line in lines)


def codes(replies: list[str]) -> str:
    return " ".join(reply[:3] for reply in replies)


def login(user: str) -> str:
    return "AUTH PLAIN " + base64.b64encode(f"\0{user}\0secret".encode()).decode()


def rcpt(*addresses: str, sender: str = FROM) -> list[str]:
    """A dialogue that asks about recipients only."""
    return [HELLO, sender, *(f"RCPT TO:<{address}>" for address in addresses), "QUIT"]


def letter(*addresses: str, sender: str = FROM) -> list[str]:
    """A dialogue that sends a message."""
    return [HELLO, sender, *(f"RCPT TO:<{address}>" for address in addresses), "DATA", LETTER, "QUIT"]


# What is said, and the codes of the replies to MAIL and on, the last one to QUIT.
DIALOGUES: dict[str, tuple[list[str], str]] = {
    "accepted": (letter("alice@local.test", "carol@local.test"), "250 250 250 354 250 221"),
    "in an lmdb table": (letter("staff@local.test", "dave@local.test"), "250 250 250 354 250 221"),
    "unknown recipients": (
        rcpt("nobody@local.test", "nobody@alias.test", "nobody@box.test", "nobody@relay.test"),
        "250 550 550 550 550 221",
    ),
    "no relay": (rcpt("someone@remote.test", "alice@local.test"), "250 554 250 221"),
    "known and unknown": (
        letter("alice@local.test", "nobody@local.test", "bob@local.test"),
        "250 250 550 250 354 250 221",
    ),
    "none is known": ([HELLO, FROM, "RCPT TO:<nobody@local.test>", "DATA", "QUIT"], "250 550 554 221"),
    "case of the address": (
        letter("ALICE@LOCAL.TEST", "Alice@Local.test", "mixed@local.test", "MIXED@local.test"),
        "250 250 250 250 250 354 250 221",
    ),
    "case of an alias": (letter("sAlEs@lOcAl.tEsT", "SALES@local.test"), "250 250 250 354 250 221"),
    "virtual aliases": (
        letter("team@local.test", "chain@alias.test", "elsewhere@alias.test"),
        "250 250 250 250 354 250 221",
    ),
    "catch-all": (letter("any@catchall.test", "Other@CatchAll.Test"), "250 250 250 354 250 221"),
    "a long value": (letter("everybody@alias.test"), "250 250 354 250 221"),
    "local aliases": (
        rcpt("webmaster@local.test", "WEBMASTER@local.test", "root@local.test"),
        "250 250 250 250 221",
    ),
    "extensions": (
        letter("alice+box@local.test", "team+x+y@local.test", "box7+z@box.test"),
        "250 250 250 250 354 250 221",
    ),
    "unknown with an extension": (
        rcpt("nobody+alice@local.test", "+@local.test", "box7+@x.box.test"),
        "250 550 550 554 221",
    ),
    "no domain": (rcpt("postmaster", "alice", "nobody"), "250 250 250 550 221"),
    "quoted": (
        rcpt('"alice"@local.test', '"quoted name"@local.test', '" "@local.test', '""@local.test'),
        "",
    ),
    "routes and other syntax": (
        rcpt("@other.test:alice@local.test", "alice%local.test@local.test", "local.test!alice", "<alice>"),
        "",
    ),
    "odd addresses": (
        rcpt("alice@[127.0.0.1]", "alice@local.test.", "*@local.test", "$x@local.test", "alice@@local.test"),
        "",
    ),
    "long addresses": (
        rcpt("a" * 64 + "@local.test", "b" * 500 + "@local.test", "c@" + "d" * 250 + ".test"),
        "",
    ),
    "UTF-8": (
        letter("GRÜSSE@alias.test", "Grüße@alias.test", "ÜSER@box.test", sender=FROM + " SMTPUTF8"),
        "",
    ),
    "UTF-8 that is unknown": (rcpt("ü@box.test", "ü@ü.test", sender=FROM + " SMTPUTF8"), ""),
    "UTF-8 without leave": (rcpt("grüße@alias.test", "üser@box.test"), ""),
    "mailboxes": (letter("box7@box.test", "BOX299@BOX.TEST"), "250 250 250 354 250 221"),
    "relay recipients": (
        letter("known@relay.test", "KNOWN@relay.test", "unknown@relay.test", "any@relay2.test"),
        "250 250 250 550 250 354 250 221",
    ),
    "access table": (
        rcpt("locked@local.test", "later@local.test", "defer@local.test", "x@refused.relay.test"),
        "250 554 450 450 554 221",
    ),
    "access table that hangs up": (rcpt("strict@local.test")[:-1], "250 521"),
    "access by parent domain": (
        rcpt("x@refused.relay.test", "x@y.refused.relay.test", "known@relay.test"),
        "250 554 554 250 221",
    ),
    "access in other case": (rcpt("LOCKED@local.test", "Locked+ext@Local.Test"), "250 554 554 221"),
    "access with a wrong action": (rcpt("unsure@local.test"), "250 451 221"),
    "access by sender": (
        [
            *(HELLO, "MAIL FROM:<bad@sender.test>", "RCPT TO:<alice@local.test>", "RSET"),
            *("MAIL FROM:<good@sender.test>", "RCPT TO:<alice@local.test>", "RSET"),
            *("MAIL FROM:<>", "RCPT TO:<alice@local.test>", "QUIT"),
        ],
        "250 554 250 250 250 250 250 550 221",
    ),
    "prepended": (letter("marked@local.test"), "250 250 354 250 221"),
    "verify": (
        [HELLO, "VRFY alice", "VRFY nobody@local.test", "VRFY sales@local.test", "QUIT"],
        "252 550 252 221",
    ),
    "sender without login": (rcpt("bob@local.test", sender="MAIL FROM:<alice@local.test>"), "250 553 221"),
    "sender owned by another": (
        [HELLO, login("alice"), "MAIL FROM:<carol@local.test>", "RCPT TO:<bob@local.test>", "QUIT"],
        "235 250 553 221",
    ),
    "sender with login": (
        [HELLO, login("alice"), *letter("bob@local.test", sender="MAIL FROM:<Alice+x@Local.test>")[1:]],
        "235 250 250 354 250 221",
    ),
    "sender by domain": (
        [HELLO, login("alice"), "MAIL FROM:<any@owned.test>", "RCPT TO:<bob@local.test>", "QUIT"],
        "235 250 250 221",
    ),
    "many in one session": (
        [HELLO, *20 * [FROM, "RCPT TO:<alice@local.test>", "RCPT TO:<nobody@local.test>", "RSET"], "QUIT"],
        " ".join([*20 * ["250 250 550 250"], "221"]),
    ),
}


@pytest.mark.parametrize("service", [PLAIN, JAILED])
@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue_is_the_same_as_with_the_stock_server(both: Pair, name: str, service: str) -> None:
    lines, expected = DIALOGUES[name]
    stock = talk(both.stock, service, lines)
    assert talk(both.ours, service, lines) == stock
    assert not expected or codes(stock[0][2:]) == expected


def test_chrooted_smtpd_is_in_its_jail(both: Pair) -> None:
    with Session(both.ours.smtp(JAILED)) as session:
        replies = [session.say(line) for line in rcpt("alice@local.test", "nobody@local.test")[:-1]]
        assert codes(replies) == "250 250 250 550"
        roots = set()
        for pid in both.ours.children("smtpd"):
            with contextlib.suppress(FileNotFoundError):  # it has served its hundred clients
                roots.add(os.readlink(f"/proc/{pid}/root"))
        assert str(both.ours.queue_dir) in roots


def test_it_is_our_program_that_answers(both: Pair) -> None:
    for mail in both:
        talk(mail, PLAIN, rcpt("alice@local.test"))
        programs = {os.readlink(f"/proc/{pid}/exe") for pid in mail.children("proxymap")}
        assert (programs == {os.path.realpath(sys.executable)}) == (mail is both.ours)


def test_log_has_no_warning_that_the_stock_server_does_not_have(both: Pair) -> None:
    for lines, _ in DIALOGUES.values():
        for mail in both:
            talk(mail, PLAIN, lines)
    assert both.ours.troubles() == both.stock.troubles()


def test_table_that_is_built_anew_counts(both: Pair) -> None:
    """The stock server sees it when a client connects, and smtpd does so after a hundred sessions at most."""
    line = rcpt("fresh@relay.test")
    for mail in both:
        assert codes(talk(mail, PLAIN, line)[0][2:]) == "250 550 221"
        with (mail.tables / "relays").open("a") as file:
            file.write("fresh@relay.test ok\n")
        assert mail.postmap(f"cdb:{mail.tables}/relays").returncode == 0
    for mail in both:
        for service in (PLAIN, JAILED):
            wait_until(
                lambda mail=mail, service=service: codes(talk(mail, service, line)[0][2:]) == "250 250 221",
                "the new table",
            )


def test_table_that_is_missing_defers_as_with_the_stock_server(command: str) -> None:
    with pair(command, relay_recipient_maps="proxy:cdb:$tables/absent proxy:lmdb:$tables/gone") as (
        stock,
        ours,
    ):
        lines = rcpt("known@relay.test", "alice@local.test", "nobody@local.test")
        for service in (PLAIN, JAILED):
            expected = talk(stock, service, lines)
            assert talk(ours, service, lines) == expected
            assert codes(expected[0][2:]) == "250 451 250 550 221"
        assert ours.troubles() == stock.troubles()


def test_accounts_of_the_host_are_recipients_as_with_the_stock_server(command: str) -> None:
    maps = "proxy:unix:passwd.byname $alias_maps"
    with pair(command, local_recipient_maps=maps) as (stock, ours):
        lines = rcpt(
            "daemon@local.test", "DAEMON@local.test", "webmaster@local.test", "no-account@local.test"
        )
        for service in (PLAIN, JAILED):
            expected = talk(stock, service, lines)
            assert codes(expected[0][2:]) == "250 250 250 250 550 221"
            assert talk(ours, service, lines) == expected


@pytest.mark.skipif(SMTP_SOURCE is None, reason="there is no smtp-source")
def test_two_thousand_messages_in_twenty_sessions(command: str) -> None:
    """Each to another address, so that no client has the answer already; every second one is an alias."""
    with pair(command) as both:
        for mail in both:
            done = subprocess.run(
                [
                    str(SMTP_SOURCE), "-N", "-s", str(SESSIONS), "-m", str(MESSAGES), "-l", "500",
                    "-f", "someone@outside.test", "-t", "user@local.test", f"unix:{mail.smtp(JAILED)}",
                ],
                capture_output=True, text=True, timeout=4 * LIMIT,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            wait_until(lambda mail=mail: mail.log().count(": removed\n") >= MESSAGES, "all deliveries")
        for mail in both:
            log = mail.log()
            assert mail.delivered() == MESSAGES
            assert log.count("(local)") == log.count("(virtual)") == MESSAGES // 2
            assert len(set(re.findall(r"orig_to=<(\d+user|user\d+)@local.test>", log))) == MESSAGES // 2
            assert log.count("reject:") == 0
        assert set(both.ours.troubles()) <= set(both.stock.troubles())
