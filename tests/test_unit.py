"""test_unit - the systemd unit: what is open to the service, as systemd itself judges it"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parent.parent / "contrib/proxymap.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_exposure_is_small() -> None:
    """2.0 of 10 at most; the threshold is in tenths."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(UNIT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_database_servers_can_be_reached_over_the_network() -> None:
    assert "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n" in UNIT.read_text()
