"""real_clients - Postfix's own programs ask: postmap -q -, and smtpd and cleanup while mail comes in

Two private instances of Postfix differ in nothing but the program that answers
for proxy: tables. The mail goes nowhere: every transport is discard(8).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import fix_postfix
from servers import Measured, Server, keys, our_command, proxied, served_by, table

MASTER = """\
postlog    unix-dgram n - n - 1 postlogd
proxymap   unix  -  -  n  -  -  {command}
smtp-in    unix  n  -  n  -  -  smtpd
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
"""
QUEUES = ("active", "bounce", "corrupt", "defer", "deferred", "hold", "incoming", "trace")
SESSIONS = 20  # of smtp-source, side by side
RECIPIENTS = 5  # of each message
LIMIT = 120.0  # seconds for one run; to end a broken one


class Mail(fix_postfix.StockPostfix):
    """A Postfix whose recipients, aliases, senders and transports are looked up in proxy: tables."""

    def __init__(self, command: str, cdb: str, lmdb: str, maps: list[str]) -> None:
        main = {
            "proxy_read_maps": proxied(maps),
            "mydestination": "",
            "local_recipient_maps": "",
            "alias_maps": "",
            "virtual_alias_domains": "example.com",
            "virtual_alias_maps": f"proxy:{cdb}",  # found: smtpd asks, then cleanup
            "sender_canonical_maps": f"proxy:{cdb}",  # not found: cleanup
            "transport_maps": f"proxy:{lmdb}",  # not found: trivial-rewrite
            "smtpd_recipient_restrictions": f"check_sender_access proxy:{lmdb}",  # not found: smtpd
            "smtpd_relay_restrictions": "reject_unauth_destination",
            "remote_header_rewrite_domain": "",
            **{f"{name}_transport": "discard:" for name in ("local", "virtual", "relay", "default")},
            "in_flow_delay": "0",
        }
        memory = "/dev/shm"  # the disk is not what is measured
        place = memory if os.access(memory, os.W_OK | os.X_OK) else "/tmp"
        super().__init__(main, MASTER.format(command=command), place=place)
        owner = pwd.getpwnam("postfix")
        for name in QUEUES:
            (self.queue_dir / name).mkdir(mode=0o700)
            os.chown(self.queue_dir / name, owner.pw_uid, owner.pw_gid)

    @property
    def server(self) -> Server:
        return served_by(self)

    def postmap_all(self, type_name: str, keys: Path) -> tuple[Measured, bytes]:
        """What it took to look all keys up, and a digest of what was found."""
        used, cpu = resource.getrusage(resource.RUSAGE_CHILDREN), sum(self.server.cpu_seconds().values())
        with keys.open("rb") as file:
            start = time.perf_counter()
            done = self.postmap("-q", "-", f"proxy:{type_name}", stdin=file)
            seconds = time.perf_counter() - start
        if done.returncode or done.stderr:
            raise SystemExit(f"postmap failed: {done.stderr.decode()}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "seconds": seconds,
            "client_cpu_seconds": after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
            "server_cpu_seconds": sum(self.server.cpu_seconds().values()) - cpu,
        }, hashlib.sha256(done.stdout).digest()

    def send(self, messages: int) -> Measured:
        """Until all messages are taken, then until the last of them is gone from the queue."""
        source = shutil.which("smtp-source", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        before, cpu = self._removed(), self.server.cpu_seconds()
        command = [
            *(str(source), "-N", "-s", str(SESSIONS), "-m", str(messages), "-r", str(RECIPIENTS)),
            *("-l", "500", "-f", "someone@outside.test", "-t", "user@example.com"),
            f"unix:{self.queue_dir}/public/smtp-in",
        ]
        start = time.perf_counter()
        try:
            subprocess.run(command, check=True, timeout=LIMIT, stdout=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"mail is not taken; the log:\n{self.log()[-2000:]}") from None
        taken = time.perf_counter() - start
        while self._removed() < before + messages:
            if time.perf_counter() - start > LIMIT:
                raise SystemExit(f"mail is not delivered; the log:\n{self.log()[-2000:]}")
            time.sleep(0.02)
        gone = time.perf_counter() - start
        after = self.server.cpu_seconds()
        return {
            "seconds": taken,
            "until_delivered_seconds": gone,
            "server_cpu_seconds": sum(used - cpu.get(pid, 0.0) for pid, used in after.items()),
        }

    def send_one(self, recipient: str) -> None:
        """One message to one recipient, until it is gone from the queue."""
        source = shutil.which("smtp-source", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        before = self._removed()
        command = [str(source), "-m", "1", "-f", "someone@outside.test", "-t", recipient]
        subprocess.run([*command, f"unix:{self.queue_dir}/public/smtp-in"], check=True, timeout=LIMIT)
        until = time.monotonic() + LIMIT
        while self._removed() == before:
            if time.monotonic() > until:
                raise SystemExit(f"mail is not delivered; the log:\n{self.log()[-2000:]}")
            time.sleep(0.02)

    def _removed(self) -> int:
        return self.log().count(": removed\n")


def measure(
    entries: int, maps: list[str], folder: Path, count: int, messages: int, rounds: int,
    did: Callable[[str], None],
) -> dict[str, object]:  # fmt: skip
    """postmap with `count` keys, half of them found, and `messages`, in alternating rounds."""
    tables = {maptype: table(maptype, entries, folder) for maptype in ("cdb", "lmdb")}
    figures: dict[str, dict[str, list[Measured]]] = {}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w"))
        write_half(Path(file.name), [keys(kind, entries, folder) for kind in ("found", "absent")], count)
        instances = {}
        for name, command in (("ours", stack.enter_context(our_command())), ("stock", "proxymap")):
            instances[name] = Mail(command, tables["cdb"], tables["lmdb"], maps)
            stack.callback(instances[name].remove)
            instances[name].start()
        for number in range(-1, rounds):  # the first round warms up and does not count
            order = sorted(instances, reverse=number % 2 == 0)
            for maptype, type_name in tables.items():
                answers = set()
                for name in order:
                    measured, digest = instances[name].postmap_all(type_name, Path(file.name))
                    answers.add(digest)
                    if number >= 0:
                        figures.setdefault(f"postmap {maptype}", {}).setdefault(name, []).append(measured)
                    did(f"postmap -q - proxy:{maptype}: {name}")
                if len(answers) != 1:
                    raise SystemExit(f"the two servers gave postmap different answers from {type_name}")
            for name in order:
                measured = instances[name].send(messages)
                if number >= 0:
                    figures.setdefault("mail", {}).setdefault(name, []).append(measured)
                did(f"smtp-source: {name}")
    return {
        "entries": entries, "keys": count, "messages": messages, "recipients": RECIPIENTS,
        "sessions": SESSIONS, "cases": {case: columns(by_name) for case, by_name in figures.items()},
    }  # fmt: skip


def write_half(path: Path, sources: list[Path], count: int) -> None:
    """A share of `count` lines from each source."""
    with path.open("w") as file:
        for source in sources:
            with source.open() as lines:
                file.writelines(islice(lines, count // len(sources)))


def columns(runs: dict[str, list[Measured]]) -> dict[str, dict[str, list[float]]]:
    """Runs by name -> lists of figures by name."""
    return {
        name: {figure: [float(f"{run[figure]:.5g}") for run in measured] for figure in measured[0]}
        for name, measured in runs.items()
    }
