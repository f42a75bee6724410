"""
The middleware and the error handlers of a Starlette application.

The middleware records the decisions made on each request and what the request holds. It is pure ASGI, because
Starlette's base class for middleware runs the application in a separate task, which hides when a response is complete
and when the client leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from enforcement import aio
from enforcement.async_tasks import begun
from enforcement.doors._guard import check_limiter, warn_of_both
from enforcement.doors._in_code import (
    EXEMPT,
    Group,
    Pairs,
    as_call,
    denial_without_limits,
    is_shared,
    limit_headers,
    name_of,
    named_at,
    outlives_decision,
    warn_of_unlimited,
)
from enforcement.http.addresses import TrustedProxies
from enforcement.http.asgi import POLICY_VIOLATION, STARTS, Exchange
from enforcement.http.messages import (
    PlainResponse,
    Refusal,
    RequestAttributes,
    joining,
    token_in,
    without_token,
)
from enforcement.http.usage_request import UsageRequest, usage_answer_awaited
from enforcement.model.tokens import Anonymous
from enforcement.plan.costs import Costs
from enforcement.plan.decision import Decision, Denied

_VISIT: Final = "sluicegate.visit"
MOUNTED: Final = "sluicegate_mounted"
"""Attribute of a route in mounts, with their paths. What a request has matched may hold what its client has chosen."""


class Gate:
    """The limiter and the options that one application has installed."""

    def __init__(
        self,
        limiter: aio.Limiter | None,
        preset: str,
        token: Callable[[HTTPConnection], str | None],
        proxies: TrustedProxies,
        anonymous: Anonymous | None = None,
    ) -> None:
        check_limiter(limiter, aio.Limiter)
        self._limiter = limiter
        self.preset = preset
        self.token = token
        self.proxies = proxies
        self.anonymous = anonymous

    @property
    def limiter(self) -> aio.Limiter:
        """The limiter, made from the environment if none was given. Raises ValueError if a variable is not valid."""
        if self._limiter is None:
            self._limiter = aio.Limiter.from_env()
        return self._limiter

    def install(
        self, app: Starlette, checks_tokens: Callable[[], bool], endpoints: Callable[[], Iterable[object]]
    ) -> None:
        """
        Add the middleware, error handlers and lifespan to *app*.

        Args:
            checks_tokens: Returns whether a part of the application checks tokens. Only then the start of the limiter
                is awaited, because only published policies need documents.
            endpoints: Returns all endpoints of the application.
        Raises:
            ValueError: The application has them already.
            RuntimeError: The application is already running.
        """
        if any(cast(object, middleware.cls) is VisitMiddleware for middleware in app.user_middleware):
            raise ValueError("app: Sluicegate is already installed.")
        app.add_middleware(VisitMiddleware, gate=self, check=lambda: warn_of_unlimited(endpoints()))
        # Handlers that the application has already are its own.
        app.exception_handlers.setdefault(Denied, cast(Any, answer_denied))
        app.exception_handlers.setdefault(Refusal, cast(Any, answer_refused))
        own = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncGenerator[Any]:
            if checks_tokens():
                await self.limiter.start()
            try:
                async with own(app) as state:
                    yield state
            finally:
                await self.limiter.close()

        app.router.lifespan_context = lifespan


class HTTPDenied(Denied, HTTPException):
    """
    A denial that is also an error of Starlette.

    Handlers by status receive it. An application that is mounted without an integration answers it by its status.
    """

    def __init__(self, decision: Decision) -> None:
        HTTPException.__init__(self, decision.status, decision.problem()["title"])
        self.decision = decision


class HTTPRefused(Refusal, HTTPException):
    """A refusal that is also an error of Starlette."""

    def __init__(self, refusal: Refusal) -> None:
        HTTPException.__init__(self, refusal.status, refusal.detail, dict(refusal.fields))
        self.status, self.title, self.code, self.fields = refusal.status, refusal.title, refusal.code, refusal.fields


@contextmanager
def refusing() -> Iterator[None]:
    """Raise a Refusal of the block as HTTPRefused."""
    try:
        yield
    except Refusal as refusal:
        raise HTTPRefused(refusal) from refusal


class VisitMiddleware:
    """Give each request a visit, and add the header fields of its decisions to the response."""

    def __init__(self, app: ASGIApp, gate: Gate, check: Callable[[], None]) -> None:
        self.app = app
        self.gate = gate
        check()  # the stack is built once, at the first event or request, also by a server without lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            visit = StarletteVisit(self.gate, HTTPConnection(scope))
            # Middleware between here and the path operation may copy the scope. All copies hold this visit.
            scope[_VISIT] = visit
            await visit.run(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)


class StarletteVisit:
    """One request, the decisions made on it, and the admissions it holds."""

    __slots__ = ("_connection", "_exchange", "_held", "decisions", "gate")

    def __init__(self, gate: Gate, connection: HTTPConnection) -> None:
        self.gate = gate
        self.decisions: list[Decision] = []
        self._connection = connection
        self._held: list[tuple[aio.Admission, bool]] = []
        self._exchange = Exchange()

    @property
    def limiter(self) -> aio.Limiter:
        """The limiter of the application."""
        return self.gate.limiter

    @property
    def status(self) -> int:
        """The HTTP status of the response, or, if none began, 499 if the client left and 500 otherwise."""
        return self._exchange.status

    def token(self) -> str | Anonymous:
        """Return the token of the request, or what stands for a request without one, or raise HTTPRefused."""
        shown = self.gate.token(self._connection)
        if shown:
            return shown
        with refusing():
            return without_token(shown, self.gate.anonymous)

    def key(self, group: Group, found: object, operation: str) -> str | None:
        """Return the key that a group counts the request under, or None. Raises HTTPRefused and TypeError."""
        with refusing():
            return group.key(operation, found, self.address)

    def operation(self) -> str:
        """Return the full name of the path operation, or ``app`` for routes without one, such as files."""
        scope = self._connection.scope
        endpoint = scope.get("endpoint")
        name = "app" if endpoint is None else name_of(endpoint)
        place = place_of(served_route(scope)) if is_shared(name) else ""
        return named_at(name, place) if place else name

    def address(self) -> str | None:
        """Return the address of the client, or None if it is unknown."""
        peer = self._connection.client
        forwarded = self._connection.headers.getlist("x-forwarded-for")
        return self.gate.proxies.client(peer.host if peer else None, forwarded)

    def describe(self, more: Mapping[str, str] | None) -> RequestAttributes:
        """
        Return the method, path and client address of the request, with *more*, as attributes that read headers on
        demand. Raises HTTPRefused if one is too long.
        """
        scope = self._connection.scope
        values: dict[str, str | None] = {"method": scope.get("method", "GET"), "path": scope["path"]}
        values["ip"] = self.address()
        values.update(more or {})
        with refusing():
            return RequestAttributes(values, lambda name: _header(self._connection, name))

    async def usage(self) -> PlainResponse:
        """Return the response to a request for the page of own limits."""
        gate, connection = self.gate, self._connection
        asked = UsageRequest(
            connection.scope["method"],
            lambda: gate.token(connection),
            lambda: self.describe(None),
            gate.preset,
            gate.anonymous,
        )
        return await usage_answer_awaited(self.limiter, asked)

    async def decide(self, pairs: Pairs, costs: Costs) -> Decision:
        """
        Charge the request to limits in code, hold its slots until the response is complete, and return the decision, or
        raise HTTPDenied.
        """
        limits, key = as_call(pairs)
        if outlives_decision(pairs):
            return (await self.hold(self.limiter.open_admission(limits, key, costs))).decision
        return self.passed(await self.limiter.hit(limits, key, costs))

    async def check(self, token: str | Anonymous, costs: Costs, attributes: RequestAttributes) -> Decision:
        """Charge the request to its token's policies, and return the decision, or raise HTTPDenied or HTTPRefused."""
        with refusing():
            plan = await self.limiter.find_plan(token, attributes)
        if isinstance(plan, Decision):
            return self.passed(plan)
        warn_of_both(self._connection.scope, plan.subject)
        if plan.has_slots or plan.has_charge_on:
            return (await self.hold(self.limiter.admit_plan(plan, costs, attributes))).decision
        return self.passed(self.limiter.noted(await self.limiter.decide(plan, costs), attributes))

    def passed(self, decision: Decision) -> Decision:
        """Add a decision to those shown in the response, and return it, or raise HTTPDenied if it denies."""
        self.note(decision)
        if not decision.allowed:
            raise HTTPDenied(decision)
        return decision

    def note(self, decision: Decision) -> None:
        """Add a decision to those shown in the response, once."""
        if all(known is not decision for known in self.decisions):
            self.decisions.append(decision)

    async def hold(self, opening: Awaitable[aio.Admission], *, to_settle: bool = False) -> aio.Admission:
        """
        Await an admission, keep it until the response is complete, and return it, or raise HTTPDenied.

        Args:
            to_settle: Whether the caller finishes the admission. Only its slots are freed here then.
        Raises:
            HTTPDenied, HTTPRefused: The request may not pass.
        """
        try:
            with refusing():
                admission = await opening
        except Denied as denied:
            self.note(denied.decision)
            raise HTTPDenied(denied.decision) from denied
        self._held.append((admission, to_settle))
        self.note(admission.decision)
        return admission

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, and add the header fields of the decisions to its response."""

        async def adding(message: Message) -> None:
            await send(self._with_headers(message) if message["type"] in STARTS and self.decisions else message)

        await self._exchange.run(app, scope, receive, adding, self._leave)

    def _with_headers(self, message: Message) -> Message:
        """Return a copy of the message that starts a response, with the header fields of the decisions."""
        theirs = list(message.get("headers", ()))
        ours = joining((name for name, _ in theirs), limit_headers(self.decisions, self.gate.preset))
        added = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in ours]
        return {**message, "headers": theirs + added}

    async def _leave(self) -> None:
        """Finish the admissions that the request holds, or only free the slots of one that will still be settled."""
        status = self.status
        # All are begun before the first is awaited, where this task may be cancelled.
        ending = [
            begun(admission.free_slots() if to_settle else admission.finish(status))
            for admission, to_settle in self._held
        ]
        for task in ending:
            await asyncio.shield(task)


def served_route(scope: Scope) -> Any:
    """Return the route of a request, with what the routers of FastAPI that include it have added. None: unknown."""
    route = scope.get("route")
    # Newer versions of FastAPI leave an included route as it is, and keep the prefix and the dependencies beside it.
    included = scope.get("fastapi", {}).get("effective_route_context")
    if included is None or included.original_route is not route:
        return route
    return included.starlette_route or included


def place_of(route: object) -> str:
    """Return the methods and the path of a route, or an empty string if it has no path."""
    path = getattr(route, "path_format", "")
    methods = getattr(route, "methods", None) or ()
    return path and f"{','.join(sorted(methods))}{getattr(route, MOUNTED, '')}{path}"


def visit_of(connection: HTTPConnection) -> StarletteVisit:
    visit = connection.scope.get(_VISIT)
    if not isinstance(visit, StarletteVisit):
        raise RuntimeError(
            "Sluicegate is not installed: call enforcement.doors.fastapi.install(app), or that of"
            " enforcement.doors.starlette."
        )
    return visit


async def usage(request: Request) -> Response:
    """
    Return the page on which a token sees its own limits. It is charged to none of them.

    >>> app.add_route(USAGE_PATH, usage)
    """
    answer = await visit_of(request).usage()
    return Response(answer.body, answer.status, dict(answer.headers))


setattr(usage, EXEMPT, True)


async def answer_denied(connection: Any, exc: Exception) -> Response | None:
    assert isinstance(exc, Denied)
    visit = visit_of(connection)
    visit.note(exc.decision)
    return await _answer(connection, denial_without_limits(exc.decision, visit.gate.preset))


async def answer_refused(connection: Any, exc: Exception) -> Response | None:
    assert isinstance(exc, Refusal)
    return await _answer(connection, exc.answer(visit_of(connection).gate.preset))


async def _answer(connection: HTTPConnection, answer: PlainResponse) -> Response | None:
    response = Response(answer.body, answer.status, dict(answer.headers))
    if not isinstance(connection, WebSocket):
        return response
    if "websocket.http.response" in connection.scope.get("extensions", {}):
        await connection.send_denial_response(response)
    else:
        await connection.close(POLICY_VIOLATION, answer.phrase)
    return None


def token_of(connection: HTTPConnection) -> str | None:
    return token_in(lambda name: _header(connection, name))


def _header(connection: HTTPConnection, name: str) -> str | None:
    values = connection.headers.getlist(name)
    return ", ".join(values) if values else None
