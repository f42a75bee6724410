"""
The conformance vectors through the protocols of the decision service.

The limits of each vector are published as a policy, and each of its keys is a token. A vector is left out where its
steps need what a protocol cannot do: reservations, slots and peeks nowhere, other costs than 1 by ext_authz.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest

from enforcement import aio
from enforcement.embedded import ValkeyServer
from enforcement.service.app import DecisionService
from enforcement.service.rls_mapping import RlsMapping
from enforcement.service.settings import ServiceSettings
from enforcement.service.wire import integer, part, parts, text, write, write_integer
from tests.enforcement.doors.policy_vectors import PolicyDoor, policy_vectors
from tests.enforcement.doors.vector_doors import check_answer
from tests.enforcement.service.grpc_client import EXT_AUTHZ, RLS, framed
from tests.enforcement.vectors import Scenario, pool
from tests.scale import scale


class Remembering(aio.Limiter):
    """Keeps the decision that the service tells in an answer."""

    latest: Any = None

    async def decide(self, *args: Any, **options: Any) -> Any:
        self.latest = await super().decide(*args, **options)
        return self.latest


@dataclass
class Served:
    """A service without a server."""

    app: DecisionService
    limiter: Remembering

    async def ask(self, path: str, body: bytes, headers: dict[str, str]) -> list[dict[str, Any]]:
        """Return the messages by which the service answers."""
        rows = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": rows}
        scope |= {"http_version": "2", "client": ("127.0.0.1", 1), "extensions": {"http.response.trailers": {}}}
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        return sent


class ServiceDoor(PolicyDoor):
    """What the protocols have in common."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.runner = asyncio.Runner()

    def make(self) -> Served:
        limiter = Remembering(self.url, clock=self.clock, timeout=2.0)
        self.runner.run(limiter.start())
        settings = ServiceSettings(costs_field=b"x-costs", rls=RlsMapping(unit="unit"))
        return Served(DecisionService(limiter, settings), limiter)

    def call(self, served: Served, path: str, message: bytes) -> bytes:
        start, body, trailers = self.runner.run(served.ask(path, framed(message), {}))
        assert (start["status"], trailers["headers"]) == (200, [(b"grpc-status", b"0")])
        assert body["body"] == framed(body["body"][5:])
        return body["body"][5:]

    def close(self) -> None:
        for served in self.doors.values():
            self.runner.run(served.limiter.close())
        self.runner.close()


class ForwardAuthDoor(ServiceDoor):
    """Subrequests by HTTP, with the costs in a header field."""

    def ask(self, served: Served, token: str) -> Any:
        costs = {"requests": self.costs} if isinstance(self.costs, int) else self.costs
        headers = {"authorization": f"Bearer {token}", "x-costs": urlencode(costs)}
        start, body = self.runner.run(served.ask("/v1/check", b"", headers))
        told = {name.decode(): value.decode() for name, value in start["headers"]}
        if start["status"] == 400:
            raise ValueError(body["body"])
        return check_answer(served.limiter.latest, start["status"], told, body["body"])


class RlsDoor(ServiceDoor):
    """The rate limit service, with a descriptor for each unit. It has one status for all denials."""

    def ask(self, served: Served, token: str) -> Any:
        costs = {"requests": self.costs} if isinstance(self.costs, int) else {"requests": 1, **self.costs}
        if any(type(cost) is not int or not 0 <= cost < 2**64 for cost in costs.values()):
            raise ValueError("The messages have no such number.")
        rows = [({"token": token, "unit": unit}, cost) for unit, cost in costs.items()]
        answer = self.call(served, RLS, b"".join(write(2, _descriptor(*row)) for row in rows))
        if b'"bad_request"' in part(answer, 5):
            raise ValueError(part(answer, 5))
        decision = served.limiter.latest
        assert [integer(status, 1) for status in parts(answer, 2)] == [integer(answer, 1)] * len(costs)
        assert (integer(answer, 1) == 1) == decision.allowed
        told = {text(row, 1).lower(): text(row, 2) for row in parts(answer, 3)}
        return check_answer(decision, decision.status, told, part(answer, 5))


class ExtAuthzDoor(ServiceDoor):
    """The check of ext_authz, whose cost is always 1."""

    def ask(self, served: Served, token: str) -> Any:
        headers = write(3, write(1, b"x-api-key") + write(2, token.encode()))
        answer = self.call(served, EXT_AUTHZ, write(1, write(4, write(2, headers))))
        denied, allowed = part(answer, 2), part(answer, 3)
        options = parts(denied, 2) or parts(allowed, 6)
        told = {text(part(row, 1), 1).lower(): text(part(row, 1), 2) for row in options}
        status = integer(part(denied, 1), 1) if denied else 200
        return check_answer(served.limiter.latest, status, told, part(denied, 3))


def _descriptor(entries: dict[str, str], hits: int) -> bytes:
    rows = [write(1, write(1, key.encode()) + write(2, value.encode())) for key, value in entries.items()]
    return b"".join(rows) + write(3, write_integer(1, hits))


def _costs_one(vector: dict[str, Any]) -> bool:
    return all(type(step.get("costs", 1)) is int and step.get("costs", 1) == 1 for step in vector["steps"])


def _cases() -> Iterator[tuple[type[ServiceDoor], dict[str, Any]]]:
    """Yield each vector with each protocol that can ask it; outside of proofs, the vectors of a kind take turns."""
    turns: dict[str, int] = {}
    for vector in policy_vectors():
        doors = [ForwardAuthDoor, RlsDoor, *([ExtAuthzDoor] if _costs_one(vector) else [])]
        kind = vector["id"].partition("/")[0]
        turn = turns[kind] = turns.get(kind, -1) + 1
        yield from ((door, vector) for door in scale(doors[turn % len(doors) :][:1], doors))


CASES = list(_cases())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ValkeyServer(persistent=False) as server:
        yield server.url


@pytest.fixture(scope="module")
def processes(url: str) -> Iterator[Any]:
    yield from pool(url)


@pytest.mark.proof
@pytest.mark.parametrize(("door", "vector"), CASES, ids=lambda it: it["id"] if isinstance(it, dict) else it.__name__)
def test_vector(door: type[ServiceDoor], vector: dict[str, Any], url: str, processes: Any) -> None:
    """The same limits mean the same, whichever proxy asks."""
    Scenario({**vector, "id": f"{door.__name__}/{vector['id']}"}, door, url, processes).run()
