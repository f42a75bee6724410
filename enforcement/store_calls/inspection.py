"""Read and reset counters for operators, with the keys and the code that enforcers use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from struct import unpack_from
from typing import Any, Protocol

from redis import Redis
from redis.exceptions import BusyLoadingError

from enforcement.model.instants import time_reply_us
from enforcement.model.keys import NAME_LENGTH, Keys, together
from enforcement.model.lease_bounds import unused_max
from enforcement.plan import commands
from enforcement.plan.binding import BoundLimit
from enforcement.plan.decision import Decision
from enforcement.plan.limit_state import LimitState
from enforcement.plan.plan import Plan
from enforcement.plan.reply import read
from enforcement.plan.request import Request
from enforcement.plan.rules import Rule, Subject, rules_of


@dataclass(frozen=True, slots=True)
class Values:
    """
    The values of a partitioned limit in one project.

    Attributes:
        present: How many have a counter of their own.
        cap: How many may have one.
        beyond: About how many were not registered within a day because of the cap. They share one counter.
        remaining: Permits left on the shared counter. None: no value uses it.
    """

    present: int
    cap: int
    beyond: int
    remaining: int | None

    @property
    def full(self) -> bool:
        """Whether a new value would use the shared counter."""
        return self.present >= self.cap


@dataclass(frozen=True, slots=True)
class LiveCounter:
    """
    The present state of one limit of a project or token.

    Attributes:
        policy: Slug of the policy.
        limit: Name of the limit in the policy.
        scope: What the policy is attached to: ``global``, ``project``, ``anonymous`` or ``token``.
        partition_by: Attributes and labels whose values have counters of their own. Such a limit is partitioned, unless
            the labels of the token name one of its counters.
        used: Permits that are charged now, which may be more than the quota. None: partitioned.
        remaining: The greatest cost that would be admitted now. None: partitioned.
        reset_ms: As in a decision. None: partitioned, or it never resets.
        override: Id of the override that sets the quota, or None.
        rollover: How many unspent permits at most a window leaves to the next. They remain beside the quota. None:
            none.
        unused_max: Permits that may lie unused in the leases of all instances. 0: not leased.
        values: The values of a partitioned limit. None: not partitioned, only by labels, or not requested.
        labels: The labels of the token that the limit looks at, by their names as attributes.
    """

    policy: str
    limit: str
    scope: str
    algorithm: str
    unit: str
    mode: str
    quota: int
    partition_by: tuple[str, ...]
    used: int | None
    remaining: int | None
    reset_ms: int | None
    override: str | None
    unused_max: int
    values: Values | None = None
    rollover: int | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reset:
    """
    The counters that were reset.

    Attributes:
        count: How many counters the store had.
        at_us: When they were reset, by the store's clock, microseconds since the epoch.
        durable: The durable counters, even if the store had none: the hash tag, the last part of the key, and the end
            of the present window in microseconds since the epoch. 0: it has no end.
    """

    count: int = 0
    at_us: int = 0
    durable: tuple[tuple[str, str, int], ...] = ()


def live_counters(
    client: Redis,
    keys: Keys,
    subject: Subject,
    *,
    now_us: int,
    fleet: int = 1,
    with_values: bool = True,
) -> list[LiveCounter]:
    """
    Return a new :class:`LiveCounter` for every limit that applies to a token or project. Nothing is charged.

    Args:
        subject: Without a token, the limits that all tokens of the project share, and those of requests without a
            token, are returned.
        now_us: Used for the ends of overrides and for calendar windows. Counters are read by the store's own clock.
        fleet: Number of live instances, at least 1.
        with_values: Also count the values of partitioned limits. The account of a proxy has no right to do that.
    Raises:
        redis.RedisError: The store does not reply, or lacks the function library.
    """
    rules = rules_of(subject, now_us)
    single = [rule for rule in rules if rule.has_one_counter]
    seen = dict(zip((rule.index for rule in single), _look(client, keys, single, now_us), strict=True))
    partitioned = [rule for rule in rules if rule.varies_by] if with_values else []
    values = _values(client, keys, partitioned, now_us)
    return [_counter(rule, fleet, values.get(rule.index), *seen.get(rule.index, (None, None))) for rule in rules]


def reset_counters(
    client: Redis,
    keys: Keys,
    subject: Subject,
    *,
    now_us: int,
    limit: str | None = None,
) -> Reset:
    """
    Delete the counters of the holder's own limits, or of *limit* even if others share it, and return a :class:`Reset`.

    Args:
        limit: ``"policy-slug/limit-name"``. None: all limits attached to the token, or to the project if there is none,
            those of its anonymous policy included.
    Returns:
        The counters that were reset. Those of partitioned limits are not reset, because their values are not known.
    Raises:
        redis.RedisError: The store does not reply, or lacks the function library.
    """
    scopes = ("project", "anonymous") if subject.token is None else ("token",)
    rules = rules_of(subject, now_us)
    wanted = [
        rule
        for rule in rules
        if rule.has_one_counter
        and (rule.scope in scopes if limit is None else f"{rule.policy.slug}/{rule.limit.name}" == limit)
    ]
    if not wanted:
        return Reset()
    resets = [_reset(client, keys, some) for some in together(wanted, attrgetter("tag"))]
    durable = tuple(row for reset in resets for row in reset.durable)
    return Reset(sum(reset.count for reset in resets), max(reset.at_us for reset in resets), durable)


def _reset(client: Redis, keys: Keys, rules: list[Rule]) -> Reset:
    plan = Plan(tuple(rule.bind(keys, {}) for rule in rules))
    with client.pipeline(transaction=True) as pipe:
        # In one transaction, so that exactly the charges before this instant are reset.
        pipe.time()
        pipe.execute_command(*commands.reset(plan.keys))  # type: ignore[no-untyped-call]
        time, count = pipe.execute()
    at_us = time_reply_us(time)
    durable = [(rule.tag, bound) for rule, bound in zip(rules, plan.bounds, strict=True) if bound.durable]
    named = tuple((tag, bound.key[-NAME_LENGTH:], bound.window_end(at_us)) for tag, bound in durable)
    return Reset(count, at_us, named)


def _values(client: Redis, keys: Keys, rules: list[Rule], now_us: int) -> dict[int, Values]:
    """Return by rule index how many values each partitioned limit has registered, may have and could not register."""
    censuses = [(rule, census) for rule in rules if (census := rule.partitions(keys))]
    pipe = client.pipeline(transaction=False)
    for _, census in censuses:
        pipe.zcount(census.key, now_us, "+inf")
        pipe.pfcount(census.overflowed)
    numbers = pipe.execute()
    result = {}
    for (rule, census), present, beyond in zip(censuses, numbers[::2], numbers[1::2], strict=True):
        left = look(client, [rule.overflow(census)], now_us)[1][0][0].remaining if beyond else None
        result[rule.index] = Values(present, census.cap, beyond, left)
    return result


def _look(client: Redis, keys: Keys, rules: list[Rule], now_us: int) -> list[tuple[LimitState, int]]:
    """Return for each rule, in their order, the state of its counter and the permits used."""
    seen = {
        rule.index: state
        for some in together(rules, attrgetter("tag"))
        for rule, state in zip(some, look(client, [rule.bind(keys, {}) for rule in some], now_us)[1], strict=True)
    }
    return [seen[rule.index] for rule in rules]


class CommandClient(Protocol):
    """What sends a command to the store, such as a client of redis-py."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Return the reply to a command. Raises redis-py's errors."""


def look(client: CommandClient, bounds: Sequence[BoundLimit], now_us: int) -> tuple[int, list[tuple[LimitState, int]]]:
    """
    Return the store's time in microseconds since the epoch, and for each counter its state and its used permits.
    Nothing is charged.

    Args:
        bounds: At least one bound limit.
        now_us: An estimate of the store's time, for calendar windows.
    Raises:
        redis.RedisError: The store does not reply, or lacks the function library.
    """
    plan = Plan(tuple(bounds))
    for _ in range(2):  # Try again if the store's clock is in another calendar window.
        arguments = commands.decide_arguments(Request(plan, 0, charge=False), now_us, clock=False)
        raw = client.execute_command(*arguments, NEVER_DECODE=True)
        reply = read(raw, len(plan.bounds))
        if reply.lost:
            raise BusyLoadingError("The store is restoring its counters.")
        if reply.decided:
            break
        now_us = reply.now_us
    states = Decision(True, "ok", "store", plan, reply).limits
    used = [
        _used_of(client, bound, reply.now_us) if bound.limit.rollover else state.capacity - reply.remaining(i)
        for i, (bound, state) in enumerate(zip(plan.bounds, states, strict=True))
    ]
    return reply.now_us, list(zip(states, used, strict=True))


def _used_of(client: CommandClient, bound: BoundLimit, now_us: int) -> int:
    """Return the used permits of a limit with a rollover, of which a reply only tells what remains."""
    value = client.execute_command("GET", bound.key, NEVER_DECODE=True)
    used, ends_us = unpack_from(">dd", value) if value and len(value) >= 16 else (0, 0)
    return int(used) if now_us < ends_us else 0


def _counter(rule: Rule, fleet: int, values: Values | None, state: LimitState | None, used: int | None) -> LiveCounter:
    limit = rule.limit
    return LiveCounter(
        policy=rule.policy.slug,
        limit=limit.name,
        scope=rule.scope,
        algorithm=limit.algorithm,
        unit=limit.unit,
        mode=limit.mode,
        quota=limit.quota,
        partition_by=limit.partition_by,
        used=used,
        remaining=None if state is None else state.remaining,
        reset_ms=None if state is None else state.reset_ms,
        override=rule.override_id,
        unused_max=unused_max(limit, fleet),
        values=values,
        labels=dict(rule.labels),
        rollover=limit.rollover,
    )
