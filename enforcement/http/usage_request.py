"""
Answer requests for the page on which consumers see their own limits. All integrations use this.

A request for the page is authenticated like any other, and then reads the counters of the token in one call, or on a
cluster in one for each hash slot. So it costs about as much as a decision. It is charged to no limit, because a
consumer whose quota is used up wants to see when it returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from enforcement.http.limits_page import as_page, check_method, unreadable, usage_page
from enforcement.http.messages import PlainResponse, Refusal, denial, without_token
from enforcement.http.own_limits import OwnLimits
from enforcement.model.matching import Attributes
from enforcement.model.tokens import Anonymous
from enforcement.plan.commands import Steps
from enforcement.plan.decision import Decision

TRIES: Final = 3
"""How often a token is found whose documents change at the same time."""


class LimitReader(Protocol):
    """The methods that the page calls on both limiters. In one of them, all others are awaited."""

    def reading_own_limits(self, token: object, attributes: Attributes) -> Steps[OwnLimits | None] | None:
        """Return steps whose result is the limits of a token. None: this process does not have its document."""


class SyncReader(LimitReader, Protocol):
    """An :class:`enforcement.Limiter`."""

    def find_plan(self, token: object, attributes: None) -> object:
        """Return the plan of a token, or the decision that refuses it."""

    def run_reading(self, steps: Steps[OwnLimits | None]) -> OwnLimits | None:
        """Have the store read, and return the result of the steps."""


class AwaitedReader(LimitReader, Protocol):
    """An :class:`enforcement.aio.Limiter`."""

    def find_plan(self, token: object, attributes: None) -> Awaitable[object]:
        """Return the plan of a token, or the decision that refuses it."""

    def run_reading(self, steps: Steps[OwnLimits | None]) -> Awaitable[OwnLimits | None]:
        """Have the store read, and return the result of the steps."""


@dataclass(frozen=True, slots=True)
class UsageRequest:
    """
    A request for the page, as an integration has read it.

    Attributes:
        method: Its HTTP method.
        shown: Returns the token. None if the request shows none, and an empty string if it shows an empty one.
        attributes: Returns its attributes. It may raise Refusal.
        preset: Preset of the header fields of a denial, which also names the shape of its body.
        anonymous: Stands for requests without a token. None: they are refused.
    """

    method: str
    shown: Callable[[], str | None]
    attributes: Callable[[], Attributes]
    preset: str
    anonymous: Anonymous | None = None

    def token(self) -> str | Anonymous:
        """Return the token, or what stands for a request without one, or raise Refusal."""
        check_method(self.method)
        shown = self.shown()
        return shown or without_token(shown, self.anonymous)

    def reading(self, limiter: LimitReader, token: str | Anonymous) -> Steps[OwnLimits | None] | None:
        """Return the steps that read the limits of the token, or None if its document has changed. Raises Refusal."""
        attributes = self.attributes()
        try:
            return limiter.reading_own_limits(token, attributes)
        except ValueError as exc:
            raise Refusal(400, "Bad request", str(exc), "bad_request") from exc


def usage_answer(limiter: SyncReader, request: UsageRequest) -> PlainResponse:
    """Return the response to a request for the page. Nothing is charged."""
    own: Decision | OwnLimits | None = None
    try:
        token = request.token()
        for _ in range(TRIES):
            found = limiter.find_plan(token, None)
            if isinstance(found, Decision):
                own = found
            elif (steps := request.reading(limiter, token)) is None:
                continue
            else:
                own = limiter.run_reading(steps)
            break
        answer = _answer(own, request.preset)
    except Refusal as refusal:
        answer = refusal.answer(request.preset)
    return as_page(answer, request.method)


async def usage_answer_awaited(limiter: AwaitedReader, request: UsageRequest) -> PlainResponse:
    """Return the response to a request for the page. Nothing is charged."""
    own: Decision | OwnLimits | None = None
    try:
        token = request.token()
        for _ in range(TRIES):
            found = await limiter.find_plan(token, None)
            if isinstance(found, Decision):
                own = found
            elif (steps := request.reading(limiter, token)) is None:
                continue
            else:
                own = await limiter.run_reading(steps)
            break
        answer = _answer(own, request.preset)
    except Refusal as refusal:
        answer = refusal.answer(request.preset)
    return as_page(answer, request.method)


def _answer(own: Decision | OwnLimits | None, preset: str) -> PlainResponse:
    """Return the response to a token that is refused, or with limits. None: the store did not tell them."""
    if isinstance(own, Decision):
        return denial(own, preset)
    return unreadable().answer(preset) if own is None else usage_page(own)
