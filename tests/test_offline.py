"""The guard in conftest.py: a test that would leave this machine, by a connection or by a name, fails."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest

from cosmian_vm.endorsements.store import Request, Services, fetch


@pytest.mark.parametrize("url", [Services().kds, Services().pcs, Services().root_crl])
def test_the_vendors_are_out_of_reach(url: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=urlsplit(url).hostname):
        fetch(Request(url=url, most=100))


def test_addresses_and_names() -> None:
    with socket.socket() as free, pytest.raises(pytest.fail.Exception, match=r"192\.0\.2\.1"):
        free.connect(("192.0.2.1", 443))
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("agent.invalid", 443)
    assert socket.getaddrinfo("localhost", 443)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 10):
        pass
