"""
The door for ASGI applications: pure middleware, which neither buffers a body nor delays a chunk.

>>> app = LimitMiddleware(app)

Put middleware that answers by itself without a token, like CORS, outside of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache
from typing import Any

from enforcement.aio import Limiter
from enforcement.async_tasks import begun
from enforcement.doors._exchange import POLICY_VIOLATION, STARTS, Exchange, Message, Receive, Scope, Send
from enforcement.doors._guard import Guard
from enforcement.doors._http import (
    Answer,
    Header,
    Refusal,
    RequestAttributes,
    added_headers,
    denial,
    find_token,
    joining,
    missing_token,
)
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.headers import draft_lines

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class LimitMiddleware(Guard[App, Limiter, Scope]):
    """
    Lets a request into *app* if every limit admits it, and answers it otherwise.

    Args:
        app: Any ASGI application.
        limiter: An :class:`enforcement.aio.Limiter`; None: made of the environment when the server starts. It is
            started and closed with the server either way.
        token: Returns a request's token, or None for none; None: ``Authorization: Bearer``, then ``X-API-Key``.
        costs: Returns what a request costs; None: one request.
        attributes: Returns attributes beside ``method``, ``path``, ``ip`` and ``header.<name>``, or in their place.
        headers: Preset of :meth:`Decision.headers <enforcement.plan.decision.Decision.headers>`.
        exempt: Paths that are never limited and need no token.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is believed. The server should then not rewrite client
            addresses itself (uvicorn: ``--no-proxy-headers``).
    Raises:
        ValueError: An unknown preset, or a network that is none.

    The application finds the decision in ``scope["sluicegate.decision"]``. A slot of a concurrency limit is held until
    the response is complete or the application ends. Where a client leaves, the application is told; its work, which
    the limit is there to bound, may go on for a while.
    """

    @staticmethod
    def usual_token(request: Scope) -> str | None:
        """Return a request's token: the bearer token or the API key."""
        return find_token(_header(request, b"authorization"), _header(request, b"x-api-key"))

    @staticmethod
    def make_lock() -> asyncio.Lock:
        """Return the lock under which the limiter is started, once."""
        return asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await _Lifespan(self, receive, send).run(scope)
        elif scope["type"] not in ("http", "websocket") or scope["path"] in self._exempt:
            await self.app(scope, receive, send)
        else:
            limiter = self.limiter if self._started and self.limiter else await self.start()
            plan = limiter.by_fields(scope["headers"]) if self._by_usual_fields else None
            if plan is None:
                await self._guard(limiter, scope, receive, send)
                return
            if self._costs is None:
                decision = limiter.from_lease(plan) or await limiter.decide(plan, 1)
            else:
                decision = await limiter.decide(plan, self._costs(scope))
            if decision.allowed:
                await self._pass(decision, scope, receive, send)
            else:
                await _answer(scope, receive, send, denial(decision, self._headers))

    async def start(self) -> Limiter:
        """Start the limiter, once; a server without lifespan events gets here with its first request."""
        async with self._starting:
            if self.limiter is None:
                self.limiter = Limiter.from_env()
            if not self._started:
                await self.limiter.start()
                self._started = True
        return self.limiter

    async def close(self) -> None:
        """Close the limiter, if it was started."""
        if self._started and self.limiter is not None:
            self._started = False
            await self.limiter.close()

    async def _guard(self, limiter: Limiter, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request whose plan is not at hand."""
        try:
            entered = await self._enter(limiter, scope)
        except Refusal as refusal:
            await _answer(scope, receive, send, refusal.answer)
        except Denied as denied:
            await _answer(scope, receive, send, denial(denied.decision, self._headers))
        else:
            if isinstance(entered, Decision):
                await self._pass(entered, scope, receive, send)
            else:
                await entered.run(self._pass, scope, receive, send)

    async def _enter(self, limiter: Limiter, scope: Scope) -> Decision | _Admitted:
        """Ask for the decision. Raises Refusal or Denied."""
        token = self._token(scope)
        if not token:
            raise missing_token()
        plan = await limiter.find_plan(token, self._describe(scope))
        if isinstance(plan, Decision):
            raise Denied(plan)
        costs = self._costs(scope) if self._costs else 1
        if plan.has_slots or plan.has_charge_on:
            admitted = limiter.admit_plan(plan, costs)
            return _Admitted(admitted, await admitted.__aenter__())
        if self._by_usual_fields:
            limiter.keep_field(_only(scope, b"authorization"), token)
        decision = await limiter.decide(plan, costs)
        if not decision.allowed:
            raise Denied(decision)
        return decision

    def _pass(self, decision: Decision, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Call the application, and add to its answer what the decision says."""
        scope["sluicegate.decision"] = decision
        # The draft's fields are lists, which may stand behind the application's own as they are.
        lines = draft_lines(decision) if self._headers == "ietf" and decision.source != "fallback" else None

        # What the server gives to be awaited is handed on as it is: a coroutine around it would do nothing more.
        def adding(message: Message) -> Awaitable[None]:
            if message["type"] in STARTS:
                theirs = list(message.get("headers", ()))
                message = {**message, "headers": theirs + (self._joining(theirs, decision) if lines is None else lines)}
            return send(message)

        return self.app(scope, receive, adding)

    def _joining(self, theirs: Sequence[tuple[bytes, bytes]], decision: Decision) -> list[tuple[bytes, bytes]]:
        """Return those of our fields that may join an application's own."""
        return _encoded(joining((name for name, _ in theirs), added_headers(decision, self._headers)))

    def _describe(self, scope: Scope) -> RequestAttributes:
        peer = scope.get("client")
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        values: dict[str, str | None] = {
            "method": scope.get("method", "GET"),  # a websocket begins with one
            "path": scope["path"],
            "ip": self._proxies.client(peer[0] if peer else None, forwarded),
        }
        if self._attributes:
            values.update(self._attributes(scope))
        return RequestAttributes(values, lambda name: _header(scope, name.encode("latin-1", "replace")))


class _Admitted:
    """A request that holds an admission: slots, or charges that depend on the response."""

    def __init__(self, manager: Any, admission: Any) -> None:
        self._manager = manager
        self._admission = admission
        self._exchange = Exchange()
        self._left: asyncio.Task[None] | None = None

    async def run(self, app: Callable[..., Awaitable[None]], scope: Scope, receive: Receive, send: Send) -> None:
        """Call *app* with the decision before ASGI's three, and leave the admission once the answer is complete."""

        async def observing(message: Message) -> None:
            if self._exchange.completes(message):
                await self._leave()
            await send(message)

        try:
            await app(self._admission.decision, scope, self._exchange.listening(receive), observing)
        except asyncio.CancelledError:
            self._exchange.client_left = True
            raise
        finally:
            await self._leave()

    async def _leave(self) -> None:
        """Leave the admission, once, and see it through even where this request is cancelled."""
        self._left = self._left or begun(self._settle())
        await asyncio.shield(self._left)

    async def _settle(self) -> None:
        await self._admission.charge_for(self._exchange.status)
        # Never by an exception, which would take the charge back: a failure of the application counts by charge_on.
        await self._manager.__aexit__(None, None, None)


class _Lifespan:
    """Starts the limiter before the application starts, and closes it after that has shut down."""

    def __init__(self, door: LimitMiddleware, receive: Receive, send: Send) -> None:
        self._door = door
        self._receive_event = receive
        self._send_event = send
        self._asked_to_start = False
        self._answered = False

    async def run(self, scope: Scope) -> None:
        try:
            await self._door.app(scope, self._receive, self._send)
        except Exception:  # an application without lifespan says so by raising anything at all
            if self._answered:
                raise
        if not self._answered:
            await self._alone()

    async def _receive(self) -> Message:
        message = await self._receive_event()
        if message["type"] == "lifespan.startup":
            self._asked_to_start = True
            try:
                await self._door.start()
            except BaseException as exc:
                await self._send({"type": "lifespan.startup.failed", "message": f"Sluicegate: {exc}"})
                raise
        return message

    async def _send(self, message: Message) -> None:
        if not message["type"].startswith("lifespan."):
            raise ValueError(f"An application sent {message['type']} in answer to a lifespan event.")
        self._answered = True
        if message["type"] != "lifespan.startup.complete":
            await self._door.close()
        await self._send_event(message)

    async def _alone(self) -> None:
        """Go through the events for an application that does not."""
        if not self._asked_to_start:
            await self._receive()
        await self._send({"type": "lifespan.startup.complete"})
        await self._receive()
        await self._send({"type": "lifespan.shutdown.complete"})


async def _answer(scope: Scope, receive: Receive, send: Send, answer: Answer) -> None:
    """Give the door's own answer instead of the application's."""
    prefix = ""
    if scope["type"] == "websocket":
        await receive()  # the connection request itself
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": answer.phrase})
            return
        prefix = "websocket."
    body = b"" if scope.get("method") == "HEAD" else answer.body
    await send({"type": f"{prefix}http.response.start", "status": answer.status, "headers": _encoded(answer.headers)})
    await send({"type": f"{prefix}http.response.body", "body": body})


def _only(scope: Scope, name: bytes) -> bytes | None:
    """Return a field's value as it came, if the request has just one."""
    found = None
    for key, value in scope["headers"]:
        if key == name:
            if found is not None:
                return None
            found = value
    return found


def _header(scope: Scope, name: bytes) -> str | None:
    """Return a field's value; of a repeated one, all of them, as a list."""
    values = [value for key, value in scope["headers"] if key == name]
    return b", ".join(values).decode("latin-1") if values else None


def _encoded(headers: Iterable[Header]) -> list[tuple[bytes, bytes]]:
    return [(_name(name), value.encode("latin-1")) for name, value in headers]


@cache
def _name(name: str) -> bytes:
    """Spell a field's name as ASGI has it. There are few: those of the presets and of denials."""
    return name.lower().encode("latin-1")
