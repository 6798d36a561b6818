"""fix_fakes - our server before a pretended database server (fix_fake), which counts its questions"""

from __future__ import annotations

from typing import Any

from fix_fake import FakeServer
from fix_server import ServerProcess, lookup
from oracle import Attributes

from proxymap.server.control import ask_all


class Fakes(ServerProcess):
    """Our server over a pretender. Answers are kept for an hour, unless own says otherwise."""

    def __init__(self, fake: FakeServer, **own: str) -> None:
        super().__init__(own={"cache_ttl": "1h", "lookup_time_limit": "5s"} | own)
        self.fake = fake

    def table(self, name: str = "t", **parameters: str) -> bytes:
        """A table over the pretender, approved."""
        path = self.dir / f"{name}.cf"
        values = {"hosts": f"127.0.0.1:{self.fake.port}", "user": "u", "password": "p", "dbname": "mail"}
        values |= {"query": "SELECT v FROM t WHERE k = '%s'"} | parameters
        path.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
        path.chmod(0o644)
        self.approve(f"{self.fake.maptype}:{path}")
        return f"{self.fake.maptype}:{path}".encode()

    def ask(self, table: bytes, key: bytes) -> Attributes:
        """One question over a connection of its own."""
        with self.connect() as peer:
            return peer.ask(lookup(table, key))

    def control(self, do: str, **request: Any) -> Any:
        """The answer of the control socket."""
        (_, reply), *_ = ask_all(self.path, do=do, **request)
        return reply["ok"]

    def counts(self, table: bytes) -> dict[str, Any]:
        """What the server knows of the table."""
        return next(known for known in self.control("tables") if known["table"] == table.decode())
