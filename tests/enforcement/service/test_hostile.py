"""Callers of ill will, all at once and for a while: the service stays as small, as quick and as strict as it was."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from h2.exceptions import ProtocolError

from enforcement import Limit
from enforcement.embedded import ValkeyServer
from enforcement.model.tokens import mint
from enforcement.service.wire import integer, write
from tests.enforcement.service.grpc_client import EXT_AUTHZ, RLS, Channel, framed
from tests.enforcement.service.running import Gateway, gateway
from tests.scale import scale

pytestmark = pytest.mark.proof
SECONDS = scale(6.0, 600.0)
SETTLED_SECONDS = scale(2.0, 60.0)
"""When the memory is read that the end is compared with."""
SPARE_BYTES = scale(16, 0) * 1_048_576
"""The first seconds of a short run still load modules and fill caches."""

Attack = Callable[[Gateway, random.Random, str], None]


def request(token: str, path: str = "/") -> bytes:
    entries = {"token": token, "path": path}
    rows = [write(1, write(1, key.encode()) + write(2, value.encode())) for key, value in entries.items()]
    return write(1, b"shop") + write(2, b"".join(rows))


def malformed(served: Gateway, chance: random.Random, token: str) -> None:
    """Bytes that are no message, and messages that are nearly one."""
    with served.channel() as channel:
        for _ in range(50):
            message = bytearray(request(token))
            for _ in range(chance.randint(1, 8)):
                message[chance.randrange(len(message))] = chance.randrange(256)
            channel.call(chance.choice((RLS, EXT_AUTHZ)), framed(bytes(message)))
            channel.call(RLS, chance.randbytes(chance.randrange(64)))


def rapid_resets(served: Gateway, chance: random.Random, token: str) -> None:
    with served.channel() as channel:
        for _ in range(200):
            stream = channel.begin(RLS)
            channel.send(stream, framed(request(token)))
            channel.reset(stream)


def header_floods(served: Gateway, chance: random.Random, token: str) -> None:
    with served.channel() as channel:
        channel.call(RLS, framed(request(token)), headers=[(f"x-{n}", "y" * 100) for n in range(1_500)])


def large_messages(served: Gateway, chance: random.Random, token: str) -> None:
    with served.channel() as channel:
        channel.call(RLS, framed(b"\x0a" + b"a" * 1_500_000))
        channel.call(RLS, framed(b"\x12\x00" * 200_000))


def slow_callers(served: Gateway, chance: random.Random, token: str) -> None:
    with served.channel() as channel:
        streams = [channel.begin(RLS) for _ in range(50)]
        for _ in range(4):
            for stream in streams:
                channel.send(stream, b"\0", ends=False)
            time.sleep(0.1)


def broken_connections(served: Gateway, chance: random.Random, token: str) -> None:
    clients = [socket.create_connection(("127.0.0.1", served.service.port)) for _ in range(20)]
    for client in clients:
        client.sendall(
            chance.choice((b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", b"GET /v1/check HTTP/1.1\r\n", b"\xff" * 99))
        )
        if chance.random() < 0.5:
            client.shutdown(socket.SHUT_WR)
    time.sleep(0.1)
    for client in clients:
        client.close()


def new_tokens_and_paths(served: Gateway, chance: random.Random, token: str) -> None:
    """What is kept by token and by message is bounded."""
    with served.channel() as channel:
        for _ in range(100):
            channel.ask(RLS, request(mint("live")))
            channel.ask(RLS, request(token, f"/{chance.randbytes(300).hex()}"))


ATTACKS: list[Attack] = [
    malformed,
    rapid_resets,
    header_floods,
    large_messages,
    slow_callers,
    broken_connections,
    new_tokens_and_paths,
]


@pytest.fixture
def served(server: ValkeyServer, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(server, tmp_path) as running:
        yield running


def test_hostile_callers_change_nothing(served: Gateway) -> None:
    """
    Beside all attacks 99 of 100 legal requests are answered within a second, a denied one is denied, and memory stays.
    What a busy machine holds up is one of a hundred. An attack that holds up the service does so again and again.
    """
    many = Limit(name="many", algorithm="fixed_window", quota=10_000_000, window_seconds=3_600)
    allowed, denied = served.token(many), served.token(Limit(name="none", quota=0, window_seconds=60))
    ended = threading.Event()
    attackers = [threading.Thread(target=_attack, args=(it, served, allowed, ended)) for it in ATTACKS]
    for attacker in attackers:
        attacker.start()
    seconds, answers, settled, began = [], set(), 0, time.monotonic()
    try:
        with Channel(served.service.port) as channel:
            while (passed := time.monotonic() - began) < SECONDS:
                asked = time.monotonic()
                answers.add(tuple(integer(channel.ask(RLS, request(token)), 1) for token in (allowed, denied)))
                seconds.append(time.monotonic() - asked)
                settled = settled or (served.service.memory() if passed > SETTLED_SECONDS else 0)
                time.sleep(0.02)
        at_the_end = served.service.memory()
    finally:
        ended.set()
        for attacker in attackers:
            attacker.join()

    assert answers == {(1, 2)}
    assert sorted(seconds)[len(seconds) * 99 // 100 - 1] < 1.0
    assert at_the_end <= 1.2 * settled + SPARE_BYTES
    assert "Traceback" not in served.service.log.read_text()


def _attack(attack: Attack, served: Gateway, token: str, ended: threading.Event) -> None:
    chance = random.Random(attack.__name__)
    while not ended.is_set():
        # The service may end such a connection in any way.
        with contextlib.suppress(OSError, ProtocolError, AssertionError):
            attack(served, chance, token)
        ended.wait(0.02)
