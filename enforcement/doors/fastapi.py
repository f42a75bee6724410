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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

from anyio import from_thread
from fastapi import Depends, FastAPI, params, routing
from starlette.requests import ClientDisconnect, HTTPConnection

from enforcement import aio
from enforcement.decorator import Declared, declared
from enforcement.doors._http import Refusal, TrustedProxies, check_preset
from enforcement.doors._in_code import check_scope, counted_address, counter_key
from enforcement.doors._openapi import describe_denials
from enforcement.doors._starlette import (
    Gate,
    Visit,
    VisitMiddleware,
    answer_denied,
    answer_refused,
    refusing,
    token_of,
    visit_of,
)
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.plan import Costs, check_costs

Found = str | Callable[[HTTPConnection], Any] | params.Depends
"""
Where a key, costs or attributes come from: a function of the connection, called on the event loop, or a dependency,
``Depends(...)``, which may ask for whatever FastAPI can give it.
"""

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
        headers: Preset of :meth:`Decision.headers <enforcement.plan.decision.Decision.headers>`.
        token: Returns a request's token, or None for none; None: ``Authorization: Bearer``, then ``X-API-Key``.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is believed. The server should then not rewrite client
            addresses itself (uvicorn: ``--no-proxy-headers``).
    Raises:
        ValueError: An unknown preset, a network that is none, or an application that has it installed.
        RuntimeError: The application runs already.
    """
    if any(cast(object, middleware.cls) is VisitMiddleware for middleware in app.user_middleware):
        raise ValueError("app: has Sluicegate installed already.")
    gate = Gate(limiter, check_preset(headers), token or token_of, TrustedProxies(trusted_proxies))
    app.add_middleware(VisitMiddleware, gate=gate)
    app.add_exception_handler(Denied, cast(Any, answer_denied))
    app.add_exception_handler(Refusal, cast(Any, answer_refused))
    app.router.lifespan_context = _around(app.router.lifespan_context, gate)
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
        visit = visit_of(connection)
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
        visit = visit_of(connection)
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
        visit = visit_of(connection)
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
            await asyncio.shield(held.end(visit.status))

    _by_token[dependency] = limits is None
    return dependency


async def get_limiter(connection: HTTPConnection) -> aio.Limiter:
    """Return the installed limiter; a dependency for path operations that ask it themselves."""
    return visit_of(connection).limiter


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


def _around(own: Callable[[Any], AbstractAsyncContextManager[Any]], gate: Gate) -> Any:
    """Return a lifespan that encloses the application's own, whose state it passes on."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[Any]:
        if any(any(_tokens(dependant)) for _, dependant in _operations(app)):
            await gate.limiter.start()  # limits in code need no documents, and nothing to wait for
        try:
            async with own(app) as state:
                yield state
        finally:
            await gate.limiter.close()

    return lifespan


class _Whom:
    """Whom a request counts for. Raises ValueError: a text that is no kind of key, or a scope that is none."""

    def __init__(self, key: Found, scope: str | None) -> None:
        if isinstance(key, str) and key not in ("ip", "all"):
            raise ValueError(f"key: must be 'ip', 'all', a function of the connection or Depends(...), not {key!r}.")
        self._kind = key if isinstance(key, str) else "key"
        self._scope = None if scope is None else check_scope(scope)

    def key(self, visit: Visit, found: Any) -> str | None:
        """Return the key of the counters; None for no limit. Raises TypeError and HTTPRefused: see counter_key()."""
        if self._kind == "ip":
            found = counted_address(visit.address())
        elif self._kind == "all":
            found = ""
        with refusing():
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


__all__ = ["Admission", "admit", "check", "get_limiter", "install", "limited"]
