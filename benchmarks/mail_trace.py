"""mail_trace - a simulated day of mail: what a database is asked with answers kept, and without

Messages come by the hour's rate; each asks for its recipient and domain in several
tables within a second or two, as smtpd, trivial-rewrite, cleanup and virtual do.
Recipients are Zipf distributed. There are a dictionary attack of ten minutes and an
outage of the database of five. The policy is a model of server/_sharing; --replay has
the real server answer a minute of it, with an outage, and compares the counts.

usage: mail_trace.py [--messages N] [--replay | --count] [--json FILE]; `make report` draws it
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DAY = 86400.0
MAILBOXES, DOMAINS = 20_000, 300
ATTACK = (3 * 3600.0, 600.0, 100.0)  # begins, lasts (seconds), recipients a second
OUTAGE = (11 * 3600.0, 300.0)
TOOK = 0.002  # seconds for one question
STEP = 300  # seconds; questions are counted for each
TABLES = ("domains", "alias", "mailbox")
# What one message asks (see --count):
# (table, what of the recipient, seconds after its arrival); only what ends in "!" is there.
ASKS = [
    ("domains", "domain!", 0.0), ("alias", "address", 0.01), ("alias", "@domain", 0.01),
    ("mailbox", "address!", 0.02), ("alias", "address", 0.1), ("alias", "@domain", 0.1),
    ("domains", "domain!", 0.15),
]  # fmt: skip


class Lookup(NamedTuple):
    at: float
    key: str
    exists: bool


class Policy(NamedTuple):
    """Seconds, as in proxymap.cf."""

    ttl: float = 0.0
    negative_ttl: float = 0.0
    stale_ttl: float = 3600.0


POLICIES = {
    "nothing kept": Policy(),
    "default (5s)": Policy(5),
    '1m, "no" 5s': Policy(60, 5),
    '10m, "no" 30s': Policy(600, 30),
}


def day(messages: int, seed: int = 1) -> Iterator[Lookup]:
    """All lookups of a day, in order of time."""
    rng = random.Random(seed)
    pending: list[Lookup] = []
    arrivals = heapq.merge(mail(rng, messages), attack(rng))
    for at, recipient, exists in arrivals:
        while pending and pending[0].at <= at:
            yield heapq.heappop(pending)
        domain = recipient.partition("@")[2]
        names = {"domain": domain, "@domain": f"@{domain}", "address": recipient}
        for table, what, later in ASKS if exists else ASKS[:4]:
            there = what.endswith("!") and (exists or what == "domain!")
            key = f"{table} {names[what.rstrip('!')]}"
            heapq.heappush(pending, Lookup(at + later * rng.uniform(0.5, 1.5), key, there))
    while pending:
        yield heapq.heappop(pending)


def mail(rng: random.Random, messages: int) -> Iterator[tuple[float, str, bool]]:
    """Few at night, most in the morning; one in twenty goes to several recipients at once."""
    times = []
    while len(times) < messages:
        at = rng.uniform(0, DAY)
        if rng.random() < 0.15 + 0.85 * max(0.0, math.sin((at / DAY - 0.25) * 2 * math.pi)):
            times.append(at)
    for at in sorted(times):
        for _ in range(rng.randrange(2, 8) if rng.random() < 0.05 else 1):
            number = int(MAILBOXES ** rng.random())  # density 1/rank
            yield at, f"user{number}@d{number * 7919 % DOMAINS}.example", True


def attack(rng: random.Random) -> Iterator[tuple[float, str, bool]]:
    begins, lasts, rate = ATTACK
    for number in range(int(lasts * rate)):
        yield begins + number / rate, f"guess{number}@d{rng.randrange(10)}.example", False


def simulate(lookups: Iterator[Lookup], policy: Policy, outage: tuple[float, float]) -> dict[str, Any]:
    """What becomes of each lookup; questions by STEP."""
    counts: Counter[str] = Counter()
    steps: Counter[int] = Counter()
    kept: dict[str, tuple[float, bool, float]] = {}  # fresh until, is there, known since (when it lands)
    rng = random.Random(2)
    for one in lookups:
        down = outage[0] <= one.at < outage[0] + outage[1]
        fresh, exists, since = kept.get(one.key, (0.0, False, 0.0))
        counts["lookups"] += 1
        if policy.ttl and one.at < since:
            counts["joined"] += 1
        elif one.at < fresh:
            counts["hits"] += 1
        elif down:
            old = policy.ttl and exists and one.at < fresh + policy.stale_ttl
            counts["stale" if old else "deferred"] += 1
        else:
            counts["questions"] += 1
            steps[int(one.at // STEP)] += 1
            life = (policy.ttl if one.exists else policy.negative_ttl) * rng.uniform(0.9, 1.0)
            since = one.at + TOOK
            kept[one.key] = (since + life if life else 0.0, one.exists, since)
    return {"counts": dict(counts), "steps": [steps[number] for number in range(int(DAY // STEP))]}


def print_results(results: dict[str, dict[str, Any]]) -> None:
    names = ("lookups", "questions", "hits", "joined", "stale", "deferred")
    print(f"{'kept for':16}" + "".join(f"{name:>12}" for name in names) + f"{'of lookups':>12}")
    for name, result in results.items():
        counts = result["counts"]
        share = counts["questions"] / counts["lookups"]
        print(f"{name:16}" + "".join(f"{counts.get(one, 0):>12,}" for one in names) + f"{share:>12.0%}")


# The same by the real server


def replay(messages: int) -> None:
    """A minute of the morning with an outage of 15 seconds, asked as it would come."""
    begins, lasts, outage = 12 * 3600.0, 60.0, (20.0, 15.0)
    lookups = [one._replace(at=one.at - begins) for one in day(messages) if begins <= one.at < begins + lasts]
    from fix_fake import FakeMySQL
    from fix_fakes import Fakes

    records = {one.key: ["there"] for one in lookups if one.exists}
    for name, policy in list(POLICIES.items())[:3]:
        own = {"cache_ttl": f"{policy.ttl:.0f}s", "cache_negative_ttl": f"{policy.negative_ttl:.0f}s"}
        with FakeMySQL(records) as fake, Fakes(fake, server_error_limit="1", **own) as service:
            table = service.table()
            service.start()
            answers = play(service, table, fake, lookups, outage)
            known = service.counts(table)
        model = simulate(iter(lookups), policy, outage)["counts"]
        real = {
            "lookups": known["lookups"], "questions": len(fake.questions), "hits": known["cache_hits"],
            "joined": known["joined"], "stale": known["stale"], "deferred": answers["2"],
        }  # fmt: skip
        print_results({f"{name}: model": {"counts": model}, f"{name}: real": {"counts": real}})


def play(service: Any, table: bytes, fake: Any, lookups: list[Lookup], outage: tuple[float, float]) -> Any:
    """Ask each at its time; the statuses, counted."""
    from fix_server import lookup

    peers = [service.connect() for _ in range(20)]
    answers: Counter[str] = Counter()
    begins = time.monotonic()
    for number, one in enumerate(lookups):
        now = time.monotonic() - begins
        if outage and now >= outage[0]:
            fake.leave()
            outage, back = (), sum(outage)
        if not outage and back and now >= back:
            fake.listen()
            back = 0.0
        time.sleep(max(0.0, one.at - now))
        reply = peers[number % len(peers)].ask(lookup(table, one.key.encode()))
        answers[dict(reply)[b"status"].decode()] += 1
    return answers


# What one message asks of real programs


def count() -> None:
    """One message to one recipient, by smtpd, cleanup, trivial-rewrite and qmgr; each lookup in order."""
    import servers
    from fix_fake import FakeMySQL
    from real_clients import Mail

    address, domain = "user@example.com", "example.com"
    records = {f"domains {domain}": ["1"], f"mailbox {address}": ["1"]}
    for ttl in ("0s", "5s"):
        with FakeMySQL(records) as fake, servers.our_command() as command:
            postfix = Mail(f"{command} -o mysql_cache_ttl={ttl}", "fail:x", "fail:x", [])
            try:
                names = [write_cf(postfix.tables, name, fake.port) for name in TABLES]
                domains, alias, mailbox = (f"proxy:{name}" for name in names)
                postfix.set(
                    proxy_read_maps=servers.proxied(names), virtual_alias_domains="",
                    virtual_mailbox_domains=domains, virtual_alias_maps=alias, virtual_mailbox_maps=mailbox,
                    transport_maps="", sender_canonical_maps="", smtpd_recipient_restrictions="",
                )  # fmt: skip
                postfix.start()
                postfix.send_one(address)
            finally:
                postfix.remove()
            asked = [question.decode().split("'")[1] for question in fake.questions]
        print(f"cache_ttl = {ttl}: {len(asked)} questions")
        for key, times in Counter(asked).most_common():
            print(f"  {times} {key}")


def write_cf(folder: Path, name: str, port: int) -> str:
    path = folder / f"{name}.cf"
    path.write_text(
        f"hosts = 127.0.0.1:{port}\nuser = u\npassword = p\ndbname = mail\n"
        f"query = SELECT v FROM t WHERE k = '{name} %s'\n"
    )
    path.chmod(0o644)
    return f"mysql:{path}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=200_000, help="a day (default: 200,000)")
    parser.add_argument("--replay", action="store_true", help="have the real server answer a minute of it")
    parser.add_argument("--count", action="store_true", help="what one message asks, by real programs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if options.replay or options.count:
        import servers  # has the tests' folder on the path

        servers.many_files()
        count() if options.count else replay(options.messages)
        return 0
    results = {name: simulate(day(options.messages), policy, OUTAGE) for name, policy in POLICIES.items()}
    print_results(results)
    if options.json:
        options.json.write_text(json.dumps(results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
