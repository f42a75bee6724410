"""
Integration for Starlette. Limits are decorators of endpoints.

>>> @limited("100/minute", key="ip")
... async def search(request): ...
>>> app = Starlette(routes=[Route("/search", search)])
>>> install(app)

To check the published policies of every request, put :class:`enforcement.doors.asgi.LimitMiddleware` in front of the
application instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import wraps
from typing import Any, Final, Literal, TypeVar

from enforcement.extras import Requirement

with Requirement("The Starlette integration", "sluicegate[starlette]"):
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import HTTPConnection
    from starlette.routing import BaseRoute, Match
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket

from enforcement import aio
from enforcement.decorator import Declared, chosen
from enforcement.doors._in_code import EXEMPT, LIMITED, Group, beside, groups_of, name_at, name_of, note_wrapped
from enforcement.doors._starlette import MOUNTED, Gate, place_of, token_of, usage, visit_of
from enforcement.http.addresses import TrustedProxies
from enforcement.http.limits_page import USAGE_PATH
from enforcement.http.messages import check_anonymous, check_preset
from enforcement.plan.costs import Costs, check_costs

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Key = Literal["ip", "all"] | Callable[[HTTPConnection], object]

_BY_TOKEN: Final = "sluicegate_by_token"


class EndpointRule:
    """The result of :func:`limited` or :func:`check`. It decorates an endpoint, or is the default of an application."""

    by_token = False
    groups: tuple[Group, ...] = ()

    async def charge(self, connection: HTTPConnection, operation: str) -> None:
        """
        Charge a request.

        Args:
            operation: The full name of its endpoint.
        Raises:
            Denied, Refusal: The request may not pass.
        """
        raise NotImplementedError

    def __call__(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint with this rule, which is charged before it runs."""
        if isinstance(endpoint, type):
            raise TypeError(f"endpoint: must be a function; decorate the methods of a class, got {endpoint!r}.")
        operation, awaited = name_of(endpoint), inspect.iscoroutinefunction(endpoint)
        others: tuple[EndpointRule, ...] = getattr(endpoint, LIMITED, ())
        rule = copy(self)
        rule.groups = beside(self.groups, [group for other in others for group in other.groups])

        @wraps(endpoint)
        async def limited_endpoint(*args: object, **kwargs: object) -> Any:
            connection = _connection((*args, *kwargs.values()))
            await rule.charge(connection, _counted_as(endpoint, operation, connection))
            if awaited:
                return await endpoint(*args, **kwargs)
            return await run_in_threadpool(endpoint, *args, **kwargs)

        decorated: Any = limited_endpoint
        setattr(decorated, LIMITED, (rule, *others))
        note_wrapped(endpoint)
        setattr(decorated, _BY_TOKEN, self.by_token or getattr(endpoint, _BY_TOKEN, False))
        return decorated  # type: ignore[no-any-return]


class _LimitedEndpoint(EndpointRule):
    def __init__(self, limits: object, key: object, scope: str | None, costs: object) -> None:
        self.groups = groups_of(limits, key, scope, costs, source="a function of the connection")
        self._costs = costs

    async def charge(self, connection: HTTPConnection, operation: str) -> None:
        visit, pairs = visit_of(connection), []
        for group in self.groups:
            key = visit.key(group, await _found(group.find, connection), operation)
            if key is None:
                continue
            limits = chosen(await _found(group.limits, connection)) if callable(group.limits) else group.limits
            if limits is not None:
                pairs.append((limits, key))
        if pairs:
            await visit.decide(pairs, await _found(self._costs, connection))


class _CheckedEndpoint(EndpointRule):
    by_token = True

    def __init__(self, costs: Any, attributes: Callable[[HTTPConnection], Any] | None) -> None:
        self._costs = costs if callable(costs) else check_costs(costs)
        self._attributes = attributes

    async def charge(self, connection: HTTPConnection, operation: str) -> None:
        visit = visit_of(connection)
        attributes = visit.describe(await _found(self._attributes, connection))
        await visit.check(visit.token(), await _found(self._costs, connection), attributes)


def install(
    app: Starlette,
    limiter: aio.Limiter | None = None,
    *,
    default: EndpointRule | None = None,
    headers: str = "ietf",
    token: Callable[[HTTPConnection], str | None] | None = None,
    trusted_proxies: tuple[str, ...] | list[str] = (),
    anonymous: str | None = None,
) -> None:
    """
    Add the middleware, error handlers and lifespan that the decorators of this module need to *app*.

    Every response gets the header fields of the decisions on its request. Denials are answered as problems (RFC 9457),
    also if an endpoint itself raises Denied, unless *app* has a handler for Denied. The limiter starts before the
    application's own lifespan and closes after it.

    Args:
        limiter: None: one is made from the environment when the application starts.
        default: The rule of all endpoints that have none of their own and are not exempt. A request that reaches no
            endpoint is not charged.
        headers: Preset of :meth:`Decision.headers <enforcement.plan.decision.Decision.headers>`.
        token: Returns the token of a request, or None. By default ``Authorization: Bearer``, then ``X-API-Key``. An
            empty string is a token that is not valid.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is trusted. The server should then not rewrite client
            addresses itself (uvicorn: ``--no-proxy-headers``).
        anonymous: Slug of the project that requests without a token count for, in :func:`check`. Its anonymous policy
            decides on them. None: they are refused with 401, as tokens that are not valid always are.
    Raises:
        TypeError: *default* is not a rule.
        ValueError: The preset, a network or the project is not valid, or the application has it installed already.
        RuntimeError: The application is already running.
    """
    if default is not None and not isinstance(default, EndpointRule):
        raise TypeError(f"default: must be what limited() or check() returns, got {default!r}.")
    proxies, project = TrustedProxies(trusted_proxies), check_anonymous(anonymous)
    gate = Gate(limiter, check_preset(headers), token or token_of, proxies, project)
    by_default = default is not None and default.by_token
    gate.install(
        app,
        lambda: by_default or any(getattr(endpoint, _BY_TOKEN, False) for endpoint in _endpoints(app.routes)),
        lambda: _endpoints(app.routes),
    )
    if default is not None:
        # Inside the error handlers and all middleware, and before the routes.
        app.router.middleware_stack = _Default(app.router.middleware_stack, default, app)


def limited(
    limits: Declared | Callable[[HTTPConnection], object] | Sequence[tuple[object, Key]],
    *,
    key: Key | None = None,
    scope: str | None = None,
    costs: Costs | Callable[[HTTPConnection], object] = 1,
) -> EndpointRule:
    """
    Return a decorator of endpoints, sync or async, that charges each request to limits in code.

    A slot of a concurrency limit is held until the response is complete.

    Args:
        limits: ``"100/minute"``, ``"10/second; 1000/day"``, a Limit, or several. Several are one atomic decision. Or a
            function of the connection that returns them, or None if no limit applies. Or pairs of
            limits and a key, which are one decision, too, such as ``[("50/minute", "ip"), ("100/minute", "all")]``.
        key: Whom a request counts for. ``"ip"`` is the client's address, or the /64 network of an IPv6 address.
            ``"all"`` is everybody together. A function of the connection, sync or async, returns a string, an integer
            or a UUID, or None to exempt the request.
        scope: Name of the counters. None: that of the endpoint. Endpoints of the same scope share counters.
        costs: The costs of a request, or a function of the connection that returns them.
    Raises:
        ValueError: Limits, key, scope or costs are not valid.
        TypeError: *limits* holds something that is not a limit.
    """
    return _LimitedEndpoint(limits, key, scope, costs)


def check(
    *,
    costs: Costs | Callable[[HTTPConnection], object] = 1,
    attributes: Callable[[HTTPConnection], object] | None = None,
) -> EndpointRule:
    """
    Return a decorator of endpoints that charges each request to the published policies of its token.

    Slots are held until the response is complete; ``charge_on`` looks at its status.

    Args:
        costs: The costs of a request, or a function of the connection that returns them.
        attributes: Returns attributes to add to ``method``, ``path``, ``ip`` and ``header.<name>``.
    Raises:
        ValueError: The costs are not valid.
    """
    return _CheckedEndpoint(costs, attributes)


def exempt(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint, a function or a class, as exempt from the default of :func:`install`, and return it."""
    setattr(endpoint, EXEMPT, True)
    return endpoint


def get_limiter(connection: HTTPConnection) -> aio.Limiter:
    """Return the installed limiter, for endpoints that use it directly."""
    return visit_of(connection).limiter


class _Default:
    """Charge a request to the default rule if its endpoint has no rule of its own."""

    def __init__(self, app: ASGIApp, rule: EndpointRule, owner: Starlette) -> None:
        self._app = app
        self._rule = rule
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            endpoint, path = _endpoint(self._owner.routes, scope)
            if endpoint is not None and not (getattr(endpoint, LIMITED, False) or getattr(endpoint, EXEMPT, False)):
                web = scope["type"] == "websocket"
                connection = WebSocket(scope, receive, send) if web else HTTPConnection(scope)
                await self._rule.charge(connection, name_at(path, endpoint, endpoint))
        await self._app(scope, receive, send)


def _endpoint(routes: Iterable[BaseRoute], scope: Mapping[str, object]) -> tuple[object, str]:
    """Return the endpoint that a request will reach, or None, and the place of its route."""
    for route in routes:
        match, child = route.matches(dict(scope))
        if match is Match.FULL:
            inner = getattr(route, "routes", None)
            return _endpoint(inner, {**scope, **child}) if inner else (child.get("endpoint"), place_of(route))
    return None, ""


def _counted_as(endpoint: object, operation: str, connection: HTTPConnection) -> str:
    """Return the name of the counters of a function with the full name *operation*, which is called for a request."""
    route = connection.scope.get("route")
    if "<" not in operation or route is None:  # older versions of Starlette do not tell the route
        return operation
    return name_at(place_of(route), endpoint, connection.scope.get("endpoint"))


def _endpoints(routes: Iterable[BaseRoute], mounted: str = "") -> Iterator[object]:
    """Yield all endpoints, and note at each route where it is mounted."""
    for route in routes:
        if mounted:
            setattr(route, MOUNTED, mounted)
        yield getattr(route, "endpoint", None)
        inner = mounted + (getattr(route, "path", "") or getattr(route, "host", ""))
        yield from _endpoints(getattr(route, "routes", None) or (), inner)


async def _found(what: Any, connection: HTTPConnection) -> Any:
    """Return what a function returns for the connection, awaited if need be, or a value that is no function."""
    value = what(connection) if callable(what) else what
    return await value if inspect.isawaitable(value) else value


def _connection(arguments: Iterable[object]) -> HTTPConnection:
    for argument in arguments:
        if isinstance(argument, HTTPConnection):
            return argument
    raise TypeError("A limited endpoint must be called with its request or websocket.")


__all__ = ["USAGE_PATH", "EndpointRule", "check", "exempt", "get_limiter", "install", "limited", "usage"]
