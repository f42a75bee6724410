"""Guard an ASGI application whose requests go to a provider of models, and charge what they cost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

from enforcement.aio import Admission, Limiter
from enforcement.doors.metered.bodies import BodyRoom, ClientLeft, ReadBody, is_too_long, read_body, sent_on
from enforcement.doors.metered.visit import Drains, MeteredVisit, now_us
from enforcement.http.asgi import Receive, Scope, Send, header_of
from enforcement.http.messages import PlainResponse, Refusal, RequestAttributes, denial, without_token
from enforcement.metering.encodings import ALL_ENCODINGS
from enforcement.metering.estimate import strictest
from enforcement.metering.exchange import MeteredExchange
from enforcement.metering.opening import Opening, Refused, has_tokens, open_request, unmetered
from enforcement.metering.prices import Prices
from enforcement.metering.request import MAX_BODY, MeteredRequest, Unmetered, find_route, read_request
from enforcement.metering.settlement import DrainBounds
from enforcement.model.limits import Limit
from enforcement.model.metered import MONEY
from enforcement.model.tokens import Anonymous
from enforcement.plan.decision import Decision, Denied
from enforcement.state.live_plan import LivePlan

DRAIN: Final = DrainBounds()
"""How much of an answer is read after its client left, if the policy says so."""

SETTLE_SECONDS: Final = 5.0
"""How long the end of a server waits for the settlements of its last requests."""
NO_PRICES_YET: Final = "The published prices could not be loaded."

Guarding = Callable[[Limiter, Scope, Receive, Send], Awaitable[None]]
"""Passes a request to the application, or sends a denial."""

_rules_of = lru_cache(1_024)(strictest)


class MeteredDoor(Protocol):
    """What the middleware does for a metered request as for any other, see :class:`enforcement.doors.asgi`."""

    _headers: str
    _anonymous: Anonymous | None

    def _token(self, request: Scope, /) -> str | None: ...

    def _describe(self, scope: Scope) -> RequestAttributes: ...

    def _pass(self, decision: Decision, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]: ...

    async def _pass_held(self, admission: Admission, scope: Scope, receive: Receive, send: Send) -> None: ...


class _NotMetered(Exception):
    """No limit of the token needs a meter, so the request is guarded as any other."""


class MeteredGuard:
    """
    Admits requests in the place of the middleware, with what they may cost, and settles them with what they did cost.

    Args:
        door: The middleware.
        plain: Guards a request whose token has no limit that needs a meter.
        answer: Sends a response in place of the application.
        max_body: Bytes of the longest body that is read. A longer request cannot be metered.
    """

    def __init__(
        self,
        door: MeteredDoor,
        plain: Guarding,
        answer: Callable[[Scope, Receive, Send, PlainResponse], Awaitable[None]],
        *,
        max_body: int = MAX_BODY,
    ) -> None:
        self._door = door
        self._plain = plain
        self._answer = answer
        self._max_body = max_body
        self._drains = Drains(DRAIN)
        self._room = BodyRoom()
        self._visiting: set[asyncio.Task[Any] | None] = set()

    async def settled(self) -> None:
        """
        Wait until the requests are settled that a server has cancelled before it shuts down, but not for long.

        Afterwards the limiter may be closed, and what was not settled by then stays charged as it was estimated.
        """
        ours = asyncio.current_task()
        others = [task for task in {*self._visiting, *self._drains.going} if task is not None and task is not ours]
        if others:
            await asyncio.wait(others, timeout=SETTLE_SECONDS)

    async def __call__(self, limiter: Limiter, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, or send a denial."""
        preset, shape = self._door._headers, _shape_of(scope)
        try:
            opened = await self._open(limiter, scope, receive)
        except ClientLeft:
            return
        except _NotMetered:
            await self._plain(limiter, scope, receive, send)
            return
        except Refusal as refusal:
            await self._answer(scope, receive, send, refusal.answer(f"{preset}+{shape}" if shape else preset))
            return
        except Denied as denied:
            await self._answer(scope, receive, send, denial(denied.decision, preset, shape))
            return
        opening, admission, body, drains = opened
        if scope["type"] == "websocket":
            await self._door._pass_held(admission, scope, receive, send)
            return
        exchange = MeteredExchange(opening, now_us(), encodings=ALL_ENCODINGS)
        visit = MeteredVisit(exchange, admission, drains, lambda settlement: None, shape)
        if isinstance(opening.asked, MeteredRequest):
            body.data = opening.asked.body
            scope = sent_on(scope, body.data)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await self._door._pass(admission.decision, scope, receive, send)

        task = asyncio.current_task()
        self._visiting.add(task)
        try:
            await visit.run(app, scope, receive, send, body)
        finally:
            self._visiting.discard(task)
            body.pass_on()

    async def _open(
        self, limiter: Limiter, scope: Scope, receive: Receive
    ) -> tuple[Opening, Admission, ReadBody, Drains | None]:
        """
        Charge what a request may cost, and return that, the admission, its body and what may be read on of its answer.

        Raises:
            _NotMetered: No limit of the token needs a meter.
            Refusal, Denied: The request may not pass.
            ClientLeft: The client left before its request had come whole.
        """
        door = self._door
        shown = door._token(scope)
        token = shown or without_token(shown, door._anonymous)
        attributes = door._describe(scope)
        # Nobody without a valid token makes us read a body.
        if _admissible(await limiter.find_plan(token, attributes)).metering is None:
            raise _NotMetered
        asked, body = await self._read(scope, receive)
        try:
            opening, admission, drains = await self._charge(limiter, token, attributes, asked)
        except BaseException:
            body.pass_on()
            raise
        return opening, admission, body, drains

    async def _charge(
        self,
        limiter: Limiter,
        token: str | Anonymous,
        attributes: RequestAttributes,
        asked: MeteredRequest | Unmetered,
    ) -> tuple[Opening, Admission, Drains | None]:
        """Charge what a request that was read may cost, or raise Denied. See :meth:`_open`."""
        if isinstance(asked, MeteredRequest):
            attributes = attributes.beside(asked.attributes)
        plan = _admissible(await limiter.find_plan(token, attributes))
        rules = _rules_of(plan.metering or ())
        if not has_tokens(asked) and any(may_apply(attributes) for may_apply in plan.hidden):
            refused = unmetered(asked)
            raise Denied(limiter.noted(limiter.refuse(plan, refused.reason, refused.detail), attributes))
        limits = [bound.limit for bound in plan.bounds]
        prices = await _prices_for(limits, limiter)
        if prices is None:
            raise Denied(limiter.noted(limiter.refuse(plan, "degraded_denied", NO_PRICES_YET), attributes))
        opening = open_request(asked, limits, rules, prices, limiter.now_us())
        if isinstance(opening, Refused):
            raise Denied(limiter.noted(limiter.refuse(plan, opening.reason, opening.detail), attributes))
        opening, admission = await _admit(limiter, plan, opening, attributes)
        return opening, admission, self._drains if rules.on_disconnect == "drain" else None

    async def _read(self, scope: Scope, receive: Receive) -> tuple[MeteredRequest | Unmetered, ReadBody]:
        """Return what a request may cost, and its body or the beginning of it."""
        if scope["type"] == "websocket":
            return Unmetered("websocket"), ReadBody(b"", whole=True)
        method, target = scope["method"], _target(scope)
        if method != "POST":
            return Unmetered("method"), ReadBody(b"", whole=False)
        body = await read_body(scope, receive, self._max_body, self._room)
        if is_too_long(scope, body, self._max_body):
            route = find_route(target)
            return Unmetered("too_large", None if route is None else route.format), body

        def header(name: str) -> str | None:
            return header_of(scope, name.encode("latin-1"))

        return read_request(method, target, header, body.data, max_body=self._max_body), body


async def _admit(
    limiter: Limiter, plan: LivePlan, opening: Opening, attributes: RequestAttributes
) -> tuple[Opening, Admission]:
    """
    Charge a request, and return that with its admission, or raise Denied.

    If its policies allow that, it gets a lower cap in place of a denial. The limits are looked at before then, so that
    no request counts as denied that passes.
    """
    if opening.clamp_at_least is not None:
        seen = await limiter.decide(plan, opening.costs, charge=False)
        if not seen.allowed:
            opening = opening.clamped(_room(seen)) or opening
    return opening, await limiter.admit_plan(plan, opening.costs, attributes, opening.about)


async def _prices_for(limits: Sequence[Limit], limiter: Limiter) -> Prices | None:
    """
    Return the published prices, or None if a limit counts money and they cannot be had.

    Other limits do not wait for them.
    """
    if any(limit.unit == MONEY for limit in limits):
        return await limiter.find_prices()
    return limiter.prices


def _room(decision: Decision) -> list[int | None]:
    return [state.remaining if state.mode == "enforce" else None for state in decision.limits]


def _admissible(plan: LivePlan | Decision) -> LivePlan:
    if isinstance(plan, Decision):
        raise Denied(plan)
    return plan


def _target(scope: Scope) -> str:
    raw = scope.get("raw_path")
    return str(raw.decode("latin-1") if raw else scope["path"])


def _shape_of(scope: Scope) -> str:
    """Return the provider whose SDK has sent a request, by the path, or an empty string."""
    route = find_route(_target(scope)) if scope["type"] == "http" else None
    provider = "" if route is None else route.format.partition("-")[0]
    return provider if provider in ("openai", "anthropic") else ""


__all__ = ["DRAIN", "MeteredGuard"]
