"""
What one request of a Starlette application meets: the decisions made on it, what it holds, how denials are answered.

The layer is pure ASGI. Starlette's own base class for middleware runs the application in a task of its own, which hides
from it when a response is complete and when the client leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from enforcement import aio
from enforcement.async_tasks import begun
from enforcement.decorator import has_slots
from enforcement.doors._exchange import POLICY_VIOLATION, STARTS, Exchange
from enforcement.doors._http import (
    Answer,
    Refusal,
    RequestAttributes,
    TrustedProxies,
    find_token,
    joining,
    missing_token,
)
from enforcement.doors._in_code import denial_told_elsewhere, name_of, told
from enforcement.model.limits import Limit
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.plan import Costs

_VISIT: Final = "sluicegate.visit"


class Gate:
    """What one application has installed."""

    def __init__(
        self,
        limiter: aio.Limiter | None,
        preset: str,
        token: Callable[[HTTPConnection], str | None],
        proxies: TrustedProxies,
    ) -> None:
        self._limiter = limiter
        self.preset = preset
        self.token = token
        self.proxies = proxies

    @property
    def limiter(self) -> aio.Limiter:
        """The limiter; made of the environment if there was none. Raises ValueError: a variable cannot be used."""
        if self._limiter is None:
            self._limiter = aio.Limiter.from_env()
        return self._limiter


class HTTPDenied(Denied, HTTPException):
    """
    Denied, as Starlette knows errors: handlers by status get it, and an application that is mounted without a door of
    its own answers it by its status.
    """

    def __init__(self, decision: Decision) -> None:
        HTTPException.__init__(self, decision.status, decision.problem()["title"])
        self.decision = decision


class HTTPRefused(Refusal, HTTPException):
    """A refusal, in the same way."""

    def __init__(self, refusal: Refusal) -> None:
        HTTPException.__init__(self, refusal.answer.status, str(refusal))
        self.answer, self.code = refusal.answer, refusal.code


@contextmanager
def refusing() -> Iterator[None]:
    """Raise a refusal of the block as HTTPRefused."""
    try:
        yield
    except Refusal as refusal:
        raise HTTPRefused(refusal) from refusal


class VisitMiddleware:
    """Pure ASGI: gives each request a visit, and adds what its decisions say to the response."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            visit = Visit(self.gate, HTTPConnection(scope))
            # Middleware between here and the path operation may copy the scope; all copies hold this visit.
            scope[_VISIT] = visit
            await visit.run(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Held:
    """An admission that is open until the response is complete, or until it is settled."""

    def __init__(
        self, manager: AbstractAsyncContextManager[aio.Admission], admission: aio.Admission, *, to_settle: bool
    ) -> None:
        self.admission = admission
        self.to_settle = to_settle
        self._manager = manager
        self._freeing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    def free(self) -> asyncio.Task[None]:
        """Begin to free the slots, once; what was charged may still be settled."""
        self._freeing = self._freeing or begun(self._exit())
        return self._freeing

    def end(self, status: int) -> asyncio.Task[None]:
        """Begin to charge by the answer's status, unless settled, and to free the slots."""
        self._ending = self._ending or begun(self._charge_and_exit(status))
        return self._ending

    async def _exit(self) -> None:
        # Never by an exception, which would take the charge back.
        await self._manager.__aexit__(None, None, None)

    async def _charge_and_exit(self, status: int) -> None:
        await self.admission.charge_for(status)
        await self.free()


class Visit:
    """One request: the decisions made on it, and what it holds."""

    __slots__ = ("_connection", "_exchange", "_held", "decisions", "gate")

    def __init__(self, gate: Gate, connection: HTTPConnection) -> None:
        self.gate = gate
        self.decisions: list[Decision] = []
        self._connection = connection
        self._held: list[Held] = []
        self._exchange = Exchange()

    @property
    def limiter(self) -> aio.Limiter:
        """The application's limiter."""
        return self.gate.limiter

    @property
    def status(self) -> int:
        """The response's status, or what stands for it where none began."""
        return self._exchange.status

    def token(self) -> str:
        """Return the request's token. Raises HTTPRefused: it has none."""
        token = self.gate.token(self._connection)
        if not token:
            raise HTTPRefused(missing_token())
        return token

    def operation(self) -> str:
        """Name the path operation; what has none, like files, shares one name."""
        endpoint = self._connection.scope.get("endpoint")
        return "app" if endpoint is None else name_of(endpoint)

    def address(self) -> str | None:
        """Return the client's address."""
        peer = self._connection.client
        forwarded = self._connection.headers.getlist("x-forwarded-for")
        return self.gate.proxies.client(peer.host if peer else None, forwarded)

    def describe(self, more: Mapping[str, str] | None) -> RequestAttributes:
        """Return the request's attributes. Raises HTTPRefused: one is too long."""
        scope = self._connection.scope
        values: dict[str, str | None] = {"method": scope.get("method", "GET"), "path": scope["path"]}
        values["ip"] = self.address()
        values.update(more or {})
        with refusing():
            return RequestAttributes(values, lambda name: _header(self._connection, name))

    async def decide(self, limits: tuple[Limit, ...], key: str, costs: Costs) -> Decision:
        """Charge limits in code. Raises HTTPDenied."""
        if has_slots(limits):
            return (await self.hold(self.limiter.admit(limits, key, costs))).admission.decision
        return self.passed(await self.limiter.hit(limits, key, costs))

    async def check(self, token: str, costs: Costs, attributes: RequestAttributes) -> Decision:
        """Charge published policies. Raises HTTPDenied and HTTPRefused."""
        with refusing():
            plan = await self.limiter.find_plan(token, attributes)
        if isinstance(plan, Decision):
            return self.passed(plan)
        if plan.has_slots or plan.has_charge_on:
            return (await self.hold(self.limiter.admit_plan(plan, costs))).admission.decision
        return self.passed(await self.limiter.decide(plan, costs))

    def passed(self, decision: Decision) -> Decision:
        """Return a decision that allows. Raises HTTPDenied."""
        self.note(decision)
        if not decision.allowed:
            raise HTTPDenied(decision)
        return decision

    def note(self, decision: Decision) -> None:
        """Remember a decision for the response, once."""
        if all(known is not decision for known in self.decisions):
            self.decisions.append(decision)

    async def hold(self, manager: AbstractAsyncContextManager[aio.Admission], *, to_settle: bool = False) -> Held:
        """Enter an admission. Raises HTTPDenied and HTTPRefused."""
        try:
            with refusing():
                held = Held(manager, await manager.__aenter__(), to_settle=to_settle)
        except Denied as denied:
            self.note(denied.decision)
            raise HTTPDenied(denied.decision) from denied
        self._held.append(held)
        self.note(held.admission.decision)
        return held

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its response back."""

        async def telling(message: Message) -> None:
            if self._held and self._exchange.completes(message):
                await self._leave()
            await send(self._told(message) if message["type"] in STARTS and self.decisions else message)

        try:
            await app(scope, self._exchange.listening(receive), telling)
        except asyncio.CancelledError:
            self._exchange.client_left = True
            raise
        finally:
            await self._leave()

    def _told(self, message: Message) -> Message:
        """Return the start of an answer with what was decided."""
        theirs = list(message.get("headers", ()))
        ours = joining((name for name, _ in theirs), told(self.decisions, self.gate.preset))
        added = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in ours]
        return {**message, "headers": theirs + added}

    async def _leave(self) -> None:
        """Free what is held; what may still be settled is left open, but for its slots."""
        ending = [held.free() if held.to_settle else held.end(self.status) for held in self._held]
        for task in ending:
            await asyncio.shield(task)


def visit_of(connection: HTTPConnection) -> Visit:
    visit = connection.scope.get(_VISIT)
    if not isinstance(visit, Visit):
        raise RuntimeError("Sluicegate is not installed: call enforcement.doors.fastapi.install(app).")
    return visit


async def answer_denied(connection: Any, exc: Exception) -> Response | None:
    assert isinstance(exc, Denied)
    visit = visit_of(connection)
    visit.note(exc.decision)
    return await _answer(connection, denial_told_elsewhere(exc.decision, visit.gate.preset))


async def answer_refused(connection: Any, exc: Exception) -> Response | None:
    assert isinstance(exc, Refusal)
    return await _answer(connection, exc.answer)


async def _answer(connection: HTTPConnection, answer: Answer) -> Response | None:
    response = Response(answer.body, answer.status, dict(answer.headers))
    if not isinstance(connection, WebSocket):
        return response
    if "websocket.http.response" in connection.scope.get("extensions", {}):
        await connection.send_denial_response(response)
    else:
        await connection.close(POLICY_VIOLATION, answer.phrase)
    return None


def token_of(connection: HTTPConnection) -> str | None:
    return find_token(_header(connection, "authorization"), _header(connection, "x-api-key"))


def _header(connection: HTTPConnection, name: str) -> str | None:
    values = connection.headers.getlist(name)
    return ", ".join(values) if values else None
