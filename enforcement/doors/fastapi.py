"""
The door for FastAPI: limits as dependencies of path operations, and one call that installs what they need.

>>> app = FastAPI()
>>> install(app)
>>> @app.get("/search", dependencies=[Depends(limited("100/minute", key="ip"))])
... async def search(): ...

FastAPI reads a request's body before it asks any dependency; where bodies are large and denials many, put
:class:`enforcement.doors.asgi.LimitMiddleware` before the application instead, or as well.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from anyio import from_thread
from fastapi import Depends, FastAPI, params, routing
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from enforcement import aio
from enforcement.decision import Decision, Denied
from enforcement.doors._http import (
    CLIENT_GONE,
    Answer,
    Progress,
    Refusal,
    RequestAttributes,
    TrustedProxies,
    added_headers,
    check_preset,
    denial,
    find_token,
    joining,
    missing_token,
)
from enforcement.doors._in_code import check_scope, counted_address, counter_key, name_of, told, without
from enforcement.doors._openapi import describe_denials
from enforcement.limited import Declared, declared, has_slots
from enforcement.limits import Limit
from enforcement.plans import Costs, check_costs

Found = str | Callable[[HTTPConnection], Any] | params.Depends
"""
Where a key, costs or attributes come from: a function of the connection, called on the event loop, or a dependency,
``Depends(...)``, which may ask for whatever FastAPI can give it.
"""

POLICY_VIOLATION: Final = 1008
_VISIT: Final = "sluicegate.visit"
_STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
_BODIES: Final = frozenset({"http.response.body", "websocket.http.response.body"})
_leaving: set[asyncio.Task[None]] = set()
"""Admissions that are being left: the event loop itself holds on to no task."""
_by_token: WeakKeyDictionary[Callable[..., Any], bool] = WeakKeyDictionary()
"""The dependencies that this module made, and whether they need a token; what OpenAPI says of them hangs on it."""


def install(
    app: FastAPI,
    limiter: aio.Limiter | None = None,
    *,
    headers: str = "ietf",
    token: Callable[[HTTPConnection], str | None] | None = None,
    trusted_proxies: tuple[str, ...] | list[str] = (),
) -> None:
    """
    Make an application ready for the dependencies of this module.

    Their decisions are told in the header fields of every response, of whatever class; denials are answered as
    problems (RFC 9457), also where a path operation itself raises Denied; OpenAPI documents them. The limiter starts
    before the application's own lifespan and closes after it. An application that is mounted in another installs its
    own; its limiter starts with the first request then.

    Args:
        limiter: None: made of the environment when the application starts.
        headers: Preset of :meth:`Decision.headers <enforcement.decision.Decision.headers>`.
        token: Returns a request's token, or None for none; None: ``Authorization: Bearer``, then ``X-API-Key``.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is believed. The server should then not rewrite client
            addresses itself (uvicorn: ``--no-proxy-headers``).
    Raises:
        ValueError: An unknown preset, a network that is none, or an application that has it installed.
        RuntimeError: The application runs already.
    """
    if any(cast(object, middleware.cls) is _Middleware for middleware in app.user_middleware):
        raise ValueError("app: has Sluicegate installed already.")
    gate = _Gate(limiter, check_preset(headers), token or _token, TrustedProxies(trusted_proxies))
    app.add_middleware(_Middleware, gate=gate)
    app.add_exception_handler(Denied, cast(Any, _answer_denied))
    app.add_exception_handler(Refusal, cast(Any, _answer_refused))
    app.router.lifespan_context = gate.around(app.router.lifespan_context)
    _document(app)


def limited(
    limits: Declared, *, key: Found, scope: str | None = None, costs: Costs | Found = 1
) -> Callable[..., Awaitable[Decision | None]]:
    """
    Return a dependency that charges a request to limits that stand in code; its value is the decision.

    A slot of a concurrency limit is held until the response is complete.

    Args:
        limits: ``"100/minute"``, ``"10/second; 1000/day"``, a Limit, or several: one atomic decision.
        key: Whom a request counts for: ``"ip"`` (of an IPv6 address the /64, all of which one client has), ``"all"``
            for everybody together, or see :data:`Found`. What is found is a text, a whole number or a UUID; None means
            that the limit does not fall on this request, and that there is no decision.
        scope: Name of the counters. None: the path operation's own; one name in several places is one limit.
        costs: What a request costs; or see :data:`Found`.
    Raises:
        ValueError: Limits, key, scope or costs that cannot be used.
        TypeError: Limits that are none.
    """
    values, whom = declared(limits), _Whom(key, scope)
    finding_key, finding_costs = _finding(key), _finding(_checked(costs))

    async def dependency(
        connection: HTTPConnection, caller: Any = finding_key, cost: Any = finding_costs
    ) -> Decision | None:
        visit = _visit(connection)
        name = whom.key(visit, caller)
        return None if name is None else await visit.decide(values, name, cost)

    _by_token[dependency] = False
    return dependency


def check(*, costs: Costs | Found = 1, attributes: Found | None = None) -> Callable[..., Awaitable[Decision]]:
    """
    Return a dependency that charges a request to the published policies of its token; its value is the decision.

    Slots are held until the response is complete, and ``charge_on`` obeys its status.

    Args:
        costs: What a request costs; or see :data:`Found`.
        attributes: Where attributes come from, beside ``method``, ``path``, ``ip`` and ``header.<name>``.
    Raises:
        ValueError: Costs that cannot be used.
    """
    finding_costs, finding_attributes = _finding(_checked(costs)), _finding(attributes)

    async def dependency(
        connection: HTTPConnection, cost: Any = finding_costs, more: Any = finding_attributes
    ) -> Decision:
        visit = _visit(connection)
        return await visit.check(visit.token(), cost, visit.describe(more))

    _by_token[dependency] = True
    return dependency


def admit(
    limits: Declared | None = None,
    *,
    key: Found | None = None,
    scope: str | None = None,
    costs: Costs | Found = 1,
    attributes: Found | None = None,
) -> Callable[..., AsyncIterator[Admission]]:
    """
    Return a dependency that charges an estimate and gives an :class:`Admission` to settle with the real cost.

    An exception that leaves the path operation gives the estimate back, unless settled. A client that leaves does not:
    what it was sent may have cost as much. Slots are free when the response is complete, whatever background tasks
    still do; they, and a stream's own code, may still settle.

    Args:
        limits: Limits in code, which need *key*; None: the published policies of the request's token.
        key, scope, costs, attributes: As of :func:`limited` and :func:`check`.
    Raises:
        ValueError, TypeError: As there; or limits without a key.
    """
    if limits is not None and key is None:
        raise ValueError("key: limits in code need one.")
    values = None if limits is None else declared(limits)
    whom = _Whom(key or "all", scope)
    finding_key, finding_costs, finding_attributes = _finding(key), _finding(_checked(costs)), _finding(attributes)

    async def dependency(
        connection: HTTPConnection,
        caller: Any = finding_key,
        cost: Any = finding_costs,
        more: Any = finding_attributes,
    ) -> AsyncIterator[Admission]:
        visit = _visit(connection)
        if values is None:
            manager = visit.limiter.admit(visit.token(), costs=cost, attributes=visit.describe(more))
        else:
            name = whom.key(visit, caller)
            if name is None:
                yield Admission(None)
                return
            manager = visit.limiter.admit(values, name, cost)
        held = await visit.hold(manager, to_settle=True)
        try:
            yield Admission(held.admission)
        except ClientDisconnect:
            raise
        except Exception:
            await held.admission.cancel()
            raise
        finally:
            await held.end(visit.status)

    _by_token[dependency] = limits is None
    return dependency


async def get_limiter(connection: HTTPConnection) -> aio.Limiter:
    """Return the installed limiter; a dependency for path operations that ask it themselves."""
    return _visit(connection).limiter


class Admission:
    """
    A request that was admitted on an estimate.

    Attributes:
        decision: What admitted it; None where no limit falls on the request.
    """

    def __init__(self, admission: aio.Admission | None) -> None:
        self.decision = None if admission is None else admission.decision
        self._admission = admission

    async def settle(self, costs: Costs) -> None:
        """Replace the estimate by the real cost, once. Raises ValueError: costs that cannot be read."""
        check_costs(costs)
        if self._admission is not None:
            await self._admission.settle(costs)

    def settle_from_thread(self, costs: Costs) -> None:
        """Settle in a ``def`` path operation, which FastAPI runs in a thread, or in a ``def`` background task."""
        from_thread.run(self.settle, costs)

    async def cancel(self) -> None:
        """Give everything back, as an exception does."""
        if self._admission is not None:
            await self._admission.cancel()


class _Gate:
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

    def around(self, own: Callable[[Any], AbstractAsyncContextManager[Any]]) -> Any:
        """Return a lifespan that encloses the application's own, whose state it passes on."""

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncGenerator[Any]:
            if any(any(_tokens(dependant)) for _, dependant in _operations(app)):
                await self.limiter.start()  # limits in code need no documents, and nothing to wait for
            try:
                async with own(app) as state:
                    yield state
            finally:
                await self.limiter.close()

        return lifespan


class _Middleware:
    """Pure ASGI: gives each request a visit, and adds what its decisions say to the response."""

    def __init__(self, app: ASGIApp, gate: _Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            visit = _Visit(self.gate, HTTPConnection(scope))
            # Middleware between here and the path operation may copy the scope; all copies hold this visit.
            scope[_VISIT] = visit
            await visit.run(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)


class _Held:
    """An admission that is open until the response is complete, or until it is settled."""

    def __init__(
        self, manager: AbstractAsyncContextManager[aio.Admission], admission: aio.Admission, *, to_settle: bool
    ) -> None:
        self.admission = admission
        self.to_settle = to_settle
        self._manager = manager
        self._freeing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    async def free(self) -> None:
        """Free the slots; what was charged may still be settled."""
        self._freeing = self._freeing or _started(self._exit())
        await asyncio.shield(self._freeing)

    async def end(self, status: int) -> None:
        """Charge by the answer's status, unless settled, and free the slots."""
        self._ending = self._ending or _started(self._charge_and_exit(status))
        await asyncio.shield(self._ending)

    async def _exit(self) -> None:
        # Never by an exception, which would take the charge back.
        await self._manager.__aexit__(None, None, None)

    async def _charge_and_exit(self, status: int) -> None:
        await self.admission.charge_for(status)
        await self.free()


def _started(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begin what is seen through even where the request is cancelled, as often as anyio cancels it."""
    task = asyncio.ensure_future(work)
    _leaving.add(task)
    task.add_done_callback(_leaving.discard)
    return task


class _Visit:
    """One request: the decisions made on it, and what it holds."""

    __slots__ = ("_client_left", "_connection", "_held", "_progress", "decisions", "gate")

    def __init__(self, gate: _Gate, connection: HTTPConnection) -> None:
        self.gate = gate
        self.decisions: list[Decision] = []
        self._connection = connection
        self._held: list[_Held] = []
        self._progress = Progress()
        self._client_left = False

    @property
    def limiter(self) -> aio.Limiter:
        """The application's limiter."""
        return self.gate.limiter

    @property
    def status(self) -> int:
        """The response's status, or what stands for it where none began."""
        return self._progress.status or (CLIENT_GONE if self._client_left else 500)

    def token(self) -> str:
        """Return the request's token. Raises Refusal: it has none."""
        token = self.gate.token(self._connection)
        if not token:
            raise missing_token()
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
        """Return the request's attributes. Raises Refusal: one is too long."""
        scope = self._connection.scope
        values: dict[str, str | None] = {"method": scope.get("method", "GET"), "path": scope["path"]}
        values["ip"] = self.address()
        values.update(more or {})
        return RequestAttributes(values, lambda name: _header(self._connection, name))

    async def decide(self, limits: tuple[Limit, ...], key: str, costs: Costs) -> Decision:
        """Charge limits in code. Raises Denied."""
        if has_slots(limits):
            return (await self.hold(self.limiter.admit(limits, key, costs))).admission.decision
        return self.passed(await self.limiter.hit(limits, key, costs))

    async def check(self, token: str, costs: Costs, attributes: RequestAttributes) -> Decision:
        """Charge published policies. Raises Denied."""
        plan = await self.limiter.find_plan(token, attributes)
        if isinstance(plan, Decision):
            return self.passed(plan)
        if plan.has_slots or plan.has_charge_on:
            return (await self.hold(self.limiter.admit_plan(plan, costs))).admission.decision
        return self.passed(await self.limiter.decide(plan, costs))

    def passed(self, decision: Decision) -> Decision:
        """Return a decision that allows. Raises Denied."""
        self.note(decision)
        if not decision.allowed:
            raise Denied(decision)
        return decision

    def note(self, decision: Decision) -> None:
        """Remember a decision for the response, once."""
        if all(known is not decision for known in self.decisions):
            self.decisions.append(decision)

    async def hold(self, manager: AbstractAsyncContextManager[aio.Admission], *, to_settle: bool = False) -> _Held:
        """Enter an admission. Raises Denied."""
        try:
            held = _Held(manager, await manager.__aenter__(), to_settle=to_settle)
        except Denied as denied:
            self.note(denied.decision)
            raise
        self._held.append(held)
        self.note(held.admission.decision)
        return held

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its response back."""

        async def listening() -> Message:
            message = await receive()
            self._client_left |= message["type"] in ("http.disconnect", "websocket.disconnect")
            return message

        async def telling(message: Message) -> None:
            if message["type"] in _STARTS:
                message = self._begin(message)
            elif self._held and message["type"] in _BODIES:
                complete = self._progress.ends_with(len(message.get("body", b"")))
                if complete or not message.get("more_body", False):
                    await self._leave()
            await send(message)

        try:
            await app(scope, listening, telling)
        except asyncio.CancelledError:
            self._client_left = True
            raise
        finally:
            await self._leave()

    def _begin(self, message: Message) -> Message:
        theirs = list(message.get("headers", ()))
        if self._held:
            length = next((value.decode("latin-1") for name, value in theirs if name == b"content-length"), None)
            self._progress.begin(message.get("status", 101), length)
        if not self.decisions:
            return message
        ours = joining((name.decode("latin-1") for name, _ in theirs), told(self.decisions, self.gate.preset))
        added = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in ours]
        return {**message, "headers": theirs + added}

    async def _leave(self) -> None:
        """Free what is held; what may still be settled is left open, but for its slots."""
        for held in self._held:
            await (held.free() if held.to_settle else held.end(self.status))


def _visit(connection: HTTPConnection) -> _Visit:
    visit = connection.scope.get(_VISIT)
    if not isinstance(visit, _Visit):
        raise RuntimeError("Sluicegate is not installed: call enforcement.doors.fastapi.install(app).")
    return visit


async def _answer_denied(connection: Any, exc: Exception) -> Response | None:
    assert isinstance(exc, Denied)
    visit = _visit(connection)
    visit.note(exc.decision)
    answer = denial(exc.decision, visit.gate.preset)
    # The middleware tells them, with those of the request's other decisions.
    headers = without(answer.headers, added_headers(exc.decision, visit.gate.preset))
    return await _answer(connection, Answer(answer.status, tuple(headers), answer.body))


async def _answer_refused(connection: Any, exc: Exception) -> Response | None:
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


class _Whom:
    """Whom a request counts for. Raises ValueError: a text that is no kind of key, or a scope that is none."""

    def __init__(self, key: Found, scope: str | None) -> None:
        if isinstance(key, str) and key not in ("ip", "all"):
            raise ValueError(f"key: must be 'ip', 'all', a function of the connection or Depends(...), not {key!r}.")
        self._kind = key if isinstance(key, str) else "key"
        self._scope = None if scope is None else check_scope(scope)

    def key(self, visit: _Visit, found: Any) -> str | None:
        """Return the key of the counters; None for no limit. Raises TypeError and Refusal: see counter_key()."""
        if self._kind == "ip":
            found = counted_address(visit.address())
        elif self._kind == "all":
            found = ""
        return counter_key(self._scope or visit.operation(), self._kind, found)


def _checked(costs: Any) -> Any:
    return costs if callable(costs) or isinstance(costs, params.Depends) else check_costs(costs)


def _finding(what: Any) -> Any:
    """Return the dependency that finds a value; a value that is one already is given as it is."""
    if isinstance(what, params.Depends):
        return what

    async def found(connection: HTTPConnection) -> Any:
        value = what(connection) if callable(what) else what
        return await value if inspect.isawaitable(value) else value

    return Depends(found)


def _token(connection: HTTPConnection) -> str | None:
    return find_token(_header(connection, "authorization"), _header(connection, "x-api-key"))


def _header(connection: HTTPConnection, name: str) -> str | None:
    values = connection.headers.getlist(name)
    return ", ".join(values) if values else None


# What OpenAPI says.


def _document(app: FastAPI) -> None:
    """Let OpenAPI say which operations may be denied, and how."""
    own = app.openapi

    def openapi() -> dict[str, Any]:
        schema = own()
        for route, dependant in _operations(app):
            needs = list(_tokens(dependant))
            for method in getattr(route, "methods", None) or () if needs else ():
                operation = schema.get("paths", {}).get(route.path_format, {}).get(method.lower())
                if operation is not None:
                    describe_denials(schema, operation["responses"], by_token=any(needs))
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(app: FastAPI) -> Iterator[tuple[Any, Any]]:
    """Give each route that has dependencies, and them; included routers are routes of their own in newer FastAPIs."""
    flatten: Callable[[Any], Any] = getattr(routing, "iter_route_contexts", iter)
    for route in flatten(app.routes):
        dependant = getattr(route, "dependant", None)
        if dependant is not None:
            yield route, dependant


def _tokens(dependant: Any) -> Iterator[bool]:
    """Tell for each of our dependencies below a path operation whether it needs a token."""
    for child in dependant.dependencies:
        if child.call in _by_token:
            yield _by_token[child.call]
        yield from _tokens(child)
