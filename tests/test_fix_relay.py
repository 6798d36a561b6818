"""test_fix_relay - a relay that is closed while clients come leaves neither task nor connection behind"""

from __future__ import annotations

import gc
import logging
import socket
import warnings

import pytest
from fix_relay import Relay


@pytest.mark.parametrize("stalled", [False, True])
def test_relay_that_is_closed_leaves_nothing(stalled: bool, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        for _ in range(20):
            with Relay(server.getsockname()) as relay:
                relay.stalled = stalled
                clients = [socket.create_connection(("127.0.0.1", relay.port)) for _ in range(4)]
            for client in clients:
                client.close()
            gc.collect()
    assert [str(warning.message) for warning in left] == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
