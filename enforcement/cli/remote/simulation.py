"""
Play requests of the past through the limits of a policy, on a clock of their own.

The algorithms are the reference ones, which the store agrees with. A request is charged to every limit that it falls
under, or to none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from enforcement.cli.remote.problems import CommandProblem
from enforcement.cli.remote.traffic import PastRequest, Traffic
from enforcement.model.algorithms import Reference, Spec
from enforcement.model.keys import name_of
from enforcement.model.limits import Limit
from enforcement.model.matching import is_label
from enforcement.plan.binding import BoundLimit

MAX_COUNTERS: Final = 2_000_000
# Where a reply has the wait for each limit. It begins with two numbers, and has four for each limit.
_FIRST_WAIT, _WIDTH = 4, 4
Matches = Callable[[Mapping[str, str]], bool]
Rule = tuple["JudgedLimit", BoundLimit, Matches | None]


class TooManyCounters(CommandProblem):
    """The requests have more values of attributes than can be counted apart. Forgotten ones would make it too kind."""


@dataclass(slots=True)
class JudgedLimit:
    """
    The denials of one limit in a simulation.

    Attributes:
        limit: The limit.
        requests: Those that it applied to.
        denied: Those that it denied, or would have denied in shadow mode.
        callers: How many of them each caller sent.
    """

    limit: Limit
    requests: int = 0
    denied: int = 0
    callers: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, object]:
        numbers = {"requests": self.requests, "denied": self.denied, "callers": len(self.callers)}
        return {"limit": self.limit.name, "mode": self.limit.mode, **numbers}


@dataclass(slots=True)
class Simulation:
    """
    The result of a simulation of all limits of a policy.

    Attributes:
        limits: Each limit that could be judged.
        unjudged: The names of other limits, and why not.
        requests: All requests.
        denied: Those that an enforced limit denied.
        callers: How many requests each caller sent.
        limited: How many of them were denied.
    """

    limits: list[JudgedLimit] = field(default_factory=list)
    unjudged: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    denied: int = 0
    callers: Counter[str] = field(default_factory=Counter)
    limited: Counter[str] = field(default_factory=Counter)

    def to_json(self, most: int) -> dict[str, object]:
        """Return the result as JSON values, with the *most* affected callers."""
        affected = [
            {"caller": name, "requests": self.callers[name], "denied": count} for name, count in self.most(most)
        ]
        return {
            "requests": self.requests,
            "denied": self.denied,
            "callers": len(self.callers),
            "limited_callers": len(self.limited),
            "limits": [limit.to_json() for limit in self.limits],
            "not_judged": self.unjudged,
            "most_affected": affected,
        }

    def most(self, count: int) -> list[tuple[str, int]]:
        """Return the callers that were denied most, with their number of denials."""
        return sorted(self.limited.items(), key=lambda one: (-one[1], one[0]))[:count]


def why_unjudged(limit: Limit, traffic: Traffic) -> str:
    """Return why a limit cannot be judged by this traffic, as a sentence, or "" if it can."""
    if limit.algorithm == "concurrency":
        return "How long each request took is not known."
    if limit.unit != "requests":
        return f"What each request cost in {limit.unit} is not known."
    if limit.charge_on and not traffic.has_status:
        return "The responses are not known."
    needed = [*limit.partition_by, *limit.match.attributes]
    needed += ["method"] if limit.match.methods else []
    needed += ["path"] if limit.match.path else []
    unknown = sorted({name for name in needed if is_label(name) or not traffic.knows(name)})
    return f"Of the requests, {', '.join(unknown)} is not known." if unknown else ""


class LimitPlayer:
    """
    Plays requests through limits.

    Args:
        limits: The limits of a policy, overrides applied.
        traffic: Where the requests come from.
        shared: Whether all callers share each counter, as under the policy of a project.
        of_callers: The same limits for callers with overrides of their own, by the caller.
    """

    def __init__(
        self,
        limits: Sequence[Limit],
        traffic: Traffic,
        *,
        shared: bool,
        of_callers: Mapping[str, Sequence[Limit]] | None = None,
    ) -> None:
        self.result = Simulation()
        self._shared, self._reference = shared, Reference(MAX_COUNTERS + 1)
        judged: list[JudgedLimit | None] = []
        for limit in limits:
            if reason := why_unjudged(limit, traffic):
                self.result.unjudged[limit.name] = reason
            judged.append(None if reason else JudgedLimit(limit))
        self.result.limits = [one for one in judged if one]
        self._rows = list(_bound(limits, judged))
        self._own = {caller: list(_bound(own, judged)) for caller, own in (of_callers or {}).items()}

    def play(self, request: PastRequest) -> None:
        """Decide one request. Raises TooManyCounters."""
        result, at_us = self.result, request.at_us
        result.requests += 1
        result.callers[request.caller] += 1
        rules = self._own.get(request.caller, self._rows)
        found = [(judged, bound) for judged, bound, matches in rules if matches is None or matches(request.attributes)]
        if not found:
            return
        rows = [(self._key(bound.limit, request), bound.spec(at_us), 1) for _, bound in found]
        passed = self._decide(at_us, rows, found, request)
        if passed:
            charged = [row for row, (_, bound) in zip(rows, found, strict=True) if is_charged(bound.limit, request)]
            self._reference.decide(at_us, charged)
        else:
            result.denied += 1
            result.limited[request.caller] += 1
        if len(self._reference.counters) > MAX_COUNTERS:
            raise TooManyCounters(f"Must have at most {MAX_COUNTERS:,} counters. Simulate a shorter time.")

    def _decide(
        self,
        at_us: int,
        rows: list[tuple[str, Spec, int]],
        found: list[tuple[JudgedLimit, BoundLimit]],
        request: PastRequest,
    ) -> bool:
        """Return whether a request passes, and count what each limit says about it. Nothing is charged."""
        reply = self._reference.decide(at_us, rows, charge=False)
        for (judged, _), wait in zip(found, reply[_FIRST_WAIT::_WIDTH], strict=True):
            judged.requests += 1
            if wait:
                judged.denied += 1
                judged.callers[request.caller] += 1
        return reply[0] == 1

    def _key(self, limit: Limit, request: PastRequest) -> str:
        values = (request.attributes[name] for name in limit.partition_by)
        return name_of((limit.name, "" if self._shared else request.caller, *values))


def _bound(limits: Sequence[Limit], judged: Sequence[JudgedLimit | None]) -> Iterator[Rule]:
    """Yield each limit that can be judged, with what it did, how it decides, and what it matches."""
    for limit, one in zip(limits, judged, strict=True):
        if one is not None:
            # Leases change when permits are charged, and not how many are admitted.
            strict = replace(limit, consistency="strict", published=True)
            yield one, BoundLimit(strict, "{simulation}", "token"), limit.match.compile(limit.partition_by)


def is_charged(limit: Limit, request: PastRequest) -> bool:
    """Return whether a limit charges a request with this response."""
    status = request.status
    return not limit.charge_on or status in limit.charge_on or f"{status[:1]}xx" in limit.charge_on
