"""Connections to an upstream that has several addresses."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from enforcement.doors.proxy import pool
from tests.enforcement.doors.proxy.conftest import Scripted


def resolving(*addresses: str):
    """Return a function that stands for the resolver, and finds these addresses."""

    def resolve(_: Any, port: int, *args: Any, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return resolve


async def test_an_address_that_is_silent_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch, scripted) -> None:
    """It comes last from then on, so that only the first connection has to wait for it."""
    upstream = scripted(lambda peer: peer.head())
    silent = Scripted(lambda peer: None, "127.0.0.2", upstream.port)
    silent.hold()
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 2.0)
    monkeypatch.setattr(socket, "getaddrinfo", resolving("127.0.0.2", "127.0.0.1"))
    connections = pool.Pool("two.example", upstream.port, tls=False)

    connection = await connections.connect()

    assert not connection.lost
    assert await connections._addresses() == ["127.0.0.1", "127.0.0.2"]
    connection.close()
    silent.release()
    silent.close()


async def test_an_upstream_without_an_address_that_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them refuses connections."""
    monkeypatch.setattr(socket, "getaddrinfo", resolving("127.0.0.2", "127.0.0.1"))
    connections = pool.Pool("two.example", 1, tls=False)

    with pytest.raises(pool.UpstreamError):
        await connections.connect()
