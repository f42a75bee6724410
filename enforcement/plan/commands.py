"""
Encode the commands that the store's functions execute. :mod:`enforcement.plan.reply` reads the replies. No I/O.

Every command names the version of the function library it was written for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from enforcement.lua import function
from enforcement.model.algorithms import Spec
from enforcement.model.keys import dirty_beside
from enforcement.plan.binding import BoundLimit
from enforcement.plan.plan import Plan
from enforcement.store.resp import pack

if TYPE_CHECKING:
    from enforcement.plan.request import Request

DECIDE: Final = function("decide")
LEASE: Final = function("lease")
ENROL: Final = function("enrol")
ENROL_SETTLE: Final = function("enrol_settle")
SETTLE: Final = function("settle")
RENEW: Final = function("renew")
RESET: Final = function("reset")

Steps = Generator[bytes, Any, Any]
"""Yields encoded commands, is sent their replies or thrown a StoreError, and returns what comes of them."""

REMEMBERED_MS: Final = 3_600_000
"""How long the store remembers that a reservation was settled."""

NOT_RESTORED: Final = -3
"""In place of a reply: the store lost durable counters and has not got them back; nothing was read or written."""


def decide_arguments(request: Request[Plan], now_us: int, *, clock: bool) -> list[str | int]:
    """
    Return the arguments of the call that decides a request.

    Args:
        now_us: This process' idea of the present, for calendar boundaries.
        clock: Whether *now_us* is a test's clock, which the store takes for its own.
    """
    plan = request.plan
    arguments: list[str | int] = ["FCALL", DECIDE, len(plan.touches), *plan.touches]
    arguments += [now_us if clock else "", "1" if request.charge else "0", request.ident]
    for bound, text in zip(plan.bounds, plan.texts(now_us), strict=True):
        arguments += [text, bound.cost_of(request.costs)]
    return arguments


def decide(request: Request[Plan], now_us: int, *, clock: bool) -> bytes:
    """Return the encoded call of :func:`decide_arguments`."""
    return pack(decide_arguments(request, now_us, clock=clock))


def register(request: Request[Plan], now_us: int, *, clock: bool) -> bytes:
    """
    Return the encoded call that decides a request, and registers its values that are new to the store.

    Its reply is a list: the reply of :func:`decide`, then for each unregistered value of the plan 1 if the overflow
    counter decided, or 0.
    """
    plan = request.plan
    unregistered = [(i + 1, plan.bounds[i]) for i in plan.unregistered]
    return pack(_registering(ENROL, decide_arguments(request, now_us, clock=clock), unregistered))


def _registering(
    name: str, arguments: list[str | int], unregistered: Iterable[tuple[int, BoundLimit]]
) -> list[str | int]:
    """
    Return the arguments of a call that also registers values.

    Args:
        name: The function that registers and then does the same as the call.
        unregistered: Each bound whose value may be new, with the index of its counter among the keys of the call.
    """
    count = int(arguments[2])
    keys, numbers = arguments[3 : 3 + count], arguments[3 + count :]
    censuses: list[str | int] = []
    values: list[str | int] = []
    for at, bound in unregistered:
        census = bound.census
        assert census is not None
        censuses += [census.key, census.overflowed, census.overflow]
        values += [at, bound.value, census.cap, census.life_us]
    total, number = len(censuses) + count, len(values) // 4
    return ["FCALL", name, total, *censuses, *keys, number, *values, *numbers]


def lease_arguments(plan: Plan, wanted: int, share: int, now_us: int) -> list[str | int]:
    """
    Return the arguments of the call that takes permits ahead.

    Args:
        wanted: Permits, at least 1.
        share: One process may take a *share*-th part of what is left.
    """
    return ["FCALL", LEASE, len(plan.touches), *plan.touches, "", wanted, share, *plan.texts(now_us)]


@dataclass(frozen=True, slots=True)
class Correction:
    """One counter's part in a settlement. It adds *delta* permits to the window of *mark*, or gives back if below 0."""

    key: str
    spec: Spec
    delta: int
    mark: int


def settle(
    corrections: Sequence[Correction], marker: str, now_us: int | None, *, ident: str, once_for_ms: int | None
) -> list[str | int]:
    """
    Return the arguments of the call that corrects earlier charges.

    Args:
        marker: Key that remembers the id; in the slot of the counters.
        now_us: A test's clock, or None.
        once_for_ms: How long the id is remembered, so that a second settlement changes nothing; None: not at all.
    """
    keys = [marker, *(c.key for c in corrections)]
    keys += dict.fromkeys(dirty_beside(c.key) for c in corrections if c.spec.durable)
    arguments: list[str | int] = ["FCALL", SETTLE, len(keys), *keys]
    arguments += ["" if now_us is None else now_us, "" if once_for_ms is None else once_for_ms, ident]
    for c in corrections:
        arguments += [c.spec.text, c.delta, c.mark]
    return arguments


def register_settle(arguments: list[str | int], bounds: Sequence[BoundLimit]) -> list[str | int]:
    """
    Return the arguments of a :func:`settle` that also registers values.

    Args:
        arguments: Those of the settlement.
        bounds: Its counters, in its order.

    Its reply is [that of the settlement, then for each bound with a census 1: it has no place and was left out, or 0].
    """
    unregistered = [(i + 2, bound) for i, bound in enumerate(bounds) if bound.census is not None]
    return _registering(ENROL_SETTLE, arguments, unregistered)


def renew(slots: Sequence[tuple[BoundLimit, int]], ident: str, now_us: int | None) -> list[str | int]:
    """Return the arguments of the call that renews slots, given the number of slots for each limit."""
    censuses = [bound.census.key for bound, _ in slots if bound.census]
    keys = [*(bound.key for bound, _ in slots), *censuses]
    arguments: list[str | int] = ["FCALL", RENEW, len(keys), *keys, "" if now_us is None else now_us, ident]
    for bound, count in slots:
        arguments += [count, (bound.limit.window_seconds or 1) * 1_000_000]
        arguments += [bound.value, bound.census.life_us] if bound.census else ["", 0]
    return arguments


def reset(keys: Sequence[str]) -> list[str | int]:
    """Return the arguments of the call that forgets counters."""
    return ["FCALL", RESET, len(keys), *keys]
