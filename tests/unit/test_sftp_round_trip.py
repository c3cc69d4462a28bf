"""How far away a server is, told by TCP and not by a clock in a busy process."""

from __future__ import annotations

import math
import socket
import sys
from typing import Any

import pytest

from fastsync_sftp.by_asyncssh import round_trip_s


class Connected:
    """As much of a connection as is asked; `over` is one that it is tunneled through."""

    def __init__(self, sock: Any, over: object = None) -> None:
        self._told = {"socket": sock, "connection": over}

    def get_extra_info(self, name: str) -> Any:
        return self._told.get(name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="struct tcp_info is Linux's")
def test_the_loopback_is_near_and_a_tunnel_is_not_judged_by_its_first_hop() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
    ):
        assert 0 < round_trip_s(Connected(ours)) < 0.008  # type: ignore[arg-type]
        assert round_trip_s(Connected(ours, object())) == math.inf  # type: ignore[arg-type]


def test_what_is_no_tcp_tells_nothing() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert round_trip_s(Connected(one)) == math.inf  # type: ignore[arg-type]
    assert round_trip_s(Connected(None)) == math.inf  # type: ignore[arg-type]
