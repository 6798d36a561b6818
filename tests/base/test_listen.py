"""test_listen - listening sockets as descriptors"""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from proxymap.base._listen import PATH_MAX, accept_from, listen_at, path_of, stop_listening


def test_socket_has_its_mode_and_accepts(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = listen_at(bytes(path), 0o600, 5)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path_of(listener) == bytes(path)
        assert not os.get_inheritable(listener)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            with socket.socket(fileno=accept_from(listener)) as accepted:
                accepted.sendall(b"x")
                assert client.recv(1) == b"x"
    finally:
        os.close(listener)


def test_thread_that_waits_is_woken(tmp_path: Path) -> None:
    listener = listen_at(bytes(tmp_path / "s"), 0o600, 5)
    errors: list[OSError] = []

    def wait() -> None:
        try:
            accept_from(listener)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    stop_listening(listener)
    thread.join(30)
    os.close(listener)
    assert len(errors) == 1


def test_path_that_is_too_long_or_taken_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="more than 107 bytes"):
        listen_at(b"/" + b"x" * PATH_MAX, 0o600, 5)
    (tmp_path / "s").write_text("taken")
    with pytest.raises(OSError, match="Address already in use"):
        listen_at(bytes(tmp_path / "s"), 0o600, 5)


def test_socket_of_the_network_has_no_path() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        assert path_of(listener.fileno()) == b""
