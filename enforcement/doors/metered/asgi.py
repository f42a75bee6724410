"""Guard an ASGI application whose requests go to a provider of models, and charge what they cost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol

from enforcement.aio import Admission, Limiter
from enforcement.doors.metered.admitting import metered_keys, open_metered, rules_of
from enforcement.doors.metered.bodies import (
    BodyRoom,
    ClientLeft,
    ReadBody,
    is_long,
    is_too_long,
    read_body,
    reading,
)
from enforcement.doors.metered.sdks import only_authorization, overrides_method, shape_of, target_of
from enforcement.doors.metered.visit import Drains, MeteredVisit, now_us
from enforcement.http.asgi import READ_BODY, Receive, Scope, Send, header_of
from enforcement.http.messages import (
    PlainResponse,
    Refusal,
    RequestAttributes,
    check_lengths,
    denial,
    shows,
    without_token,
)
from enforcement.metering.bound import NO_FIELDS, FieldRates, ReadOptions
from enforcement.metering.exchange import MeteredExchange
from enforcement.metering.formats.routes import find_route, plain_path, resembles_route
from enforcement.metering.opening import unmetered
from enforcement.metering.request import MAX_BODY, MeteredRequest, Unmetered, read_request
from enforcement.metering.settlement import DrainBounds, Settlement
from enforcement.metering.streams.encodings import ALL_ENCODINGS
from enforcement.metering.tally import UNMETERED
from enforcement.model.checks import shown
from enforcement.model.matching import Attributes
from enforcement.model.metered import DRAIN
from enforcement.model.tokens import Anonymous
from enforcement.plan.decision import Decision, Denied
from enforcement.settings import read_variable
from enforcement.state.live_plan import LivePlan

MOST_DRAIN_SECONDS: Final = 3_600
MOST_DRAIN_MIB: Final = 1_024
MOST_DRAINS: Final = 10_000
SETTLE_SECONDS: Final = 5.0
"""How long the end of a server waits for the settlements of its last requests."""
CANCEL_SECONDS: Final = 1.0
"""How long it waits for those that are settled then without their provider's last word."""
Guarding = Callable[[Limiter, Scope, Receive, Send], Awaitable[None]]
"""Passes a request to the application, or sends a denial."""

MIB: Final = 1_048_576
_SIGNED: Final = b"AWS4-"
_POST: Final = "POST"
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


class MeteredDoor(Protocol):
    """The steps of the middleware that metered requests share with all others, see :class:`enforcement.doors.asgi`."""

    _headers: str
    _anonymous: Anonymous | None
    _attributes: Callable[[Scope], Mapping[str, str]] | None
    _by_usual_fields: bool
    _json_rpc: frozenset[str]

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
        target: Returns the path and query under which the provider gets a request.
        allowed: Returns the fields of a request that a bound admits beside those that it knows.
        keeps_signature: Returns whether the provider gets a signature in ``Authorization`` as the client has sent it.
        options: Returns what the provider of a request needs to be asked otherwise, as keywords of
            :func:`~enforcement.metering.request.read_request`. None: all are asked alike.
        max_body: Bytes of the longest body that is read. A longer request cannot be metered.
    """

    def __init__(
        self,
        door: MeteredDoor,
        plain: Guarding,
        answer: Callable[[Scope, Receive, Send, PlainResponse], Awaitable[None]],
        *,
        target: Callable[[Scope], str] = target_of,
        allowed: Callable[[Scope], FieldRates] = lambda scope: NO_FIELDS,
        keeps_signature: Callable[[Scope], bool] = lambda scope: True,
        options: Callable[[Scope], ReadOptions] | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        self._door = door
        self._plain = plain
        self._answer = answer
        self._target = target
        self._allowed = allowed
        self._keeps_signature = keeps_signature
        self._max_body = max_body
        self._options = options
        self._drains = Drains(drain_bounds())
        self._room = BodyRoom()
        self._visiting: set[asyncio.Task[object] | None] = set()
        self._replies: set[asyncio.Future[object]] = set()

    async def settled(self) -> None:
        """
        Wait until the requests are settled that a server has cancelled before it shuts down, but not for long.

        Afterwards the limiter may be closed, and what was not settled by then stays charged as it was estimated.
        """
        ours = asyncio.current_task()
        others = [task for task in {*self._visiting, *self._drains.going} if task is not None and task is not ours]
        if others:
            _, late = await asyncio.wait(others, timeout=SETTLE_SECONDS)
            # Those that are still read on keep their estimates, and are not lost.
            for task in late & self._drains.going:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=CANCEL_SECONDS)
        while self._replies:  # each may lead to another command
            done, _ = await asyncio.wait(self._replies, timeout=CANCEL_SECONDS)
            if not done:
                return

    async def __call__(self, limiter: Limiter, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, or send a denial."""
        preset = self._door._headers
        try:
            visit = await self._open(limiter, scope, receive)
        except ClientLeft:
            return
        except _NotMetered:
            await self._plain(limiter, scope, receive, send)
            return
        except Refusal as refusal:
            shape = shape_of(scope)
            await self._answer(scope, receive, send, refusal.answer(f"{preset}+{shape}" if shape else preset))
            return
        except Denied as denied:
            await self._answer(scope, receive, send, denial(denied.decision, preset, shape_of(scope)))
            return
        async with visit:
            await self._visit(visit, scope, receive, send)

    async def _visit(self, visit: MeteredVisit, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an admitted request to the application, and settle it."""
        if scope["type"] == "websocket":
            visit.report(Settlement(UNMETERED, ()))
            await self._door._pass_held(visit.admission, scope, receive, send)
            return
        app = partial(self._door._pass, visit.admission.decision)
        task = asyncio.current_task()
        self._visiting.add(task)
        try:
            await visit.run(app, scope, receive, send)
        finally:
            self._visiting.discard(task)

    async def _open(self, limiter: Limiter, scope: Scope, receive: Receive) -> MeteredVisit:
        """
        Charge what a request may cost, and return it as one that is admitted.

        Raises:
            _NotMetered: No limit of the token needs a meter.
            Refusal, Denied: The request may not pass.
            ClientLeft: The client left before its request had come whole.
        """
        door = self._door
        fields = dict(scope["headers"])
        keeps = len(fields) == len(scope["headers"]) and door._by_usual_fields and door._attributes is None
        field = only_authorization(fields) if keeps else None
        cached = None if field is None else limiter.derived.metered.get(field)
        who = None
        if cached is None:
            who = self._who(scope)
            # Nobody without a valid token makes us read a body.
            plan = _admissible(await limiter.find_plan(*who))
            if plan.metering is None:
                raise _NotMetered
        else:
            plan = cached
        # A kept plan is that of a token in this field, in which AWS has its signatures.
        signature = fields.get(b"authorization", b"") if cached is None else b""
        is_signed = signature.startswith(_SIGNED) and self._keeps_signature(scope)
        body = await self._body(scope, fields, receive, plan.subject[0])
        try:
            asked = await self._read(scope, fields, body)
            named = asked.attributes if isinstance(asked, MeteredRequest) else _NONE
            if who is None and field is not None and limiter.derived.metered.get(field) is plan:
                check_lengths(named)
                described: Attributes = _NONE  # no limit of a kept plan looks at one
            else:  # the documents may have changed while the body came
                token, attributes = who or self._who(scope)
                described = whole = attributes.beside(named)
                plan = _admissible(await limiter.find_plan(token, whole))
                await self._check_path(limiter, token, plan, whole, scope)
                _keep(limiter, field, token, plan)
            return await self._charge(limiter, plan, described, asked, body, scope, is_signed=is_signed)
        except BaseException:
            body.pass_on()
            raise

    def _who(self, scope: Scope) -> tuple[str | Anonymous, RequestAttributes]:
        """Return the token of a request, or what stands for none, and its attributes, or raise Refusal."""
        door = self._door
        shown = door._token(scope)
        return shown or without_token(shown, door._anonymous), door._describe(scope)

    async def _charge(
        self,
        limiter: Limiter,
        plan: LivePlan,
        attributes: Attributes,
        asked: MeteredRequest | Unmetered,
        body: ReadBody,
        scope: Scope,
        *,
        is_signed: bool,
    ) -> MeteredVisit:
        """Charge what a request that was read may cost, or raise Denied. See :meth:`_open`."""
        at_us = limiter.now_us()
        allowed = self._allowed(scope)
        opening, admission = await open_metered(limiter, plan, asked, attributes, at_us, allowed, is_signed=is_signed)
        tally = limiter.metered_tally()
        exchange = MeteredExchange(opening, now_us(), encodings=ALL_ENCODINGS, reasoners=tally.reasoners)
        report = partial(tally.settled, plan.subject, at_us, opening)
        drains = self._drains if rules_of(plan).on_disconnect == DRAIN else None
        shape = shape_of(scope, asked.format)
        return MeteredVisit(exchange, admission, body, drains, self._replies, report, shape)

    async def _check_path(
        self, limiter: Limiter, token: str | Anonymous, plan: LivePlan, attributes: RequestAttributes, scope: Scope
    ) -> None:
        """
        Raise Denied if a limit of tokens or money would apply to the request, had its path been written plainly, or in
        lower case, or its method been that which a server may find elsewhere in it.
        """
        path = attributes.get("path", "")
        plain, method = plain_path(path), ""
        if scope.get("method", _POST) != _POST and overrides_method(scope):
            method = _POST
        folded = plain.lower()
        if folded == path and not method:
            return
        lower = attributes.with_path(folded, method)
        evaded = any(
            it.is_metered and it.resembles and it.resembles(lower) and not it.may_apply(attributes)
            for it in plan.hidden
        )
        if not evaded and (plain != path or method):
            other = _admissible(await limiter.find_plan(token, attributes.with_path(plain, method)))
            evaded = bool(metered_keys(other) - metered_keys(plan))
        if evaded:
            refused = unmetered(Unmetered("override" if method else "path"))
            raise Denied(limiter.noted(limiter.refuse(plan, refused.reason, refused.detail), attributes))

    async def _body(self, scope: Scope, fields: Mapping[bytes, bytes], receive: Receive, project: str) -> ReadBody:
        """Return the body of a request of a project or the beginning of it, which is empty if none is metered."""
        if scope["type"] == "websocket":
            return ReadBody(b"", whole=True)
        if scope["method"] != _POST:
            return ReadBody(b"", whole=False)
        return await read_body(fields, receive, self._max_body, self._room, project)

    async def _read(self, scope: Scope, fields: Mapping[bytes, bytes], body: ReadBody) -> MeteredRequest | Unmetered:
        """
        Return what a request may cost.

        Args:
            fields: Its header fields. Of those with one name, the last.
        """
        target = self._target(scope)
        if scope["type"] == "websocket":
            return Unmetered("websocket", is_lookalike=resembles_route(target))
        method = scope["method"]
        if method != _POST:
            return Unmetered("method")
        if is_too_long(fields, body, self._max_body):
            route = find_route(target)
            return Unmetered("too_large", None if route is None else route.format)

        if self._door._json_rpc and scope["path"] in self._door._json_rpc:
            scope[READ_BODY] = body.data  # a denial has to name the id in it
        is_once = len(fields) == len(scope["headers"])

        def header(name: str) -> str | None:
            field = name.encode("latin-1")
            value = fields.get(field)
            return value if value is None else value.decode("latin-1") if is_once else header_of(scope, field)

        options: ReadOptions = {} if self._options is None else self._options(scope)
        if not is_long(body.data):
            return read_request(method, target, header, body.data, max_body=self._max_body, **options)
        read = partial(read_request, method, target, header, body.data, max_body=self._max_body, **options)
        return await reading(body.data, read)


def drain_bounds(environ: Mapping[str, str] = os.environ) -> DrainBounds:
    """
    Return how much of answers is read after their clients left, from environment variables.

    Raises:
        ValueError: A variable breaks a rule. The message names it.
    """
    usual = DrainBounds()
    seconds, mib, answers = (
        read_variable(environ, name, str(default), partial(_integer, least=least, most=most))
        for name, default, least, most in (
            ("SLUICEGATE_ANSWER_DRAIN_SECONDS", usual.ms // 1_000, 1, MOST_DRAIN_SECONDS),
            ("SLUICEGATE_ANSWER_DRAIN_MIB", usual.bytes // MIB, 1, MOST_DRAIN_MIB),
            ("SLUICEGATE_ANSWER_DRAINS", usual.at_once, 0, MOST_DRAINS),
        )
    )
    return DrainBounds(seconds * 1_000, mib * MIB, answers)


def _integer(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise ValueError(f"must be an integer from {least} to {most}, got {shown(text)}.")
    return int(text)


def _keep(limiter: Limiter, field: bytes | None, token: str | Anonymous, plan: LivePlan) -> None:
    """Keep the plan of a token by the field that shows it, if it is the same for every request."""
    derived = limiter.derived
    if field is not None and derived.plans.get(token) is plan and shows(field, token):
        derived.keep_metered(field, plan)


def _admissible(plan: LivePlan | Decision) -> LivePlan:
    if isinstance(plan, Decision):
        raise Denied(plan)
    return plan
