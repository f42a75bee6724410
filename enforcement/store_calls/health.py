"""
Judge what is wrong with the instances of a fleet, from what they report.

The doctor, the alerts and the first page of the admin all show these judgements, so that they never disagree. The
judgements on the server itself are the findings of :mod:`enforcement.doctor.server`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from enforcement.store_calls.instances import (
    BAD_PRICES,
    DEGRADED,
    EVICTING,
    GLOBAL,
    PROBLEMS,
    SET_BACK,
    UNSUPPORTED_REASONS,
)

BEHIND: Final = "behind"
UNMETERED: Final = "unmetered"
UNSUPPORTED: Final = "unsupported"

COUNTS_NOTHING: Final = "requests give no cost in its unit, so it admits everything"
"""The text of a judgement on a limit that is unmetered."""

_REPAIRS: Final = {
    SET_BACK: "the worker of the control plane publishes a later state within seconds, else run 'manage.py publish "
    "--all', or with --new-epoch to go back on purpose",
    EVICTING: "set maxmemory-policy to noeviction and raise maxmemory",
    BAD_PRICES: "read in the log of such an instance which rule they break, and correct the price",
}
_SEES_NO_RESPONSE: Final = (
    "These instances never see the response, so they refuse each request under this limit. Send such requests through "
    "the Sluicegate proxy or an integration in the application, or take the limit out of their policies."
)
_MAY_NOT_COUNT: Final = (
    "Let them ask a decision service, or make their account without --no-global (manage.py store_acl)."
)


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """
    The part of a heartbeat that is judged.

    Attributes:
        id: The name of the instance.
        revision: The published revision that it runs.
        state: One of :data:`~enforcement.store_calls.instances.STATES`.
        problems: Keys of :data:`~enforcement.store_calls.instances.PROBLEMS`. Others are of a later release.
        unmetered: "policy/limit" of each limit in whose unit it charges no cost.
        unsupported: "policy/limit" and the reason, for each limit that it cannot enforce.
    """

    id: str
    revision: int
    state: str = ""
    problems: Collection[str] = ()
    unmetered: Collection[str] = ()
    unsupported: Collection[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """
    One thing that is wrong.

    Attributes:
        kind: A key of :data:`~enforcement.store_calls.instances.PROBLEMS`, ``degraded``, ``behind``, ``unmetered`` or
            ``unsupported``.
        level: ``problem`` if limits may admit more than they allow, or ``warning``.
        text: What is wrong, as a part of a sentence.
        advice: What to do.
        instances: The ids of those that report it, in order.
        limit: "policy/limit" if it is about one limit, or empty.
    """

    kind: str
    level: Literal["warning", "problem"]
    text: str
    advice: str
    instances: tuple[str, ...]
    limit: str = ""


def judge(reports: Iterable[InstanceReport], revision: int) -> list[Judgement]:
    """
    Return what is wrong with these instances, the problems first.

    Args:
        revision: The last published one.
    """
    reports = sorted(reports, key=lambda report: report.id)
    return [*_states(reports), *behind(reports, revision), *_unmetered(reports), *_unsupported(reports)]


def behind(reports: Iterable[InstanceReport], revision: int) -> Iterator[Judgement]:
    """Yield a judgement on the instances that run an earlier revision than this one, if there are any."""
    late = tuple(sorted(report.id for report in reports if report.revision < revision))
    if late:
        text = f"{len(late)} not at revision {revision}"
        yield Judgement(BEHIND, "warning", text, "Check again in a second. If they stay behind, read their logs.", late)


def _states(reports: Collection[InstanceReport]) -> Iterator[Judgement]:
    """Yield a judgement for each problem that instances name, and one for those that are degraded without a name."""
    for problem, text in PROBLEMS.items():
        if ids := tuple(report.id for report in reports if problem in report.problems):
            yield Judgement(problem, "problem", text, _REPAIRS[problem], ids)
    named = PROBLEMS.keys()
    ids = tuple(it.id for it in reports if it.state == DEGRADED and named.isdisjoint(it.problems))
    if ids:
        yield Judgement(DEGRADED, "problem", "they decide without the store", "check whether they can reach it", ids)


def _unmetered(reports: Collection[InstanceReport]) -> Iterator[Judgement]:
    """Yield a judgement on each limit that counts nothing, because instances charge no cost in its unit."""
    by_limit: dict[str, list[str]] = {}
    for report in reports:
        for limit in report.unmetered:
            by_limit.setdefault(limit, []).append(report.id)
    for limit, ids in sorted(by_limit.items()):
        yield Judgement(UNMETERED, "warning", COUNTS_NOTHING, "Pass costs, or remove it.", tuple(ids), limit)


def _unsupported(reports: Collection[InstanceReport]) -> Iterator[Judgement]:
    """Yield a judgement on each limit and reason for which instances refuse requests, as they cannot enforce it."""
    by_limit: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        for unsupported in report.unsupported:
            by_limit.setdefault(unsupported, []).append(report.id)
    for (limit, reason), ids in sorted(by_limit.items()):
        text, advice = (
            UNSUPPORTED_REASONS.get(reason, reason),
            _MAY_NOT_COUNT if reason == GLOBAL else _SEES_NO_RESPONSE,
        )
        yield Judgement(UNSUPPORTED, "warning", text, advice, tuple(ids), limit)
