"""
How many tokens the text of each model has, learned from what the providers have reported.

A factor is per mille of one token for four bytes. It holds for all tenants, so none of them may decide it alone: each
token has one vote a day, each project one vote of its tokens, and each day one vote of its projects. The factor is the
median of the days. Of two values in the middle the higher one counts, because an estimate that is too low lets a budget
be exceeded until the request has ended. Whatever the votes are, a factor is from 0.5 to 2.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from django.db.models import Sum

from controlplane.prices.models import ModelFactor
from controlplane.usage.models import MeteredRow
from controlplane.usage.periods import start_of
from enforcement.metering.estimate import BYTES_PER_TOKEN, FACTOR, LEAST_FACTOR, MOST_FACTOR
from enforcement.metering.price_documents import MAX_FACTORS

# The last complete days in UTC. They decide alone, so a run that comes late or twice finds the same.
DAYS = 7
LEAST_DAYS = 3
# Of a model on a day, which otherwise has no vote.
LEAST_REQUESTS = 20
# Of a token on a day. What a provider puts around a message outweighs less text than that.
LEAST_BYTES = 1_000
# Per mille of the present factor. Each publication is a revision that every instance has to load.
LEAST_CHANGE = 50
# A model whose text nobody has sent for so long loses its factor.
FORGOTTEN_AFTER = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Measured:
    """The factor that a model should have, per mille, and on how many requests, projects and days it rests."""

    model: str
    per_mille: int
    requests: int
    projects: int
    days: int


@dataclass(frozen=True, slots=True)
class FactorChange:
    """
    One factor that changes.

    ``old`` and ``new`` are per mille. ``measured`` is None if the factor is forgotten, so that it is 1 again.
    """

    model: str
    old: int
    measured: Measured | None

    @property
    def new(self) -> int:
        return FACTOR if self.measured is None else self.measured.per_mille

    def __str__(self) -> str:
        words = f"{self.model}: {in_words(self.old)} -> {in_words(self.new)}"
        found = self.measured
        if found is None:
            return f"{words}, not asked for in {FORGOTTEN_AFTER.days} days"
        return f"{words}, by {found.requests:,} requests of {found.projects} projects on {found.days} days"


def in_words(per_mille: int) -> str:
    """Return a factor such as ``0.93``, with three decimals only if it has them."""
    return f"{per_mille / FACTOR:.3f}".removesuffix("0")


class _Votes(NamedTuple):
    """What one token has sent to a model on one day."""

    model: str
    at: datetime
    project_id: str
    token_id: str
    requests: int
    bytes: int
    input: int

    @property
    def per_mille(self) -> int:
        found = (self.input * BYTES_PER_TOKEN * FACTOR + self.bytes // 2) // self.bytes
        return min(max(found, LEAST_FACTOR), MOST_FACTOR)


def measure(now: datetime) -> list[Measured]:
    """Return what the last seven complete days say of each model that has enough usage, as a new list."""
    today = start_of("day", now)
    rows = MeteredRow.objects.filter(period="day", at__gte=today - timedelta(days=DAYS), at__lt=today)
    sums = {"n": Sum("text_requests"), "size": Sum("text_bytes"), "read": Sum("text_input")}
    keys = "model", "at", "project_id", "token_id"
    votes = rows.exclude(model="").filter(text_bytes__gt=0).values(*keys).annotate(**sums)
    votes = votes.filter(size__gte=LEAST_BYTES).order_by(*keys).values_list(*keys, *sums)
    found = (_measured(model, of_model) for model, of_model in groupby(map(_vote, votes.iterator()), _model_of))
    return [one for one in found if one is not None]


def changes(measured: Iterable[Measured], now: datetime) -> list[FactorChange]:
    """
    Return how the present factors should change, by model. A factor that would change by less than 5 % stays.

    There are at most as many factors as a document may have. New ones go first to the models of most projects, so that
    nobody can take all places with names that are made up.
    """
    present = ModelFactor.objects.by_model()
    forgotten = _forgotten(present, now)
    differ = [one for one in measured if _differs(present.get(one.model, FACTOR), one.per_mille)]
    new = sorted((one for one in differ if one.model not in present), key=_most_used)
    room = MAX_FACTORS - len(present) + len(forgotten)
    kept = [one for one in differ if one.model in present] + new[: max(0, room)]
    found = [FactorChange(one.model, present.get(one.model, FACTOR), one) for one in kept]
    found += [FactorChange(model, present[model], None) for model in forgotten]
    return sorted(found, key=lambda one: one.model)


def _forgotten(present: dict[str, int], now: datetime) -> list[str]:
    rows = MeteredRow.objects.filter(
        period="day", at__gte=now - FORGOTTEN_AFTER, text_bytes__gt=0, model__in=list(present)
    )
    seen = set(rows.order_by().values_list("model", flat=True).distinct())
    return [model for model in present if model not in seen]


def _measured(model: str, votes: Iterator[_Votes]) -> Measured | None:
    factors, requests, projects = [], 0, set()
    for _, of_day in groupby(votes, lambda vote: vote.at):
        rows = list(of_day)
        number = sum(vote.requests for vote in rows)
        if number < LEAST_REQUESTS:
            continue
        by_project = [
            _median([vote.per_mille for vote in some]) for _, some in groupby(rows, lambda vote: vote.project_id)
        ]
        factors.append(_median(by_project))
        requests += number
        projects |= {vote.project_id for vote in rows}
    if len(factors) < LEAST_DAYS:
        return None
    return Measured(model, _median(factors), requests, len(projects), len(factors))


def _median(values: list[int]) -> int:
    """Return the value in the middle, the higher one of two."""
    return sorted(values)[len(values) // 2]


def _differs(old: int, new: int) -> bool:
    return abs(new - old) * FACTOR >= LEAST_CHANGE * old


def _vote(row: tuple) -> _Votes:
    return _Votes(*row)


def _model_of(vote: _Votes) -> str:
    return vote.model


def _most_used(one: Measured) -> tuple[int, int, str]:
    return -one.projects, -one.requests, one.model
