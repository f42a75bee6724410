"""Assertions on decisions. A failure shows the source of the decision and the state of each limit."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

from enforcement.model.matching import Attributes
from enforcement.plan.binding import Limits, pairs_of
from enforcement.plan.costs import Costs
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.limit_state import LimitState
from enforcement.plan.plan import Plan
from enforcement.reservations.subject import check_subject

if TYPE_CHECKING:
    from enforcement import aio
    from enforcement.limiter import Limiter


def describe(decision: Decision) -> str:
    """Return a decision in one line, followed by one line for each of its limits."""
    verdict = "allowed" if decision.allowed else f"denied ({decision.reason})"
    lines = [f"{verdict} by {decision.source}, revision {decision.revision}"]
    lines += [f"  {_state(state)}" for state in decision.limits] or ["  no limit"]
    return "\n".join(lines)


def assert_allowed(decision: Decision) -> Decision:
    """Assert that a decision allows the request, and return the decision."""
    if not decision.allowed:
        raise AssertionError(f"The request should pass, and was {describe(decision)}")
    return decision


def assert_denied(decision: Decision, *, reason: str | None = None, by: str | None = None) -> Decision:
    """
    Assert that a decision denies the request, and return the decision.

    Args:
        reason: The reason it must have, one of :data:`enforcement.plan.decision.STATUSES`. None: any.
        by: Name of a limit that must deny. None: any.
    """
    if decision.allowed:
        raise AssertionError(f"The request should be denied, and was {describe(decision)}")
    if reason is not None and decision.reason != reason:
        raise AssertionError(f"The reason should be {reason!r}; the request was {describe(decision)}")
    if by is not None and by not in decision.denied_by:
        raise AssertionError(f"The limit {by!r} should deny; the request was {describe(decision)}")
    return decision


def assert_limited(
    limiter: Limiter,
    limits: Limits | str,
    key: str | None = None,
    *,
    admits: int,
    costs: Costs = 1,
    attributes: Attributes | None = None,
    within_seconds: float | None = None,
) -> Decision:
    """
    Send requests, assert that exactly *admits* of them pass now, and return the denial of the next one.

    The requests are made and charged. Slots of ``concurrency`` limits are held until the assertion ends.

    Args:
        limits: Limits in code, with *key* or in pairs with their keys, or a token.
        admits: How many requests pass.
        costs: The cost of each request, as in ``check()``.
        attributes: As in ``check()``, and only with a token.
        within_seconds: The longest ``retry_after`` that the denial may have. None: any.
    Raises:
        AssertionError: Another number passed. The message shows the unexpected decision.
        TypeError: A token with a *key*, or limits with *attributes*.
    """
    check_subject(limits, key, attributes)
    admitting = _has_slots(limiter.find_plan(limits, attributes) if isinstance(limits, str) else limits, key)
    probe = _probe(admits, within_seconds)
    next(probe)
    with ExitStack() as held:

        def request() -> Decision:
            if admitting:
                return held.enter_context(limiter.admit(limits, key, costs, attributes)).decision
            if isinstance(limits, str):
                return limiter.check(limits, costs, attributes)
            return limiter.hit(limits, key, costs)

        while True:
            try:
                decision = request()
            except Denied as denied:
                decision = denied.decision
            try:
                probe.send(decision)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]


async def assert_limited_async(
    limiter: aio.Limiter,
    limits: Limits | str,
    key: str | None = None,
    *,
    admits: int,
    costs: Costs = 1,
    attributes: Attributes | None = None,
    within_seconds: float | None = None,
) -> Decision:
    """Assert as :func:`assert_limited` does, with a limiter for asyncio, and return the denial."""
    check_subject(limits, key, attributes)
    admitting = _has_slots(await limiter.find_plan(limits, attributes) if isinstance(limits, str) else limits, key)
    probe = _probe(admits, within_seconds)
    next(probe)
    async with AsyncExitStack() as held:

        async def request() -> Decision:
            if admitting:
                return (await held.enter_async_context(limiter.admit(limits, key, costs, attributes))).decision
            if isinstance(limits, str):
                return await limiter.check(limits, costs, attributes)
            return await limiter.hit(limits, key, costs)

        while True:
            try:
                decision = await request()
            except Denied as denied:
                decision = denied.decision
            try:
                probe.send(decision)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]


def _probe(admits: int, within_seconds: float | None) -> Generator[None, Decision, Decision]:
    """Receive decisions by ``send()``, raise AssertionError for a wrong one, and return the denial at the end."""
    expected = f"{admits} requests should pass, and the next one be denied"
    for number in range(1, admits + 1):
        decision = yield
        if not decision.allowed:
            raise AssertionError(f"{expected}; number {number} was {describe(decision)}")
    denial = yield
    if denial.allowed:
        raise AssertionError(f"{expected}; number {admits + 1} was {describe(denial)}")
    if denial.status != 429:
        raise AssertionError(f"{expected} by a limit; number {admits + 1} was {describe(denial)}")
    wait_ms = denial.retry_after_ms
    if within_seconds is not None and (wait_ms is None or wait_ms > within_seconds * 1_000):
        raise AssertionError(f"The denial should end within {within_seconds} s; the request was {describe(denial)}")
    return denial


def _has_slots(subject: Plan | Decision | Limits, key: str | None) -> bool:
    """Return whether requests of this plan or these limits hold slots, so that they need ``admit()``."""
    if isinstance(subject, Decision):
        return False
    if isinstance(subject, Plan):
        return subject.has_slots
    return any(limit.algorithm == "concurrency" for limits, _ in pairs_of(subject, key) for limit in limits)


def _state(state: LimitState) -> str:
    name = f"{state.policy}/{state.name}" if state.policy else state.name
    shadow = ", shadow" if state.mode == "shadow" else ""
    verdict = "admits" if state.allowed else "can never admit this cost" if state.hopeless else "denies"
    spans = (("resets in", state.reset_ms), ("retry after", state.retry_after_ms))
    times = "".join(f", {label} {span / 1_000:g} s" for label, span in spans if span is not None)
    return f"{name} ({state.algorithm}{shadow}) {verdict}: {state.remaining} of {state.quota} {state.unit} left{times}"
