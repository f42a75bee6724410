"""Doors that check tokens, for the vectors: the limits of each are published as a policy, each of its keys a token."""

import asyncio
import io
from typing import Any
from wsgiref.util import setup_testing_defaults

from enforcement import Limiter, aio
from enforcement.doors import asgi, wsgi
from enforcement.testing.publisher import Published
from tests.enforcement.doors.vector_doors import check_answer, has_slots
from tests.enforcement.vectors import load_vectors

IN_CODE_ALONE = {"reserve_settle/token-kinds"}
"""Scenarios of costs that are an error for limits in code, and that a policy reports."""


def policy_vectors() -> list[dict[str, Any]]:
    """Return the scenarios that clients with a token can act out: they neither peek nor reserve, and hold no slots."""
    return [
        vector
        for vector in load_vectors()
        if vector["id"] not in IN_CODE_ALONE
        and {step.get("op", "hit") for step in vector["steps"]} <= {"hit", "load", "change"}
        and not any(limit.get("algorithm") == "concurrency" for limit in vector["limits"])
    ]


class _Remembering(Limiter):
    """Keeps the decision that its door tells in an answer."""

    latest: Any = None

    def decide(self, *args, **options):
        self.latest = super().decide(*args, **options)
        return self.latest


class _RememberingAwaited(aio.Limiter):
    latest: Any = None

    async def decide(self, *args, **options):
        self.latest = await super().decide(*args, **options)
        return self.latest


class PolicyDoor:
    """What such a door has beside its framework: the policy as it is now, and a token for each key."""

    PREFIX = ""
    publishers: dict[str, Published] = {}

    def __init__(self, url, clock):
        self.url, self.clock, self.costs = url, clock, 1
        self.doors: dict[str, Any] = {}
        self.tokens: dict[str, str] = {}
        self.policy: Any = None
        if url not in self.publishers:
            self.publishers[url] = Published(url)
            self.publishers[url].project()
        self.published = self.publishers[url]
        self.published.followers.clear()
        self.slug = f"vector-{self.published.revision}"

    def token(self, limits, key):
        """Return the token of a key, under these limits."""
        if self.policy != limits:
            self.published.policy(self.slug, *limits)
            self.policy = limits
        if key not in self.tokens:
            self.tokens[key] = self.published.token(policy=self.slug)
        return self.tokens[key]

    def hit(self, name, limits, key, costs):
        assert not has_slots(limits)
        token, self.costs = self.token(limits, key), costs
        if name not in self.doors:
            self.doors[name] = self.make()
            self.published.followers.append(self.doors[name].limiter)
        return self.ask(self.doors[name], token)


class WSGIPolicyDoor(PolicyDoor):
    """The WSGI door, without a server."""

    def make(self):
        limiter = _Remembering(self.url, clock=self.clock, timeout=2.0)
        limiter.start()
        return wsgi.LimitMiddleware(_hello, limiter, costs=lambda _: self.costs)

    def ask(self, door, token):
        environ: dict[str, Any] = {"HTTP_AUTHORIZATION": f"Bearer {token}", "wsgi.input": io.BytesIO()}
        setup_testing_defaults(environ)
        started = []
        body = b"".join(door(environ, lambda status, headers, *_: started.append((status, headers))))
        status, headers = started[0]
        lower = {name.lower(): value for name, value in headers}
        return check_answer(door.limiter.latest, int(status[:3]), lower, body)

    def close(self):
        for door in self.doors.values():
            door.limiter.close()


class ASGIPolicyDoor(PolicyDoor):
    """The ASGI door, without a server."""

    def __init__(self, *args):
        super().__init__(*args)
        self.runner = asyncio.Runner()

    def make(self):
        limiter = _RememberingAwaited(self.url, clock=self.clock, timeout=2.0)
        door = asgi.LimitMiddleware(_hello_awaited, limiter, costs=lambda _: self.costs)
        self.runner.run(door.start())
        return door

    def ask(self, door, token):
        return self.runner.run(self._ask(door, token))

    async def _ask(self, door, token):
        headers = [(b"authorization", f"Bearer {token}".encode())]
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
        sent = []

        async def receive():
            return {"type": "http.request", "body": b""}

        async def send(message):
            sent.append(message)

        await door(scope, receive, send)
        lower = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return check_answer(door.limiter.latest, sent[0]["status"], lower, sent[1]["body"])

    def close(self):
        for door in self.doors.values():
            self.runner.run(door.limiter.close())
        self.runner.close()


def _hello(environ, start_response):
    start_response("200 OK", [])
    return [b""]


async def _hello_awaited(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
