"""Whom a database's server names as its client."""

from __future__ import annotations

import pytest

from flows.state import visitors


@pytest.mark.parametrize(
    ("said", "host", "address", "local"),
    [
        ("10.20.0.2:51234", "", "10.20.0.2", False),
        ("10.20.0.2/32", "", "10.20.0.2", False),
        ("fd00::2/128", "", "fd00::2", False),
        ("control1.example.net:51234", "control1.example.net", "", False),  # MariaDB without skip_name_resolve
        ("localhost", "", "localhost", True),
        ("localhost:51234", "", "localhost", True),
        ("127.0.0.1:51234", "", "127.0.0.1", True),
        ("", "", "", True),  # a socket
    ],
)
def test_where_a_connection_comes_from(said: str, host: str, address: str, local: bool) -> None:
    peer = visitors._peer("zlh", "7", said)
    assert (peer.host, peer.address, peer.local) == (host, address, local)
