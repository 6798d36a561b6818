"""fix_redis_load - our server with a table in Redis, and clients that ask it all the time

    with Place(redis.uri) as place:
        redis.put(VALUES)
        place.start_load()
        ...
        place.end_load()

The data do not change, so each answer is known: anything but that or RETRY is wrong.
"""

from __future__ import annotations

import threading
import time

from fix_redis import write_cf
from fix_server import LIMIT, ServerProcess, lookup, wait_until

KEYS = 60
VALUES = {f"k{n}": f"v{n}" for n in range(KEYS)}
CLIENTS = 4
LONG = 2 * LIMIT


class Place(ServerProcess):
    """Our server with a table, and clients that ask it all the time."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.table = write_cf(self.dir / "t.cf", uri=uri, timeout=1)
        self.approve(self.table)
        self.wrong: list[str] = []
        self.answers = [0] * CLIENTS
        self.retries: list[tuple[float, bytes]] = []
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def start_load(self) -> None:
        self.start()
        wait_until(lambda: self.all_answer(), "answers", LONG)
        self.retries.clear()
        for number in range(CLIENTS):
            self._threads.append(threading.Thread(target=self._ask_on, args=(number,)))
            self._threads[-1].start()

    def _ask_on(self, number: int) -> None:
        with self.connect() as peer:
            while not self._ending.is_set():
                for n in range(number, KEYS + CLIENTS, CLIENTS):
                    key = b"k%d" % n
                    reply = dict(peer.ask(lookup(self.table, key)))
                    self.answers[number] += 1
                    if reply[b"status"] == b"2":
                        self.retries.append((time.monotonic(), key))
                    elif not is_right(n, reply):
                        self.wrong.append(f"{key!r}: {reply}")

    def end_load(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(LIMIT)
        assert not [thread for thread in self._threads if thread.is_alive()]
        assert self.wrong == []

    def all_answer(self) -> bool:
        with self.connect() as peer:
            return all(is_right(n, dict(peer.ask(lookup(self.table, b"k%d" % n)))) for n in range(KEYS + 1))

    def answered_since(self) -> None:
        """Each client got a few more answers, whatever they are."""
        before = [count + 2 * KEYS for count in self.answers]
        wait_until(
            lambda: all(n >= was for n, was in zip(self.answers, before, strict=True)), "clients", LONG
        )

    def is_calm(self) -> None:
        """No RETRY any more, for good."""
        wait_until(self.all_answer, "answers", LONG)
        time.sleep(0.5)  # connections that are cut late
        self.retries.clear()
        self.answered_since()
        assert self.retries == [], self.log()[-3000:]

    def __exit__(self, *details: object) -> None:
        self._ending.set()
        super().__exit__(*details)  # type: ignore[arg-type]


def is_right(n: int, reply: dict[bytes, bytes]) -> bool:
    if n >= KEYS:
        return reply[b"status"] == b"1"
    return reply == {b"status": b"0", b"value": b"v%d" % n}
