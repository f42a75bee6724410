"""
The decisions on one request of a Django or Flask site, and the admissions it holds. Nothing here imports either.

Everything here may wait for the store, so it runs in threads. Event loops call it by :func:`in_thread`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from enforcement.doors._guard import warn_of_both
from enforcement.doors._in_code import Pairs, as_call, limit_headers, outlives_decision
from enforcement.doors._options import Options
from enforcement.http.messages import (
    PlainResponse,
    RequestAttributes,
    joining,
    token_in,
    without_token,
)
from enforcement.http.progress import Progress
from enforcement.http.usage_request import UsageRequest, usage_answer
from enforcement.limiter import Admission, Limiter
from enforcement.model.tokens import Anonymous
from enforcement.plan.costs import Costs
from enforcement.plan.decision import Decision, Denied

_LISTS: Final = ("RateLimit", "RateLimit-Policy")
ResultT = TypeVar("ResultT")
Condition = Callable[[Any], bool]
"""Returns whether a request stays charged, by its response."""


class Installed(Protocol):
    """The limiter and options that a process or an application has installed."""

    def options(self) -> Options:
        """Return the settings of the integration."""

    def limiter(self) -> Limiter:
        """Return the limiter that all requests of this process use."""


class NotManaged(RuntimeError):
    """A request would hold something that nothing would free."""


class SyncVisit:
    """One request, the decisions made on it, and what it holds until its response is complete."""

    _conditional: tuple[tuple[Admission, Condition, Callable[[], Decision]], ...] = ()

    def __init__(self, installed: Installed) -> None:
        self.installed = installed
        self.decisions: list[Decision] = []
        self._held: list[Admission] = []

    def decide(self, pairs: Pairs, costs: Costs = 1, charge_if: Condition | None = None) -> Decision:
        """
        Charge the request to limits in code, hold its slots until the response is complete, and return the decision, or
        raise Denied.

        Args:
            charge_if: Returns whether the request stays charged, by its response. None: it does.
        """
        limiter, (limits, key) = self.installed.limiter(), as_call(pairs)
        if charge_if is None and not outlives_decision(pairs):
            return self._passed(limiter.hit(limits, key, costs))
        decision = self._hold(partial(limiter.open_admission, limits, key, costs))
        if charge_if is not None:
            again = partial(limiter.peek, limits, key, 0)
            self._conditional = (*self._conditional, (self._held[-1], charge_if, again))
        return decision

    def settle(self, response: object) -> None:
        """
        Give back each charge whose condition the response does not meet, and show what is left then. A condition that
        fails ends the visit.
        """
        conditional, self._conditional = self._conditional, ()
        try:
            for admission, condition, again in conditional:
                if not condition(response):
                    admission.cancel()
                    self.decisions = [again() if it is admission.decision else it for it in self.decisions]
        except BaseException:
            self.end(500)
            raise

    def charge_policies(self, token: str | Anonymous, attributes: RequestAttributes, costs: Costs) -> Decision:
        """Charge the request to the policies of its token, and return the decision, or raise Refusal or Denied."""
        limiter = self.installed.limiter()
        plan = limiter.find_plan(token, attributes)
        if isinstance(plan, Decision):
            return self._passed(plan)
        warn_of_both(self.environ(), plan.subject)
        if plan.has_slots or plan.has_charge_on:
            return self._hold(partial(limiter.admit_plan, plan, costs, attributes))
        return self._passed(limiter.noted(limiter.decide(plan, costs), attributes))

    def note(self, decision: Decision) -> None:
        """Add a decision to those shown in the response, once."""
        if all(known is not decision for known in self.decisions):
            self.decisions.append(decision)

    def end(self, status: int) -> None:
        """Finish the admissions that the request holds, once."""
        held, self._held = self._held, []
        for admission in held:
            admission.finish(status)

    def add_headers(self, headers: Any) -> None:
        """Add the header fields of the decisions that were not yet added to those of a response."""
        decisions, self.decisions = self.decisions, []
        if decisions:
            for name, value in joining(headers.keys(), limit_headers(decisions, self.installed.options().headers)):
                present = headers.get(name) if name in _LISTS else None
                headers[name] = f"{present}, {value}" if present else value

    def environ(self) -> Mapping[str, object]:
        """Return the environ or scope of the request."""
        raise NotImplementedError

    def denied(self, decision: Decision) -> Denied:
        """Return the exception that answers a denial."""
        return Denied(decision)

    def _hold(self, open_admission: Callable[[], Admission]) -> Decision:
        try:
            admission = open_admission()
        except Denied as denied:
            self.note(denied.decision)
            raise self.denied(denied.decision) from denied
        self._held.append(admission)
        self.note(admission.decision)
        return admission.decision

    def _passed(self, decision: Decision) -> Decision:
        self.note(decision)
        if not decision.allowed:
            raise self.denied(decision)
        return decision


class DjangoVisit(SyncVisit):
    """
    A request of a Django site.

    Attributes:
        managed: Whether middleware or an outer decorator will add the header fields and end the visit.
        checked: Whether the published policies have decided, or need not.
    """

    def __init__(self, request: Any, installed: Installed) -> None:
        super().__init__(installed)
        self.request = request
        self.managed = False
        self.checked = False
        self._by_policies: Decision | None = None

    def environ(self) -> Mapping[str, object]:
        """Return the environ or scope of the request."""
        result: Mapping[str, object] = getattr(self.request, "scope", self.request.META)
        return result

    def address(self) -> str | None:
        """Return the address of the client, or None if it is unknown."""
        meta = self.request.META

        def values(name: str) -> list[str]:
            value = meta.get(f"HTTP_{name.upper().replace('-', '_')}")
            return [value] if value else []

        # REMOTE_ADDR is empty over a Unix socket.
        return self.installed.options().address(meta.get("REMOTE_ADDR") or None, values)

    def check(self) -> Decision:
        """
        Charge the request to its token's policies at the first call, and return that decision, or raise Refusal or
        Denied.
        """
        self.checked = True
        # The middleware and a throttle may both call this for the same request.
        if self._by_policies is None:
            self._by_policies = self._charge_policies()
        return self._by_policies

    def _charge_policies(self) -> Decision:
        options = self.installed.options()
        shown = (options.token or usual_token)(self.request)
        token = shown or without_token(shown, options.anonymous)
        costs = options.costs(self.request) if options.costs else 1
        return self.charge_policies(token, self._describe(options), costs)

    def usage(self) -> PlainResponse:
        """Return the response to a request for the page of own limits."""
        options = self.installed.options()
        asked = UsageRequest(
            self.request.method,
            lambda: (options.token or usual_token)(self.request),
            lambda: self._describe(options),
            options.headers,
            options.anonymous,
        )
        return usage_answer(self.installed.limiter(), asked)

    def note(self, decision: Decision) -> None:
        """Add a decision to those shown in the response, once, and set it as ``request.sluicegate`` for the view."""
        self.request.sluicegate = decision
        super().note(decision)

    def finish(self, response: Any) -> Any:
        """
        Add the header fields to the response, end the visit now or at the end of a stream, and return the response.
        """
        if self._conditional:
            self.settle(response)
        self.add_headers(response.headers)
        if not self._held:
            return response
        if response.streaming:
            body = _AsyncBody if response.is_async else SyncBody
            response.streaming_content = body(response.streaming_content, self, response)
        else:
            self.end(response.status_code)
        return response

    def _hold(self, open_admission: Callable[[], Admission]) -> Decision:
        if not self.managed:
            raise NotManaged(
                "A limit here holds slots or is charged by status. Add enforcement.doors.django.DecisionMiddleware or"
                " LimitMiddleware to MIDDLEWARE, which ends it."
            )
        return super()._hold(open_admission)

    def _describe(self, options: Options) -> RequestAttributes:
        values: dict[str, str | None] = {"method": self.request.method, "path": self.request.path}
        values["ip"] = self.address()
        if options.attributes:
            values.update(options.attributes(self.request))
        return RequestAttributes(values, self.request.headers.get)


class _HeldBody:
    """A streamed body that ends the visit with its last byte, or when the server closes the response."""

    def __init__(self, chunks: Any, visit: SyncVisit, response: Any) -> None:
        self._chunks = chunks
        self._visit = visit
        self._status = response.status_code
        self._progress = Progress()
        self._progress.begin(self._status, response.headers.get("Content-Length"))

    def close(self) -> None:
        """Finish the admissions of the visit. Servers close every response, also an asynchronous one from a thread."""
        self._visit.end(self._status)


class SyncBody(_HeldBody):
    """An iterator of chunks."""

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._chunks:
                if self._progress.ends_with(len(chunk)):
                    self.close()
                yield chunk
        finally:
            self.close()


class _AsyncBody(_HeldBody):
    """An asynchronous iterator of chunks."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                if self._progress.ends_with(len(chunk)):
                    await in_thread(self.close)
                yield chunk
        finally:
            # Django does not close a response whose asynchronous body raises.
            await in_thread(self.close)


async def in_thread(call: Callable[..., ResultT], *args: object) -> ResultT:
    """
    Call a function that may wait for the store in a thread, and return its result.

    If the request is cancelled meanwhile, wait for the call to end, which takes no longer than a decision may. Whoever
    ends the visit must find what the call has taken, to give it back.
    """
    work = asyncio.ensure_future(asyncio.to_thread(call, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def usual_token(request: Any) -> str | None:
    """Return the token in the usual header fields of a request, or None if it has none, see :func:`token_in`."""
    return token_in(request.headers.get)
