"""
Encode the commands that a process sends to the store. No I/O.

A command is one ``FCALL``, which runs a function of the library in ``enforcement/lua`` inside the store. It has the
name of the function, the keys that the function may touch, and its arguments. The name contains the version of the
library that the command was written for.

:mod:`enforcement.plan.reply` reads the replies to decisions and leases. The code that sends a command reads the other
replies, such as :mod:`enforcement.state.settlement` for settlements.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from enforcement.lua import function
from enforcement.model.algorithms import Spec
from enforcement.model.keys import dirty_beside
from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import Costs
from enforcement.plan.plan import Plan
from enforcement.store.resp import pack

DECIDE: Final = function("decide")
LEASE: Final = function("lease")
ENROL: Final = function("enrol")
ENROL_SETTLE: Final = function("enrol_settle")
SETTLE: Final = function("settle")
CONCLUDE: Final = function("conclude")
CONCLUDE_OPEN: Final = function("conclude_open")
RENEW: Final = function("renew")
RESET: Final = function("reset")


class Decidable(Protocol):
    """A request that is to be decided. See :class:`~enforcement.plan.request.Request`."""

    @property
    def plan(self) -> Plan:
        """The counters of the request."""

    @property
    def costs(self) -> Costs:
        """A number of requests, or permits by unit."""

    @property
    def charge(self) -> bool:
        """Whether the counters are charged."""

    @property
    def ident(self) -> str:
        """The id of the reservation that takes slots, or empty."""


ResultT = TypeVar("ResultT")
Steps = Generator[bytes, object, ResultT]
"""A generator that yields encoded commands, is sent a reply or thrown a StoreError for each, and returns the result."""

REMEMBERED_MS: Final = 3_600_000
"""How long the store remembers that a reservation was settled."""


def decide_arguments(request: Decidable, now_us: int, *, clock: bool) -> list[str | int]:
    """
    Return the arguments of the call that decides a request.

    Args:
        now_us: The time in this process, in microseconds since the epoch. It selects the calendar windows.
        clock: Whether the store uses *now_us* instead of its own clock, as in tests.
    """
    plan = request.plan
    arguments: list[str | int] = ["FCALL", DECIDE, len(plan.touches), *plan.touches]
    arguments += [now_us if clock else "", "1" if request.charge else "0", request.ident]
    for bound, text in zip(plan.bounds, plan.texts(now_us), strict=True):
        arguments += [text, bound.cost_of(request.costs)]
    return arguments


def decide(request: Decidable, now_us: int, *, clock: bool) -> bytes:
    """Return the call of :func:`decide_arguments`, encoded for the store."""
    return pack(decide_arguments(request, now_us, clock=clock))


def register_arguments(request: Decidable, now_us: int, *, clock: bool) -> list[str | int]:
    """
    Return the arguments of the call that decides a request and registers its partition values.

    The reply is a list. Its first item is the reply of :func:`decide`. One item for each unregistered value of the plan
    follows: 1 if there was no room and the overflow counter decided, else 0.
    """
    plan = request.plan
    unregistered = [(i + 1, plan.bounds[i]) for i in plan.unregistered]
    return _registering(ENROL, decide_arguments(request, now_us, clock=clock), unregistered)


def _registering(
    name: str, arguments: list[str | int], unregistered: Iterable[tuple[int, BoundLimit]]
) -> list[str | int]:
    """
    Return the arguments of a call of *name*, which does what *arguments* say and also registers values.

    Args:
        name: The function that registers values first, and then does the same as the call.
        arguments: The arguments of the call.
        unregistered: The bounds whose values may be new, each with the position of its counter among the keys of the
            call, from 1.
    """
    count = int(arguments[2])
    keys, numbers = arguments[3 : 3 + count], arguments[3 + count :]
    indexes: list[str | int] = []
    values: list[str | int] = []
    for at, bound in unregistered:
        partitions = bound.partitions
        assert partitions is not None
        indexes += [partitions.key, partitions.overflowed, partitions.overflow]
        values += [at, bound.value, partitions.cap, partitions.life_us, bound.earlier]
        if bound.earlier:
            keys.append(bound.earlier)
    return ["FCALL", name, len(indexes) + len(keys), *indexes, *keys, len(values) // 5, *values, *numbers]


def lease_arguments(plan: Plan, wanted: int, share: int, now_us: int) -> list[str | int]:
    """
    Return the arguments of the call that leases permits.

    Args:
        wanted: Permits, at least 1.
        share: The store grants at most the permits that remain, divided by *share*.
        now_us: The time in this process, in microseconds since the epoch. It selects the calendar windows.
    """
    return ["FCALL", LEASE, len(plan.touches), *plan.touches, "", wanted, share, *plan.texts(now_us)]


@dataclass(slots=True)
class Correction:
    """
    The correction of one counter in a settlement.

    It never changes. The class is not frozen, because creating a frozen instance takes four times as long.

    Attributes:
        delta: Permits to charge in addition. Below 0: permits to give back.
        mark: The window that was charged, from :meth:`Reply.mark <enforcement.plan.reply.Reply.mark>`.
    """

    key: str
    spec: Spec
    delta: int
    mark: int


def settle(
    corrections: Sequence[Correction], marker: str, now_us: int | None, *, ident: str, once_for_ms: int | None
) -> list[str | int]:
    """
    Return the arguments of the call that adds each correction's permits, positive or negative, to an earlier charge.

    Args:
        marker: The key that remembers *ident*. It has the hash tag of the counters.
        now_us: The time of a test's clock. None: the store uses its own clock.
        ident: The id of the reservation.
        once_for_ms: How long *ident* is remembered, in milliseconds. A second settlement within that time changes
            nothing. None: it is not remembered.
    """
    keys = [marker, *[c.key for c in corrections]]
    if durable := [c for c in corrections if c.spec.durable]:
        keys += dict.fromkeys([dirty_beside(c.key) for c in durable])
    arguments: list[str | int] = ["FCALL", SETTLE, len(keys), *keys]
    arguments += ["" if now_us is None else now_us, "" if once_for_ms is None else once_for_ms, ident]
    for c in corrections:
        arguments += [c.spec.text, c.delta, c.mark]
    return arguments


def register_settle(arguments: list[str | int], bounds: Sequence[BoundLimit]) -> list[str | int]:
    """
    Return the arguments of a :func:`settle` that also registers partition values.

    Args:
        arguments: The arguments of the settlement.
        bounds: The counters of its corrections, in the same order.

    The reply is a list. Its first item is the reply of the settlement. One item for each partitioned bound follows:
    1 if there was no room for its value, so that its correction was left out, else 0.
    """
    unregistered = [(i + 2, bound) for i, bound in enumerate(bounds) if bound.partitions is not None]
    return _registering(ENROL_SETTLE, arguments, unregistered)


def renew(slots: Sequence[tuple[BoundLimit, int]], ident: str, now_us: int | None) -> list[str | int]:
    """
    Return the arguments of the call that renews the slots of a reservation.

    Args:
        slots: Each concurrency limit, with the number of its slots.
        ident: The id of the reservation.
        now_us: The time of a test's clock. None: the store uses its own clock.
    """
    indexes = [bound.partitions.key for bound, _ in slots if bound.partitions]
    keys = [*(bound.key for bound, _ in slots), *indexes]
    arguments: list[str | int] = ["FCALL", RENEW, len(keys), *keys, "" if now_us is None else now_us, ident]
    for bound, count in slots:
        arguments += [count, (bound.limit.window_seconds or 1) * 1_000_000, bound.limit.capacity]
        arguments += [bound.value, bound.partitions.life_us] if bound.partitions else ["", 0]
    return arguments


def reset(keys: Sequence[str]) -> list[str | int]:
    """Return the arguments of the call that deletes counters."""
    return ["FCALL", RESET, len(keys), *keys]
