"""
Integration for FastAPI. Limits are dependencies of path operations.

>>> app = FastAPI()
>>> install(app)
>>> @app.get("/search", dependencies=[Depends(limited("100/minute", key="ip"))])
... async def search(): ...

FastAPI reads the body of a request before it runs any dependency. If bodies are large and many requests are denied, put
:class:`enforcement.doors.asgi.LimitMiddleware` in front of the application instead, or as well.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from weakref import WeakKeyDictionary

from enforcement.extras import Requirement

with Requirement("The FastAPI integration", "sluicegate[fastapi]"):
    from anyio import from_thread
    from fastapi import Depends, FastAPI, params, routing
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, HTTPConnection
    from starlette.routing import Mount

from enforcement import aio
from enforcement.decorator import Declared, chosen
from enforcement.doors._in_code import LIMITED, Group, Pairs, as_call, beside, groups_of, logger, name_of, note_wrapped
from enforcement.doors._openapi import describe_denials
from enforcement.doors._starlette import Gate, StarletteVisit, served_route, token_of, usage, visit_of
from enforcement.http.addresses import TrustedProxies
from enforcement.http.limits_page import USAGE_PATH
from enforcement.http.messages import check_anonymous, check_preset
from enforcement.plan.costs import Costs, check_costs
from enforcement.plan.decision import Decision

if TYPE_CHECKING:
    from fastapi.dependencies.models import Dependant

    from enforcement.metering.reported import ReportedUsage

Event = TypeVar("Event")

Found = Callable[[HTTPConnection], object] | params.Depends
"""
Where a key, limits, costs or attributes come from.

Either a function of the connection, called on the event loop, or a dependency, ``Depends(...)``.
"""

Chooser = Found
"""Where limits come from that depend on the request, as for :data:`Found`. None: no limit applies to the request."""

Key = Literal["ip", "all"] | Found

_SOURCE: Final = "a function of the connection or Depends(...)"

_by_token: WeakKeyDictionary[Callable[..., object], bool] = WeakKeyDictionary()
"""The dependencies made here, and whether each needs a token. OpenAPI documents their denials accordingly."""

_groups_of: WeakKeyDictionary[Callable[..., object], tuple[Group, ...]] = WeakKeyDictionary()
"""The limits in code of these dependencies."""
_NUMBERED: Final = "sluicegate_numbered"


def install(
    app: FastAPI,
    limiter: aio.Limiter | None = None,
    *,
    headers: str = "ietf",
    token: Callable[[HTTPConnection], str | None] | None = None,
    trusted_proxies: tuple[str, ...] | list[str] = (),
    anonymous: str | None = None,
) -> None:
    """
    Add the middleware, error handlers, lifespan and documentation that the dependencies of this module need to *app*.

    Every response gets the header fields of the decisions on its request. Denials are answered as problems (RFC 9457),
    also if a path operation itself raises Denied, unless *app* has a handler for Denied. OpenAPI documents them. The
    limiter starts before the application's own lifespan and closes after it. Install a mounted application separately;
    its limiter then starts at the first request.

    Args:
        limiter: None: one is made from the environment when the application starts.
        headers: Preset of :meth:`Decision.headers <enforcement.plan.decision.Decision.headers>`.
        token: Returns the token of a request, or None. By default ``Authorization: Bearer``, then ``X-API-Key``. An
            empty string is a token that is not valid.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is trusted. The server should then not rewrite client
            addresses itself (uvicorn: ``--no-proxy-headers``).
        anonymous: Slug of the project that requests without a token count for, in :func:`check` and :func:`admit`. Its
            anonymous policy decides on them. None: they are refused with 401, as tokens that are not valid always are.
    Raises:
        ValueError: The preset, a network or the project is not valid, or the application has it installed already.
        RuntimeError: The application is already running.
    """
    proxies, project = TrustedProxies(trusted_proxies), check_anonymous(anonymous)
    gate = Gate(limiter, check_preset(headers), token or token_of, proxies, project)
    gate.install(
        app,
        lambda: any(any(_tokens(dependant)) for _, dependant in _operations(app)),
        lambda: _endpoints(app),
    )
    _document(app)


def limited(
    limits: Declared | Chooser | Sequence[tuple[object, Key]],
    *,
    key: Key | None = None,
    scope: str | None = None,
    costs: Costs | Found = 1,
) -> Callable[..., Awaitable[Decision | None]]:
    """
    Return a coroutine function for ``Depends`` that charges a request to limits in code and returns a decision or None.

    Its value is the decision. A slot of a concurrency limit is held until the response is complete. It also decorates
    path operations, below ``@app.get(...)`` (from Python 3.12 on).

    Args:
        limits: ``"100/minute"``, ``"10/second; 1000/day"``, a Limit, or several. Several are one atomic decision. Or a
            source of them, see :data:`Chooser`. Or pairs of limits and a key, which are one decision, too, such as
            ``[("50/minute", "ip"), ("100/minute", "all")]``.
        key: Whom a request counts for. ``"ip"`` is the client's address, or the /64 network of an IPv6 address.
            ``"all"`` is everybody together. Anything else is a source, see :data:`Found`, of a string, an integer or a
            UUID; None exempts the request, and there is no decision.
        scope: Name of the counters. None: that of the path operation. Dependencies of the same scope share counters.
        costs: The costs of a request, or their source, see :data:`Found`.
    Raises:
        ValueError: Limits, key, scope or costs are not valid.
        TypeError: *limits* holds something that is not a limit.
    """
    groups = groups_of(limits, key, scope, costs, source=_SOURCE, is_source=_is_source)
    finding_groups, finding_costs = _finding_groups(groups), _finding(costs)

    async def dependency(
        connection: HTTPConnection, found: Any = finding_groups, cost: Any = finding_costs
    ) -> Decision | None:
        visit = visit_of(connection)
        pairs = _pairs(visit, _numbered(connection, made, groups), found)
        return await visit.decide(pairs, cost) if pairs else None

    made = _decorating(dependency)
    _by_token[made], _groups_of[made] = False, groups
    return made


def check(*, costs: Costs | Found = 1, attributes: Found | None = None) -> Callable[..., Awaitable[Decision]]:
    """
    Return a coroutine function for ``Depends``, which charges a request to its token's policies and returns the
    decision.

    Its value is the decision. Slots are held until the response is complete; ``charge_on`` looks at its status.

    Args:
        costs: The costs of a request, or their source, see :data:`Found`.
        attributes: Source of attributes to add to ``method``, ``path``, ``ip`` and ``header.<name>``.
    Raises:
        ValueError: The costs are not valid.
    """
    finding_costs, finding_attributes = _finding(_checked(costs)), _finding(attributes)

    async def dependency(
        connection: HTTPConnection, cost: Any = finding_costs, more: Any = finding_attributes
    ) -> Decision:
        visit = visit_of(connection)
        return await visit.check(visit.token(), cost, visit.describe(more))

    made = _decorating(dependency)
    _by_token[made] = True
    return made


def admit(
    limits: Declared | Chooser | Sequence[tuple[object, Key]] | None = None,
    *,
    key: Key | None = None,
    scope: str | None = None,
    costs: Costs | Found = 1,
    attributes: Found | None = None,
) -> Callable[..., AsyncIterator[Admission]]:
    """
    Return an async generator function for ``Depends``, which charges an estimate and yields an :class:`Admission`.

    Settle the admission with the real cost. If the path operation raises an exception, the estimate is given back,
    unless it was settled. If the client leaves, it stays charged: what was sent until then may have cost as much. Slots
    are freed when the response is complete. Background tasks and the code of a stream can still settle after that.

    Args:
        limits: Limits in code, which need *key* or are pairs. None: the published policies of the request's token.
        key, scope, costs, attributes: See :func:`limited` and :func:`check`.
    Raises:
        ValueError: As there.
        TypeError: As there; or limits in code are given attributes, which they do not use, or policies a key or scope.
    """
    groups: tuple[Group, ...] = ()
    if limits is not None:
        if attributes is not None:
            raise TypeError("attributes: must be None for limits in code, which do not use them.")
        groups = groups_of(limits, key, scope, costs, source=_SOURCE, is_source=_is_source)
    elif key is not None or scope is not None:
        name = "scope" if key is None else "key"
        raise TypeError(f"{name}: must be None without limits, because policies have their own.")
    finding_groups, finding_costs = _finding_groups(groups), _finding(_checked(costs))
    finding_attributes = _finding(attributes)

    async def dependency(
        connection: HTTPConnection,
        found: Any = finding_groups,
        cost: Any = finding_costs,
        more: Any = finding_attributes,
    ) -> AsyncIterator[Admission]:
        visit = visit_of(connection)
        if limits is None:
            opening = visit.limiter.open_admission(visit.token(), costs=cost, attributes=visit.describe(more))
        else:
            pairs = _pairs(visit, _numbered(connection, dependency, groups), found)
            if not pairs:
                yield Admission(None)
                return
            opening = visit.limiter.open_admission(*as_call(pairs), cost)
        admission = await visit.hold(opening, to_settle=True)
        try:
            yield Admission(admission)
        except ClientDisconnect:
            raise
        except Exception:
            await admission.finish(None)
            raise
        finally:
            await admission.finish(visit.status)

    _by_token[dependency], _groups_of[dependency] = limits is None, groups
    return dependency


async def get_limiter(connection: HTTPConnection) -> aio.Limiter:
    """Return the installed limiter, as a dependency of path operations that use it directly."""
    return visit_of(connection).limiter


class Admission:
    """
    A request that was admitted on an estimate.

    Attributes:
        decision: The decision that admitted it; None if no limit applies to the request.
    """

    def __init__(self, admission: aio.Admission | None) -> None:
        self.decision = None if admission is None else admission.decision
        self._admission = admission

    async def settle(self, costs: Costs) -> None:
        """Replace the estimate by the real cost, once. Raises ValueError if the costs are not valid."""
        check_costs(costs)
        if self._admission is not None:
            await self._admission.settle(costs)

    async def settle_from(self, response: object, **prices: Any) -> ReportedUsage | None:
        """Replace the estimate by what a response reports, and return the report, or None without any limit."""
        return None if self._admission is None else await self._admission.settle_from(response, **prices)

    def metered(self, stream: AsyncIterable[Event], **prices: Any) -> AsyncIterator[Event]:
        """Return an iterator that settles by what a stream reports, see the limiters' ``Admission.metered``."""
        return aiter(stream) if self._admission is None else self._admission.metered(stream, **prices)

    def settle_from_thread(self, costs: Costs) -> None:
        """Replace the estimate by the real cost from a thread, where FastAPI runs ``def`` operations and tasks."""
        from_thread.run(self.settle, costs)

    async def cancel(self) -> None:
        """Give back all charges and slots, as an exception does."""
        if self._admission is not None:
            await self._admission.cancel()


def _is_source(what: object) -> bool:
    """Return whether a value is found for each request."""
    return callable(what) or isinstance(what, params.Depends)


def _checked(costs: Any) -> Any:
    """Return *costs* unchanged, after checking them if they are known."""
    return costs if _is_source(costs) else check_costs(costs)


def _finding_groups(groups: Sequence[Group]) -> Any:
    """Return a ``Depends`` whose value is a list of what is found for each request: limits and key of each group."""
    sources = [what for group in groups for what in (group.limits, group.find) if _is_source(what)]

    async def values(**found: object) -> list[object]:
        return list(found.values())

    parameters = [
        inspect.Parameter(f"found_{i}", inspect.Parameter.KEYWORD_ONLY, default=_finding(what), annotation=Any)
        for i, what in enumerate(sources)
    ]
    values.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return Depends(values)


def _pairs(visit: StarletteVisit, groups: Sequence[Group], found: Sequence[Any]) -> Pairs:
    """Return the groups that apply to a request, with their keys, from the value of :func:`_finding_groups`."""
    values, pairs, operation = iter(found), [], visit.operation()
    for group in groups:
        limits = chosen(next(values)) if _is_source(group.limits) else group.limits
        key = visit.key(group, next(values) if _is_source(group.find) else None, operation)
        if limits is not None and key is not None:
            pairs.append((limits, key))
    return pairs


def _numbered(
    connection: HTTPConnection, dependency: Callable[..., object], groups: tuple[Group, ...]
) -> tuple[Group, ...]:
    """Return the groups of a dependency, with numbers among those of all dependencies of the path operation."""
    route = served_route(connection.scope)
    numbered = getattr(route, _NUMBERED, None)
    if numbered is None:
        if getattr(route, "dependant", None) is None:
            return groups
        numbered = {}
        rules = getattr(getattr(route, "endpoint", None), LIMITED, ())  # the decorators of Starlette's integration
        earlier: list[Group] = [group for rule in rules for group in rule.groups]
        # The innermost first, so that what a router adds at one of two prefixes gives the others no new counters.
        for call in reversed([*_calls(route.dependant)]):
            if call in _groups_of and call not in numbered:
                numbered[call] = beside(_groups_of[call], earlier)
                earlier += numbered[call]
        setattr(route, _NUMBERED, numbered)
    return numbered.get(dependency, groups)  # type: ignore[no-any-return]


def _decorating(dependency: Callable[..., object]) -> Callable[..., Any]:
    """Return a dependency that decorates a path operation if it is called with one."""
    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is None:
        return dependency  # before Python 3.12, FastAPI could not tell that it has to be awaited

    @wraps(dependency)
    def made(connection: object, *args: object, **kwargs: object) -> object:
        if isinstance(connection, HTTPConnection):
            return dependency(connection, *args, **kwargs)
        return _limit_operation(connection, made)

    return mark(made)  # type: ignore[no-any-return]


def _limit_operation(operation: object, dependency: Callable[..., object]) -> Callable[..., object]:
    """Return a path operation that has a dependency beside its own."""
    if not inspect.isroutine(operation):
        raise TypeError(f"operation: must be a function, got {operation!r}. Else use Depends(...).")
    signature = inspect.signature(operation)
    name = f"sluicegate_{len(signature.parameters)}"

    if inspect.iscoroutinefunction(operation):

        @wraps(operation)
        async def limited_operation(*args: object, **kwargs: object) -> Any:
            kwargs.pop(name, None)
            return await operation(*args, **kwargs)
    else:

        @wraps(operation)
        def limited_operation(*args: object, **kwargs: object) -> Any:
            kwargs.pop(name, None)
            return operation(*args, **kwargs)

    own = list(signature.parameters.values())
    at = len(own) - bool(own and own[-1].kind is inspect.Parameter.VAR_KEYWORD)
    own.insert(at, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=Depends(dependency), annotation=Any))
    limited_operation.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    note_wrapped(operation)
    return limited_operation


def _finding(what: object) -> Any:
    """
    Return *what* if it is a ``Depends``, else a new ``Depends`` whose value is *what*, or its result if it is a
    function.
    """
    if isinstance(what, params.Depends):
        return what

    async def found(connection: HTTPConnection) -> Any:
        value = what(connection) if callable(what) else what
        return await value if inspect.isawaitable(value) else value

    return Depends(found)


def _document(app: FastAPI) -> None:
    """Replace ``app.openapi`` by a function that adds the possible denials of each operation to the OpenAPI schema."""
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


def _operations(app: FastAPI) -> Iterator[tuple[Any, Dependant]]:
    """Yield the route of each path operation, and its ``dependant``, which has its dependencies."""
    # In newer versions of FastAPI, an included router is a route that contains routes.
    flatten: Callable[[Any], Any] = getattr(routing, "iter_route_contexts", iter)
    for route in flatten(app.routes):
        dependant = getattr(route, "dependant", None)
        if dependant is not None:
            yield route, dependant


def _endpoints(app: Any) -> Iterator[object]:
    """Yield the function of each path operation, also of mounted applications, and log what it has without Depends."""
    for _, dependant in _operations(app):
        for call in (dependant.call, *_calls(dependant)):
            _check_parameters(call)
        yield dependant.call
    for route in app.routes:
        mounted = getattr(route, "app", None)
        if isinstance(route, Mount) and isinstance(mounted, Starlette):
            yield from _endpoints(mounted)


def _check_parameters(call: Any) -> None:
    """Log each of our dependencies that is the default or an annotation of a parameter, where it has no effect."""
    with suppress(TypeError, ValueError):  # not everything that can be called has a signature
        for parameter in inspect.signature(call).parameters.values():
            for found in (parameter.default, *getattr(parameter.annotation, "__metadata__", ())):
                if inspect.isroutine(found) and found in _by_token:
                    logger.error(
                        "%s: the limit in parameter %r has no effect. Put it into Depends(...).",
                        name_of(call),
                        parameter.name,
                    )


def _tokens(dependant: Dependant) -> Iterator[bool]:
    """Yield for each of our dependencies below a path operation whether it needs a token."""
    yield from (_by_token[call] for call in _calls(dependant) if call in _by_token)


def _calls(dependant: Dependant) -> Iterator[Any]:
    """Yield the functions of all dependencies below a path operation."""
    for child in dependant.dependencies:
        yield child.call
        yield from _calls(child)


__all__ = ["USAGE_PATH", "Admission", "admit", "check", "get_limiter", "install", "limited", "usage"]
