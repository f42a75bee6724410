"""A token that takes all the places that it can get, by uploads that do not end and responses that it does not read."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from enforcement.model.limits import Limit
from tests.enforcement.doors.proxy.conftest import Exchange, Peer, Running
from tests.enforcement.world import eventually
from tests.scale import scale

CLIENTS = scale(50, 1_000)
PLACES = scale(40, 1_000)
PROBES = scale(20, 300)
SHARE = PLACES // 4
PLENTY = Limit(name="per-hour", algorithm="fixed_window", quota=1_000_000, window_seconds=3600)
BODY = b"x" * 16_000_000  # more than the buffers of the system
SLOW_POST = "POST /slow\nContent-Length: 100"

pytestmark = pytest.mark.proof


def serving(peer: Peer) -> None:
    """Take an upload whole before its answer. Send a long response, or a short one."""
    while head := peer.head():
        if b"POST" in head:
            peer.body(100)
        body = BODY if b"/long" in head else b"ok"
        # In one piece, because the system may hold back a second small one for 40 ms.
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@pytest.fixture(scope="module", params=scale(["uvicorn"], ["uvicorn", "h2corn"]))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fair(start: Callable[..., Running], scripted: Callable) -> Callable[[str], Running]:
    """Start a proxy that waits for a client so many seconds."""
    return lambda seconds: start(
        scripted(serving), SLUICEGATE_CLIENT_TIMEOUT=seconds, SLUICEGATE_UPSTREAM_PLACES=str(PLACES)
    )


def memory(proxy: Running) -> float:
    """Return the MiB of its process, and of the worker that h2corn starts."""
    pids = [str(proxy.pid), *Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()]
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def metrics(proxy: Running) -> str:
    return httpx2.get(f"{proxy.catch_up()}/metrics", verify=False, timeout=20).text


def probe(proxy: Running, token: str) -> list[float]:
    """Return how long each of many requests of a token took, in milliseconds. All of them succeed."""
    spans = []
    for _ in range(PROBES):
        begun = time.perf_counter()
        exchange = proxy.request("GET /\nConnection: close", token)
        assert exchange.status == 200
        spans.append((time.perf_counter() - begun) * 1_000)
        exchange.rest()  # until then the request is under way, and has its place
        exchange.close()
    return spans


def p99(spans: list[float]) -> float:
    return statistics.quantiles(spans, n=100)[-1]


def attack(proxy: Running, token: str, text: str, body: bytes = b"") -> tuple[list[Exchange], list[Exchange]]:
    """Return the requests of many clients: those that are under way, and those that were refused."""
    exchanges = [proxy.request(text, token, body) for _ in range(CLIENTS)]
    going, refused = exchanges, []

    def are_refused() -> bool:
        nonlocal going
        refused.extend(exchange for exchange in going if is_answered(exchange, b"HTTP/1.1 429"))
        going = [exchange for exchange in exchanges if exchange not in set(refused)]
        return len(refused) >= CLIENTS - SHARE

    assert eventually(are_refused, 30), len(refused)
    assert len(going) >= SHARE - 2  # a request of somebody else may be ending, and makes the share smaller
    return going, refused


def is_answered(exchange: Exchange, begin: bytes) -> bool:
    """Look at the begin of a response without taking it."""
    exchange.raw.settimeout(0)
    try:
        return exchange.raw.recv(len(begin), socket.MSG_PEEK) == begin
    except BlockingIOError:
        return False
    finally:
        exchange.raw.settimeout(20)


@pytest.mark.parametrize(("text", "body"), [(SLOW_POST, b"xx"), ("GET /long", b"")])
def test_slow_clients_of_one_token_leave_places_for_all_others(fair, token_of, text: str, body: bytes) -> None:
    """Others of its project, too. What is beyond its share is refused at once, and says when to come again."""
    proxy, attacker, sibling = fair("600"), token_of(PLENTY), token_of(PLENTY)
    probe(proxy, sibling)
    quiet, before = probe(proxy, sibling), memory(proxy)

    going, refused = attack(proxy, attacker, text, body)
    probe(proxy, sibling)  # until what the clients that do not read have coming is in the buffers
    under = probe(proxy, sibling)

    print(f"p99 {p99(quiet):.1f} ms quiet, {p99(under):.1f} ms under it; {memory(proxy) - before:.0f} MiB more")
    assert eventually(lambda: f'requests{{upstream="/"}} {len(going)}\n' in metrics(proxy), 20)
    assert f'sluicegate_proxy_requests_refused_total{{upstream="/",share="token"}} {len(refused)}' in metrics(proxy)
    # On a host that is busy with other tests, quiet requests are slow as well.
    assert p99(under) <= scale(1_000, max(50, 2 * p99(quiet)))
    answer = refused[0].until(b"}")
    assert b"\r\nretry-after: 1\r\n" in answer.lower()
    assert b"Too many requests of this token are under way. Try again when some of them have ended" in answer
    for exchange in going:
        exchange.close()
    assert eventually(lambda: proxy.request("GET /", attacker).status == 200, 20)


@pytest.mark.parametrize(("text", "body"), [(SLOW_POST, b"xx"), ("GET /long", b"")])
def test_a_client_without_a_byte_loses_its_place(fair, token_of, kind: str, text: str, body: bytes) -> None:
    """After the time that the operator has set, whatever it would have to send or read. uvicorn says why."""
    proxy, token = fair("1"), token_of(PLENTY)

    exchanges = [proxy.request(text, token, body) for _ in range(SHARE)]

    assert eventually(lambda: proxy.request("GET /", token).status == 200, 20)
    if body and kind == "uvicorn":
        # The request after them may come before the last of them.
        assert 408 in {exchange.status for exchange in exchanges} <= {408, 429}
