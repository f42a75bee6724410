"""
What one request of a Django site meets: the decisions made on it, what it holds, and when that ends. Without Django.

Everything here may wait for the store, and is done in threads; :func:`in_thread` is how an event loop does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from enforcement.decorator import has_slots
from enforcement.doors._http import Progress, RequestAttributes, find_token, joining, missing_token
from enforcement.doors._in_code import told
from enforcement.doors._options import Options
from enforcement.limiter import Limiter
from enforcement.model.limits import Limit
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.plan import Costs

_LISTS: Final = ("RateLimit", "RateLimit-Policy")


class Installed(Protocol):
    """The settings and the limiter of a process."""

    def options(self) -> Options:
        """Return the settings."""

    def limiter(self) -> Limiter:
        """Return the limiter."""


class NotManaged(RuntimeError):
    """Something would be held that nobody would give back."""


class Visit:
    """
    One request: the decisions made on it, and what it holds until its response is complete.

    Attributes:
        managed: Whether middleware, or an outer decorator, will tell the decisions and end the visit.
        checked: Whether published policies have been asked, or need not be.
    """

    def __init__(self, request: Any, installed: Installed) -> None:
        self.request = request
        self.installed = installed
        self.decisions: list[Decision] = []
        self.managed = False
        self.checked = False
        self._by_policies: Decision | None = None
        self._held: list[tuple[Any, Any]] = []

    def address(self) -> str | None:
        """Return the client's address."""
        meta = self.request.META
        forwarded = meta.get("HTTP_X_FORWARDED_FOR")
        # Empty over a Unix socket.
        peer = meta.get("REMOTE_ADDR") or None
        return self.installed.options().proxies.client(peer, [forwarded] if forwarded else [])

    def decide(self, limits: tuple[Limit, ...], key: str, costs: Costs = 1) -> Decision:
        """Charge limits in code. Raises Denied."""
        limiter = self.installed.limiter()
        if has_slots(limits):
            return self._hold(limiter.admit(limits, key, costs))
        return self._passed(limiter.hit(limits, key, costs))

    def check(self) -> Decision:
        """Charge the published policies of the request's token, once. Raises Refusal and Denied."""
        self.checked = True
        # The middleware and a throttle may both ask: they mean the same policies, and one request.
        if self._by_policies is None:
            self._by_policies = self._charge_policies()
        return self._by_policies

    def _charge_policies(self) -> Decision:
        options, limiter = self.installed.options(), self.installed.limiter()
        token = (options.token or _token)(self.request)
        if not token:
            raise missing_token()
        costs = options.costs(self.request) if options.costs else 1
        plan = limiter.find_plan(token, self._describe(options))
        if isinstance(plan, Decision):
            return self._passed(plan)
        if plan.has_slots or plan.has_charge_on:
            return self._hold(limiter.admit_plan(plan, costs))
        return self._passed(limiter.decide(plan, costs))

    def note(self, decision: Decision) -> None:
        """Remember a decision for the response, once, and show it to the view."""
        self.request.sluicegate = decision
        if all(known is not decision for known in self.decisions):
            self.decisions.append(decision)

    def end(self, status: int) -> None:
        """Charge by the answer's status and free slots, once."""
        held, self._held = self._held, []
        for manager, admission in held:
            admission.charge_for(status)
            # Never by an exception, which would take the charge back.
            manager.__exit__(None, None, None)

    def finish(self, response: Any) -> Any:
        """Tell what was decided; end the visit, at once or when a stream ends. Returns the response."""
        self.tell(response)
        if not self._held:
            return response
        if response.streaming:
            stream = _AwaitedStream if response.is_async else _Stream
            response.streaming_content = stream(response.streaming_content, self, response)
        else:
            self.end(response.status_code)
        return response

    def tell(self, response: Any) -> None:
        """Add what was decided to a response, once."""
        decisions, self.decisions = self.decisions, []
        if decisions:
            for name, value in joining(response.headers, told(decisions, self.installed.options().headers)):
                present = response.headers.get(name) if name in _LISTS else None
                response.headers[name] = f"{present}, {value}" if present else value

    def _hold(self, manager: Any) -> Decision:
        if not self.managed:
            raise NotManaged(
                "A limit here holds slots or waits for the answer: enforcement.doors.django.DecisionMiddleware, or"
                " LimitMiddleware, must stand in MIDDLEWARE to end it."
            )
        try:
            admission = manager.__enter__()
        except Denied as denied:
            self.note(denied.decision)
            raise
        self._held.append((manager, admission))
        self.note(admission.decision)
        decision: Decision = admission.decision
        return decision

    def _passed(self, decision: Decision) -> Decision:
        self.note(decision)
        if not decision.allowed:
            raise Denied(decision)
        return decision

    def _describe(self, options: Options) -> RequestAttributes:
        values: dict[str, str | None] = {"method": self.request.method, "path": self.request.path}
        values["ip"] = self.address()
        if options.attributes:
            values.update(options.attributes(self.request))
        return RequestAttributes(values, self.request.headers.get)


class _Stream:
    """A streamed body; with its last byte, or when the server closes the response, the visit ends."""

    def __init__(self, chunks: Any, visit: Visit, response: Any) -> None:
        self._chunks: Iterable[bytes] = chunks
        self._visit = visit
        self._status = response.status_code
        self._progress = Progress()
        self._progress.begin(self._status, response.headers.get("Content-Length"))

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if self._progress.ends_with(len(chunk)):
                self.close()
            yield chunk
        self.close()

    def close(self) -> None:
        """End the visit; servers close a response whatever happened."""
        self._visit.end(self._status)


class _AwaitedStream:
    """The same for an asynchronous body; servers close it from a thread."""

    def __init__(self, chunks: Any, visit: Visit, response: Any) -> None:
        self._chunks: AsyncIterator[bytes] = chunks
        self._visit = visit
        self._status = response.status_code
        self._progress = Progress()
        self._progress.begin(self._status, response.headers.get("Content-Length"))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            if self._progress.ends_with(len(chunk)):
                await in_thread(self.close)
            yield chunk
        await in_thread(self.close)

    def close(self) -> None:
        """End the visit."""
        self._visit.end(self._status)


async def in_thread(call: Callable[..., Any], *args: Any) -> Any:
    """
    Do in a thread what may wait for the store.

    A request that is cancelled meanwhile waits for the outcome, at most a decision's time budget: what it was given
    must be given back by whoever ends the visit.
    """
    work = asyncio.ensure_future(asyncio.to_thread(call, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _token(request: Any) -> str | None:
    return find_token(request.headers.get("authorization"), request.headers.get("x-api-key"))
