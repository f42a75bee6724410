"""
Consumers who take the visible answer of a model that thinks, and never hear what it cost.

The provider charges all that it has generated, whoever is still there. What the proxy has charged must cover that, and
what it admits must stay within the budget.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from uvicorn.protocols.http import h11_impl, httptools_impl

from enforcement import Limiter
from enforcement.doors.metered.visit import UVICORN
from enforcement.model.tokens import mint
from enforcement.testing import Published
from tests.enforcement.doors.proxy.conftest import Peer, Scripted, running, url_of
from tests.enforcement.world import eventually

CAP, THOUGHTS = 25_000, 20_000
INPUT_RATE, OUTPUT_RATE = 1, 4  # micros a token
BUDGET = 530_000
ASKED = {"model": "mist-1", "max_tokens": CAP, "messages": [{"role": "user", "content": "think"}]}
WORD = b'data: {"choices": [{"delta": {"content": "42"}}]}\n\n'


@dataclass
class Provider:
    """What it does after it has thought is said by a header field of each request."""

    invoice: int = 0
    requests: int = 0
    usage: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 30, "completion_tokens": THOUGHTS})

    def __call__(self, peer: Peer) -> None:
        while head := peer.head():
            fields = dict(line.lower().split(b": ", 1) for line in head.strip().split(b"\r\n")[1:])
            asked = json.loads(peer.body(int(fields[b"content-length"])))
            self.requests += 1
            does = fields[b"x-does"].decode()
            if does == "refuse":
                peer.send(b"HTTP/1.1 529 Overloaded\r\nContent-Length: 0\r\n\r\n")
                continue
            assert asked["max_tokens"] >= THOUGHTS
            self.invoice += self.usage["prompt_tokens"] * INPUT_RATE + THOUGHTS * OUTPUT_RATE
            getattr(self, does)(peer)

    def silent(self, peer: Peer) -> None:
        """Answer nothing at all."""
        peer.closed()

    def gateway(self, peer: Peer) -> None:
        """Something before it gives up."""
        peer.send(b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n")

    def broken(self, peer: Peer) -> None:
        self._begin(peer)
        peer.reset()

    def error(self, peer: Peer) -> None:
        self._begin(peer)
        self._say(peer, b'data: {"error": {"message": "overloaded"}}\n\n', last=True)

    def filler(self, peer: Peer) -> None:
        """Say the answer, and go on with nothing for longer than it is read on."""
        self._begin(peer)
        with suppress(OSError):
            while True:
                time.sleep(0.1)
                self._say(peer, b": wait\n\n")

    def flood(self, peer: Peer) -> None:
        """Say more than anybody keeps for a client that does not read."""
        self._begin(peer)
        with suppress(OSError):
            while True:
                self._say(peer, b": " + b"x" * 65_536 + b"\n\n")

    def usual(self, peer: Peer) -> None:
        self._begin(peer)
        time.sleep(0.1)
        last = json.dumps({"choices": [], "usage": self.usage}).encode()
        self._say(peer, b"data: " + last + b"\n\ndata: [DONE]\n\n", last=True)

    def _begin(self, peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        self._say(peer, WORD)

    def _say(self, peer: Peer, data: bytes, *, last: bool = False) -> None:
        peer.send(b"%x\r\n%b\r\n" % (len(data), data) + (b"0\r\n\r\n" if last else b""))


class Market:
    """A proxy before a provider, and budgets."""

    def __init__(self, port: int, provider: Provider, published: Published, limiter: Limiter) -> None:
        self.port, self.provider, self._published, self._limiter = port, provider, published, limiter

    def budget(self, **rules: Any) -> str:
        """Return a token with a budget of its own, under a policy of these rules."""
        secret = mint("live")
        name = f"pol_{secret[-12:].lower()}"
        limit = {"name": "usd", "algorithm": "fixed_window", "quota": BUDGET, "calendar": "lifetime", "unit": "micros"}
        policy = {"schema": 1, "id": name, "slug": name.replace("_", "-"), "name": name, "version": 1,
                  "limits": [limit], "metering": rules}  # fmt: skip
        token = {"schema": 1, "id": f"tok_{secret[-12:]}", "project": "proj_1", "name": "t", "policy": name,
                 "revoked": False, "expires_at_us": None, "overrides": []}  # fmt: skip
        self._published.publish({f"policy:{name}": policy}, tokens={secret: token})
        self.provider.invoice = self.provider.requests = 0
        return secret

    def ask(self, secret: str, does: str, until: bytes = b"", **more: Any) -> bytes:
        """Send a request, read until these bytes or the end, leave, and return what came."""
        body = json.dumps({**ASKED, "stream": True, **more}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nX-Does: {does}\r\n"
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        got = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as raw, suppress(ConnectionError):
            raw.sendall((head + kind).encode() + body)
            while not (until and until in got) and (part := raw.recv(65_536)):
                got += part
        return got

    def stare(self, secret: str, does: str) -> socket.socket:
        """Send a request, and return the connection, from which nothing is read."""
        body = json.dumps({**ASKED, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nX-Does: {does}\r\n"
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall((head + kind).encode() + body)
        assert eventually(lambda: self.provider.requests == 1, 20)
        return raw

    def used(self, secret: str) -> int:
        """Return what was charged, once nothing is in flight any more."""
        key = self._published.keys.reservations("proj_1")
        assert eventually(lambda: not self._published.client.zcard(key), 20)
        (limit,) = self._limiter.check(secret, {"micros": 0}).limits
        return BUDGET - limit.remaining


@pytest.fixture(scope="module")
def market(published: Published) -> Iterator[Market]:
    provider = Provider()
    upstream = Scripted(provider)
    price = {"model": "*", "input": INPUT_RATE * 1_000_000, "output": OUTPUT_RATE * 1_000_000}
    published.prices(price)
    variables = {"TIMEOUT_MS": "2000", "LOOKUP_MS": "5000", "UPSTREAM_URL": upstream.url, "UPSTREAM_TIMEOUT": "0.4",
                 "ANSWER_DRAIN_SECONDS": "1", "ANSWER_DRAINS": "2", "CLIENT_TIMEOUT": "1"}  # fmt: skip
    with (
        Limiter(url_of(published), timeout=2.0, lookup=5.0) as limiter,
        running(published, **{f"SLUICEGATE_{name}": value for name, value in variables.items()}) as proxy,
    ):
        yield Market(proxy.port, provider, published, limiter)
    upstream.close()


LEAVES: dict[str, Callable[[Market, str], bytes]] = {
    "after the visible answer": lambda it, secret: it.ask(secret, "filler", b"42"),
    "just before the usage": lambda it, secret: it.ask(secret, "usual", b"42"),
    "of an answer in one piece": lambda it, secret: it.ask(secret, "silent", b"x", stream=False),
    "never, and the provider is silent": lambda it, secret: it.ask(secret, "silent"),
    "never, and something gives up": lambda it, secret: it.ask(secret, "gateway"),
    "never, and the connection breaks": lambda it, secret: it.ask(secret, "broken"),
    "never, and an error ends the answer": lambda it, secret: it.ask(secret, "error"),
}


@pytest.mark.parametrize("on_disconnect", ["free", "drain"])
@pytest.mark.parametrize("leave", LEAVES)
def test_a_bound_is_not_exceeded_by_leaving(market, leave, on_disconnect):
    """Five such requests fit. Before, a budget of one dollar bought 34 dollars of them."""
    secret = market.budget(estimate="bound", on_disconnect=on_disconnect)

    answers = [LEAVES[leave](market, secret) for _ in range(7)]

    used = market.used(secret)
    assert market.provider.invoice <= used <= BUDGET
    assert market.provider.requests == sum(b" 429 " not in answer[:20] for answer in answers) >= 5


def test_many_leaves_at_once_are_no_way_around_it(market):
    """More than are read on at the same time."""
    secret = market.budget(estimate="bound")
    connections = []
    body = json.dumps({**ASKED, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nX-Does: usual\r\n"
    for _ in range(20):
        raw = socket.create_connection(("127.0.0.1", market.port), timeout=20)
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        connections.append(raw)
    for raw in connections:
        with suppress(ConnectionError):
            raw.recv(1)
        raw.close()

    assert market.provider.invoice <= market.used(secret) <= BUDGET
    assert market.provider.requests >= 5


def test_an_answer_that_is_read_on_costs_what_the_provider_says(market):
    """It is the default under a bound, so that honest budgets are not used up by estimates."""
    secret = market.budget(estimate="bound")
    market.ask(secret, "usual", b"42")
    assert market.used(secret) == market.provider.invoice == 80_030


@pytest.mark.parametrize("model", ["o3", "mist-1"])
def test_a_typical_estimate_is_kept_where_output_is_hidden(market, model):
    secret = market.budget()
    market.ask(secret, "filler", b"42", model=model)
    assert (market.used(secret) >= market.provider.invoice) is (model == "o3")


def test_what_the_provider_refuses_costs_nothing(market):
    secret = market.budget(estimate="bound")
    assert b" 529 " in market.ask(secret, "refuse")
    assert market.used(secret) == 0


def test_uvicorn_runs_an_application_in_the_coroutine_that_is_looked_for():
    """A request whose answer may be read on then needs no task of its own."""
    cycles = [httptools_impl.RequestResponseCycle, h11_impl.RequestResponseCycle]
    assert {cycle.run_asgi.__qualname__ for cycle in cycles} == {UVICORN}


@pytest.mark.parametrize("left", ["free", "drain"])
def test_a_client_that_does_not_read_is_charged_as_one_that_left(market: Market, left: str) -> None:
    """It is given up after a while, although it stays, and keeps its estimate."""
    secret = market.budget(estimate="bound", on_disconnect=left)
    with market.stare(secret, "flood"):
        assert market.used(secret) >= max(market.provider.invoice, CAP * OUTPUT_RATE)
