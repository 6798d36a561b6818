"""fix_tls - certificates made on the spot: an authority, a server, a client, and a strange authority

`ca` has signed all but itself and `other_ca`. `server` is good for 127.0.0.1 and
localhost, `other_name` for other.invalid only; `client` has the name pm. Made by
openssl, valid for two days.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

SERVER_NAMES = "subjectAltName=IP:127.0.0.1,DNS:localhost"
OTHER_NAMES = "subjectAltName=DNS:other.invalid"


class Certificates:
    """PEM files in a folder: NAME.pem and NAME.key."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        folder.mkdir()
        for name in ("ca", "other_ca"):
            self._make(name, f"/CN=test {name}", "-addext", "basicConstraints=critical,CA:TRUE")
        self._make("server", "/CN=localhost", *self._signed("ca"), "-addext", SERVER_NAMES)
        self._make("other_name", "/CN=other.invalid", *self._signed("ca"), "-addext", OTHER_NAMES)
        self._make("client", "/CN=pm", *self._signed("ca"), "-addext", "keyUsage=digitalSignature")

    def pem(self, name: str) -> str:
        return str(self.dir / f"{name}.pem")

    def key(self, name: str) -> str:
        return str(self.dir / f"{name}.key")

    def _signed(self, by: str) -> tuple[str, ...]:
        return "-CA", self.pem(by), "-CAkey", self.key(by)

    def _make(self, name: str, subject: str, *options: str) -> None:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", subject, "-keyout", self.key(name), "-out", self.pem(name), *options],
            check=True, capture_output=True,
        )  # fmt: skip
        Path(self.key(name)).chmod(0o600)
